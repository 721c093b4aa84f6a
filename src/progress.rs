//! What a merge tells on its way. The library does not print; `cli` renders these.

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// All passes together will read `bytes_total`, of which `bytes_done` are done already.
    Started {
        /// Bytes over all passes.
        bytes_total: u64,
        /// Bytes done before.
        bytes_done: u64,
    },
    /// A pass begins.
    PassStarted {
        /// Its name.
        name: &'a str,
    },
    /// A pass is over.
    PassFinished {
        /// Its name.
        name: &'a str,
        /// What it has read.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
    /// A shard is complete and durable.
    ShardDone {
        /// Its file name.
        file: &'a str,
    },
    /// Something the user should look at.
    Warning {
        /// What.
        text: &'a str,
    },
    /// Something the user should know.
    Notice {
        /// What.
        text: &'a str,
    },
    /// Something the user may want to know.
    Detail {
        /// What.
        text: &'a str,
    },
}

/// Takes events, from any thread.
pub trait Progress: Sync {
    /// Takes an event.
    fn event(&self, event: &Event<'_>);

    /// More bytes are done. Called for every tile.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: &Event<'_>) {}

    fn advance(&self, _bytes: u64) {}
}
