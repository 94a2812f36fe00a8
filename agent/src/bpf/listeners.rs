//! Where the enforcer has sockets: network namespaces, families and protocols. An entry lives as long as its socket, which the kernel
//! sees to.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::Mutex,
};

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use portcullis_ebpf::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, Listener};

use super::{
    BpfError,
    maps::{absent_is_fine, count, lock},
    sys,
};

/// Names of the two maps.
pub(super) const TABLE: &str = "LISTENERS";
pub(super) const STORAGE: &str = "LISTENING";

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Connections.
    Tcp,
    /// Questions for names.
    Udp,
}

pub(super) struct Listeners {
    /// To the socket's cookie.
    table: Mutex<HashMap<MapData, Listener, u64>>,
    /// What the program that sees the socket close takes out of the table.
    storage: Mutex<SkStorage<MapData, Listener>>,
}

impl Listeners {
    pub(super) fn new(table: HashMap<MapData, Listener, u64>, storage: SkStorage<MapData, Listener>) -> Self {
        Self { table: Mutex::new(table), storage: Mutex::new(storage) }
    }

    /// Forgets all that an earlier daemon added.
    pub(super) fn reset(&self) -> Result<(), BpfError> {
        let mut table = lock(&self.table);
        let failed = |source| BpfError::Map { map: TABLE, source };
        for key in table.keys().collect::<Result<Vec<_>, _>>().map_err(failed)? {
            absent_is_fine(table.remove(&key)).map_err(failed)?;
        }
        Ok(())
    }

    /// Adds a socket with this address.
    pub(super) fn add(
        &self,
        socket: &(impl AsFd + AsRawFd),
        address: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), BpfError> {
        let asked = |source: io::Error| BpfError::Socket(source);
        let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
        let netns_cookie = sys::netns_cookie(socket.as_fd()).map_err(asked)?;
        let cookie = sys::socket_cookie(socket.as_fd()).map_err(asked)?;
        let protocol = match protocol {
            Protocol::Tcp => IPPROTO_TCP,
            Protocol::Udp => IPPROTO_UDP,
        };
        let key = Listener { netns_cookie, family, protocol };
        // First what ends it, then the entry.
        let failed = |map| move |source: MapError| BpfError::Map { map, source };
        lock(&self.storage).insert(socket, key, 0).map_err(failed(STORAGE))?;
        lock(&self.table).insert(key, cookie, 0).map_err(failed(TABLE))
    }

    pub(super) fn entries(&self) -> Result<usize, BpfError> {
        count(TABLE, lock(&self.table).keys())
    }
}
