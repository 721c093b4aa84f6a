//! What is being made: the first file of a staging directory, written once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::manifest::is_file_name;
use crate::job::reading::read_file;

/// The name of the plan's file.
pub(in crate::job) const FILE: &str = "plan.json";
/// Far above that of a merge with a million files.
const LARGEST: u64 = 1 << 30;

/// What a staging directory belongs to, and which files it makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct PlanFile {
    /// Everything that decides the bytes of the output.
    pub(in crate::job) identity: Identity,
    /// The shards, in order.
    pub(in crate::job) shards: Vec<ShardName>,
    /// Names of all other files of the output.
    pub(in crate::job) others: Vec<String>,
    /// The command line that began it.
    pub(in crate::job) command: Option<String>,
}

/// A shard to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct ShardName {
    /// File name.
    pub(in crate::job) file: String,
    /// Size.
    pub(in crate::job) bytes: u64,
}

/// Everything that decides the bytes of an output, and what saved states mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct Identity {
    /// The version of reflow.
    pub(in crate::job) version: String,
    /// The recipe, with absolute paths.
    pub(in crate::job) recipe: String,
    /// How order statistics are found: changes no byte of the output, but what folds gather.
    pub(in crate::job) selection: String,
    /// The directory of components that is made, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::job) components: Option<String>,
    /// Whether statistics are gathered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::job) statistics: bool,
    /// A hash of what was known about units before the merge: saved states are those of other stages then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::job) findings: Option<String>,
    /// All input files.
    pub(in crate::job) inputs: Vec<InputIdentity>,
}

/// An input file as it was when the merge began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct InputIdentity {
    pub(in crate::job) path: String,
    pub(in crate::job) bytes: u64,
    pub(in crate::job) mtime_ns: String,
    pub(in crate::job) header_sha256: String,
}

impl Identity {
    /// What differs, in words.
    pub(in crate::job) fn difference(&self, now: &Self) -> Option<String> {
        if self.version != now.version {
            let (begun, now) = (&self.version, &now.version);
            return Some(format!("it was begun by reflow {begun}, and this is {now}"));
        }
        if self.recipe != now.recipe {
            let lines = self.recipe.lines().zip(now.recipe.lines());
            let changed = lines.into_iter().find(|(begun, now)| begun != now);
            return Some(changed.map_or_else(
                || "its recipe has other experts or keys".to_owned(),
                |(begun, now)| {
                    format!("its recipe says `{}` and this one `{}`", begun.trim(), now.trim())
                },
            ));
        }
        if self.selection != now.selection {
            let (begun, now) = (&self.selection, &now.selection);
            return Some(format!("it was begun with --selection {begun}, and this is {now}"));
        }
        if self.components != now.components {
            let said = |components: &Option<String>| match components {
                Some(dir) => format!("with --components {dir}"),
                None => "without --components".to_owned(),
            };
            let (begun, now) = (said(&self.components), said(&now.components));
            return Some(format!("it was begun {begun}, and this is {now}"));
        }
        if self.statistics != now.statistics {
            let said =
                |statistics| if statistics { "with --statistics" } else { "without --statistics" };
            let (begun, now) = (said(self.statistics), said(now.statistics));
            return Some(format!("it was begun {begun}, and this is {now}"));
        }
        if self.findings != now.findings {
            let said = |findings: &Option<String>| match findings {
                Some(hash) => format!("with statistics that a search had found ({hash})"),
                None => "without statistics that a search had found".to_owned(),
            };
            let (begun, now) = (said(&self.findings), said(&now.findings));
            return Some(format!("it was begun {begun}, and this is {now}"));
        }
        let changed = self.inputs.iter().zip(&now.inputs).find_map(|(a, b)| a.difference(b));
        let other_files = || "its inputs have other files".to_owned();
        changed.or_else(|| (self.inputs.len() != now.inputs.len()).then(other_files))
    }
}

impl InputIdentity {
    fn difference(&self, now: &Self) -> Option<String> {
        if self.path != now.path {
            return Some(format!("it reads {} and not {}", self.path, now.path));
        }
        let fields = [
            ("size", self.bytes.to_string(), now.bytes.to_string()),
            ("header's SHA-256", self.header_sha256.clone(), now.header_sha256.clone()),
            ("modification time (ns)", self.mtime_ns.clone(), now.mtime_ns.clone()),
        ];
        let (field, was, is) = fields.into_iter().find(|(_, was, is)| was != is)?;
        let path = &self.path;
        Some(format!("the input {path} has changed since: its {field} was {was} and is {is}"))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    blake3: String,
    plan: PlanFile,
}

impl PlanFile {
    /// The text of the file.
    pub(in crate::job) fn render(&self) -> String {
        let checked = Checked { blake3: self.fingerprint(), plan: self.clone() };
        // Numbers, strings and lists: nothing that could fail.
        let mut text = serde_json::to_string_pretty(&checked).unwrap_or_default();
        text.push('\n');
        text
    }

    /// A hash of all of it.
    pub(in crate::job) fn fingerprint(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Reads what [`Self::render`] made; `None` if any byte of it is another.
    pub(in crate::job) fn parse(text: &[u8]) -> Option<Self> {
        let checked: Checked = serde_json::from_slice(text).ok()?;
        let plan = checked.plan;
        (plan.render().as_bytes() == text && plan.names().all(is_file_name)).then_some(plan)
    }

    /// Reads the plan of a state directory; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written.
    pub(in crate::job) fn load(state: &Path) -> Result<Option<Self>, Error> {
        let path = state.join(FILE);
        let Some(text) = read_file(&path, LARGEST)? else { return Ok(None) };
        let what = "it is not as it was written; --restart discards what was begun".to_owned();
        Self::parse(&text).ok_or(Error::Damaged { path, what }).map(Some)
    }

    /// Whether `name` is a file of the output.
    pub(in crate::job) fn makes(&self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// All files of the output.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| &shard.file).chain(&self.others).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> PlanFile {
        let input = InputIdentity {
            path: "/models/base/model.safetensors".into(),
            bytes: 77,
            mtime_ns: "1700000000000000000".to_owned(),
            header_sha256: "ab".repeat(32),
        };
        PlanFile {
            identity: Identity {
                version: "1.2.3".to_owned(),
                recipe: "merge_method: pcb\nkeep: 0.1\n".to_owned(),
                selection: "fused".to_owned(),
                components: None,
                statistics: false,
                findings: None,
                inputs: vec![input],
            },
            shards: vec![ShardName { file: "model.safetensors".to_owned(), bytes: 5 }],
            others: vec!["config.json".to_owned()],
            command: Some("reflow merge recipe.yml --out out".to_owned()),
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let text = plan().render().into_bytes();
        assert_eq!(PlanFile::parse(&text), Some(plan()));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(PlanFile::parse(&flipped), None, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn the_field_that_differs_is_named() {
        let begun = plan().identity;
        assert_eq!(begun.difference(&begun), None);
        let differs = |change: fn(&mut Identity)| {
            let mut now = begun.clone();
            change(&mut now);
            begun.difference(&now).unwrap()
        };
        assert!(differs(|now| now.version = "2".to_owned()).contains("reflow 1.2.3"));
        assert!(differs(|now| now.recipe = now.recipe.replace("0.1", "0.2")).contains("keep: 0.2"));
        assert!(differs(|now| now.selection = "radix".to_owned()).contains("--selection fused"));
        let other = differs(|now| now.components = Some("/c".to_owned()));
        assert!(other.contains("without --components, and this is with --components /c"));
        let other = differs(|now| now.statistics = true);
        assert!(other.contains("without --statistics, and this is with --statistics"));
        let other = differs(|now| now.findings = Some("ab".to_owned()));
        assert!(other.contains("without statistics that a search had found, and this is with"));
        assert!(differs(|now| now.inputs[0].bytes = 78).contains("its size was 77 and is 78"));
        assert!(
            differs(|now| now.inputs[0].mtime_ns = "1".to_owned()).contains("modification time")
        );
        assert!(differs(|now| now.inputs[0].header_sha256.clear()).contains("header's SHA-256"));
        assert!(differs(|now| now.inputs[0].path = "/x".into()).contains("and not /x"));
        assert!(differs(|now| now.inputs.clear()).contains("other files"));
    }
}
