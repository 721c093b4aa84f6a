//! What the headers of one checkpoint say.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::DType;
use super::adapter::Adapted;
use super::header::HeaderError;
use super::index::{Index, IndexError};
use super::shards::{config, hex, io_error, open_regular, read_shard, refuse_pickle, shards_of};

/// Far above any model, and so far below what a number can hold that sums over checkpoints and passes cannot overflow.
const MAX_BYTES: u64 = 1 << 52;

/// How strictly a checkpoint is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Harmless deviations are warnings.
    pub lenient: bool,
    /// Tensors of unknown types are listed rather than refused.
    pub unknown_types: bool,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: DType,
    /// Shape, outermost dimension first.
    pub shape: Box<[u64]>,
    /// Index into [`Catalog::files`].
    pub file: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// What an adapter does to it.
    pub adapted: Option<Box<Adapted>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        // Cannot overflow: the header's rules say so.
        self.shape.iter().product()
    }

    /// The type that the model stores the tensor in, whatever an adapter's is that stands for it.
    pub fn model_dtype(&self) -> &DType {
        self.adapted.as_ref().map_or(&self.dtype, |adapted| &adapted.dtype)
    }
}

/// One file of a checkpoint, as it was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFile {
    /// Path.
    pub path: PathBuf,
    /// File name, for people.
    pub name: String,
    /// Size in bytes.
    pub len: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Inode.
    pub inode: u64,
    /// Bytes before the tensor data.
    pub header_len: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub header_sha256: String,
}

impl ShardFile {
    /// A file by what the system says of it, and by the bytes before its data.
    pub(super) fn new(
        path: &Path,
        name: &str,
        meta: &Metadata,
        header_len: u64,
        header_sha256: String,
    ) -> Self {
        Self {
            path: path.to_owned(),
            name: name.to_owned(),
            len: meta.len(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            inode: meta.ino(),
            header_len,
            header_sha256,
        }
    }
}

/// One checkpoint: its tensors and where they lie.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Its directory.
    pub root: PathBuf,
    /// The directory of the adapter that it has taken in.
    pub adapter: Option<PathBuf>,
    /// Its shards, sorted by name; then those of its adapter.
    pub files: Vec<ShardFile>,
    /// Its tensors, sorted by name.
    pub tensors: Vec<TensorInfo>,
    /// Its `config.json`, if there is one.
    pub config: Option<serde_json::Value>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why a path is not a good checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no directory with an adapter.
    #[error("{path} is not a LoRA adapter: {reason}")]
    NotAnAdapter {
        /// Path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A file of an adapter or tokenizer that is malformed, not supported, or not for this model.
    #[error("{path} {reason}")]
    File {
        /// Path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is a pipe, a device, ..
    #[error("{path} is neither a directory nor a regular file")]
    NotRegular {
        /// Path.
        path: PathBuf,
    },
    /// There is nothing to load in it.
    #[error("{path} is not a checkpoint: {reason}")]
    NotACheckpoint {
        /// Path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A shard is malformed.
    #[error("{path} {error}")]
    Header {
        /// Path.
        path: PathBuf,
        /// The rule.
        error: HeaderError,
    },
    /// The index is malformed.
    #[error("{path} {error}")]
    Index {
        /// Path.
        path: PathBuf,
        /// The rule.
        error: IndexError,
    },
    /// Index and shards disagree, or a name occurs twice.
    #[error("{path}: {reason}")]
    Inconsistent {
        /// Path.
        path: PathBuf,
        /// How.
        reason: String,
    },
}

impl Catalog {
    /// Opens a Hugging Face directory or a single file. Reads headers only.
    ///
    /// # Errors
    /// [`CheckpointError`] naming file and place.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        let meta = std::fs::metadata(path).map_err(|e| io_error(path, e))?;
        let mut warnings = Vec::new();
        let (root, names, index) = if meta.is_dir() {
            let (names, index) = shards_of(path, &mut warnings)?;
            (path.to_owned(), names, index)
        } else if meta.is_file() {
            refuse_pickle(path)?;
            let root = path.parent().filter(|p| !p.as_os_str().is_empty());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (root.unwrap_or(Path::new(".")).to_owned(), vec![name], None)
        } else {
            return Err(CheckpointError::NotRegular { path: path.to_owned() });
        };
        let mut catalog = Self {
            config: config(&root)?,
            root,
            adapter: None,
            files: Vec::new(),
            tensors: Vec::new(),
            warnings,
        };
        for name in names {
            catalog.add_shard(&name, options)?;
        }
        if catalog.files.iter().fold(0, |sum: u64, file| sum.saturating_add(file.len)) > MAX_BYTES {
            return Err(catalog.inconsistent("holds more than 4 PiB, as no model does".to_owned()));
        }
        catalog.tensors.shrink_to_fit();
        catalog.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        catalog.check_names()?;
        if let Some(index) = index {
            catalog.check_index(&index)?;
        }
        catalog.check_types(options)?;
        Ok(catalog)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?;
        Some(&self.tensors[at])
    }

    fn add_shard(&mut self, name: &str, options: OpenOptions) -> Result<(), CheckpointError> {
        let path = self.root.join(name);
        let (file, tensors, warnings) = read_shard(&path, name, self.files.len() as u32, options)?;
        self.warnings.extend(warnings);
        self.tensors.extend(tensors);
        self.files.push(file);
        Ok(())
    }

    /// Counts a file of the directory among the checkpoint's, if it is there: what is in it decides about values, too.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn count_file(&mut self, name: &str) -> Result<(), CheckpointError> {
        let path = self.root.join(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let (file, meta) = open_regular(&path)?;
        let (mut hasher, mut buffer, mut at) = (Sha256::new(), vec![0; 1 << 16], 0);
        while at < meta.len() {
            let step = (meta.len() - at).min(1 << 16);
            let part = &mut buffer[..step as usize];
            file.read_exact_at(part, at).map_err(|e| io_error(&path, e))?;
            hasher.update(&*part);
            at += step;
        }
        let hash = hex(&hasher.finalize());
        self.files.push(ShardFile::new(&path, name, &meta, meta.len(), hash));
        Ok(())
    }

    fn inconsistent(&self, reason: String) -> CheckpointError {
        let path = match &self.files[..] {
            [only] => only.path.clone(),
            _ => self.root.clone(),
        };
        CheckpointError::Inconsistent { path, reason }
    }

    fn file_name(&self, tensor: &TensorInfo) -> &str {
        &self.files[tensor.file as usize].name
    }

    /// No name twice, not even up to case: some file systems and loaders fold it.
    fn check_names(&self) -> Result<(), CheckpointError> {
        if let Some(pair) = self.tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(self.inconsistent(format!(
                "tensor {:?} is in {} and in {}",
                pair[0].name,
                self.file_name(&pair[0]),
                self.file_name(&pair[1]),
            )));
        }
        let mut folded: Vec<(String, &str)> =
            self.tensors.iter().map(|t| (t.name.to_lowercase(), &*t.name)).collect();
        folded.sort_unstable();
        match folded.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(self.inconsistent(format!(
                "tensors {:?} and {:?} differ only in case",
                pair[0].1, pair[1].1
            ))),
            None => Ok(()),
        }
    }

    /// Index and shards must name the same tensors in the same places.
    fn check_index(&mut self, index: &Index) -> Result<(), CheckpointError> {
        for tensor in &self.tensors {
            let held = self.file_name(tensor);
            match index.get(&tensor.name) {
                Some(named) if named == held => {}
                Some(named) => {
                    return Err(self.inconsistent(format!(
                        "tensor {:?} is in {held}, but the index says {named}",
                        tensor.name
                    )));
                }
                None => {
                    return Err(self.inconsistent(format!(
                        "tensor {:?} is in {held}, but the index does not know it",
                        tensor.name
                    )));
                }
            }
        }
        if let Some((name, shard)) =
            index.shard_of.iter().find(|(name, _)| self.get(name).is_none())
        {
            return Err(self.inconsistent(format!(
                "the index says that {shard} holds tensor {name:?}, but it does not"
            )));
        }
        let total: u64 = self.tensors.iter().map(|t| t.len).sum();
        if let Some(claimed) = index.total_size.filter(|&claimed| claimed != total) {
            self.warnings.push(format!(
                "{}: the index claims {claimed} bytes in all, the shards hold {total}",
                self.root.display()
            ));
        }
        Ok(())
    }

    fn check_types(&self, options: OpenOptions) -> Result<(), CheckpointError> {
        let unknown = self.tensors.iter().find(|t| t.dtype.known().is_none());
        match unknown.filter(|_| !options.unknown_types) {
            Some(tensor) => Err(CheckpointError::Inconsistent {
                path: self.files[tensor.file as usize].path.clone(),
                reason: format!("tensor {:?} has the unknown type {}", tensor.name, tensor.dtype),
            }),
            None => Ok(()),
        }
    }
}
