//! Evidence: an append-only, chained event log, and what reads it.

mod event;

pub use event::{DecisionNote, Event, EventBody, MaskedNote};
