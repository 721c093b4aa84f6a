//! What must hold for all bytes that claim to be a file of a staging directory, or a manifest.
//!
//! These files carry hashes of themselves, which no mutation gets right. Each target therefore looks at the bytes
//! as they are, and at a file with the right hash around them.

use super::components::Components;
use super::journal::{self, Record};
use super::manifest::{Manifest, ManifestFile};
use super::staging::{Holder, PlanFile};
use crate::fuzzing::harmless;

const PLAN: &str = "p";

/// A journal of the plan `p`.
///
/// # Panics
/// If a promise is broken.
pub fn journal(text: &[u8]) {
    records(text);
    let sealed = |line: &[u8]| {
        let hash = blake3::hash(line).to_hex().to_string();
        [hash.as_bytes(), b" ", line, b"\n"].concat()
    };
    records(&text.split(|&byte| byte == b'\n').flat_map(sealed).collect::<Vec<u8>>());
}

fn records(text: &[u8]) {
    let records = journal::parse(text, PLAN);
    let (mut end, mut generation) = (0, 0);
    for (record, at) in &records {
        assert!(*at > end && *at <= text.len() as u64, "{at} after {end}");
        assert_eq!(text[*at as usize - 1], b'\n', "a record is a line");
        assert!(record.plan == PLAN && record.generation >= generation, "{record:?}");
        (end, generation) = (*at, record.generation);
        let line = journal::line(record);
        let again = journal::parse(line.as_bytes(), PLAN);
        assert_eq!(again, [(record.clone(), line.len() as u64)]);
        in_bounds(record);
    }
    // Torn anywhere, the whole lines before it count.
    if let Some(torn) = text.len().checked_sub(1) {
        let left = journal::parse(&text[..torn], PLAN);
        assert_eq!(left[..], records[..left.len()]);
        assert!(left.len() + 1 >= records.len());
    }
}

/// Nothing that a record speaks of ends beyond what a file can have.
fn in_bounds(record: &Record) {
    for written in record.extents.iter().chain(&record.open) {
        assert!(written.offset.checked_add(written.bytes).is_some(), "{written:?}");
    }
    for (at, bytes) in [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (8, 1)] {
        let _either = record.touches(0, at, bytes);
    }
}

/// A plan file, or what is in it.
///
/// # Panics
/// If a promise is broken.
pub fn plan(text: &[u8]) {
    if let Some(plan) = PlanFile::parse(text) {
        assert_eq!(plan.render().as_bytes(), text, "the file is canonical");
    }
    let Ok(plan) = serde_json::from_slice::<PlanFile>(text) else { return };
    let rendered = plan.render();
    let read = PlanFile::parse(rendered.as_bytes());
    // One that could lead elsewhere is no plan.
    let Some(read) = read else { return };
    assert_eq!(read, plan);
    assert_eq!(read.fingerprint(), plan.fingerprint());
    assert_eq!(plan.identity.difference(&read.identity), None);
    for name in plan.shards.iter().map(|shard| &shard.file).chain(&plan.others) {
        assert!(plan.makes(name));
        in_directory(name);
    }
}

/// A manifest, or the files in it.
///
/// # Panics
/// If a promise is broken.
pub fn manifest(text: &[u8]) {
    if let Some(manifest) = Manifest::parse(text) {
        assert_eq!(manifest.render().as_bytes(), text, "the file is canonical");
    }
    let Ok(files) = serde_json::from_slice::<Vec<ManifestFile>>(text) else { return };
    let manifest = Manifest::new("plan".to_owned(), files);
    let Some(read) = Manifest::parse(manifest.render().as_bytes()) else { return };
    assert_eq!(read, manifest);
    for file in &read.files {
        in_directory(&file.name);
        let mut end = 0;
        for extent in &file.extents {
            assert_eq!(extent.offset, end, "{extent:?}");
            let next = extent.offset.checked_add(extent.bytes);
            assert!(next.is_some_and(|next| next <= file.bytes), "{extent:?}");
            end = next.unwrap_or_default();
            extent.tensor.iter().for_each(|name| harmless(name));
        }
        assert!(file.extents.is_empty() || end == file.bytes, "{file:?}");
    }
}

/// A name that leads nowhere but to a file beside the one that names it.
fn in_directory(name: &str) {
    harmless(name);
    let mut parts = std::path::Path::new(name).components();
    let plain = matches!(parts.next(), Some(std::path::Component::Normal(_)));
    assert!(plain && parts.next().is_none() && !name.ends_with('/'), "{name:?} leads elsewhere");
}

/// A lock file.
///
/// # Panics
/// If a promise is broken.
pub fn lock(text: &[u8]) {
    let holder = Holder::parse(text);
    harmless(&holder.describe());
    let next = Holder::of_this_process(&holder);
    assert!(next.generation >= holder.generation, "{next:?} after {holder:?}");
}

/// What is told of components, or of what EMR-Merging makes.
///
/// # Panics
/// If a promise is broken.
pub fn components(text: &[u8]) {
    if let Some(found) = Components::parse(text) {
        assert_eq!(found.clone().render().as_bytes(), text, "the file is canonical");
    }
    let Ok(mut told) = serde_json::from_slice::<Components>(text) else { return };
    let rendered = told.render();
    let Some(read) = Components::parse(rendered.as_bytes()) else { return };
    assert_eq!(read, told);
    let mut end = crate::checkpoint::components::HEAD;
    for tensor in &read.tensors {
        assert_eq!((tensor.offset, tensor.entries.len()), (end, read.experts()));
        let starts = tensor.starts();
        assert!(starts.is_sorted() && starts.first() == Some(&end));
        end = starts.last().copied().unwrap_or_default();
    }
    assert_eq!(end, read.bytes);
    for task in 0..read.experts() {
        assert!(read.task(&read.labels[task + 1]).is_ok_and(|found| found <= task));
    }
}
