//! What the end-to-end tests share: a private PostgreSQL that dies with its test, a whole house of sessions over
//! in-memory streams, and a whole daemon.

mod daemon;
mod house;
mod postgres;
pub mod secret;
mod web;

use anyhow::Context as _;

pub use daemon::{DAEMON, Daemon, binary};
pub use house::{TestHouse, reviewer};
pub use postgres::{PASSWORD, Postgres};
pub use web::{Seen, Web};

/// A server of a test's own, on loopback.
pub trait Server {
    /// Its TCP port.
    fn port(&self) -> u16;

    /// The CA certificate that its certificate is signed by.
    fn ca(&self) -> std::path::PathBuf;
}

/// The policy of the demo and of the tests with a whole daemon.
pub const SHOP_POLICY: &str = include_str!("shop.toml");

/// Sends a signal, by its name without `SIG`, to a process, or to the group `-pid`. Without a program: a bare machine has
/// none for it.
pub fn signal(name: &str, pid: i32) -> anyhow::Result<()> {
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {pid}"))
}

/// Milliseconds of `CLOCK_MONOTONIC`, which processes share.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
