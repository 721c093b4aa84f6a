//! What can go wrong, and which exit code says so.
//!
//! Rules: an error says what is wrong, where (file, tensor, offset) and what to do about it.
//! Each room has its own error type; this one gathers them and knows the exit code. Only `cli`
//! prints.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::engine::EngineError;
use crate::engine::sink::SinkError;
use crate::engine::source::SourceError;
use crate::kernel::KernelError;
use crate::method::MethodError;
use crate::plan::PlanError;
use crate::recipe::RecipeError;

/// Any failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The environment asks for kernels that this machine lacks.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An input is not a good checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The inputs cannot be merged like this.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pass failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The output could not be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The output place is taken.
    #[error("{} exists already; choose another --out or remove it", path.display())]
    OutputExists {
        /// The path.
        path: PathBuf,
    },
    /// Something in the staging directory is not reflow's.
    #[error(
        "{} is not a file that reflow put there; move it away or choose another --out",
        path.display()
    )]
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// The output place makes no sense.
    #[error("--out {}: {reason}", path.display())]
    OutputPlace {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The disk is too small.
    #[error(
        "{} needs {} and has {} free; free some space or choose another --out",
        path.display(), crate::human::bytes(*needed), crate::human::bytes(*free)
    )]
    NoSpace {
        /// Where the output would be.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        free: u64,
    },
    /// What lies in the staging directory is the beginning of another merge.
    #[error(
        "{} holds the beginning of another merge: {what}; --restart discards it", path.display()
    )]
    OtherPlan {
        /// The staging directory.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A file of reflow's own is not as it was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A finished output is not what its manifest says.
    #[error("{} {} found in {}", findings, if *findings == 1 { "fault" } else { "faults" }, path.display())]
    Unsound {
        /// The directory.
        path: PathBuf,
        /// Number of findings.
        findings: usize,
    },
    /// No evaluation of a search gave a score.
    #[error("none of {trials} evaluations gave a score; the last one {last}")]
    NoScore {
        /// How many there were.
        trials: usize,
        /// How the last one ended.
        last: String,
    },
    /// Another process works on the same output.
    #[error("another reflow is writing {} ({holder}); wait for it or stop it", path.display())]
    Locked {
        /// The staging directory.
        path: PathBuf,
        /// What the lock file says.
        holder: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Stopped by a signal, with nothing begun.
    #[error("interrupted")]
    Stopped {
        /// Whether it was SIGTERM rather than SIGINT.
        terminated: bool,
    },
    /// Stopped by a signal.
    #[error(
        "interrupted; run the same command again to go on, or remove {}", staging.display()
    )]
    Interrupted {
        /// What is left behind.
        staging: PathBuf,
        /// Whether it was SIGTERM rather than SIGINT.
        terminated: bool,
    },
}

impl Error {
    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Recipe(_)
            | Error::Kernel(_)
            | Error::OutputPlace { .. }
            | Error::Plan(
                PlanError::Recipe(_)
                | PlanError::Pattern { .. }
                | PlanError::Nothing
                | PlanError::NoTable,
            ) => 2,
            Error::Checkpoint(CheckpointError::Io { source, .. }) if !is_about_path(source) => 7,
            Error::Checkpoint(_)
            | Error::Plan(PlanError::Inconsistent(_) | PlanError::Layout(_)) => 3,
            Error::Plan(PlanError::Memory { .. }) => 9,
            Error::Engine(error) => engine_code(error),
            Error::Sink(error) => sink_code(error),
            Error::OutputExists { .. } | Error::Foreign { .. } => 5,
            Error::NoSpace { .. } => 6,
            Error::Io { source, .. } => io_code(source),
            Error::Damaged { .. } | Error::Unsound { .. } => 8,
            Error::NoScore { .. } => 1,
            Error::OtherPlan { .. } => 10,
            Error::Locked { .. } => 11,
            Error::Interrupted { terminated, .. } | Error::Stopped { terminated } => {
                if *terminated { 143 } else { 130 }
            }
        }
    }

    /// What else to do, where the message does not say it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Error::Plan(PlanError::Inconsistent(problems)) => {
                problems.hints().into_iter().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn engine_code(error: &EngineError) -> u8 {
    match error {
        EngineError::Source(SourceError::Changed { .. }) => 4,
        EngineError::Source(_) => 7,
        EngineError::Sink(error) => sink_code(error),
        EngineError::OtherBase { .. } => 2,
        EngineError::Components { .. }
        | EngineError::Method { error: MethodError::Lost(_), .. } => 8,
        EngineError::NonFinite { .. }
        | EngineError::Measured { .. }
        | EngineError::Overflow { .. }
        | EngineError::CopiesDiffer { .. }
        | EngineError::Method { .. } => 3,
        EngineError::Interrupted => 130,
        EngineError::Panicked(_) => 1,
    }
}

fn sink_code(error: &SinkError) -> u8 {
    match error {
        SinkError::NoSpace { .. } => 6,
        SinkError::Damaged { .. } => 8,
        _ => 7,
    }
}

/// Whether the system refuses a path, rather than fails to read what is there.
fn is_about_path(error: &io::Error) -> bool {
    use io::ErrorKind::{
        InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied, UnexpectedEof,
    };
    let loops = error.raw_os_error() == Some(libc::ELOOP);
    let kinds =
        [NotFound, PermissionDenied, NotADirectory, IsADirectory, InvalidFilename, UnexpectedEof];
    loops || kinds.contains(&error.kind())
}

fn io_code(error: &io::Error) -> u8 {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) { 6 } else { 7 }
}

/// Adds operation and path to an I/O error.
pub(crate) trait IoContext<T> {
    /// `operation` is a verb, such as "open".
    fn at(self, operation: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { operation, path: path.to_owned(), source })
    }
}
