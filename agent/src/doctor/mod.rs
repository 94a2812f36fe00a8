//! Whether enforcement holds on this host: what the host can do, how the daemon is, and every way out of a session
//! tried from inside one, watched where it would arrive.
//!
//! [`host`] and [`house`] look; [`roads`] tries. None of them changes the host. What cannot be looked at for want of
//! rights is graded as such, and never as closed.

pub mod attempts;
mod finding;
pub mod host;
pub mod house;
pub mod roads;
mod runner;
pub mod witness;

pub use finding::{Finding, Grade};
pub use runner::Runner;
