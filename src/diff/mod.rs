//! How two models differ, tensor by tensor; with a base, also how their task vectors do.
//!
//! One read of all tensors, tile by tile, in the memory of [`Settings::memory`]. The sums do not depend on the order of
//! their terms, so the numbers are the same for any threads and tiles. It is not a pass of the engine: that one is over
//! tensors that fit together, and here those that do not are part of the answer.

mod pairs;
mod pass;
mod report;

use std::path::Path;
use std::sync::atomic::AtomicBool;

pub use report::{Code, DiffReport, Form, Group, Numbers, Row, TaskNumbers, Unlike};

use crate::checkpoint::{Catalog, OpenOptions};
use crate::engine::{EngineError, source};
use crate::error::Error;
use crate::job;
use crate::kernel;
use crate::progress::{Event, Progress};
use crate::recipe::{RecipeError, Settings, reference};
use pairs::Pairs;

/// Compares the models `a` and `b`. Settings other than memory, threads, tile and the way of reading say nothing here.
///
/// # Errors
/// If a model cannot be opened or read, changes meanwhile, or the memory is too small; and if it is stopped. That the
/// models differ is no error.
pub fn diff(
    [a, b]: [&Path; 2],
    base: Option<&Path>,
    options: OpenOptions,
    settings: &Settings,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<DiffReport, Error> {
    let kernels = kernel::select()?;
    let paths: Vec<&Path> = [Some(a), Some(b), base].into_iter().flatten().collect();
    let mut catalogs = Vec::new();
    for path in &paths {
        let catalog = open(path, options)?;
        for text in &catalog.warnings {
            progress.event(&Event::Warning { text });
        }
        catalogs.push(catalog);
    }
    let pairs = Pairs::new(&catalogs);
    let files = catalogs.iter().flat_map(|catalog| &catalog.files);
    let files: Vec<source::InputFile> = files
        .map(|file| source::InputFile {
            path: file.path.clone(),
            len: file.len,
            inode: file.inode,
            mtime_ns: file.mtime_ns,
        })
        .collect();
    let (memory, of_memory) = job::memory(settings, progress);
    let pass = pass::Pass { catalogs: &catalogs, pairs: &pairs, kernels, progress, cancel };
    let found = pass.run(files, settings, (memory, &of_memory))?;
    Ok(DiffReport::new(&paths, &catalogs, &pairs, &found))
}

fn open(path: &Path, options: OpenOptions) -> Result<Catalog, Error> {
    if let (_, Some(_)) = reference::split(path) {
        return Err(RecipeError::Value {
            key: path.display().to_string(),
            reason: "there is no such model, and diff does not apply adapters (MODEL+ADAPTER); merge the adapter into \
                     its model first, and compare that"
                .to_owned(),
        }
        .into());
    }
    Ok(Catalog::open(path, options)?)
}

/// What a worker that died is.
fn panicked() -> Error {
    EngineError::Panicked("comparing").into()
}
