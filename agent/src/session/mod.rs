//! One governed connection: who it is, what it may, and the only ways to its upstream.

mod network;

pub use network::{BoxIo, Io, NetError, Network, Secured, Source};
