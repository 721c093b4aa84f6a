//! What must hold for all bytes that claim to be a file of a checkpoint.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::components::{self, Form, Frame, Kind};
use super::{
    CardExpert, CardFile, Catalog, Entry, Header, Index, Layout, ModelCard, OpenOptions, OutTensor,
    config_json,
};
use crate::fuzzing::{harmless, told};

/// Bytes of data that the official implementation is asked to open, at most.
const SMALL: u64 = 1 << 16;

/// The JSON of a header.
///
/// # Panics
/// If a promise is broken.
pub fn header(json: &[u8]) {
    let header = match Header::parse(json, u64::MAX, true) {
        Ok(header) => header,
        Err(error) => {
            told(&error);
            assert!(Header::parse(json, u64::MAX, false).is_err(), "strict is stricter");
            return;
        }
    };
    let end = sound(&header.entries);
    // The file must end where the data does.
    let exact = Header::parse(json, end, true);
    assert_eq!(exact.as_ref().map(|header| &header.entries), Ok(&header.entries));
    if let Some(less) = end.checked_sub(1) {
        let refused = Header::parse(json, less, true).map_err(|error| told(&error));
        assert!(refused.is_err(), "a file that is cut short");
    }
    let longer = Header::parse(json, end.saturating_add(1), false);
    assert!(longer.is_err() || end == u64::MAX, "a file with bytes after its data");
    let quiet = exact.is_ok_and(|header| header.warnings.is_empty());
    header.warnings.iter().for_each(told);
    match Header::parse(json, end, false) {
        Ok(strict) => {
            assert_eq!((&strict.entries, &strict.metadata), (&header.entries, &header.metadata));
            assert!(quiet && strict.warnings.is_empty(), "strict lets pass what lenient warns of");
            written_again(&strict, end);
            laid_out_again(&strict.entries, end);
            official(json, &strict.entries, end);
        }
        Err(error) => {
            told(&error);
            assert!(!quiet, "strict refuses what lenient does not warn of: {error}");
        }
    }
}

/// Demands the rules for tensors; returns where their data ends.
fn sound(entries: &[Entry]) -> u64 {
    let mut end = 0;
    let mut names = HashSet::new();
    for entry in entries {
        assert_eq!(entry.start, end, "a hole or an overlap before {:?}", entry.name);
        assert!(entry.end >= entry.start, "{:?} ends before it begins", entry.name);
        end = entry.end;
        assert!(names.insert(&entry.name), "{:?} twice", entry.name);
        harmless(&entry.name);
        let elements = entry.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        assert!(elements.is_some(), "{:?} has too many elements", entry.name);
        if let (Some(elements), Some(bits)) = (elements, entry.dtype.bits()) {
            let held = 8 * u128::from(entry.end - entry.start);
            assert_eq!(held, u128::from(elements) * u128::from(bits), "{:?}", entry.name);
        }
    }
    end
}

/// The same header in other words reads the same.
fn written_again(header: &Header, end: u64) {
    let mut map = Map::new();
    for entry in &header.entries {
        let value = json!({
            "data_offsets": [entry.start, entry.end],
            "shape": entry.shape,
            "dtype": entry.dtype.to_string(),
        });
        map.insert(entry.name.to_string(), value);
    }
    let metadata: Map<String, Value> =
        header.metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    if !metadata.is_empty() {
        map.insert("__metadata__".to_owned(), metadata.into());
    }
    let text = Value::from(map).to_string();
    assert_eq!(Header::parse(text.as_bytes(), end, false).as_ref(), Ok(header), "{text}");
}

/// A shard with these tensors has a header that passes, too.
fn laid_out_again(entries: &[Entry], end: u64) {
    // No file is larger.
    if entries.iter().any(|e| e.dtype.known().is_none()) || end > i64::MAX as u64 {
        return;
    }
    let tensors: Vec<OutTensor> = (entries.iter())
        .map(|e| OutTensor { name: e.name.clone(), dtype: e.dtype.clone(), shape: e.shape.clone() })
        .collect();
    let laid = Layout::new(&tensors, u64::MAX);
    assert_eq!(laid.as_ref().err(), None);
    let Ok(layout) = laid else { return };
    assert_eq!(layout.total_size, end);
    let mut seen = 0;
    for shard in &layout.shards {
        let data = shard.len - shard.header.len() as u64;
        let parsed = Header::parse(&shard.header[8..], data, false);
        assert_eq!(parsed.as_ref().err(), None);
        for entry in parsed.iter().flat_map(|header| &header.entries) {
            let (name, dtype) = (entry.name.clone(), entry.dtype.clone());
            let tensor = OutTensor { name, dtype, shape: entry.shape.clone() };
            assert!(tensors.contains(&tensor), "{tensor:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, tensors.len(), "every tensor once");
    if let Some(index) = layout.index_json() {
        let shards = Index::parse(index.as_bytes()).map(|index| index.shards().len());
        assert_eq!(shards, Ok(layout.shards.len()));
    }
}

/// What reflow accepts, the official implementation reads the same.
fn official(json: &[u8], entries: &[Entry], end: u64) {
    if end > SMALL || entries.iter().any(|entry| entry.dtype.known().is_none()) {
        return;
    }
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + end as usize, 0);
    let read = safetensors::SafeTensors::deserialize(&file);
    assert!(read.is_ok(), "the official implementation refuses it: {:?}", read.err());
    let Ok(read) = read else { return };
    assert_eq!(read.len(), entries.len());
    for entry in entries {
        let shape: Vec<usize> = entry.shape.iter().map(|&n| n as usize).collect();
        let held = (entry.end - entry.start) as usize;
        let theirs = read.tensor(&entry.name).ok();
        let theirs = theirs.map(|t| (t.dtype(), t.shape().to_vec(), t.data().len()));
        assert_eq!(theirs, entry.dtype.known().map(|dtype| (dtype, shape, held)));
    }
}

/// A whole shard file.
///
/// # Panics
/// If a promise is broken.
pub fn checkpoint(bytes: &[u8]) {
    let made = rustix::fs::memfd_create("shard", rustix::fs::MemfdFlags::CLOEXEC);
    let Ok(made) = made else { return };
    let mut file = std::fs::File::from(made);
    if file.write_all(bytes).is_err() {
        return;
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    for lenient in [false, true] {
        match Catalog::open(&path, OpenOptions { lenient, unknown_types: true }) {
            Err(error) => told(&error),
            Ok(catalog) => {
                catalog.warnings.iter().for_each(told);
                let mut tensors = catalog.tensors.clone();
                tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
                let mut end = catalog.files[0].header_len;
                for tensor in &tensors {
                    assert_eq!(tensor.offset, end, "a hole or an overlap before {:?}", tensor.name);
                    end += tensor.len;
                }
                let all = end == bytes.len() as u64;
                assert!(all || lenient && end < bytes.len() as u64, "{end} of {}", bytes.len());
            }
        }
    }
}

/// `model.safetensors.index.json`.
///
/// # Panics
/// If a promise is broken.
pub fn index(json: &[u8]) {
    let index = match Index::parse(json) {
        Ok(index) => index,
        Err(error) => return told(&error),
    };
    assert!(!index.shard_of.is_empty(), "an index of nothing");
    for (tensor, shard) in &index.shard_of {
        harmless(shard);
        let plain = !shard.contains(['/', '\\', ':']) && !shard.starts_with('.');
        assert!(plain && shard.ends_with(".safetensors"), "{shard:?} leads elsewhere");
        assert_eq!(index.get(tensor), Some(shard.as_str()), "{tensor:?}");
        assert!(index.shards().contains(&shard.as_str()));
    }
    let map: Map<String, Value> =
        index.shard_of.iter().map(|(name, shard)| (name.clone(), json!(shard))).collect();
    let text = match index.total_size {
        Some(size) => json!({ "weight_map": map, "metadata": { "total_size": size } }),
        None => json!({ "weight_map": map }),
    };
    assert_eq!(Index::parse(text.to_string().as_bytes()), Ok(index));
}

/// `config.json`.
///
/// # Panics
/// If a promise is broken.
pub fn config(json: &[u8]) {
    let Ok(config @ Value::Object(_)) = serde_json::from_slice::<Value>(json) else { return };
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
    };
    for (dtype, tied) in [(None, None), (Some("bfloat16"), None), (Some("float32"), Some(false))] {
        let text = config_json(&config, dtype, tied);
        let read = serde_json::from_str::<Value>(&text);
        let now = read.unwrap_or_default();
        let (before, after) = (keys(&config), keys(&now));
        assert_eq!(after[..before.len()], before, "keys keep their order");
        assert!(after[before.len()..].iter().all(|key| key == "torch_dtype"), "{after:?}");
        for key in ["torch_dtype", "dtype"] {
            let set = dtype.is_some() && now.get(key).is_some();
            assert!(!set || now.get(key) == dtype.map(Value::from).as_ref(), "{key}");
        }
        let tie = now.get("tie_word_embeddings");
        assert!(tied.is_none() || tie.is_none() || tie == tied.map(Value::from).as_ref());
        assert_eq!(config_json(&now, dtype, tied), text, "it is as it should be already");
    }
}

/// The front matter of a model card, as the hub reads it.
#[derive(Debug, PartialEq, Deserialize)]
struct FrontMatter {
    base_model: Vec<String>,
    library_name: String,
    tags: Vec<String>,
}

/// Names on a model card, one a line.
///
/// # Panics
/// If a promise is broken.
pub fn card(names: &[u8]) {
    let Ok(text) = std::str::from_utf8(names) else { return };
    let names: Vec<String> = text.split('\t').map(str::to_owned).collect();
    let expert = |name: &String| CardExpert { name: name.clone(), parameters: name.clone() };
    let card = ModelCard {
        base: names.first().cloned(),
        experts: names.iter().map(expert).collect(),
        method: "pcb".to_owned(),
        tag: "pcb".to_owned(),
        recipe: "merge_method: pcb\n".to_owned(),
        version: "1".to_owned(),
        files: (names.iter())
            .map(|name| CardFile {
                checkpoint: name.clone(),
                file: name.clone(),
                bytes: 1,
                header_sha256: "0".repeat(64),
            })
            .collect(),
    };
    let text = card.render();
    let parts: Vec<&str> = text.splitn(3, "---\n").collect();
    let read = serde_saphyr::from_str::<FrontMatter>(parts[1]);
    assert!(read.is_ok(), "{:?}: {}", read.as_ref().err(), parts[1]);
    let all = names.first().into_iter().chain(&names).cloned().collect();
    let tags = ["merge", "reflow", "pcb"].map(str::to_owned).to_vec();
    let expected = FrontMatter { base_model: all, library_name: "transformers".to_owned(), tags };
    assert_eq!(read.ok(), Some(expected), "{}", parts[1]);
    let rows = parts[2].lines().filter(|line| line.starts_with('|')).count();
    assert_eq!(rows, 2 * names.len() + 4, "a name breaks out of its row: {}", parts[2]);
}

/// A frame of shares or of what is unified, as it is stored, and as what is packed in it: a first byte tells kind and number of experts.
///
/// # Panics
/// If a promise is broken.
pub fn frame(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let kind = if first & 1 == 0 { Kind::Shares } else { Kind::Unified };
    let form = Form { kind, experts: usize::from(first >> 1 & 3) + 1 };
    if let Ok((frame, len)) = Frame::load(bytes, form) {
        assert!(len <= bytes.len());
        framed(&frame, form);
    }
    if let Some((rows, sums)) = components::unpack(bytes, form) {
        framed(&Frame { tensor: 1, number: 2, base: [3; 32], rows, sums }, form);
    }
    // With the right hash around whatever is said to be packed.
    let mut stored = Vec::new();
    for number in [bytes.len() as u32, 3, 4, u32::from(first)] {
        stored.extend(number.to_le_bytes());
    }
    stored.extend([first; 32]);
    let hash = blake3::hash(&[&stored, bytes].concat());
    stored.extend(hash.as_bytes());
    stored.extend(bytes);
    match Frame::load(&stored, form) {
        Ok((frame, len)) => {
            assert_eq!(len, stored.len());
            framed(&frame, form);
        }
        Err(error) => told(&error),
    }
    if let Some(Form { kind, experts }) = bytes.first_chunk().and_then(Form::parse) {
        assert_eq!(Form { kind, experts }.head()[..], bytes[..16]);
    }
}

/// Demands the rules for frames, and that one is read the same after it was written again.
fn framed(frame: &Frame, form: Form) {
    assert_eq!((frame.rows.len(), frame.sums.len()), (form.experts, form.sums()));
    for row in &frame.rows {
        assert!(row.is_sorted_by(|a, b| a.0 < b.0), "places ascend");
        assert!(row.last().is_none_or(|&(place, _)| place < components::FRAME));
    }
    if form.kind == Kind::Unified {
        assert!(frame.rows.iter().flatten().all(|(_, value)| value.is_finite()));
        assert!(frame.sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0));
    }
    let stored = frame.store_as(form.kind).unwrap_or_default();
    let again = Frame::load(&stored, form);
    assert!(again.as_ref().is_ok_and(|&(_, len)| len == stored.len()), "{again:?}");
    // Values may be anything in shares, so bits are compared.
    let bytes = again.ok().and_then(|(again, _)| again.store_as(form.kind).ok());
    assert_eq!(bytes.as_deref(), Some(&*stored));
}
