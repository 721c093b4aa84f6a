//! Whether a directory of components holds what was written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::{Components, Grown, Names, scan};
use crate::checkpoint::components::{Form, HEAD, Kind};
use crate::checkpoint::hex;
use crate::engine::EngineError;
use crate::engine::sink::{SinkError, read_back};
use crate::error::Error;
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
        let (range, mut base) = (tensor.offset..tensor.end(), blake3::Hasher::new());
        let scanned = scan::frames(&path, range, form, |frame, _, stored| {
            hasher.update(stored);
            base.update(&frame.base);
        });
        match scanned {
            Err(SinkError::Damaged { offset, len, .. }) => {
                find((Some((offset, len)), Some(&tensor.name)), "a frame is not what was written");
            }
            Ok(()) if base.finalize().to_hex().as_str() != tensor.base => {
                find((None, Some(&tensor.name)), "its frames name another base");
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

/// Looks at what the last record says of a data file that is not finished, in whichever of these directories it is.
///
/// # Errors
/// If it cannot be read.
pub(in crate::job) fn verify_grown(
    dirs: &[PathBuf],
    grown: &Grown,
    report: &mut VerifyReport,
) -> Result<(), Error> {
    let kinds = [Kind::Shares, Kind::Unified].map(Names::of);
    let places = dirs.iter().flat_map(|dir| kinds.map(|names| (dir, names)));
    let mut places = places.flat_map(|(dir, names)| {
        [names.part_in(dir), names.data_in(dir)].map(|path| (path, names))
    });
    let Some((path, names)) = places.find(|(path, _)| path.exists()) else {
        // Components have their name already, and are looked at under it.
        return Ok(());
    };
    let mut first = Vec::new();
    let head = read_back(&path, 0..HEAD, |bytes| first.extend_from_slice(bytes));
    let form = first.first_chunk().and_then(Form::parse);
    let scanned = match (head, form) {
        (Err(error), _) => Err(error),
        // It is written again.
        (Ok(()), None) => return Ok(()),
        (Ok(()), Some(form)) => scan::frames(&path, HEAD..grown.bytes, form, |_, _, _| {}),
    };
    report.files += 1;
    report.bytes += grown.bytes;
    match scanned {
        Err(SinkError::Damaged { offset, len, .. }) => report.findings.push(Finding {
            file: names.data.to_owned(),
            range: Some((offset, len)),
            tensor: None,
            what: "a frame is not what was written".to_owned(),
        }),
        scanned => scanned?,
    }
    Ok(())
}
