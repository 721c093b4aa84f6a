//! A merge that is killed goes on where it stopped, and the bytes are those of one that was not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use predicates::str::contains;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::at_hand;
use crate::support::checkpoint::{Checkpoint, family, uniform, write_family};
use crate::support::files;
use crate::support::run::merge;

const EXPERTS: usize = 3;

struct Scene {
    dir: TempDir,
    expected: BTreeMap<PathBuf, Vec<u8>>,
    args: Vec<String>,
    /// Bytes of work between two records.
    checkpoint: &'static str,
}

impl Scene {
    /// A family, and what an undisturbed merge of it gives.
    fn new(args: &[&str]) -> Self {
        let small = family(EXPERTS, Dtype::BF16, 5);
        Self::of(&small, &[args, &["--shard-size", "3000"]].concat(), "4000")
    }

    /// The same of any family, with so much work between records.
    fn of(family: &(Checkpoint, Vec<Checkpoint>), args: &[&str], checkpoint: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        write_family(dir.path(), family, &[2, 3, 1]);
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        merge(dir.path(), EXPERTS, &dir.path().join("calm")).args(&args).assert().success();
        let expected = files(&dir.path().join("calm"));
        Self { dir, expected, args, checkpoint }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("out.partial/state").join(name)
    }

    /// Runs the merge in small pieces and kills it after a time; tells whether it was done by then.
    fn run_for(&self, time: Duration, extra: &[&str]) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflow"));
        command.arg("merge").arg("--base").arg(self.dir.path().join("base"));
        for i in 1..=EXPERTS {
            command.arg("--expert").arg(self.dir.path().join(format!("expert{i}")));
        }
        command.arg("--out").arg(self.out()).args(&self.args).args(extra);
        command.args(["--checkpoint", self.checkpoint, "-q"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begin = Instant::now();
        while begin.elapsed() < time && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(300));
        }
        let killed = child.try_wait().unwrap().is_none();
        if killed {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(killed || output.status.success(), "{stderr}");
        if killed && self.out().exists() {
            // It was killed after the commit, of which only the sweeping was left.
            let code = command.status().unwrap().code();
            assert!(code == Some(0) || code == Some(5), "{code:?}");
            let _empty = std::fs::remove_dir(self.dir.path().join("out.partial/state"));
            let _empty = std::fs::remove_dir(self.dir.path().join("out.partial"));
            return true;
        }
        output.status.success()
    }

    fn check(&self) {
        assert!(files(&self.out()) == self.expected, "the bytes differ after a resume");
        assert!(!self.dir.path().join("out.partial").exists());
        std::fs::remove_dir_all(self.out()).unwrap();
    }

    /// A staging directory somewhere in the middle of a merge.
    fn interrupted(&self) {
        for time in (2..400).step_by(3) {
            if self.run_for(Duration::from_millis(time), &[]) {
                std::fs::remove_dir_all(self.out()).unwrap();
            } else if lines(&self.state("journal")) > 8 {
                return;
            }
        }
        panic!("the merge could not be caught at work");
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Kills at random times, resumes with other threads, tiles and ways of reading, until it is done.
fn kill_and_resume(args: &[&str], rounds: u64) {
    let scene = Scene::new(args);
    for round in 0..rounds {
        let mut random = uniform(round * 31 + 7);
        let mut attempts = 0;
        loop {
            let time =
                Duration::from_micros((random() * 60_000.0) as u64 + 3_000 + attempts * 2_000);
            let tile = (random() * 900.0) as u32 + 1;
            let (tile, threads) = (tile.to_string(), if random() < 0.5 { "1" } else { "3" });
            let io = ["mmap", "pread", "direct"][(random() * 3.0) as usize];
            let extra = ["--tile", &tile, "--threads", threads, "--io", io];
            if scene.run_for(time, &extra) {
                break;
            }
            attempts += 1;
            assert!(attempts < 400, "round {round} makes no progress");
        }
        scene.check();
    }
}

#[test]
fn kills_at_random_times_do_not_change_a_byte_at_model_scope() {
    kill_and_resume(&["--variant", "a"], 12);
}

#[test]
fn kills_at_random_times_do_not_change_a_byte_at_layer_scope() {
    kill_and_resume(&["--variant", "d", "--scope", "layer", "--exclude", "*norm*"], 8);
}

#[test]
fn kills_at_random_times_do_not_change_a_byte_in_the_paper_variant() {
    kill_and_resume(&["--variant", "paper", "--dtype", "f32"], 5);
}

#[test]
fn kills_at_random_times_do_not_change_a_byte_in_two_passes_over_each_tensor() {
    kill_and_resume(&["--method", "model_stock"], 5);
}

/// Tensors that are sampled while the one before is merged, with a few records in each or none.
#[test]
fn kills_do_not_change_a_byte_where_samples_are_taken_ahead() {
    let family = at_hand::family(EXPERTS);
    let ties = ["--method", "ties", "--param", "weight=1", "--param", "density=0.2"];
    let pcb = ["--scope", "tensor"];
    for (args, checkpoint) in [(&ties[..], "3000000"), (&ties, "12000000"), (&pcb, "3000000")] {
        let scene = Scene::of(&family, args, checkpoint);
        let mut random = uniform(41);
        for round in 0..4 {
            for attempt in 0.. {
                assert!(attempt < 60, "round {round} makes no progress");
                let time = Duration::from_millis((random() * 150.0) as u64 + 10 + attempt * 5);
                let threads = if random() < 0.5 { "1" } else { "3" };
                if scene.run_for(time, &["--tile", "100000", "--threads", threads]) {
                    break;
                }
            }
            scene.check();
        }
    }
}

#[test]
fn work_that_is_recorded_is_not_done_again() {
    let scene = Scene::new(&[]);
    scene.interrupted();
    let before = lines(&scene.state("journal"));
    let mut command = merge(scene.dir.path(), EXPERTS, &scene.out());
    command.args(&scene.args).args(["--checkpoint", "4000", "--log-format", "json", "-v"]);
    let done = command.assert().success().stderr(contains("going on where an earlier run stopped"));
    let stderr = String::from_utf8(done.get_output().stderr.clone()).unwrap();
    let pieces = stderr.lines().filter(|line| line.contains("pass_done")).count();
    let calm = {
        let mut command = merge(scene.dir.path(), EXPERTS, &scene.dir.path().join("again"));
        command.args(&scene.args).args(["--checkpoint", "4000", "--log-format", "json", "-v"]);
        let done = command.assert().success();
        let stderr = String::from_utf8(done.get_output().stderr.clone()).unwrap();
        stderr.lines().filter(|line| line.contains("pass_done")).count()
    };
    assert!(
        pieces + before >= calm && pieces + before <= calm + 1,
        "{pieces} + {before} of {calm}"
    );
    scene.check();
}

#[test]
fn another_recipe_or_changed_inputs_are_refused_and_restart_is_the_way_out() {
    let scene = Scene::new(&[]);
    scene.interrupted();
    let again = || {
        let mut command = merge(scene.dir.path(), EXPERTS, &scene.out());
        command.args(&scene.args);
        command
    };
    again()
        .args(["--keep", "0.2"])
        .assert()
        .code(10)
        .stderr(contains("keep: 0.1"))
        .stderr(contains("--restart"));
    let journal = std::fs::read(scene.state("journal")).unwrap();
    let shard = scene.dir.path().join("expert2/model.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes).unwrap();
    again().assert().code(10).stderr(contains("expert2/model.safetensors has changed"));
    assert_eq!(std::fs::read(scene.state("journal")).unwrap(), journal);
    again().arg("--restart").assert().success();
    scene.check();
}

#[test]
fn a_damaged_state_or_journal_costs_work_and_nothing_else() {
    let scene = Scene::new(&[]);
    let mut random = uniform(99);
    for _ in 0..12 {
        scene.interrupted();
        let state = files(&scene.state(""));
        let victims: Vec<&PathBuf> = (state.iter())
            .filter(|(name, bytes)| {
                let name = name.to_string_lossy();
                let known = ["fold-", "kept-", "journal"].iter().any(|kind| name.starts_with(kind));
                // A kill may come between the making of a file and its first byte.
                known && !bytes.is_empty()
            })
            .map(|(name, _)| name)
            .collect();
        let victim = scene.state("").join(victims[(random() * victims.len() as f32) as usize]);
        let mut bytes = std::fs::read(&victim).unwrap();
        let at = (random() * bytes.len() as f32) as usize;
        bytes[at] ^= 1 << ((random() * 8.0) as u32);
        std::fs::write(&victim, bytes).unwrap();
        assert!(scene.run_for(Duration::from_secs(20), &[]));
        scene.check();
    }
}
