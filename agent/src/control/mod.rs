//! The control socket: how people and `portcullis run` talk to the daemon.
//!
//! `<runtime_dir>/control.sock`, mode 0660. One connection carries one request: a JSON line `{"v":2,"request":...}`,
//! answered by lines `{"item":...}` and closed by one line `{"done":...}` or `{"error":...}` ([`proto`]). Streams
//! (`follow`, `held --watch`) have any number of items and end with the connection.
//!
//! Who asks is told by the kernel, never by the request: SO_PEERCRED names the process that connected, SO_PEERPIDFD pins
//! it against pid reuse, and SCM_CREDENTIALS on the request itself proves that the one who wrote it is the one who
//! connected, so an inherited, passed or forwarded descriptor is of no use. A peer in a governed cgroup is refused
//! whatever its uid, at accept and again right before a decision takes effect. Any doubt (a process that exited, a
//! cgroup that cannot be read) is a refusal.

pub mod client;
pub mod peer;
pub mod proto;
pub mod server;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
