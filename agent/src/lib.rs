//! Portcullis: a host agent that stands between AI-agent processes and every backend they use.
//!
//! Modules are listed in import order: a module may import only from rows above its own, which a test in `xtask`
//! checks. Rows 1 and 2 are pure (no sockets, no async runtime) and build with `--no-default-features`.
#![deny(unsafe_code)]

// Row 1
pub mod action;
pub mod wire;
// Row 2
pub mod mask;
pub mod policy;
pub mod sql;
// Row 3
#[cfg(feature = "daemon")]
pub mod hold;
#[cfg(feature = "daemon")]
pub mod identity;
#[cfg(feature = "daemon")]
pub mod record;
#[cfg(feature = "daemon")]
pub mod secrets;
// Row 4
#[cfg(feature = "daemon")]
pub mod session;
// Row 5
#[cfg(feature = "daemon")]
pub mod protocol;
// Row 6
#[cfg(feature = "daemon")]
pub mod bpf;
#[cfg(feature = "daemon")]
pub mod net;
// Row 7
#[cfg(feature = "daemon")]
pub mod app;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod doctor;
#[cfg(feature = "daemon")]
pub mod launch;
