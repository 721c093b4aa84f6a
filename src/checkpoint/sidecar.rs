//! The files beside the weights.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::CheckpointError;
use super::tokenizer::is_tokenizer_file;
use crate::patience::patiently;

/// Files that loaders look for, and that a merge takes from the base, beside those of a tokenizer.
const SIDE_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
];
/// No tokenizer is larger.
const MAX_BYTES: u64 = 512 << 20;

/// Names of the side files in a checkpoint's directory, sorted; its Python files only with `code`.
///
/// # Errors
/// What the disk says, and a file that loaders look for and that cannot be copied: what is there must not be missing
/// from an output.
pub fn side_files(root: &Path, code: bool) -> Result<Vec<String>, CheckpointError> {
    let failed = |source| CheckpointError::Io { path: root.to_owned(), source };
    let mut names = Vec::new();
    for entry in patiently(|| std::fs::read_dir(root)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let wanted = SIDE_FILES.contains(&name.as_str())
            || is_tokenizer_file(&name)
            || (code && is_python(&name));
        if !wanted {
            continue;
        }
        // Links are followed, as the hub's cache is made of them.
        let path = root.join(&name);
        let wrong = match std::fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => "it is not a regular file; remove it",
            Ok(meta) if meta.len() > MAX_BYTES => "no such file has that many bytes; remove it",
            Ok(_) => {
                names.push(name);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "it is a link to nothing; fetch the file again, or remove the link"
            }
            Err(source) => return Err(CheckpointError::Io { path, source }),
        };
        return Err(CheckpointError::Inconsistent { path, reason: wrong.to_owned() });
    }
    names.sort();
    Ok(names)
}

fn is_python(name: &str) -> bool {
    // Nobody can import a module whose name is not printable.
    Path::new(name).extension().is_some_and(|end| end == "py")
        && !name.chars().any(char::is_control)
}

/// A config with the element type `dtype` (e.g. `bfloat16`) in every place that names one, and
/// `tie_word_embeddings` set if asked. Keys keep their order.
pub fn config_json(config: &Value, dtype: Option<&str>, tied: Option<bool>) -> String {
    let mut config = config.clone();
    if let Some(dtype) = dtype {
        let named = set_everywhere(&mut config, &["torch_dtype", "dtype"], &Value::from(dtype));
        if let (false, Value::Object(map)) = (named, &mut config) {
            let _new = map.insert("torch_dtype".to_owned(), Value::from(dtype));
        }
    }
    if let Some(tied) = tied {
        let _named = set_everywhere(&mut config, &["tie_word_embeddings"], &Value::from(tied));
    }
    format!("{config:#}\n")
}

/// Sets keys where they are, at the top and in the configs of sub-models; tells if any was at the top.
fn set_everywhere(config: &mut Value, keys: &[&str], value: &Value) -> bool {
    let Value::Object(map) = config else { return false };
    let mut found = false;
    for (key, old) in map.iter_mut() {
        if keys.contains(&key.as_str()) {
            *old = value.clone();
            found = true;
        } else if key.ends_with("_config") && key != "quantization_config" {
            let _nested = set_everywhere(old, keys, value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_file_that_cannot_be_copied_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let names = || side_files(dir.path(), true);
        for name in ["tokenizer.json", "model.py", "notes.txt", "a\nb.py"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(names().unwrap(), ["model.py", "tokenizer.json"]);
        std::fs::create_dir(dir.path().join("vocab.json")).unwrap();
        assert!(names().unwrap_err().to_string().contains("vocab.json: it is not a regular file"));
        std::fs::remove_dir(dir.path().join("vocab.json")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("merges.txt")).unwrap();
        assert!(names().unwrap_err().to_string().contains("merges.txt: it is a link to nothing"));
    }

    #[test]
    fn the_type_is_set_where_it_was_and_keys_keep_their_order() {
        let config =
            r#"{"z": 1, "dtype": "float32", "a": 2, "text_config": {"torch_dtype": "float32"}}"#;
        let config: Value = serde_json::from_str(config).unwrap();
        let text = config_json(&config, Some("bfloat16"), None);
        let at = |key: &str| text.find(key).unwrap();
        assert!(
            at("\"z\"") < at("\"dtype\": \"bfloat16\"") && at("\"dtype\"") < at("\"a\""),
            "{text}"
        );
        assert!(text.contains("\"torch_dtype\": \"bfloat16\"") && text.ends_with("}\n"), "{text}");
        assert!(config_json(&serde_json::json!({}), Some("float16"), None).contains("torch_dtype"));
        let tied = serde_json::json!({"tie_word_embeddings": true});
        assert!(config_json(&tied, None, Some(false)).contains("false"));
    }
}
