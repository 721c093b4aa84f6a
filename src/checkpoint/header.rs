//! The header of one safetensors file.

use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::DType;
use super::json::EntriesOf;

/// The largest header accepted, as in the official implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;
const MAX_ENTRIES: usize = 1_000_000;
const MAX_NAME: usize = 1024;

/// What a header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: DType,
    /// Shape, outermost dimension first.
    pub shape: Box<[u64]>,
    /// First byte, from the start of the data.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

/// A header that has passed all rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors by position in the file.
    pub entries: Vec<Entry>,
    /// `__metadata__`, sorted by key.
    pub metadata: Vec<(String, String)>,
    /// Deviations that `lenient` let pass.
    pub warnings: Vec<String>,
}

/// The rule that a header breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than 8 bytes.
    #[error("has {0} bytes, too few for a safetensors file")]
    TooShort(u64),
    /// The length is absurd.
    #[error("claims a header of {0} bytes, above the limit of 100000000")]
    TooLarge(u64),
    /// The header does not fit in the file.
    #[error(
        "claims a header of {claimed} bytes, but has only {available} after the length: it is truncated, or not a safetensors file"
    )]
    Truncated {
        /// Bytes claimed.
        claimed: u64,
        /// Bytes there.
        available: u64,
    },
    /// The first byte is not a brace.
    #[error("has a header that does not begin with '{{': it is not a safetensors file")]
    NoObject,
    /// Not UTF-8.
    #[error("has a header that is not UTF-8 (at byte {0} of it)")]
    NotUtf8(usize),
    /// Not the JSON it should be.
    #[error("has a malformed header: {0}")]
    Json(String),
    /// A name that should not be.
    #[error("has a tensor whose name is {what}: {name:?}")]
    Name {
        /// What is wrong.
        what: &'static str,
        /// The name, cut.
        name: String,
    },
    /// A shape whose element count overflows.
    #[error("tensor {name:?}: the shape {shape:?} has too many elements")]
    ShapeOverflow {
        /// Tensor.
        name: String,
        /// Shape.
        shape: Vec<u64>,
    },
    /// Size and shape disagree.
    #[error(
        "tensor {name:?}: offsets {start}..{end} hold {held} bytes, but shape and type need {needed}"
    )]
    Size {
        /// Tensor.
        name: String,
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// Bytes between.
        held: i128,
        /// Bytes needed.
        needed: u64,
    },
    /// A sub-byte tensor does not end on a byte.
    #[error("tensor {name:?}: {bits} bits do not fill whole bytes")]
    Ragged {
        /// Tensor.
        name: String,
        /// Bits.
        bits: u64,
    },
    /// A hole or an overlap.
    #[error(
        "tensor {name:?} begins at offset {start}, expected {expected}: tensors must follow each other without holes or overlaps"
    )]
    Gap {
        /// Tensor.
        name: String,
        /// Where it begins.
        start: u64,
        /// Where the one before ends.
        expected: u64,
    },
    /// Tensors end beyond the file.
    #[error(
        "tensor {name:?} ends at offset {end}, but the file has only {available} bytes of data: it is truncated"
    )]
    BeyondEnd {
        /// Tensor.
        name: String,
        /// Where it ends.
        end: u64,
        /// Bytes of data.
        available: u64,
    },
    /// Bytes after the last tensor.
    #[error("has {0} bytes after the last tensor; --lenient ignores them")]
    Trailing(u64),
}

/// One entry as it stands in the JSON.
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
    extra: Vec<String>,
}

impl Header {
    /// Reads the JSON of a header. `data_len` is the number of bytes after it in the file.
    ///
    /// `lenient` lets extra fields and trailing bytes pass with a warning.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(json: &[u8], data_len: u64, lenient: bool) -> Result<Self, HeaderError> {
        if json.first() != Some(&b'{') {
            return Err(HeaderError::NoObject);
        }
        let text =
            std::str::from_utf8(json).map_err(|error| HeaderError::NotUtf8(error.valid_up_to()))?;
        let trimmed = text.trim_end_matches(' ');
        let mut parser = serde_json::Deserializer::from_str(trimmed);
        let read = HeaderVisitor { limit: MAX_ENTRIES };
        let located = |error: serde_json::Error| HeaderError::Json(error.to_string());
        let (raw, metadata) = parser.deserialize_map(read).map_err(located)?;
        parser.end().map_err(located)?;
        if trimmed.ends_with(|c: char| c.is_ascii_whitespace()) {
            return Err(HeaderError::Json("only spaces may follow the object".to_owned()));
        }
        let mut warnings = Vec::new();
        let mut entries = Vec::with_capacity(raw.len());
        for (name, raw) in raw {
            check_name(&name)?;
            if let Some(field) = raw.extra.first() {
                let text = format!("tensor {name:?} has an unknown field {field:?}");
                if !lenient {
                    return Err(HeaderError::Json(format!("{text}; --lenient ignores it")));
                }
                warnings.push(text);
            }
            entries.push(entry(name, raw)?);
        }
        entries.sort_by_key(|entry| (entry.start, entry.end));
        let end = check_ranges(&entries, data_len)?;
        if end != data_len {
            if !lenient {
                return Err(HeaderError::Trailing(data_len - end));
            }
            warnings.push(format!("{} bytes after the last tensor", data_len - end));
        }
        Ok(Self { entries, metadata, warnings })
    }
}

fn check_name(name: &str) -> Result<(), HeaderError> {
    let what = if name.is_empty() {
        "empty"
    } else if name.len() > MAX_NAME {
        "longer than 1024 bytes"
    } else if name.chars().any(char::is_control) {
        "not printable"
    } else {
        return Ok(());
    };
    Err(HeaderError::Name { what, name: name.chars().take(60).collect() })
}

fn entry(name: String, raw: RawEntry) -> Result<Entry, HeaderError> {
    let dtype = DType::parse(&raw.dtype);
    let [start, end] = raw.offsets;
    let elements = raw.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bits = elements.and_then(|n| n.checked_mul(dtype.bits().unwrap_or(0)));
    let (Some(_), Some(bits)) = (elements, bits) else {
        return Err(HeaderError::ShapeOverflow { name, shape: raw.shape });
    };
    let held = i128::from(end) - i128::from(start);
    if dtype.known().is_some() {
        if !bits.is_multiple_of(8) {
            return Err(HeaderError::Ragged { name, bits });
        }
        if held != i128::from(bits / 8) {
            return Err(HeaderError::Size { name, start, end, held, needed: bits / 8 });
        }
    } else if held < 0 {
        return Err(HeaderError::Size { name, start, end, held, needed: 0 });
    }
    Ok(Entry { name: name.into(), dtype, shape: raw.shape.into(), start, end })
}

/// Demands that the ranges follow each other from 0; returns where the last one ends.
fn check_ranges(entries: &[Entry], data_len: u64) -> Result<u64, HeaderError> {
    let mut expected = 0;
    for entry in entries {
        let (name, start, end) = (entry.name.to_string(), entry.start, entry.end);
        if start != expected {
            return Err(HeaderError::Gap { name, start, expected });
        }
        if end > data_len {
            return Err(HeaderError::BeyondEnd { name, end, available: data_len });
        }
        expected = end;
    }
    Ok(expected)
}

struct HeaderVisitor {
    limit: usize,
}

type RawHeader = (Vec<(String, RawEntry)>, Vec<(String, String)>);

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        use serde::de::Error;
        let mut entries: Vec<(String, RawEntry)> = Vec::new();
        let mut metadata = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                if metadata.is_some() {
                    return Err(A::Error::custom("the key \"__metadata__\" occurs twice"));
                }
                let read = EntriesOf::<String> { limit: self.limit, value: PhantomData };
                let mut pairs = map.next_value_seed(read)?.0;
                pairs.sort();
                metadata = Some(pairs);
                continue;
            }
            if entries.len() >= self.limit {
                return Err(A::Error::custom(format_args!("more than {} tensors", self.limit)));
            }
            let value = map.next_value_seed(EntrySeed)?;
            entries.push((key, value));
        }
        let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return Err(A::Error::custom(format_args!("the key {twice:?} occurs twice")));
        }
        Ok((entries, metadata.unwrap_or_default()))
    }
}

struct EntrySeed;

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = RawEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawEntry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = RawEntry;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a tensor's dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry, A::Error> {
        use serde::de::Error;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut extra: Vec<String> = Vec::new();
        let twice = |key: &str| A::Error::custom(format_args!("the key {key:?} occurs twice"));
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "dtype" if dtype.is_none() => dtype = Some(map.next_value::<String>()?),
                "shape" if shape.is_none() => shape = Some(map.next_value::<Vec<u64>>()?),
                "data_offsets" if offsets.is_none() => {
                    offsets = Some(map.next_value::<[u64; 2]>()?);
                }
                "dtype" | "shape" | "data_offsets" => return Err(twice(&key)),
                _ if extra.contains(&key) => return Err(twice(&key)),
                _ => {
                    let IgnoredAny = map.next_value()?;
                    extra.push(key);
                }
            }
        }
        let missing = |field: &str| A::Error::custom(format_args!("a tensor has no {field:?}"));
        Ok(RawEntry {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
            extra,
        })
    }
}
