//! Finding and opening the files of a checkpoint.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::adapter;
use super::catalog::{CheckpointError, OpenOptions, ShardFile, TensorInfo};
use super::header::{Header, HeaderError, MAX_HEADER};
use super::index::{self, Index, IndexError};
use crate::patience::patiently;

const SINGLE: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const MAX_CONFIG: u64 = 16 << 20;

/// The shards of a directory, by its index or because there is only one.
pub(super) fn shards_of(
    dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<(Vec<String>, Option<Index>), CheckpointError> {
    let mut found = Vec::new();
    let mut pickles = false;
    for entry in patiently(|| std::fs::read_dir(dir)).map_err(|e| io_error(dir, e))? {
        let name = entry.map_err(|e| io_error(dir, e))?.file_name().to_string_lossy().into_owned();
        pickles |= is_pickle(&name);
        if name.ends_with(".safetensors") {
            found.push(name);
        }
    }
    found.sort();
    if adapter::is_adapter(dir) && found.iter().all(|name| name.starts_with("adapter_")) {
        return Err(CheckpointError::NotACheckpoint {
            path: dir.to_owned(),
            reason: "it is a LoRA adapter; name it behind its model, MODEL+ADAPTER".to_owned(),
        });
    }
    let not = |reason: &str| CheckpointError::NotACheckpoint {
        path: dir.to_owned(),
        reason: reason.to_owned(),
    };
    let path = dir.join(index::FILE);
    if path.symlink_metadata().is_ok() {
        if found.iter().any(|name| name == SINGLE) {
            return Err(not(
                "it has both model.safetensors and an index; remove the one that is stale",
            ));
        }
        let index = read_index(&path)?;
        let shards: Vec<String> = index.shards().into_iter().map(str::to_owned).collect();
        let extra: Vec<&str> =
            found.iter().filter(|name| !shards.contains(name)).map(String::as_str).collect();
        if !extra.is_empty() {
            warnings.push(format!(
                "{}: not in the index and ignored: {}",
                dir.display(),
                extra.join(", ")
            ));
        }
        return Ok((shards, Some(index)));
    }
    if found.iter().any(|name| name == SINGLE) {
        let extra: Vec<&str> = found.iter().filter(|n| *n != SINGLE).map(String::as_str).collect();
        if !extra.is_empty() {
            warnings.push(format!(
                "{}: ignored beside {SINGLE}: {}",
                dir.display(),
                extra.join(", ")
            ));
        }
        return Ok((vec![SINGLE.to_owned()], None));
    }
    match found.len() {
        1 => Ok((found, None)),
        0 if pickles => Err(not(
            "its weights are pickle files, which can run code when loaded; convert them to safetensors",
        )),
        0 => Err(not("it has no safetensors file")),
        _ => Err(not("it has several safetensors files and no model.safetensors.index.json")),
    }
}

fn read_index(path: &Path) -> Result<Index, CheckpointError> {
    let wrap = |error| CheckpointError::Index { path: path.to_owned(), error };
    let (file, meta) = open_regular(path)?;
    if meta.len() > index::MAX_BYTES {
        return Err(wrap(IndexError::TooLarge(meta.len())));
    }
    let mut json = vec![0; meta.len() as usize];
    file.read_exact_at(&mut json, 0).map_err(|e| io_error(path, e))?;
    Index::parse(&json).map_err(wrap)
}

/// Opens one file as number `number`: the file, its tensors, and what to warn of.
pub(super) fn read_shard(
    path: &Path,
    name: &str,
    number: u32,
    options: OpenOptions,
) -> Result<(ShardFile, Vec<TensorInfo>, Vec<String>), CheckpointError> {
    let (file, meta) = open_regular(path)?;
    let (header, bytes) = read_header(&file, &meta, options.lenient).map_err(|e| e.at(path))?;
    let header_len = bytes.len() as u64;
    let warnings = header.warnings.iter().map(|text| format!("{}: {text}", path.display()));
    let tensors = header.entries.into_iter().map(|entry| TensorInfo {
        name: entry.name,
        dtype: entry.dtype,
        shape: entry.shape,
        file: number,
        offset: header_len + entry.start,
        len: entry.end - entry.start,
        adapted: None,
    });
    let hash = hex(&Sha256::digest(&bytes));
    let shard = ShardFile::new(path, name, &meta, header_len, hash);
    Ok((shard, tensors.collect(), warnings.collect()))
}

enum ReadError {
    Io(io::Error),
    Header(HeaderError),
}

impl ReadError {
    fn at(self, path: &Path) -> CheckpointError {
        match self {
            ReadError::Io(source) => io_error(path, source),
            ReadError::Header(error) => CheckpointError::Header { path: path.to_owned(), error },
        }
    }
}

/// Reads length and header, after checking that they fit; returns the bytes read, too.
fn read_header(
    file: &File,
    meta: &Metadata,
    lenient: bool,
) -> Result<(Header, Vec<u8>), ReadError> {
    let available =
        meta.len().checked_sub(8).ok_or(ReadError::Header(HeaderError::TooShort(meta.len())))?;
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(ReadError::Io)?;
    let claimed = u64::from_le_bytes(length);
    if claimed > available {
        return Err(ReadError::Header(HeaderError::Truncated { claimed, available }));
    }
    if claimed > MAX_HEADER {
        return Err(ReadError::Header(HeaderError::TooLarge(claimed)));
    }
    let mut bytes = vec![0; 8 + claimed as usize];
    file.read_exact_at(&mut bytes, 0).map_err(ReadError::Io)?;
    let header =
        Header::parse(&bytes[8..], available - claimed, lenient).map_err(ReadError::Header)?;
    Ok((header, bytes))
}

/// Opens a regular file, links followed, without waiting for a pipe's other end.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata), CheckpointError> {
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = patiently(|| options.open(path)).map_err(|e| io_error(path, e))?;
    let meta = file.metadata().map_err(|e| io_error(path, e))?;
    if !meta.is_file() {
        return Err(CheckpointError::NotRegular { path: path.to_owned() });
    }
    Ok((file, meta))
}

pub(super) fn config(root: &Path) -> Result<Option<serde_json::Value>, CheckpointError> {
    let path = root.join(CONFIG);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let (file, meta) = open_regular(&path)?;
    let bad = |reason: String| CheckpointError::Inconsistent { path: path.clone(), reason };
    if meta.len() > MAX_CONFIG {
        return Err(bad(format!("has {} bytes, too many for a config", meta.len())));
    }
    let mut text = vec![0; meta.len() as usize];
    file.read_exact_at(&mut text, 0).map_err(|e| io_error(&path, e))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| bad(format!("is not JSON: {e}")))?;
    if value.is_object() { Ok(Some(value)) } else { Err(bad("is not a JSON object".to_owned())) }
}

pub(super) fn refuse_pickle(path: &Path) -> Result<(), CheckpointError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_pickle(&name) {
        return Err(CheckpointError::NotACheckpoint {
            path: path.to_owned(),
            reason:
                "it is a pickle file, which can run code when loaded; convert it to safetensors"
                    .to_owned(),
        });
    }
    Ok(())
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
}

pub(super) fn io_error(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io { path: path.to_owned(), source }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
