//! Checks of the place of a directory of components, before anything is created.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Components;
use crate::checkpoint::components::Kind;
use crate::error::{Error, IoContext};
use crate::job::Job;
use crate::recipe::RecipeError;

/// Refuses a directory that overlaps the output or an input, lies on another file system than the output, or is there;
/// tells whether it is there because an earlier attempt at the same merge gave it its name.
///
/// # Errors
/// What is wrong with it.
pub(in crate::job) fn check(job: &Job, dir: &Path, out: &Path, begun: bool) -> Result<bool, Error> {
    let wrong = |reason: String| -> Error {
        let reason = format!("{}: {reason}", dir.display());
        RecipeError::Value { key: "--components".to_owned(), reason }.into()
    };
    let [dir_at, out_at] = [dir, out].map(|path| -> Result<PathBuf, Error> {
        let name =
            path.file_name().ok_or_else(|| wrong("names no directory to create".to_owned()))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        Ok(std::fs::canonicalize(parent).at("use", parent)?.join(name))
    });
    let (dir_at, out_at) = (dir_at?, out_at?);
    if dir_at.starts_with(&out_at) || out_at.starts_with(&dir_at) {
        return Err(wrong(
            "it must not lie in the output, nor hold it; name another place".to_owned(),
        ));
    }
    for (catalog, label) in job.inputs.catalogs().zip(&job.plan.labels) {
        let root = std::fs::canonicalize(&catalog.root).at("resolve", &catalog.root)?;
        if dir_at.starts_with(&root) || root.starts_with(&dir_at) {
            let reason = format!("it overlaps the input {label}; inputs are never changed");
            return Err(wrong(reason));
        }
    }
    let device = |path: &Path| -> Result<u64, Error> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        // An output directory that is there may be a mount point.
        let at = if path.exists() { path } else { parent };
        Ok(std::fs::metadata(at).at("examine", at)?.dev())
    };
    let parent = dir_at.parent().unwrap_or(Path::new("/"));
    if std::fs::metadata(parent).at("examine", parent)?.dev() != device(&out_at)? {
        let reason =
            "it must be on the file system of the output, since both are renamed into place";
        return Err(wrong(reason.to_owned()));
    }
    if dir.symlink_metadata().is_err() {
        return Ok(false);
    }
    let ours = begun
        && Components::load(dir, Kind::Shares)?
            .is_some_and(|found| found.plan == job.fingerprint());
    if ours { Ok(true) } else { Err(Error::OutputExists { path: dir.to_owned() }) }
}
