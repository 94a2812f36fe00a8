//! Names over UDP: questions that sessions' sockets asked, and leave for the answers to arrive.
//!
//! A question comes through a ring buffer that the packet filter writes, with the session and the socket that it is of. Were
//! it read from our own UDP socket, only its source address would tell, which others can have next, or already.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::Mutex,
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use portcullis_ebpf::{RawAnswer, ToldQuestion};

use super::{
    BpfError, Origin,
    maps::lock,
    ring::{Ring, Told, Watched},
    sys,
};

/// Names of the maps.
pub(super) const QUESTIONS: &str = "QUESTIONS";
pub(super) const ASKING: &str = "ASKING";
pub(super) const ANSWERS: &str = "ANSWERS";

/// A question for a name over UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name server that was asked, and who asked.
    pub origin: Origin,
    /// Where the answer goes.
    pub client: SocketAddr,
    /// The socket that asked.
    pub socket: SocketNumber,
    /// How long ago it was asked, when it was read.
    pub age: Duration,
    /// The message.
    pub bytes: Vec<u8>,
}

/// The kernel's number of a socket, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketNumber(u64);

/// The reading end.
pub type Questions = Ring<Question>;

/// The same, for waiting until there is something to read.
pub type WatchedQuestions = Watched<Question>;

impl Told for Question {
    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_raw(&ToldQuestion::from_bytes(bytes)?, sys::monotonic_ns().ok()?)
    }
}

impl Question {
    pub(super) fn from_raw(ToldQuestion(raw, bytes): &ToldQuestion, now_ns: u64) -> Option<Self> {
        let mut address = [0; 16];
        for (place, word) in address.chunks_exact_mut(4).zip(raw.client) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let ip: IpAddr = Ipv6Addr::from(address).to_canonical();
        Some(Self {
            origin: Origin::from_raw(&raw.origin).ok()?,
            client: SocketAddr::new(ip, u16::try_from(raw.client_port).ok()?),
            socket: SocketNumber(raw.socket_cookie),
            age: Duration::from_nanos(now_ns.saturating_sub(raw.asked_ns)),
            bytes: bytes.get(..usize::try_from(raw.length).ok()?)?.to_vec(),
        })
    }
}

/// Answers that may arrive.
pub(super) struct Answers(Mutex<HashMap<MapData, RawAnswer, u64>>);

impl Answers {
    pub(super) fn new(table: HashMap<MapData, RawAnswer, u64>) -> Self {
        Self(Mutex::new(table))
    }

    /// Lets one answer with this id arrive at this socket.
    pub(super) fn expect(&self, socket: SocketNumber, id: u16) -> Result<(), BpfError> {
        let answer = RawAnswer { socket_cookie: socket.0, id: id.into(), pad: 0 };
        let now = sys::monotonic_ns().map_err(BpfError::Clock)?;
        lock(&self.0).insert(answer, now, 0).map_err(|source| BpfError::Map { map: ANSWERS, source })
    }
}

/// The network namespace of a socket of ours.
pub(super) fn netns_of(socket: &UdpSocket) -> Result<u64, BpfError> {
    sys::netns_cookie(socket.as_fd()).map_err(BpfError::Socket)
}
