//! Files of frames: what is stored of each expert in runs of elements. Two kinds: the shares of experts in a merge, sparse
//! (`components.bin`), and a unified task vector with a mask for each expert (`emr.bin`, whose payload `unified.rs` tells).
//!
//! ```text
//! file:            | magic, 8 bytes | experts: u32 | elements per frame: u32 | frame | frame | ..
//! frame:           | bytes of the payload: u32 | tensor: u32 | number: u32 | entries: u32 |
//!                  | BLAKE3 of the base's bytes of its elements: 32 bytes |
//!                  | BLAKE3 of these 48 bytes and the payload: 32 bytes | payload, zstd |
//! payload, shares: for each expert: | entries: u32 | gaps, LEB128 | byte 0 of all values, byte 1, byte 2, byte 3 |
//! ```
//! All numbers are little-endian. Frame `number` of a tensor holds its elements from `number * FRAME` on. Frames come in the
//! order in which tensors are merged, behind those of tensors that are copied; what has no entry has no payload.

use super::unified;

/// Elements that a frame covers.
pub const FRAME: u32 = 1 << 16;
/// Bytes before the first frame.
pub const HEAD: u64 = 16;
/// Bytes of a frame before its payload.
pub const FRAME_HEAD: usize = 80;
/// Those of them that its hash is of.
pub(super) const HASHED: usize = 48;

const LEVEL: i32 = 1;
/// Far above any merge.
const MOST_EXPERTS: usize = 1 << 12;

/// What a file of frames holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The share of each expert where it is not zero.
    Shares,
    /// One value for each element, and which experts agree with it.
    Unified,
}

/// The form of a file of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// What it holds.
    pub kind: Kind,
    /// Of how many experts.
    pub experts: usize,
}

impl Form {
    /// The beginning of a file.
    pub fn head(self) -> [u8; HEAD as usize] {
        let mut head = [0; HEAD as usize];
        head[..8].copy_from_slice(match self.kind {
            Kind::Shares => b"RFCOMP2\n",
            Kind::Unified => b"RFEMR02\n",
        });
        head[8..12].copy_from_slice(&(self.experts as u32).to_le_bytes());
        head[12..].copy_from_slice(&FRAME.to_le_bytes());
        head
    }

    /// The form that the beginning of a file tells.
    pub fn parse(head: &[u8; HEAD as usize]) -> Option<Self> {
        let experts = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let forms = [Kind::Shares, Kind::Unified].map(|kind| Self { kind, experts });
        forms.into_iter().find(|form| experts <= MOST_EXPERTS && form.head() == *head)
    }

    /// Bytes of the largest payload before it is packed.
    pub fn largest(self) -> usize {
        match self.kind {
            // Each entry takes at most 3 + 4 bytes.
            Kind::Shares => self.experts * (4 + 7 * FRAME as usize),
            Kind::Unified => unified::largest(self.experts),
        }
    }

    /// Numbers that are summed up for each frame beside its entries.
    pub fn sums(self) -> usize {
        match self.kind {
            Kind::Shares => 0,
            Kind::Unified => 2 * self.experts,
        }
    }
}

/// An element in which an expert has a share: its place in a run of elements, and the share.
pub type Entry = (u32, f32);

/// The entries of one frame, a row for each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// The tensor, by its number in the file's table.
    pub tensor: u32,
    /// Its number in the tensor.
    pub number: u32,
    /// BLAKE3 of the base's bytes of its elements.
    pub base: [u8; 32],
    /// Entries of each expert by place, which ascends; places count from the start of the frame.
    pub rows: Vec<Vec<Entry>>,
    /// As many as [`Form::sums`].
    pub sums: Vec<f64>,
}

/// The frames of a tile, as they are stored.
#[derive(Debug, Default)]
pub struct TileFrames {
    /// One behind another.
    pub bytes: Vec<u8>,
    /// What is in each.
    pub told: Vec<Told>,
}

impl TileFrames {
    /// Empties it, and keeps its room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.told.clear();
    }
}

/// What is told of a stored frame without unpacking it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The tensor, by its number in the file's table.
    pub tensor: u32,
    /// Its number in the tensor.
    pub number: u32,
    /// Bytes that it takes.
    pub bytes: u32,
    /// BLAKE3 of the base's bytes of its elements.
    pub base: [u8; 32],
    /// Entries of each expert.
    pub entries: Vec<u32>,
    /// As many as [`Form::sums`].
    pub sums: Vec<f64>,
}

/// What a frame's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of the payload.
    pub payload: u32,
    /// The tensor.
    pub tensor: u32,
    /// The number of the frame in it.
    pub number: u32,
    /// Entries of all experts.
    pub entries: u32,
    /// BLAKE3 of the base's bytes of its elements.
    pub base: [u8; 32],
}

impl FrameHead {
    /// Reads the first bytes of a frame.
    pub fn parse(bytes: &[u8; FRAME_HEAD]) -> Self {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let base = std::array::from_fn(|k| bytes[16 + k]);
        Self { payload: number(0), tensor: number(4), number: number(8), entries: number(12), base }
    }
}

/// A frame is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame is not what was written")]
pub struct FrameError;

impl Frame {
    /// A frame without entries.
    pub fn new(form: Form) -> Self {
        let (rows, sums) = (vec![Vec::new(); form.experts], vec![0.0; form.sums()]);
        Self { tensor: 0, number: 0, base: [0; 32], rows, sums }
    }

    /// Whether nothing is in it.
    fn is_empty(&self) -> bool {
        self.rows.iter().all(Vec::is_empty) && self.sums.iter().all(|&sum| sum == 0.0)
    }

    /// Takes out all that is in it.
    pub fn clear(&mut self) {
        self.rows.iter_mut().for_each(Vec::clear);
        self.sums.fill(0.0);
    }

    /// What is told of it, if it takes so many bytes.
    pub fn told(&self, bytes: usize) -> Told {
        Told {
            tensor: self.tensor,
            number: self.number,
            bytes: bytes as u32,
            base: self.base,
            entries: self.rows.iter().map(|row| row.len() as u32).collect(),
            sums: self.sums.clone(),
        }
    }

    /// The frame as it is stored, of shares; [`Packed`](super::unified::Packed) stores the others.
    ///
    /// # Errors
    /// What zstd says.
    pub fn store(&self) -> std::io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        self.rows.iter().for_each(|row| pack(row, &mut raw));
        self.seal(&raw)
    }

    /// The frame as it is stored, of either kind, from lists of its entries.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn store_as(&self, kind: Kind) -> std::io::Result<Vec<u8>> {
        if kind == Kind::Shares {
            return self.store();
        }
        let mut raw = Vec::new();
        unified::pack(&self.rows, &self.sums, &mut raw);
        self.seal(&raw)
    }

    fn seal(&self, raw: &[u8]) -> std::io::Result<Vec<u8>> {
        let entries: usize = self.rows.iter().map(Vec::len).sum();
        let raw = if self.is_empty() { &[] } else { raw };
        seal((self.tensor, self.number), self.base, entries as u32, raw)
    }

    /// Reads what was stored, of this form, from the start of `bytes`; returns its length there.
    ///
    /// # Errors
    /// If any byte of it is another.
    pub fn load(bytes: &[u8], form: Form) -> Result<(Self, usize), FrameError> {
        let (first, rest) = bytes.split_first_chunk::<FRAME_HEAD>().ok_or(FrameError)?;
        let head = FrameHead::parse(first);
        let payload = rest.get(..head.payload as usize).ok_or(FrameError)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&first[..HASHED]);
        hasher.update(payload);
        if hasher.finalize().as_bytes()[..] != first[HASHED..] {
            return Err(FrameError);
        }
        let mut frame = Self::new(form);
        (frame.tensor, frame.number, frame.base) = (head.tensor, head.number, head.base);
        if !payload.is_empty() {
            let raw = zstd::bulk::decompress(payload, form.largest()).map_err(|_| FrameError)?;
            (frame.rows, frame.sums) = unpack(&raw, form).ok_or(FrameError)?;
        }
        let whole = frame.rows.iter().map(Vec::len).sum::<usize>() == head.entries as usize
            && frame.is_empty() == payload.is_empty();
        whole.then_some((frame, FRAME_HEAD + payload.len())).ok_or(FrameError)
    }
}

/// A frame as it is stored, `number` of `tensor`, with so many entries in what is to be packed, if there is anything.
pub(super) fn seal(
    (tensor, number): (u32, u32),
    base: [u8; 32],
    entries: u32,
    raw: &[u8],
) -> std::io::Result<Vec<u8>> {
    let payload = if raw.is_empty() { Vec::new() } else { zstd::bulk::compress(raw, LEVEL)? };
    let mut stored = Vec::with_capacity(FRAME_HEAD + payload.len());
    for number in [payload.len() as u32, tensor, number, entries] {
        stored.extend(number.to_le_bytes());
    }
    stored.extend(base);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stored);
    hasher.update(&payload);
    stored.extend(hasher.finalize().as_bytes());
    stored.extend(payload);
    Ok(stored)
}

/// Rows and sums of a payload; `None` if it is none.
pub(super) fn unpack(mut raw: &[u8], form: Form) -> Option<(Vec<Vec<Entry>>, Vec<f64>)> {
    if form.kind == Kind::Unified {
        return unified::unpack(raw, form.experts);
    }
    let rows = (0..form.experts).map(|_| row(&mut raw)).collect::<Option<_>>()?;
    raw.is_empty().then_some((rows, Vec::new()))
}

/// The entries of one expert, packed.
fn pack(row: &[Entry], raw: &mut Vec<u8>) {
    raw.extend((row.len() as u32).to_le_bytes());
    let mut next = 0;
    for &(place, _) in row {
        varint(place - next, raw);
        next = place + 1;
    }
    for byte in 0..4 {
        raw.extend(row.iter().map(|(_, share)| share.to_le_bytes()[byte]));
    }
}

/// The entries of one expert.
fn row(raw: &mut &[u8]) -> Option<Vec<Entry>> {
    let (count, rest) = raw.split_first_chunk::<4>()?;
    *raw = rest;
    let count = u32::from_le_bytes(*count) as usize;
    if count > FRAME as usize {
        return None;
    }
    let (mut places, mut next) = (Vec::with_capacity(count), 0u32);
    for _ in 0..count {
        let place = next.checked_add(unvarint(raw)?)?;
        next = place + 1;
        places.push(place);
    }
    let planes = raw.split_at_checked(4 * count)?;
    *raw = planes.1;
    if next > FRAME {
        return None;
    }
    let byte = |k: usize, plane: usize| planes.0[plane * count + k];
    let share = |k: usize| f32::from_le_bytes([byte(k, 0), byte(k, 1), byte(k, 2), byte(k, 3)]);
    Some(places.into_iter().enumerate().map(|(k, place)| (place, share(k))).collect())
}

fn varint(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A number of up to three groups of seven bits.
fn unvarint(raw: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (&byte, rest) = raw.split_first()?;
        *raw = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(experts: usize) -> Form {
        Form { kind: Kind::Shares, experts }
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let row = prop::collection::btree_map(0u32..FRAME, any::<i32>(), 0..40);
        let row =
            row.prop_map(|row| row.into_iter().map(|(at, x)| (at, x as f32 * 1e-9)).collect());
        (any::<u32>(), any::<u32>(), any::<[u8; 32]>(), prop::collection::vec(row, 1..4)).prop_map(
            |(tensor, number, base, rows)| Frame { tensor, number, base, rows, sums: Vec::new() },
        )
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_was_or_not_at_all(frame in frames(), bit in any::<prop::sample::Index>(), more in any::<u8>()) {
            let mut stored = frame.store().unwrap();
            let (form, len) = (of(frame.rows.len()), stored.len());
            stored.push(more);
            prop_assert_eq!(Frame::load(&stored, form), Ok((frame, len)));
            let bit = bit.index(len * 8);
            stored[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Frame::load(&stored, form).is_err());
            prop_assert!(Frame::load(&stored[..len - 1], form).is_err());
        }

        #[test]
        fn no_payload_makes_it_panic(raw in prop::collection::vec(any::<u8>(), 0..200), experts in 0usize..4) {
            let _any = unpack(&raw, of(experts));
        }
    }

    #[test]
    fn a_head_tells_its_form_and_no_other() {
        for (kind, experts) in
            [(Kind::Shares, 1), (Kind::Unified, 3), (Kind::Unified, MOST_EXPERTS)]
        {
            let form = Form { kind, experts };
            assert_eq!(Form::parse(&form.head()), Some(form));
            for at in [0, 5, 12] {
                let mut head = form.head();
                head[at] ^= 1;
                assert_eq!(Form::parse(&head), None);
            }
        }
        let too_many = Form { kind: Kind::Shares, experts: MOST_EXPERTS + 1 };
        assert_eq!(Form::parse(&too_many.head()), None);
    }

    #[test]
    fn what_has_no_entry_is_a_head_that_names_the_base() {
        for form in [of(2), Form { kind: Kind::Unified, experts: 2 }] {
            let frame = Frame { tensor: 5, number: 6, base: [7; 32], ..Frame::new(form) };
            let stored = frame.store_as(form.kind).unwrap();
            assert_eq!(stored.len(), FRAME_HEAD);
            assert_eq!(Frame::load(&stored, form), Ok((frame, FRAME_HEAD)));
        }
    }

    #[test]
    fn the_last_place_and_a_full_row_fit() {
        let full: Vec<Entry> = (0..FRAME).map(|place| (place, place as f32 + 0.5)).collect();
        let frame = Frame {
            tensor: 1,
            number: 2,
            base: [3; 32],
            rows: vec![vec![(FRAME - 1, -1.0)], full],
            sums: Vec::new(),
        };
        let stored = frame.store().unwrap();
        assert_eq!(Frame::load(&stored, of(2)), Ok((frame, stored.len())));
    }
}
