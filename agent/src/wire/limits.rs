//! Caps on what one connection may make the enforcer hold.

use std::time::Duration;

/// Limits of one connection. All sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest command frame that is inspected; a larger one is refused.
    pub command: usize,
    /// Largest frame of bulk data (COPY) from a client.
    pub bulk: usize,
    /// Largest frame from an upstream.
    pub response: usize,
    /// Largest frame before a login is complete.
    pub login: usize,
    /// What all connections together may hold of frames, prepared statements and parameters. A session gets a quarter of
    /// it, a connection an eighth.
    pub memory: usize,
    /// How much may wait to be written to either side before reading stops.
    pub queue: usize,
    /// How long a login may take, either side.
    pub login_time: Duration,
    /// Commands that may be under way in one pipeline.
    pub pipeline: usize,
    /// Prepared statements and portals remembered for one connection, each.
    pub prepared: usize,
    /// Rows of each result that the record keeps as a sample.
    pub sample_rows: usize,
}

impl Limits {
    /// One session's part of `memory`, so that no agent can use up what the others need.
    pub fn session_memory(&self) -> usize {
        self.memory / 4
    }

    /// One connection's part.
    pub fn connection_memory(&self) -> usize {
        self.memory / 8
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command: 16 << 20,
            bulk: 16 << 20,
            response: 64 << 20,
            login: 16 << 10,
            memory: 1 << 30,
            queue: 256 << 10,
            login_time: Duration::from_secs(15),
            pipeline: 16 << 10,
            prepared: 4096,
            sample_rows: 20,
        }
    }
}
