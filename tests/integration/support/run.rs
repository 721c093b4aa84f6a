//! Running the program, and looking at what it left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The program under test.
pub fn reflow() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflow"));
    command.env_remove("NO_COLOR").env("TERM", "dumb");
    command
}

/// `reflow merge` of the family in `dir` (base, expert1, expert2, ..) into `out`.
pub fn merge(dir: &Path, experts: usize, out: &Path) -> Command {
    let mut command = reflow();
    command.arg("merge").arg("--base").arg(dir.join("base"));
    for i in 1..=experts {
        command.arg("--expert").arg(dir.join(format!("expert{i}")));
    }
    command.arg("--out").arg(out);
    command
}

/// All files below `dir` with their bytes.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(dir).unwrap().to_owned();
                found.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// Names, sizes and times of everything below `dir`: equal before and after if nothing was touched.
pub fn snapshot(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next).unwrap().map(Result::unwrap) {
            let meta = entry.path().symlink_metadata().unwrap();
            found.push((entry.path(), meta.len(), meta.modified().unwrap()));
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
