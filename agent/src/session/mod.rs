//! One governed connection: who it is, what it may, and the only ways to its upstream.
//!
//! [`serve`] takes an accepted stream whose session and original destination are known, finds the upstream that the
//! policy names for it, enters it in the live table, and hands it to the upstream's protocol. The protocol gives every
//! command to the [`Gate`]; only what the gate permits can reach the [`Upstream`]. A connection whose upstream, policy
//! or protocol cannot be told is closed and recorded.

mod cx;
mod gate;
mod house;
mod live;
mod names;
mod network;
mod permit;
mod which;

pub use cx::{ConnectionCx, Judge, Masks};
pub use gate::{Begun, Gate};
pub use house::{Arrival, Ended, House, Protocol, SessionError, gate, may_connect, serve, would_connect};
pub use live::{ConnectionView, Entry, LiveTable};
pub use names::{Answered, answer_datagram};
pub use network::{Alpn, Asked, BoxIo, Hello, Io, NetError, Network, Secured, Source};
pub use permit::{Command, DataRight, HoldNotice, Inert, Lasting, Permit, Refusal, Shape, Standing, Upstream};
