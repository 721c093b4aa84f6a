//! What a merge tells when it is over.

use serde::Serialize;

use crate::engine::host;
use crate::method::Outcome;

/// One kind of pass, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct PassReport {
    /// Its name.
    pub name: String,
    /// Bytes read.
    pub read: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// What was merged and what it took. After a resume it tells of this run's part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Per unit: its name, and what the method has to tell.
    #[serde(skip)]
    pub units: Vec<(String, Outcome)>,
    /// Passes in order of first appearance.
    pub passes: Vec<PassReport>,
    /// Bytes read over all passes.
    pub read: u64,
    /// Bytes that one read of all inputs takes.
    pub inputs: u64,
    /// Bytes of the output's shards.
    pub written: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Peak memory of the process, and of its container if that is known.
    pub memory: host::usage::MemoryUsage,
    /// Expert values that were not finite and counted as the base's.
    pub replaced: u64,
}

impl Report {
    /// Takes note of a pass, or a part of one.
    pub(super) fn add(&mut self, pass: PassReport) {
        match self.passes.iter_mut().find(|known| known.name == pass.name) {
            Some(known) => {
                known.read += pass.read;
                known.seconds += pass.seconds;
            }
            None => self.passes.push(pass),
        }
    }
}
