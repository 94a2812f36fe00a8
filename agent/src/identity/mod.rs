//! Who acts: sessions and their time to live, the cgroup that names each, and facts about processes.
//!
//! The kernel id of a session's cgroup is the identity; process facts are hints for people. A cgroup that no live
//! session owns has no identity, and its connections are closed. The failure mode is refusal: a session past its end,
//! a session file that cannot be read, or a cgroup whose id changed is not a session.

mod facts;
mod ids;
mod persist;
mod sessions;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod turns;

pub use facts::{cgroup_id, cgroup_path_of, process_facts};
pub use ids::{is_session_id, new_session_id, new_trace_id};
pub use persist::{LostSession, Restored};
pub use sessions::{EndReason, Expiry, Home, IdentityError, NewSession, Session, Sessions, subject};
pub use turns::{Thread, Turns};
