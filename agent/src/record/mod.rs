//! Evidence: an append-only, chained event log, and what reads it.
//!
//! An event that [`Recorder::append`] acknowledged survives `kill -9`; one that [`Recorder::sync`] acknowledged survives
//! the death of the host. [`verify`] finds any byte that is not as written. What it cannot find: a log that was rolled
//! back as a whole, head and all, to an earlier copy of itself, or rewritten by someone who has the signing key; for
//! that, keep the public key and heads elsewhere.
//!
//! The failure mode is refusal: a full disk, a failed sync or a log that a crash does not explain make appending an
//! error, and what cannot be recorded does not happen.

mod brief;
mod clock;
mod error;
mod event;
mod follow;
mod format;
pub mod fuzz;
mod keys;
mod open;
mod printable;
pub mod read;
pub mod replay;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod replay_tests;
mod segment;
mod sessions;
mod syncing;
mod tail;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod upkeep;
mod verify;
mod writer;

pub use brief::{Decided, Parts, Resulted, Sample, Told};
pub use error::RecordError;
pub use event::{DecisionNote, Event, EventBody, MaskedNote, Usage};
pub use follow::Follower;
pub use keys::PublicKey;
pub use printable::{printable, printable_line};
pub use sessions::{SessionSummary, session_events, sessions};
pub use verify::{Problem, Progress, VerifyReport, verify, verify_with};
pub use writer::{Position, RecordSettings, Recorded, Recorder};
