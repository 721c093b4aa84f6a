//! Element types, including those that only a newer format knows.

use std::fmt;

use safetensors::Dtype;

/// An element type as a header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DType {
    /// A type of the safetensors specification.
    Known(Dtype),
    /// Any other name: can be listed, not merged.
    Unknown(Box<str>),
}

/// In the official writer's order inside a shard: widest alignment first.
const ALL: [(&str, Dtype); 22] = [
    ("U64", Dtype::U64),
    ("I64", Dtype::I64),
    ("F64", Dtype::F64),
    ("C64", Dtype::C64),
    ("F32", Dtype::F32),
    ("U32", Dtype::U32),
    ("I32", Dtype::I32),
    ("BF16", Dtype::BF16),
    ("F16", Dtype::F16),
    ("U16", Dtype::U16),
    ("I16", Dtype::I16),
    ("F8_E5M2FNUZ", Dtype::F8_E5M2FNUZ),
    ("F8_E4M3FNUZ", Dtype::F8_E4M3FNUZ),
    ("F8_E8M0", Dtype::F8_E8M0),
    ("F8_E4M3", Dtype::F8_E4M3),
    ("F8_E5M2", Dtype::F8_E5M2),
    ("I8", Dtype::I8),
    ("U8", Dtype::U8),
    ("F6_E3M2", Dtype::F6_E3M2),
    ("F6_E2M3", Dtype::F6_E2M3),
    ("F4", Dtype::F4),
    ("BOOL", Dtype::BOOL),
];

impl DType {
    /// The type of that name.
    pub fn parse(name: &str) -> Self {
        match ALL.iter().find(|(n, _)| *n == name) {
            Some((_, dtype)) => DType::Known(*dtype),
            None => DType::Unknown(name.into()),
        }
    }

    /// The type, if the specification has it.
    pub fn known(&self) -> Option<Dtype> {
        match self {
            DType::Known(dtype) => Some(*dtype),
            DType::Unknown(_) => None,
        }
    }

    /// Bits per element, if known.
    pub fn bits(&self) -> Option<u64> {
        self.known().map(|dtype| dtype.bitsize() as u64)
    }

    /// Whether elements have at most that many bits.
    pub fn bits_at_most(&self, most: u64) -> bool {
        self.bits().is_some_and(|bits| bits <= most)
    }

    /// Position in a shard: types of this rank come before those of a higher one.
    pub(super) fn rank(&self) -> usize {
        ALL.iter().position(|(_, d)| Some(*d) == self.known()).unwrap_or(ALL.len())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            DType::Known(dtype) => ALL.iter().find(|(_, d)| d == dtype).map_or("?", |(n, _)| n),
            DType::Unknown(name) => name,
        };
        f.write_str(name)
    }
}
