//! What the end-to-end tests share: a private PostgreSQL that dies with its test, a whole house of sessions over
//! in-memory streams, and a whole daemon.

mod daemon;
mod house;
mod postgres;
pub mod secret;

pub use daemon::{Daemon, binary};
pub use house::{TestHouse, reviewer};
pub use postgres::{PASSWORD, Postgres};

/// The policy of the demo and of the tests with a whole daemon.
pub const SHOP_POLICY: &str = include_str!("shop.toml");
