//! Turns the signal that a vanished page under a map raises into a documented exit.
//!
//! `MADV_POPULATE_READ` and `fstat` narrow the gap in which a shrinking file can hurt; they cannot
//! close it. What is left ends here. The journal makes that exit as harmless as a kill.
#![expect(unsafe_code, reason = "a signal handler can only be installed by sigaction")]

use std::io;

/// Exit code when an input changed while it was read.
pub const EXIT_INPUT_CHANGED: i32 = 4;

const MESSAGE: &[u8] =
    b"reflow: an input file shrank while it was read, or its disk failed (SIGBUS); \
nothing was published. Check the inputs, then run the same command again to resume.\n";

/// Installs the handler for this process: one fixed line on stderr, then exit code 4.
///
/// A handler cannot tell a file that shrank from a disk that failed, so the line names both.
///
/// # Errors
/// What `sigaction` said.
pub fn install_sigbus_handler() -> io::Result<()> {
    // SAFETY: `sigaction` is a plain C struct for which all-zero is valid (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = on_sigbus;
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // The standard library gives its threads an alternate stack; use it where it exists.
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: `action` is fully initialised and outlives the call; the old action is not wanted.
    // The handler only makes async-signal-safe calls.
    let code = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(_signal: libc::c_int) {
    // SAFETY: `write` is async-signal-safe and the buffer is static.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: `_exit` is async-signal-safe and does not return; no destructor may run here.
    unsafe { libc::_exit(EXIT_INPUT_CHANGED) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const CHILD: &str = "REFLOW_TEST_SIGBUS_CHILD";

    /// Runs this test binary again as a child that touches a page past the end of its file.
    #[test]
    fn a_page_past_the_end_gives_exit_code_4() {
        if let Ok(path) = std::env::var(CHILD) {
            install_sigbus_handler().unwrap();
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            // SAFETY: the file shrinks under the map on purpose: this process is here to die of it.
            let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
            file.set_len(0).unwrap();
            panic!("read {} past the end", std::hint::black_box(&map)[5000]);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard");
        std::fs::write(&path, vec![7u8; 8192]).unwrap();
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("engine::source::sigbus::tests::a_page_past_the_end_gives_exit_code_4")
            .env(CHILD, &path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(4), "signal {:?}: {stderr}", out.status.signal());
        assert!(stderr.contains("shrank while it was read"), "{stderr}");
    }
}
