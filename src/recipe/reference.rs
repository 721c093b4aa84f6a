//! Names of models with adapters: `MODEL+ADAPTER`, as mergekit writes them.
//!
//! Recipes carry such a name as the model's path, and are split only when it is opened: what a path that exists
//! names is that path, whatever is in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The model and the adapter that a path names.
pub fn split(path: &Path) -> (&Path, Option<&Path>) {
    split_where(path, &|path| path.exists())
}

/// The same, with `exists` to say whether a path does: of several `+`, the last one between paths that exist, else
/// the last one.
fn split_where<'a>(path: &'a Path, exists: &dyn Fn(&Path) -> bool) -> (&'a Path, Option<&'a Path>) {
    let bytes = path.as_os_str().as_bytes();
    let part = |bytes: &'a [u8]| Path::new(OsStr::from_bytes(bytes));
    let cut = |at: usize| (part(&bytes[..at]), part(&bytes[at + 1..]));
    let places = || (1..bytes.len().saturating_sub(1)).rev().filter(|&at| bytes[at] == b'+');
    if places().next().is_none() || exists(path) {
        return (path, None);
    }
    let between = places().map(cut).find(|(model, adapter)| exists(model) && exists(adapter));
    match between.or_else(|| places().next().map(cut)) {
        Some((model, adapter)) => (model, Some(adapter)),
        None => (path, None),
    }
}

/// The name of a model with an adapter.
pub fn join(model: &Path, adapter: &Path) -> PathBuf {
    let mut name = model.as_os_str().to_owned();
    name.push("+");
    name.push(adapter);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_follows_the_plus_sign_unless_that_is_part_of_a_name() {
        let there = ["base", "c++", "c++/lora", "a+b", "lora", "b"];
        let exists = |path: &Path| there.iter().any(|name| Path::new(name) == path);
        for (name, model, adapter) in [
            ("base", "base", None),
            ("a+b", "a+b", None),
            ("base+lora", "base", Some("lora")),
            ("c++", "c++", None),
            ("c+++lora", "c++", Some("lora")),
            ("base+c++/lora", "base", Some("c++/lora")),
            ("a+b+lora", "a+b", Some("lora")),
            ("gone+nowhere", "gone", Some("nowhere")),
            ("gone+", "gone+", None),
            ("+gone", "+gone", None),
            ("", "", None),
        ] {
            let (found, with) = split_where(Path::new(name), &exists);
            assert_eq!((found, with), (Path::new(model), adapter.map(Path::new)), "{name}");
            if let Some(with) = with {
                assert_eq!(join(found, with), Path::new(name));
            }
        }
    }
}
