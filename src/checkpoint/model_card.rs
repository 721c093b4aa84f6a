//! The README.md of an output: what it was made from, and how.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::human;
use crate::quote::quoted;

/// What a model card tells. Names are for display: no paths.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    /// The base, if there is one.
    pub base: Option<String>,
    /// The experts, in order.
    pub experts: Vec<CardExpert>,
    /// The method with its parameters.
    pub method: String,
    /// The method's name, as a tag.
    pub tag: String,
    /// The recipe, as YAML.
    pub recipe: String,
    /// Version of reflow.
    pub version: String,
    /// All input files.
    pub files: Vec<CardFile>,
}

/// An expert on a model card.
#[derive(Clone, Debug, PartialEq)]
pub struct CardExpert {
    /// Its name.
    pub name: String,
    /// Its parameters, as text.
    pub parameters: String,
}

/// An input file on a model card.
#[derive(Clone, Debug, PartialEq)]
pub struct CardFile {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// The file's name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its length field and header.
    pub header_sha256: String,
}

impl ModelCard {
    /// The card as Markdown with YAML front matter.
    pub fn render(&self) -> String {
        let mut text = String::from("---\nbase_model:\n");
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        for name in self.base.iter().chain(self.experts.iter().map(|e| &e.name)) {
            // The hub knows models here, no commits.
            let commit = |end: &str| end.len() == 40 && end.chars().all(|c| c.is_ascii_hexdigit());
            let model = name.rsplit_once('@').filter(|(_, end)| commit(end));
            line(format!("- {}", quoted(model.map_or(name, |(model, _)| model))));
        }
        line("library_name: transformers".to_owned());
        line("tags:".to_owned());
        for tag in ["merge", "reflow", &self.tag] {
            line(format!("- {tag}"));
        }
        line("---".to_owned());
        let count = self.experts.len();
        line(match &self.base {
            Some(base) => format!("\n# A merge of {count} experts of {}\n", cell(base)),
            None => format!("\n# A merge of {count} models\n"),
        });
        line(format!("Made with reflow {}, method: {}.\n", self.version, self.method));
        line("| model | parameters |\n|---|---|".to_owned());
        for expert in &self.experts {
            line(format!("| {} | {} |", cell(&expert.name), cell(&expert.parameters)));
        }
        line(format!("\n## Recipe\n\n```yaml\n{}```\n", self.recipe));
        line("## Inputs\n".to_owned());
        line("| checkpoint | file | size | SHA-256 of the header |\n|---|---|---|---|".to_owned());
        for file in &self.files {
            line(format!(
                "| {} | {} | {} | `{}` |",
                cell(&file.checkpoint),
                cell(&file.file),
                human::bytes(file.bytes),
                file.header_sha256
            ));
        }
        text
    }
}

/// Text inside a Markdown table.
fn cell(text: &str) -> String {
    text.chars().fold(String::new(), |mut cell, c| {
        if matches!(c, '|' | '\\' | '`' | '<' | '[' | ']' | '*' | '_') {
            cell.push('\\');
        }
        if c.is_control() {
            let _infallible = write!(cell, "{}", c.escape_default());
        } else {
            cell.push(c);
        }
        cell
    })
}

/// A checkpoint's name for people: `org/name` from a hub cache, with `@COMMIT` if that is not the one that `main` was when it
/// was fetched; else the last part of the path.
pub fn display_name(path: &Path) -> String {
    let real = std::fs::canonicalize(path);
    let parts = |path: &Path| -> Vec<String> {
        path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let given = parts(path);
    for parts in [&given, &real.as_deref().map(parts).unwrap_or_default()] {
        let cached = parts.iter().position(|part| part.starts_with("models--"));
        if let Some(at) = cached {
            let name = parts[at]["models--".len()..].replace("--", "/");
            let dir: PathBuf = parts[..=at].iter().collect();
            let main = std::fs::read_to_string(dir.join("refs/main")).unwrap_or_default();
            return match parts.get(at + 2) {
                Some(commit) if !main.is_empty() && main.trim() != commit => {
                    format!("{name}@{commit}")
                }
                _ => name,
            };
        }
    }
    let last = |path: &Path| {
        let file = path.extension().is_some_and(|e| e == "safetensors");
        let name = if file { path.file_stem() } else { path.file_name() };
        // A file that is named like all others is known by its directory.
        let name = match name.map(|n| n.to_string_lossy().into_owned()) {
            Some(name) if file && name == "model" => {
                path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned())
            }
            name => name,
        };
        name.filter(|name| name != "..")
    };
    last(path).or_else(|| real.ok().as_deref().and_then(last)).unwrap_or_else(|| "model".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_tell_the_origin() {
        for (path, name) in [
            (
                "/home/me/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f",
                "meta-llama/Llama-3.1-8B",
            ),
            ("runs/math-expert/", "math-expert"),
            ("expert.safetensors", "expert"),
            ("some/dir/model.safetensors", "dir"),
        ] {
            assert_eq!(display_name(Path::new(path)), name);
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let card = ModelCard {
            base: Some("a\nlicense: mit".to_owned()),
            experts: vec![CardExpert {
                name: "x | y".to_owned(),
                parameters: "lambda 1.5".to_owned(),
            }],
            method: "pcb a".to_owned(),
            tag: "pcb".to_owned(),
            recipe: "merge_method: pcb\n".to_owned(),
            version: "0".to_owned(),
            files: Vec::new(),
        };
        let text = card.render();
        assert!(text.contains("- \"a\\nlicense: mit\"\n"), "{text}");
        assert!(text.contains("| x \\| y | lambda 1.5 |"), "{text}");
    }
}
