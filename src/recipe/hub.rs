//! Models of the Hugging Face Hub that lie in its cache on this machine. Nothing is downloaded, and
//! nothing in the cache is changed.
//!
//! ```text
//! CACHE/models--ORG--NAME/refs/main          the commit that `main` was when it was fetched; so for other branches and tags
//! CACHE/models--ORG--NAME/snapshots/COMMIT/  its files
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// No commit's name is longer.
const MAX_REF: u64 = 256;

/// The cache of the Hugging Face tools.
pub(super) struct Cache(PathBuf);

impl Cache {
    /// The cache that the environment names: `HF_HUB_CACHE`, `HF_HOME/hub`, or the one in the user's cache
    /// directory.
    pub(super) fn new(environment: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let set = |name: &str| environment(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || {
            let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
            Some(cache?.join("huggingface"))
        };
        let home = || set("HF_HOME").or_else(user).map(|home| home.join("hub"));
        set("HF_HUB_CACHE").or_else(home).map(Self)
    }

    /// The directory with the files of a model, as of a commit, or of when a branch or tag was last fetched.
    pub(super) fn snapshot(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let model = self.0.join(format!("models--{}", id.replace('/', "--")));
        let commit = |text: &str| {
            let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
            let snapshot = plain.then(|| model.join("snapshots").join(text))?;
            snapshot.is_dir().then_some(snapshot)
        };
        let named = || {
            let name = model.join("refs").join(is_revision(revision).then_some(revision)?);
            let meta = std::fs::metadata(&name).ok()?;
            if !meta.is_file() || meta.len() > MAX_REF {
                return None;
            }
            commit(std::fs::read_to_string(name).ok()?.trim())
        };
        named().or_else(|| commit(revision))
    }
}

/// Whether a text may be the name of a branch, tag or commit, and names nothing outside of a directory.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    text.split('/').all(part)
}

/// Whether a text may be the name of a model on the hub: `NAME` or `ORG/NAME`.
pub(super) fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(known)
    };
    let mut parts = text.split('/');
    parts.clone().count() <= 2 && parts.all(part)
}

/// The directory of the model that a recipe or flag names, `MODEL` or `MODEL@REVISION`: the path itself if it exists, or
/// is no name of a model on the hub.
///
/// # Errors
/// What to type, if the model is not in the cache.
pub fn locate(name: &str) -> Result<PathBuf, String> {
    if Path::new(name).exists() {
        return Ok(PathBuf::from(name));
    }
    let (id, revision) = match name.rsplit_once('@') {
        Some((id, revision)) if is_revision(revision) => (id, Some(revision)),
        _ => (name, None),
    };
    if revision.is_some() && Path::new(id).exists() {
        return Err(format!(
            "{id} is a directory, which has no revisions; leave @{} out",
            revision.unwrap_or_default()
        ));
    }
    if !is_id(id) {
        return Ok(PathBuf::from(name));
    }
    let cache = Cache::new(|variable| std::env::var_os(variable));
    let snapshot = |cache: &Cache| cache.snapshot(id, revision.unwrap_or("main"));
    if let Some(snapshot) = cache.as_ref().and_then(snapshot) {
        return Ok(snapshot);
    }
    let place = cache.map_or_else(String::new, |cache| format!(" ({})", cache.0.display()));
    let (what, with) = match revision {
        Some(revision) => {
            (format!("nor its revision {revision}"), format!("{id} --revision {revision}"))
        }
        None => ("nor a model of that name".to_owned(), id.to_owned()),
    };
    Err(format!(
        "there is no directory {id}, {what} in the Hugging Face cache{place}; correct the path, or fetch the model: hf \
         download {with}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_told_from_paths() {
        for id in ["org/name", "gpt2", "meta-llama/Llama-3.1-8B", "a_b/c.d"] {
            assert!(is_id(id), "{id}");
        }
        for path in ["./a", "/a/b", "../a", "a/b/c", "a//b", "~/a", "a/", "", "a b/c", "a\\b"] {
            assert!(!is_id(path), "{path}");
        }
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        for (set, expected) in [
            (vec![("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (vec![("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub")),
            (vec![("HOME", "/h"), ("HF_HOME", "/f")], Some("/f/hub")),
            (vec![("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], Some("/c")),
            (vec![("HF_HOME", ""), ("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (vec![], None),
        ] {
            let of = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
            assert_eq!(Cache::new(of).map(|c| c.0), expected.map(PathBuf::from), "{set:?}");
        }
    }

    #[test]
    fn a_model_is_the_snapshot_that_main_names() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--name");
        let snapshot = model.join("snapshots/0123abcd");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        let cache = Cache(dir.path().to_owned());
        assert_eq!(cache.snapshot("org/name", "main"), None);
        for (main, found) in [
            ("0123abcd\n", Some(snapshot)),
            ("4567", None),
            ("../refs", None),
            ("", None),
            (&"0".repeat(300), None),
        ] {
            std::fs::write(model.join("refs/main"), main).unwrap();
            assert_eq!(cache.snapshot("org/name", "main"), found, "{main}");
        }
        assert_eq!(cache.snapshot("org/other", "main"), None);
        // Branches, tags and commits.
        let snapshot = Some(model.join("snapshots/0123abcd"));
        std::fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
        std::fs::write(model.join("refs/refs/pr/1"), "0123abcd").unwrap();
        std::fs::write(model.join("refs/v1.0"), "0123abcd").unwrap();
        for (revision, found) in [
            ("0123abcd", &snapshot),
            ("v1.0", &snapshot),
            ("refs/pr/1", &snapshot),
            ("refs/pr", &None),
            ("0123", &None),
            ("../refs/v1.0", &None),
            ("/v1.0", &None),
            ("", &None),
        ] {
            assert_eq!(cache.snapshot("org/name", revision), *found, "{revision}");
        }
    }
}
