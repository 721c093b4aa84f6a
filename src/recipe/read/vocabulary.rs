//! Compares the tokenizers of checkpoints by their files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Files that number the tokens.
const VOCABULARY: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
];
/// Files that say how tokens are used.
const USE: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// How two tokenizers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// All files agree, byte by byte.
    Same,
    /// The tokens agree; this file about their use differs.
    Use(&'static str),
    /// This file with tokens differs, or only one has it.
    Tokens(&'static str),
    /// This checkpoint, the first (0) or the second (1), has no file with tokens.
    Unknown(usize),
}

/// Compares the tokenizer files of two checkpoints, which are directories or files in them.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn compare(a: &Path, b: &Path) -> io::Result<Comparison> {
    let roots = [a, b].map(|path| if path.is_dir() { path } else { path.parent().unwrap_or(path) });
    for (which, root) in roots.iter().enumerate() {
        if !VOCABULARY.iter().any(|name| root.join(name).exists()) {
            return Ok(Comparison::Unknown(which));
        }
    }
    for (names, found) in [
        (&VOCABULARY[..], Comparison::Tokens as fn(&'static str) -> Comparison),
        (&USE[..], Comparison::Use),
    ] {
        for name in names {
            if !same(&roots[0].join(name), &roots[1].join(name))? {
                return Ok(found(name));
            }
        }
    }
    Ok(Comparison::Same)
}

/// Whether two files hold the same bytes; two that are not there do.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(a), Some(b)) = (open(a)?, open(b)?) else { return Ok(a.exists() == b.exists()) };
    let len = a.metadata()?.len();
    if b.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut a, mut b, mut left) = (a, b, len);
    let mut buffers = [vec![0; 1 << 16], vec![0; 1 << 16]];
    while left > 0 {
        let step = left.min(1 << 16) as usize;
        let [of_a, of_b] = &mut buffers;
        a.read_exact(&mut of_a[..step])?;
        b.read_exact(&mut of_b[..step])?;
        if of_a[..step] != of_b[..step] {
            return Ok(false);
        }
        left -= step as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizers_are_compared_byte_by_byte() {
        let long = |end: &str| "x".repeat(200_000) + end;
        for (a, b, expected) in [
            (vec![("vocab.txt", "a")], vec![("vocab.txt", "a")], Comparison::Same),
            (
                vec![("tokenizer.json", &*long("a"))],
                vec![("tokenizer.json", &*long("b"))],
                Comparison::Tokens("tokenizer.json"),
            ),
            (
                vec![("vocab.json", "a"), ("merges.txt", "b")],
                vec![("vocab.json", "a")],
                Comparison::Tokens("merges.txt"),
            ),
            (
                vec![("vocab.txt", "a"), ("tokenizer_config.json", "{}")],
                vec![("vocab.txt", "a"), ("tokenizer_config.json", "{ }")],
                Comparison::Use("tokenizer_config.json"),
            ),
            (vec![("vocab.txt", "a")], vec![("config.json", "a")], Comparison::Unknown(1)),
            (vec![], vec![("vocab.txt", "a")], Comparison::Unknown(0)),
        ] {
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            for (dir, files) in dirs.iter().zip([&a, &b]) {
                for (name, text) in files {
                    std::fs::write(dir.path().join(name), text).unwrap();
                }
            }
            assert_eq!(compare(dirs[0].path(), dirs[1].path()).unwrap(), expected);
        }
    }
}
