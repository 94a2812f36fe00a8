//! The program: the command line ([`cli`]), and the daemon that wires the house together ([`daemon`]).
//!
//! The way of a connection: `net::listener` accepts, the kernel says where it wanted to go and from which cgroup, the
//! table of sessions says whose that is, and `session::serve` does the rest. What cannot be told closes the connection
//! and is recorded.

mod accept;
mod asked;
mod claims;
pub mod cli;
mod daemon;
mod desk;
mod evidence;
mod governor;
mod harden;
mod helper;
mod journal;
mod lanes;
mod lifecycle;
mod limits;
mod listening;
mod namespaces;
mod place;
mod policies;
mod privileges;
mod refusals;
mod resolver;
mod supervisor;
mod trust;
mod uids;
