//! Progress as a bar, as plain lines, as JSON lines, or not at all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::{Log, LogFormat, When};
use super::output;
use crate::human;
use crate::progress::{Event, Progress};

/// A [`Progress`] that can be taken off the screen.
pub(super) trait Display: Progress {
    /// Leaves the screen to what follows.
    fn finish(&self) {}
}

/// The display that the flags and the terminal ask for.
pub(super) fn display(log: &Log) -> Box<dyn Display> {
    let terminal = match log.progress {
        When::Auto => output::is_terminal(),
        When::Always => true,
        When::Never => false,
    };
    let color = match log.color {
        When::Auto => output::is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        When::Always => true,
        When::Never => false,
    };
    match log.format {
        _ if log.quiet => Box::new(Quiet),
        LogFormat::Json => Box::new(Lines::new(true, log.verbose, true)),
        LogFormat::Text if terminal => Box::new(Bar::new(log.verbose, color)),
        LogFormat::Text => Box::new(Lines::new(false, log.verbose, log.progress != When::Never)),
    }
}

/// Says nothing.
struct Quiet;

impl Progress for Quiet {
    fn event(&self, _event: &Event<'_>) {}

    fn advance(&self, _bytes: u64) {}
}

impl Display for Quiet {}

/// One redrawn line: the pass, a bar over the bytes of all passes, rate and time left.
struct Bar {
    line: ProgressBar,
    verbose: bool,
    color: bool,
}

impl Bar {
    fn new(verbose: bool, color: bool) -> Self {
        // Until the passes begin there is nothing to show.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { line: bar, verbose, color }
    }

    fn say(&self, label: &str, code: &str, text: &str) {
        let text = output::printable(text);
        let label =
            if self.color { format!("\x1b[{code}m{label}\x1b[0m") } else { label.to_owned() };
        self.line.suspend(|| output::message(&format!("{label}{text}")));
    }
}

impl Progress for Bar {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Started { bytes_total, bytes_done } => {
                let colors = if self.color { ".cyan/dim" } else { "" };
                let template = format!(
                    "{{msg:20!}} {{wide_bar{}{colors}}} {{percent:>3}} %  {{binary_bytes_per_sec:>12}}  {{eta:>4}} left",
                    if colors.is_empty() { "" } else { ":" },
                );
                let style = ProgressStyle::with_template(&template).map_or_else(
                    |_| ProgressStyle::default_bar(),
                    |style| style.progress_chars("━╸─"),
                );
                self.line.set_style(style);
                self.line.set_length(bytes_total);
                self.line.set_position(bytes_done);
                self.line.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
                self.line.enable_steady_tick(Duration::from_millis(250));
            }
            Event::PassStarted { name } => self.line.set_message(name.to_owned()),
            Event::PassFinished { name, bytes, seconds } if self.verbose => {
                self.say("", "0", &pass_line(name, bytes, seconds));
            }
            Event::ShardDone { file } if self.verbose => self.say("", "0", &format!("{file} done")),
            Event::Warning { text } => self.say("warning: ", "33", text),
            Event::Notice { text } => self.say("", "0", text),
            Event::Detail { text } if self.verbose => self.say("", "0", text),
            Event::PassFinished { .. } | Event::ShardDone { .. } | Event::Detail { .. } => {}
        }
    }

    fn advance(&self, bytes: u64) {
        self.line.inc(bytes);
    }
}

impl Display for Bar {
    fn finish(&self) {
        self.line.finish_and_clear();
    }
}

/// A line every ten seconds, for logs; as text or as JSON.
struct Lines {
    json: bool,
    verbose: bool,
    status: bool,
    done: AtomicU64,
    state: Mutex<LineState>,
}

struct LineState {
    begin: Instant,
    last: Instant,
    total: u64,
    done_before: u64,
    pass: String,
}

const EVERY: Duration = Duration::from_secs(10);

impl Lines {
    fn new(json: bool, verbose: bool, status: bool) -> Self {
        let now = Instant::now();
        let state =
            LineState { begin: now, last: now, total: 0, done_before: 0, pass: String::new() };
        Self { json, verbose, status, done: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut LineState) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn say(&self, kind: &str, text: &str, fields: Value) {
        if self.json {
            let mut line = fields;
            line["message_type"] = json!(kind);
            output::message(&line.to_string());
        } else {
            output::message(&output::printable(text));
        }
    }

    fn status(&self, state: &LineState) {
        let done = self.done.load(Ordering::Relaxed);
        let elapsed = state.begin.elapsed().as_secs_f64();
        let rate = done.saturating_sub(state.done_before) as f64 / elapsed.max(1e-9);
        let left = state.total.saturating_sub(done) as f64 / rate.max(1.0);
        let percent = 100.0 * done as f64 / (state.total.max(1)) as f64;
        let text = format!(
            "{percent:.1} % ({}), {} of {}, {:.2} GB/s, {} left",
            state.pass,
            human::bytes(done),
            human::bytes(state.total),
            rate / 1e9,
            human::seconds(left)
        );
        let fields = json!({
            "bytes_done": done, "bytes_total": state.total, "percent_done": percent / 100.0,
            "seconds_elapsed": elapsed, "seconds_remaining": left, "pass": state.pass,
        });
        self.say("status", &text, fields);
    }
}

impl Progress for Lines {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Started { bytes_total, bytes_done } => {
                self.done.store(bytes_done, Ordering::Relaxed);
                self.with_state(|state| {
                    let now = Instant::now();
                    (state.begin, state.last) = (now, now);
                    (state.total, state.done_before) = (bytes_total, bytes_done);
                });
            }
            Event::PassStarted { name } => {
                self.with_state(|state| name.clone_into(&mut state.pass));
            }
            Event::PassFinished { name, bytes, seconds } if self.verbose || self.json => self.say(
                "pass_done",
                &pass_line(name, bytes, seconds),
                json!({ "pass": name, "bytes": bytes, "seconds": seconds }),
            ),
            Event::ShardDone { file } if self.verbose || self.json => {
                self.say("shard_done", &format!("{file} done"), json!({ "shard": file }));
            }
            Event::Warning { text } => {
                self.say("warning", &format!("warning: {text}"), json!({ "message": text }));
            }
            Event::Notice { text } => self.say("notice", text, json!({ "message": text })),
            Event::Detail { text } if self.verbose => {
                self.say("detail", text, json!({ "message": text }));
            }
            Event::PassFinished { .. } | Event::ShardDone { .. } | Event::Detail { .. } => {}
        }
    }

    fn advance(&self, bytes: u64) {
        let _before = self.done.fetch_add(bytes, Ordering::Relaxed);
        // Whoever comes while another thread writes has nothing to add.
        if let Ok(mut state) = self.state.try_lock()
            && self.status
            && state.last.elapsed() >= EVERY
        {
            state.last = Instant::now();
            self.status(&state);
        }
    }
}

impl Display for Lines {}

fn pass_line(name: &str, bytes: u64, seconds: f64) -> String {
    let rate = bytes as f64 / seconds.max(1e-9) / 1e9;
    format!("{name}: {} in {}, {rate:.2} GB/s", human::bytes(bytes), human::seconds(seconds))
}
