//! What the end-to-end tests share: a private PostgreSQL that dies with its test, and a whole house of sessions over
//! in-memory streams.

mod house;
mod postgres;

pub use house::{TestHouse, reviewer};
pub use postgres::{PASSWORD, Postgres};
