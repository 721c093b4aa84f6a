//! Whether a directory of components holds what was written.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::{Components, Names, scan};
use crate::checkpoint::components::HEAD;
use crate::engine::EngineError;
use crate::engine::sink::{SinkError, read_back};
use crate::error::Error;
use crate::job::output::hex;
use crate::job::verify::{Depth, Finding, VerifyReport};

/// Looks at the data file of a directory of components: its size, or every byte.
///
/// # Errors
/// If files cannot be read, or it is stopped. What is found is no error here.
pub(in crate::job) fn verify(
    dir: &Path,
    components: &Components,
    depth: Depth,
    cancel: &AtomicBool,
) -> Result<VerifyReport, Error> {
    let mut report =
        VerifyReport { files: 2, manifest: true, finished: true, ..VerifyReport::default() };
    let names = Names::of(components.kind());
    let path = names.data_in(dir);
    let mut find = |(range, tensor): (Option<(u64, u64)>, Option<&String>), what: &str| {
        let (file, what, tensor) = (names.data.to_owned(), what.to_owned(), tensor.cloned());
        report.findings.push(Finding { file, range, tensor, what });
    };
    match path.metadata() {
        Ok(meta) if meta.is_file() && meta.len() == components.bytes => {}
        Ok(meta) if meta.is_file() => {
            let what = format!("it has {} bytes and not {}", meta.len(), components.bytes);
            find((None, None), &what);
            return Ok(report);
        }
        _ => {
            find((None, None), "it is missing, or no file");
            return Ok(report);
        }
    }
    if depth == Depth::Quick {
        return Ok(report);
    }
    let (mut first, mut hasher, form) = (Vec::new(), Sha256::new(), components.form());
    read_back(&path, 0..HEAD, |bytes| first.extend_from_slice(bytes))?;
    hasher.update(&first);
    for tensor in &components.tensors {
        if cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Interrupted.into());
        }
        let range = tensor.offset..tensor.end();
        match scan::frames(&path, range, form, |bytes| hasher.update(bytes), |_, _, _| {}) {
            Err(SinkError::Damaged { offset, len, .. }) => {
                find((Some((offset, len)), Some(&tensor.name)), "a frame is not what was written");
            }
            scanned => scanned?,
        }
    }
    if first != form.head() || hex(&hasher.finalize()) != components.sha256 {
        find((None, None), "its SHA-256 is another");
    }
    report.bytes = components.bytes;
    Ok(report)
}
