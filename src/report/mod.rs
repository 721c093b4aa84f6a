//! What a merge has seen, as pictures: from `reflow_statistics.json` to numbers by layer and module, and to one HTML page.
//!
//! The file is read twice, line by line: for the names, so that it is known what there is room for, and for the numbers. Memory
//! and page do not grow with the number of tensors.

mod figures;
mod page;
mod sums;

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

pub use figures::{Figures, Layer, Magnitudes, Named, Stack};
pub use sums::{ExpertNumbers, Numbers};

use crate::checkpoint::{STATISTICS, StatisticsError, StatisticsReader, TensorRow};
use crate::engine::sink::{RealDisk, durable};
use crate::error::{Error, IoContext};
use crate::patience::patiently;
use crate::recipe::RecipeError;
use figures::{Gathered, Names};

impl Figures {
    /// What the merge that made this directory has seen.
    ///
    /// # Errors
    /// If it holds no statistics, or damaged ones.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(STATISTICS);
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = match patiently(|| options.open(&path)) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                let reason =
                    "it holds no statistics; `reflow merge --statistics` gathers them on the way";
                let (key, reason) = (dir.display().to_string(), reason.to_owned());
                return Err(RecipeError::Value { key, reason }.into());
            }
            file => file.at("read", &path)?,
        };
        if !file.metadata().at("read", &path)?.is_file() {
            return Err(Error::Foreign { path });
        }
        let name = std::path::absolute(dir).ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or(dir.as_os_str());
        Self::parse(&mut file, &name.to_string_lossy()).map_err(|error| match error {
            StatisticsError::Io(source) => Error::Io { operation: "read", path, source },
            StatisticsError::Line(line) => {
                let what =
                    format!("line {line} is not as it was written; merge again with --statistics");
                Error::Damaged { path, what }
            }
        })
    }

    fn parse(file: &mut File, name: &str) -> Result<Self, StatisticsError> {
        let mut names = Names::default();
        each(file, |row| names.add(row))?;
        file.rewind()?;
        let reader = StatisticsReader::new(BufReader::new(&*file))?;
        let head = reader.head;
        file.rewind()?;
        let mut gathered = Gathered::new(&head, names);
        each(file, |row| gathered.add(row))?;
        Ok(gathered.finish(name, &head))
    }

    /// One page for browsers, with everything that it needs.
    pub fn page(&self) -> String {
        page::render(self)
    }
}

/// Writes a page to a file, whole or not at all. Another page is replaced.
///
/// # Errors
/// [`Error::OutputExists`] if something else is there; what the disk says.
pub fn write(page: &str, path: &Path) -> Result<(), Error> {
    let mut begin = [0; BEGIN.len()];
    let found =
        match patiently(|| File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            file => Some(file.at("read", path)?),
        };
    if let Some(mut file) = found {
        let is_file = file.metadata().at("read", path)?.is_file();
        if !is_file || file.read_exact(&mut begin).is_err() || begin != *BEGIN {
            return Err(Error::OutputExists { path: path.to_owned() });
        }
    }
    Ok(durable::write_atomic(&RealDisk, path, page.as_bytes())?)
}

/// What a page begins with.
const BEGIN: &[u8; 15] = b"<!DOCTYPE html>";

/// Hands on all rows.
fn each(file: &File, mut with: impl FnMut(&TensorRow)) -> Result<(), StatisticsError> {
    let mut reader = StatisticsReader::new(BufReader::new(file))?;
    while let Some(row) = reader.row()? {
        with(&row);
    }
    Ok(())
}
