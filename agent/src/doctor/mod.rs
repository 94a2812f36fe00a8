//! Whether enforcement holds on this host: what the host can do, how the daemon is, and every way out of a session
//! tried from inside one, watched where it would arrive.

pub mod attempts;
mod runner;
pub mod witness;

pub use runner::Runner;
