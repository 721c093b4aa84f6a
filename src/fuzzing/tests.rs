//! The corpus, the fixtures, and mutations of both, on every target.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{TARGETS, Target};

/// Mutations per target.
const MUTATIONS: u64 = 6000;
/// Larger files are for the integration tests.
const LARGEST: usize = 1 << 16;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a directory, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}

/// The corpus of a target, and the fixtures that are of its kind.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (files(&root().join("fuzz/corpus").join(target)).iter())
        .map(|path| fs::read(path).unwrap())
        .collect();
    assert!(!seeds.is_empty(), "no corpus for {target}");
    let fixtures = files(&root().join("fixtures"));
    let ending = |end: &str| -> Vec<Vec<u8>> {
        let files = fixtures.iter().filter(|path| path.to_string_lossy().ends_with(end));
        files.map(|path| fs::read(path).unwrap()).filter(|bytes| bytes.len() <= LARGEST).collect()
    };
    match target {
        "checkpoint" => seeds.extend(ending(".safetensors")),
        "header" => seeds.extend(ending(".safetensors").iter().filter_map(|file| {
            let length = u64::from_le_bytes(*file.first_chunk()?);
            Some(file[8..].get(..usize::try_from(length).ok()?)?.to_vec())
        })),
        "index" => seeds.extend(ending(".index.json")),
        "config" => seeds.extend(ending("config.json")),
        _ => {}
    }
    seeds
}

/// Numbers that look random: the same ones in every run.
struct Random(u64);

impl Random {
    /// A number below `end`; 0 if there is none.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }
}

/// Pieces of text that mean something to one of the parsers.
const WORDS: [&str; 32] = [
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[]",
    ":",
    ",",
    "\n",
    "0",
    "-1",
    "1e999",
    "1e-400",
    "18446744073709551615",
    "9223372036854775807",
    "9007199254740993",
    "null",
    ".inf",
    ".nan",
    "../",
    "/dev/zero",
    "\u{1b}[31m",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "&a ",
    "*a",
    "!!str ",
    "<<: ",
    "'",
    "# ",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let to = (at + random.below(12)).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 => drop(bytes.drain(at..to)),
            3 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            4 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..to, word.bytes());
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
    }
    bytes.truncate(LARGEST);
    bytes
}

fn run(name: &str, target: Target, bytes: &[u8]) {
    let ended = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    assert!(ended.is_ok(), "{name} on {:?}", String::from_utf8_lossy(bytes));
}

fn all_of(name: &str) {
    let target = BTreeMap::from(TARGETS)[name];
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| run(name, target, seed));
    let mut random = Random(name.len() as u64);
    for _ in 0..MUTATIONS {
        run(name, target, &mutate(&seeds, &mut random));
    }
}

/// A test per target, so that they share the cores.
macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            all_of(stringify!($name));
        })*

        #[test]
        fn every_target_is_tested_and_has_its_file() {
            let names = TARGETS.map(|(name, _)| name);
            assert_eq!(names[..], [$(stringify!($name)),*]);
            for name in names {
                let file = root().join("fuzz/fuzz_targets").join(name).with_extension("rs");
                let text = fs::read_to_string(&file).unwrap();
                assert!(text.contains(&format!("reflow::fuzzing::{name}(")), "{name}");
            }
        }
    };
}

tests! { card checkpoint components config flags frame header index journal lock manifest plan recipe }
