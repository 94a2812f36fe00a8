//! Cutting and reading frames, without sockets: a bounded cursor ([`Reader`]), limits that are checked before anything
//! is reserved ([`Limits`]), and the queue of bytes that wait to be written ([`OutQueue`]).
//!
//! The trade-off: frames are kept whole in memory up to a cap, because a command is judged whole. What outgrows the
//! cap is refused, never passed.

mod budget;
mod limits;
mod out;
#[cfg(feature = "daemon")]
pub mod pump;
mod reader;

pub use budget::{Budget, Charge, OverBudget};
pub use limits::Limits;
pub use out::OutQueue;
pub use reader::{Reader, Short};

use bytes::Bytes;

/// What becomes of a frame on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// The same bytes go on.
    Pass,
    /// These bytes go instead.
    Replace(Bytes),
    /// Nothing goes.
    Drop,
}
