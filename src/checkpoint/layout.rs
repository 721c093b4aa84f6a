//! Where every byte of the output will be, and the headers that say so.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{DType, natural};

/// llama.cpp reads no more of a remote shard's header than 5 MiB.
const MAX_SHARD_HEADER: usize = 5 << 20;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutTensor {
    /// Name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Box<[u64]>,
}

impl OutTensor {
    fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
        Some(elements.checked_mul(self.dtype.bits()?)?.div_ceil(8))
    }

    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// An upper bound of what the tensor adds to a header.
    fn header_bytes(&self) -> usize {
        // Every byte of a name may need six as an escape; numbers have at most 20 digits.
        self.name.len() * 6 + self.shape.len() * 21 + 120
    }
}

/// A tensor with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index into the tensors that the layout was made from.
    pub index: usize,
    /// First byte in the shard's file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// A shard to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutShard {
    /// File name.
    pub file_name: String,
    /// The first bytes of the file: length and JSON.
    pub header: Vec<u8>,
    /// Size of the file.
    pub len: u64,
    /// Its tensors by offset.
    pub tensors: Vec<Placed>,
}

/// All shards of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The shards.
    pub shards: Vec<OutShard>,
    /// Bytes of all tensors.
    pub total_size: u64,
    /// Elements of all tensors.
    pub total_parameters: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// (tensor, file), sorted by tensor.
    weight_map: Vec<(Box<str>, String)>,
}

/// Why an output cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A type whose size is not known.
    #[error("tensor {0:?} has a type whose size is not known")]
    UnknownType(String),
    /// More shards than the naming scheme has numbers.
    #[error(
        "--shard-size gives {0} shards, more than the 99999 that file names have room for; make it larger"
    )]
    TooManyShards(usize),
}

impl Layout {
    /// Distributes tensors over shards of at most `shard_size` bytes of data; a larger tensor has a
    /// shard of its own. Depends on names, types and shapes only.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn new(tensors: &[OutTensor], shard_size: u64) -> Result<Self, LayoutError> {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|&a, &b| natural::compare(&tensors[a].name, &tensors[b].name));
        let mut sizes = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let unknown = || LayoutError::UnknownType(tensor.name.to_string());
            sizes.push(tensor.bytes().ok_or_else(unknown)?);
        }
        let groups = cut(tensors, &sizes, &order, shard_size);
        if groups.len() > 99_999 {
            return Err(LayoutError::TooManyShards(groups.len()));
        }
        let count = groups.len();
        let shards: Vec<OutShard> = groups
            .into_iter()
            .enumerate()
            .map(|(k, group)| shard(tensors, &sizes, group, file_name(k, count)))
            .collect();
        let mut weight_map: Vec<(Box<str>, String)> = (shards.iter())
            .flat_map(|s| {
                s.tensors.iter().map(|p| (tensors[p.index].name.clone(), s.file_name.clone()))
            })
            .collect();
        weight_map.sort();
        let empty: Vec<&str> =
            (0..tensors.len()).filter(|&i| sizes[i] == 0).map(|i| &*tensors[i].name).collect();
        let mut warnings = Vec::new();
        if let Some(first) = empty.first() {
            warnings.push(format!(
                "{} tensors have no elements, such as {first}; some loaders refuse that",
                empty.len()
            ));
        }
        Ok(Self {
            shards,
            total_size: sizes.iter().sum(),
            total_parameters: tensors.iter().map(OutTensor::elements).sum(),
            warnings,
            weight_map,
        })
    }

    /// The same tensors, and no shard.
    #[must_use]
    pub fn without_shards(self) -> Self {
        Self { shards: Vec::new(), weight_map: Vec::new(), total_size: 0, ..self }
    }

    /// The index file's content; none for a single shard.
    pub fn index_json(&self) -> Option<String> {
        if self.shards.len() < 2 {
            return None;
        }
        let map: Map<String, Value> =
            self.weight_map.iter().map(|(name, file)| (name.to_string(), json!(file))).collect();
        let index = json!({
            "metadata": { "total_parameters": self.total_parameters, "total_size": self.total_size },
            "weight_map": map,
        });
        Some(format!("{index:#}\n"))
    }
}

fn file_name(k: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", k + 1),
    }
}

fn cut(tensors: &[OutTensor], sizes: &[u64], order: &[usize], shard_size: u64) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut data, mut header) = (0u64, 0usize);
    for &i in order {
        let more = tensors[i].header_bytes();
        let full = data.saturating_add(sizes[i]) > shard_size || header + more > MAX_SHARD_HEADER;
        match groups.last_mut() {
            Some(group) if !full => group.push(i),
            _ => {
                groups.push(vec![i]);
                (data, header) = (0, 0);
            }
        }
        data = data.saturating_add(sizes[i]);
        header += more;
    }
    groups
}

/// Orders a shard as the official writer does (widest types first, then by name), which aligns every
/// tensor to its type without holes.
fn shard(
    tensors: &[OutTensor],
    sizes: &[u64],
    mut group: Vec<usize>,
    file_name: String,
) -> OutShard {
    group.sort_by(|&a, &b| {
        let key = |i: usize| (tensors[i].dtype.rank(), &*tensors[i].name);
        key(a).cmp(&key(b))
    });
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut placed = Vec::with_capacity(group.len());
    let mut end = 0;
    for i in group {
        let (tensor, start) = (&tensors[i], end);
        end += sizes[i];
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        text.push(',');
        text.push_str(&Value::from(&*tensor.name).to_string());
        let _infallible = write!(
            text,
            r#":{{"dtype":"{}","shape":[{}],"data_offsets":[{start},{end}]}}"#,
            tensor.dtype,
            shape.join(",")
        );
        placed.push(Placed { index: i, offset: start, len: sizes[i] });
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    let begin = header.len() as u64;
    for place in &mut placed {
        place.offset += begin;
    }
    OutShard { file_name, header, len: begin + end, tensors: placed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::{TensorView, serialize};
    use std::collections::HashMap;

    fn tensor(name: &str, dtype: Dtype, shape: &[u64]) -> OutTensor {
        OutTensor { name: name.into(), dtype: DType::Known(dtype), shape: shape.into() }
    }

    #[test]
    fn headers_are_those_of_the_official_writer() {
        let tensors = [
            tensor("b.weight", Dtype::BF16, &[3, 5]),
            tensor("a \"quoted\" näme", Dtype::F32, &[2]),
            tensor("scalar", Dtype::BF16, &[]),
            tensor("ids", Dtype::I64, &[4]),
            tensor("flags", Dtype::BOOL, &[7]),
        ];
        let layout = Layout::new(&tensors, u64::MAX).unwrap();
        let shard = &layout.shards[0];
        let views = tensors.iter().map(|t| {
            let shape: Vec<usize> = t.shape.iter().map(|&n| n as usize).collect();
            let bytes: &'static [u8] = vec![0u8; t.bytes().unwrap() as usize].leak();
            (t.name.to_string(), TensorView::new(t.dtype.known().unwrap(), shape, bytes).unwrap())
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let official = serialize(views, Some(metadata)).unwrap();
        assert_eq!(official.len() as u64, shard.len);
        assert_eq!(
            String::from_utf8_lossy(&official[8..shard.header.len()]),
            String::from_utf8_lossy(&shard.header[8..])
        );
        assert_eq!(official[..8], shard.header[..8]);
    }

    #[test]
    fn the_golden_header_does_not_change() {
        let layout = Layout::new(&[tensor("w", Dtype::F16, &[2, 2])], 100).unwrap();
        let text = String::from_utf8(layout.shards[0].header[8..].to_vec()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F16","shape":[2,2],"#,
                r#""data_offsets":[0,8]}} "#
            )
        );
        assert_eq!(layout.shards[0].len, 8 + text.len() as u64 + 8);
    }

    #[test]
    fn shards_are_cut_by_size_in_natural_order() {
        let names = ["m.layers.10.w", "m.layers.2.w", "m.layers.1.w", "huge"];
        let mut tensors: Vec<OutTensor> =
            names.iter().map(|n| tensor(n, Dtype::F32, &[10])).collect();
        tensors[3].shape = [100].into();
        let layout = Layout::new(&tensors, 80).unwrap();
        let held: Vec<Vec<&str>> = layout
            .shards
            .iter()
            .map(|s| s.tensors.iter().map(|p| &*tensors[p.index].name).collect())
            .collect();
        assert_eq!(
            held,
            [vec!["huge"], vec!["m.layers.1.w", "m.layers.2.w"], vec!["m.layers.10.w"]]
        );
        assert_eq!(layout.shards[1].file_name, "model-00002-of-00003.safetensors");
        let index: Value = serde_json::from_str(&layout.index_json().unwrap()).unwrap();
        assert_eq!(index["weight_map"]["m.layers.2.w"], "model-00002-of-00003.safetensors");
        assert_eq!((layout.total_size, layout.total_parameters), (520, 130));
    }

    #[test]
    fn no_header_exceeds_what_loaders_read() {
        let tensors: Vec<OutTensor> = (0..60_000)
            .map(|i| tensor(&format!("experts.{i}.weight"), Dtype::BF16, &[1]))
            .collect();
        let layout = Layout::new(&tensors, u64::MAX).unwrap();
        assert!(layout.shards.len() > 1);
        assert!(layout.shards.iter().all(|s| s.header.len() < MAX_SHARD_HEADER));
    }
}
