//! Runs the program that scores a model.

use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a program's output that are kept: its end.
const KEPT: usize = 16 << 10;
/// Between two looks at a program that runs.
const PAUSE: Duration = Duration::from_millis(20);

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    /// With a score.
    Score(f64),
    /// Without one, for this reason.
    Failed(String),
    /// It was stopped from outside.
    Stopped,
}

/// What stands for the model's directory in a command.
pub(super) const MODEL: &str = "{model}";

/// Runs `command` in a shell with the model's directory in place of `{model}`; its last line of output is the score.
pub(super) fn evaluate(
    command: &str,
    model: &Path,
    limit: Option<Duration>,
    stop: &AtomicBool,
) -> Ended {
    let command = command.replace(MODEL, &quoted(model));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // All that it starts is stopped with it.
    let mut child = match shell.process_group(0).spawn() {
        Ok(child) => child,
        Err(error) => return Ended::Failed(format!("it could not be started: {error}")),
    };
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(|| end_of(out));
        let err = scope.spawn(|| end_of(err));
        let ended = wait(&mut child, limit, stop);
        // What it has left running would keep its output open.
        end_group(&child);
        let [out, err] = [out, err].map(|thread| thread.join().unwrap_or_default());
        match ended {
            Ok(Some(status)) => judge(status, &out, &err),
            Ok(None) if stop.load(Ordering::Relaxed) => Ended::Stopped,
            Ok(None) => {
                let seconds = limit.unwrap_or_default().as_secs_f64();
                Ended::Failed(format!("it took more than {seconds} s and was stopped"))
            }
            Err(error) => Ended::Failed(error.to_string()),
        }
    })
}

/// Waits for the end of a program; nothing if it was stopped.
fn wait(
    child: &mut Child,
    limit: Option<Duration>,
    stop: &AtomicBool,
) -> std::io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if stop.load(Ordering::Relaxed) || limit.is_some_and(|limit| begin.elapsed() > limit) {
            end_group(child);
            let _status = child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Ends a program and all that it has started.
fn end_group(child: &Child) {
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(id) = id {
        // Nobody may be left.
        let _gone = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
    }
}

/// The end of what comes out of a pipe.
fn end_of(pipe: Option<impl Read>) -> String {
    let (mut end, mut buffer) = (Vec::new(), [0; 4096]);
    let Some(mut pipe) = pipe else { return String::new() };
    while let Ok(len @ 1..) = pipe.read(&mut buffer) {
        end.extend_from_slice(&buffer[..len]);
        if end.len() > 2 * KEPT {
            end.drain(..end.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&end).into_owned()
}

fn judge(status: ExitStatus, out: &str, err: &str) -> Ended {
    let last = |text: &str| {
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        line.map(|line| line.trim().chars().take(200).collect::<String>())
    };
    if !status.success() {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("it ended with exit code {code}"),
            (None, signal) => format!("it was ended by signal {}", signal.unwrap_or(0)),
        };
        return Ended::Failed(match last(err).or_else(|| last(out)) {
            Some(line) => format!("{how}: {line}"),
            None => how,
        });
    }
    match last(out) {
        None => Ended::Failed("it printed nothing; its last line must be the score".to_owned()),
        Some(line) => match line.parse::<f64>() {
            Ok(score) if score.is_finite() => Ended::Score(score),
            _ => Ended::Failed(format!("its last line is no finite number: {line}")),
        },
    }
}

/// A path as shells read it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, limit: Option<u64>) -> Ended {
        let limit = limit.map(Duration::from_millis);
        evaluate(command, Path::new("a 'dir'"), limit, &AtomicBool::new(false))
    }

    #[test]
    fn the_last_line_is_the_score() {
        assert_eq!(run("echo loading; echo 0.5; echo", None), Ended::Score(0.5));
        assert_eq!(run("echo -1e-3; echo noise >&2", None), Ended::Score(-0.001));
        let name = run("test {model} = \"a 'dir'\" && echo 1", None);
        assert_eq!(name, Ended::Score(1.0));
        // More than is kept.
        assert_eq!(run("seq 1 100000; echo 7", None), Ended::Score(7.0));
    }

    #[test]
    fn what_fails_or_hangs_is_told_and_over() {
        let failed = |command: &str, limit, part: &str| match run(command, limit) {
            Ended::Failed(why) => assert!(why.contains(part), "{command}: {why}"),
            other => panic!("{command}: {other:?}"),
        };
        failed("echo 1; echo broken >&2; exit 3", None, "exit code 3: broken");
        failed("echo accuracy 0.5", None, "no finite number: accuracy 0.5");
        failed("echo nan", None, "no finite number");
        failed("true", None, "printed nothing");
        failed("kill -9 $$", None, "signal 9");
        failed("no-such-program-anywhere", None, "127");
        let begin = Instant::now();
        failed("echo 1; sleep 60", Some(100), "more than 0.1 s");
        // A child in the background does not hold it up.
        assert_eq!(run("sleep 60 & echo 2", None), Ended::Score(2.0));
        assert!(begin.elapsed() < Duration::from_secs(20));
        let stop = AtomicBool::new(true);
        assert_eq!(evaluate("sleep 60", Path::new("x"), None, &stop), Ended::Stopped);
    }
}
