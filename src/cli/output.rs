//! Printing: data to stdout, messages to stderr.

use std::io::{IsTerminal, Write};

use serde_json::json;

use crate::error::{Error, IoContext};

/// Prints data. A reader that has gone away is no failure.
pub(super) fn data(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.at("write", std::path::Path::new("standard output")),
    }
}

/// Prints a line to stderr. There is nobody to tell if that fails.
pub(super) fn message(line: &str) {
    let _nobody_listens = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints why the program fails.
pub(super) fn failure(error: &Error, code: u8, as_json: bool) {
    let hints = error.hints();
    if as_json {
        let line = json!({
            "message_type": "exit_error", "code": code, "message": error.to_string(), "hints": hints,
        });
        message(&line.to_string());
        return;
    }
    message(&format!("error: {}", printable(&error.to_string())));
    for hint in hints {
        message(&format!(" hint: {}", printable(&hint)));
    }
}

/// Whether stderr is a terminal that can redraw lines.
pub(super) fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb")
}

/// Names from files may hold anything; a terminal must not obey them.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut safe, c| {
        if c.is_control() && c != '\n' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
        safe
    })
}
