//! What a search has tried so far: one durable line for each trial.
//!
//! ```text
//! work/journal    CHECK {"version":..,"recipe":..,"evaluate":..,"way":..}\n
//!                 CHECK {"point":{..},"outcome":{..},"seconds":..}\n ..
//! ```
//! CHECK is the BLAKE3 hash of what follows it and of the CHECK before. A line that a crash has torn does not count.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Trial;
use crate::error::{Error, IoContext};

/// What a search is about: others do not go on with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The version of reflow.
    pub version: String,
    /// The recipe, with absolute paths.
    pub recipe: String,
    /// The program that scores.
    pub evaluate: String,
    /// Which candidates are tried.
    pub way: String,
}

/// The journal of a search.
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    end: u64,
    check: String,
    trials: Vec<Trial>,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one.
    ///
    /// # Errors
    /// [`Error::OtherPlan`] if it is that of another search.
    pub(super) fn open(dir: &Path, head: &Head, restart: bool) -> Result<Self, Error> {
        let path = dir.join("journal");
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(restart);
        let file = options.open(&path).at("open", &path)?;
        let text = std::fs::read(&path).at("read", &path)?;
        let mut journal =
            Self { dir: dir.to_owned(), file, end: 0, check: String::new(), trials: Vec::new() };
        let mut lines = text.split_inclusive(|&byte| byte == b'\n');
        let begun: Option<Head> = lines.next().and_then(|line| journal.take(line));
        if let Some(begun) = begun {
            if let Some(what) = difference(&begun, head) {
                return Err(Error::OtherPlan { path: dir.to_owned(), what });
            }
            while let Some(trial) = lines.next().and_then(|line| journal.take(line)) {
                journal.trials.push(trial);
            }
        }
        // What a crash has torn must not come back behind later lines.
        journal.file.set_len(journal.end).at("truncate", &path)?;
        if journal.end == 0 {
            journal.write(head)?;
            File::open(dir).and_then(|dir| dir.sync_all()).at("sync", dir)?;
        }
        Ok(journal)
    }

    /// Takes in a good line.
    fn take<T: for<'de> Deserialize<'de>>(&mut self, line: &[u8]) -> Option<T> {
        let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (claimed, text) = text.split_once(' ')?;
        if self.check(text) != claimed {
            return None;
        }
        let value = serde_json::from_str(text).ok()?;
        self.end += line.len() as u64;
        claimed.clone_into(&mut self.check);
        Some(value)
    }

    fn check(&self, text: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.check.as_bytes());
        hasher.update(text.as_bytes());
        hasher.finalize().to_hex().to_string()
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let path = self.dir.join("journal");
        // Numbers and strings: nothing that could fail.
        let text = serde_json::to_string(value).unwrap_or_default();
        let check = self.check(&text);
        let line = format!("{check} {text}\n");
        self.file.write_all_at(line.as_bytes(), self.end).at("write", &path)?;
        self.file.sync_data().at("sync", &path)?;
        self.end += line.len() as u64;
        self.check = check;
        Ok(())
    }

    /// Adds a trial, durably.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn append(&mut self, trial: Trial) -> Result<(), Error> {
        self.write(&trial)?;
        self.trials.push(trial);
        Ok(())
    }

    /// All trials.
    pub(super) fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The error about a trial that is not the one that this search would make.
    pub(super) fn differs(&self, number: usize) -> Error {
        let what = format!("its trial {number} is not the one that this search makes");
        Error::OtherPlan { path: self.dir.clone(), what }
    }
}

/// What differs between two searches, in words.
fn difference(begun: &Head, now: &Head) -> Option<String> {
    let recipe = begun.recipe.lines().zip(now.recipe.lines()).find(|(begun, now)| begun != now);
    if let Some((begun, now)) = recipe {
        return Some(format!("its recipe says `{}` and this one `{}`", begun.trim(), now.trim()));
    }
    let fields = [
        ("version", &begun.version, &now.version),
        ("recipe", &begun.recipe, &now.recipe),
        ("--evaluate", &begun.evaluate, &now.evaluate),
        ("search", &begun.way, &now.way),
    ];
    let (field, was, is) = fields.into_iter().find(|(_, was, is)| was != is)?;
    Some(format!("its {field} was `{was}` and is `{is}`"))
}

#[cfg(test)]
mod tests {
    use super::super::{Outcome, Point};
    use super::*;

    #[test]
    fn trials_count_up_to_the_first_that_is_torn_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let head = |way: &str| Head {
            version: "1".to_owned(),
            recipe: "a\n".to_owned(),
            evaluate: "e".to_owned(),
            way: way.to_owned(),
        };
        let open = || Journal::open(dir.path(), &head("w"), false).unwrap();
        let trial = |x: f64| Trial {
            point: Point::of_lambdas(&[x]),
            outcome: Outcome::Score(x),
            seconds: 0.5,
            read: 7,
        };
        let (mut journal, mut ends) = (open(), Vec::new());
        for k in 0..3 {
            journal.append(trial(f64::from(k))).unwrap();
            ends.push(journal.end as usize);
        }
        let path = dir.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        let begin = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for len in begin..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let expected = ends.iter().filter(|&&end| end <= len).count();
            assert_eq!(open().trials().len(), expected, "{len}");
        }
        for at in (begin..whole.len()).step_by(7) {
            let mut flipped = whole.clone();
            flipped[at] ^= 2;
            std::fs::write(&path, flipped).unwrap();
            assert!(open().trials().len() < 3, "{at}");
        }
        std::fs::write(&path, &whole).unwrap();
        let Err(other) = Journal::open(dir.path(), &head("v"), false) else {
            panic!("another way")
        };
        assert_eq!(other.exit_code(), 10);
        assert!(other.to_string().contains("its search was `w` and is `v`"), "{other}");
        assert!(Journal::open(dir.path(), &head("v"), true).unwrap().trials().is_empty());
    }
}
