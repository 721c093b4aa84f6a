//! LoRA adapters as PEFT saves them: a product of two small matrices for each tensor that was trained.
//!
//! ```text
//!  DIR/adapter_config.json        rank r, alpha, ..
//!  DIR/adapter_model.safetensors  base_model.model.MODULE.lora_A.weight   [r, in]
//!                                 base_model.model.MODULE.lora_B.weight   [out, r]
//!
//!  MODULE.weight  +=  scale * B x A      scale = alpha / r, or alpha / sqrt(r) for rsLoRA
//! ```
//!
//! A catalog takes an adapter in ([`Catalog::adapt`]): the tensors keep their places and say what is added to
//! them. Nothing here reads a matrix.

mod config;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::DType;
use super::catalog::{Catalog, CheckpointError, OpenOptions, ShardFile, TensorInfo};
use super::shards;
use config::{Config, INSTEAD};
use names::Role;

/// Name of the configuration. A directory that has it is an adapter's.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
const MAX_CONFIG: u64 = 16 << 20;

/// What an adapter does to a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// The type that the model stores the tensor in.
    pub dtype: DType,
    /// What is added to the stored values, if anything is.
    pub low_rank: Option<LowRank>,
}

/// A product of two small matrices, `scale * left x right`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// As many rows as the tensor, as many columns as the rank.
    pub left: Factor,
    /// As many rows as the rank, as many columns as the tensor.
    pub right: Factor,
    /// The rank.
    pub rank: u64,
    /// The factor.
    pub scale: f32,
}

/// A stored matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its name in the adapter's file.
    pub name: Box<str>,
    /// Index into [`Catalog::files`].
    pub file: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Rows and columns as they are stored.
    pub shape: [u64; 2],
    /// Whether rows are stored as columns.
    pub transposed: bool,
}

impl Factor {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape[0] * self.shape[1]
    }
}

/// An adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its directory.
    pub root: PathBuf,
    /// The file with its tensors, and its configuration.
    pub files: [ShardFile; 2],
    /// The model that it says it was trained on.
    pub base: Option<String>,
    /// Products by the name of their module.
    pub products: BTreeMap<String, Product>,
    /// Tensors that stand for those of the model, by name there.
    pub whole: BTreeMap<String, TensorInfo>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The two matrices of a module.
#[derive(Clone, Debug)]
pub struct Product {
    /// What inputs meet first: rank rows.
    pub a: TensorInfo,
    /// The other: rank columns.
    pub b: TensorInfo,
    /// The rank.
    pub rank: u64,
    /// What their product is multiplied by.
    pub scale: f32,
    /// Whether the tensor has inputs as rows.
    transposed: bool,
}

/// Whether a directory is that of an adapter.
pub fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG).symlink_metadata().is_ok()
}

impl Adapter {
    /// Opens an adapter's directory. Reads configuration and header only.
    ///
    /// # Errors
    /// [`CheckpointError`] naming file and place.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        let (weights, config_path) = (path.join(WEIGHTS), path.join(CONFIG));
        let not = |reason: String| CheckpointError::NotAnAdapter { path: path.to_owned(), reason };
        let meta = std::fs::metadata(path).map_err(|e| shards::io_error(path, e))?;
        if !meta.is_dir() {
            return Err(not("it is no directory".to_owned()));
        }
        if !is_adapter(path) {
            return Err(not(format!("it has no {CONFIG}")));
        }
        if weights.symlink_metadata().is_err() {
            let pickle = path.join(PICKLE).symlink_metadata().is_ok();
            return Err(not(if pickle {
                "its weights are a pickle file, which can run code when loaded; convert them to safetensors"
                    .to_owned()
            } else {
                format!("it has no {WEIGHTS}")
            }));
        }
        let (config_file, config) = config_file(&config_path, options)?;
        let (file, tensors, file_warnings) = shards::read_shard(&weights, WEIGHTS, 0, options)?;
        let wrong = |reason: String| CheckpointError::File { path: weights.clone(), reason };
        let mut warnings = file_warnings;
        warnings.extend(
            config.warnings.iter().map(|text| format!("{}: {text}", config_path.display())),
        );
        let (mut halves, mut whole) = (BTreeMap::new(), BTreeMap::new());
        for tensor in tensors {
            let key = tensor.name.clone();
            let (name, role) = names::parse(&key).map_err(wrong)?;
            let twice = if role == Role::Whole {
                check_whole(&config, &name, &tensor).map_err(wrong)?;
                whole.insert(name, tensor).is_some()
            } else {
                halves.insert((name, role), tensor).is_some()
            };
            if twice {
                return Err(wrong(format!(
                    "says twice what {key:?} says: it holds several adapters"
                )));
            }
        }
        let products = products(&config, halves).map_err(wrong)?;
        if products.is_empty() && whole.is_empty() {
            return Err(wrong("holds no tensor".to_owned()));
        }
        let (root, base) = (path.to_owned(), config.base);
        Ok(Self { root, files: [file, config_file], base, products, whole, warnings })
    }
}

fn config_file(path: &Path, options: OpenOptions) -> Result<(ShardFile, Config), CheckpointError> {
    let wrong = |reason: String| CheckpointError::File { path: path.to_owned(), reason };
    let (file, meta) = shards::open_regular(path)?;
    if meta.len() > MAX_CONFIG {
        return Err(wrong(format!("has {} bytes, too many for a configuration", meta.len())));
    }
    let mut text = vec![0; meta.len() as usize];
    file.read_exact_at(&mut text, 0).map_err(|e| shards::io_error(path, e))?;
    let config = Config::parse(&text, options.lenient).map_err(wrong)?;
    let hash = shards::hex(&Sha256::digest(&text));
    Ok((ShardFile::new(path, CONFIG, &meta, meta.len(), hash), config))
}

/// A tensor that stands for one of the model must be one that PEFT was told to save.
fn check_whole(config: &Config, name: &str, tensor: &TensorInfo) -> Result<(), String> {
    let _float = float(tensor)?;
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    let saved = config.saved.iter().any(|end| module.ends_with(end.as_str()));
    if saved || name.ends_with(".weight") {
        return Ok(());
    }
    let key = &tensor.name;
    Err(if name.ends_with("bias") {
        format!(
            "has the trained bias {key:?} (`bias` is not none), which is not supported; {INSTEAD}"
        )
    } else {
        format!("has the tensor {key:?}, which is none that LoRA knows")
    })
}

/// The type of a tensor that can be decoded.
fn float(tensor: &TensorInfo) -> Result<Dtype, String> {
    let dtype = tensor.dtype.known();
    dtype.filter(|dtype| is_float(*dtype)).ok_or_else(|| {
        format!(
            "has the tensor {:?} of type {}, which is no plain float",
            tensor.name, tensor.dtype
        )
    })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Pairs the matrices of each module.
fn products(
    config: &Config,
    mut halves: BTreeMap<(String, Role), TensorInfo>,
) -> Result<BTreeMap<String, Product>, String> {
    let mut products = BTreeMap::new();
    while let Some(((module, role), tensor)) = halves.pop_first() {
        let (other, embedding) = match role {
            Role::A => (Role::B, false),
            Role::EmbeddingA => (Role::EmbeddingB, true),
            Role::B | Role::EmbeddingB | Role::Whole => {
                return Err(format!("has {:?} and no matrix A for it", tensor.name));
            }
        };
        let Some(b) = halves.remove(&(module.clone(), other)) else {
            return Err(format!("has {:?} and no matrix B for it", tensor.name));
        };
        let (rank, scale) = (config.rank(&module), config.scale(&module));
        for (matrix, axis) in [(&tensor, 0), (&b, 1)] {
            let _float = float(matrix)?;
            let (name, shape) = (&matrix.name, &matrix.shape);
            if shape.len() != 2 {
                return Err(format!(
                    "has {name:?} of shape {shape:?}: LoRA of convolutions is not supported; {INSTEAD}"
                ));
            }
            if shape[axis] != rank {
                return Err(format!(
                    "has {name:?} of shape {shape:?}, and {CONFIG} says rank {rank} for {module}"
                ));
            }
        }
        if !scale.is_finite() {
            return Err(format!("is multiplied by {scale} for {module}, as {CONFIG} has it"));
        }
        let transposed = embedding || config.fan_in_fan_out;
        let product = Product { a: tensor, b, rank, scale, transposed };
        if products.insert(module.clone(), product).is_some() {
            return Err(format!("has matrices for {module} as a linear layer and as an embedding"));
        }
    }
    Ok(products)
}

impl Catalog {
    /// Takes in an adapter: its files follow those of the model, and tensors say what it does to them.
    ///
    /// # Errors
    /// [`CheckpointError::File`] if any of its tensors has no tensor of the model to belong to.
    pub fn adapt(&mut self, adapter: &Adapter) -> Result<(), CheckpointError> {
        let path = &adapter.files[0].path;
        let wrong = |reason: String| CheckpointError::File { path: path.clone(), reason };
        let first = self.files.len() as u32;
        for (name, tensor) in &adapter.whole {
            let at = self.place(adapter, name, &tensor.name).map_err(wrong)?;
            let of = &self.tensors[at];
            if of.shape != tensor.shape {
                return Err(wrong(format!(
                    "has {:?} of shape {:?}, and the model's is {:?}: a vocabulary that was extended, for \
                     example, is not supported; {INSTEAD}",
                    tensor.name, tensor.shape, of.shape
                )));
            }
            let adapted = Adapted { dtype: plain(of).map_err(wrong)?, low_rank: None };
            self.tensors[at] = TensorInfo {
                name: of.name.clone(),
                file: first + tensor.file,
                adapted: Some(Box::new(adapted)),
                ..tensor.clone()
            };
        }
        for (module, product) in &adapter.products {
            let name = format!("{module}.weight");
            let at = self.place(adapter, &name, &product.a.name).map_err(wrong)?;
            let of = &mut self.tensors[at];
            let low_rank = low_rank(of, product, first).map_err(wrong)?;
            let adapted = match of.adapted.take() {
                Some(adapted) => Adapted { low_rank: Some(low_rank), ..*adapted },
                None => Adapted { dtype: plain(of).map_err(wrong)?, low_rank: Some(low_rank) },
            };
            of.adapted = Some(Box::new(adapted));
        }
        self.files.extend(adapter.files.iter().cloned());
        self.adapter = Some(adapter.root.clone());
        self.warnings.extend(adapter.warnings.iter().cloned());
        Ok(())
    }

    /// The position of a tensor that an adapter speaks of.
    fn place(&self, adapter: &Adapter, name: &str, key: &str) -> Result<usize, String> {
        let found = self.tensors.binary_search_by(|tensor| (*tensor.name).cmp(name));
        found.map_err(|_| {
            let tail = format!(".{name}");
            let alike = self.tensors.iter().find(|tensor| {
                tensor.name.ends_with(&tail) || name.ends_with(&format!(".{}", tensor.name))
            });
            let hint = match (alike, &adapter.base) {
                (Some(tensor), _) => format!("the model has {}", tensor.name),
                (None, Some(base)) => format!("it was trained on {}", base.escape_debug()),
                (None, None) => "was it trained on this model?".to_owned(),
            };
            format!("has {key:?}, and the model no tensor {name}; {hint}")
        })
    }
}

/// The type of a tensor that an adapter may change.
fn plain(tensor: &TensorInfo) -> Result<DType, String> {
    if tensor.dtype.known().is_some_and(is_float) {
        return Ok(tensor.dtype.clone());
    }
    let (name, dtype) = (&tensor.name, &tensor.dtype);
    Err(format!("changes {name}, which the model stores as {dtype}: that is no plain float"))
}

/// The product as it is added to a tensor.
fn low_rank(of: &TensorInfo, product: &Product, first: u32) -> Result<LowRank, String> {
    let Product { a, b, rank, scale, transposed } = product;
    let shape = if *transposed { [a.shape[1], b.shape[0]] } else { [b.shape[0], a.shape[1]] };
    if *of.shape != shape {
        let turned = *of.shape == [shape[1], shape[0]];
        let hint = if turned { " (is `fan_in_fan_out` right?)" } else { "" };
        return Err(format!(
            "has {:?} of shape {:?} and {:?} of shape {:?}, which make {shape:?}, and the model's {} is {:?}{hint}",
            a.name, a.shape, b.name, b.shape, of.name, of.shape
        ));
    }
    let factor = |tensor: &TensorInfo| {
        Ok::<_, String>(Factor {
            name: tensor.name.clone(),
            file: first + tensor.file,
            offset: tensor.offset,
            dtype: float(tensor)?,
            shape: [tensor.shape[0], tensor.shape[1]],
            transposed: *transposed,
        })
    };
    let (a, b) = (factor(a)?, factor(b)?);
    let (left, right) = if *transposed { (a, b) } else { (b, a) };
    Ok(LowRank { left, right, rank: *rank, scale: *scale })
}
