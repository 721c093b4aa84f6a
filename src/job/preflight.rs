//! Checks of the output place, before anything is created.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::staging::{self, Place};
use crate::engine::host;
use crate::error::{Error, IoContext};
use crate::plan::{Inputs, Plan};

/// Room for an output.
#[derive(Clone, Debug, Serialize)]
pub struct Space {
    /// Bytes that the output takes.
    pub needed: u64,
    /// Bytes free where it will be, counting what an earlier attempt left there.
    pub free: u64,
}

/// Refuses an output that overlaps an input, or does not fit on the disk with `beside` bytes more.
pub(super) fn check(
    inputs: &Inputs,
    plan: &Plan,
    beside: u64,
    out: &Path,
    place: Place,
) -> Result<Space, Error> {
    let wrong = |reason: String| Error::OutputPlace { path: out.to_owned(), reason };
    let parent = resolve_parent(out).map_err(wrong)?;
    let name = out.file_name().ok_or_else(|| wrong("names no directory to create".to_owned()))?;
    let target = parent.join(name);
    let roots = inputs.catalogs().zip(&plan.labels).flat_map(|(catalog, label)| {
        [Some(&catalog.root), catalog.adapter.as_ref()]
            .into_iter()
            .flatten()
            .map(move |r| (r, label))
    });
    for (root, label) in roots {
        let root = std::fs::canonicalize(root).at("resolve", root)?;
        if target.starts_with(&root) {
            return Err(wrong(format!("lies inside the input {label}; inputs are never changed")));
        }
        if root.starts_with(&target) {
            return Err(wrong(format!("contains the input {label}; inputs are never changed")));
        }
    }
    let needed = plan.layout.shards.iter().map(|s| s.len).sum::<u64>();
    let needed = needed + beside + staging::OVERHEAD;
    // What an earlier attempt left there is replaced.
    let held = staging::held_bytes(&target, place);
    let disk = if place == Place::Inside { target } else { parent };
    let free = host::disk::free_bytes(&disk).at("examine", &disk)? + held;
    if needed > free {
        return Err(Error::NoSpace { path: disk, needed, free });
    }
    Ok(Space { needed, free })
}

/// The real path of the directory that will hold the output.
fn resolve_parent(out: &Path) -> Result<PathBuf, String> {
    let parent = match out.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err("names no directory to create".to_owned()),
    };
    let real = std::fs::canonicalize(parent)
        .map_err(|error| format!("the directory {} cannot be used: {error}", parent.display()))?;
    if real.is_dir() { Ok(real) } else { Err(format!("{} is not a directory", parent.display())) }
}
