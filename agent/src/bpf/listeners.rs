//! Where the enforcer listens: network namespaces and families. An entry lives as long as its socket, which the kernel
//! sees to.

use std::{io, net::TcpListener, os::fd::AsFd, sync::Mutex};

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use portcullis_ebpf::{AF_INET, AF_INET6, Listener};

use super::{
    BpfError,
    maps::{absent_is_fine, count, lock},
    sys,
};

/// Names of the two maps.
pub(super) const TABLE: &str = "LISTENERS";
pub(super) const STORAGE: &str = "LISTENING";

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

    pub(super) fn add(&self, listener: &TcpListener) -> Result<(), BpfError> {
        let asked = |source: io::Error| BpfError::Socket(source);
        let family = if listener.local_addr().map_err(asked)?.is_ipv4() { AF_INET } else { AF_INET6 };
        let netns_cookie = sys::netns_cookie(listener.as_fd()).map_err(asked)?;
        let cookie = sys::socket_cookie(listener.as_fd()).map_err(asked)?;
        let key = Listener { netns_cookie, family, pad: 0 };
        // First what ends it, then the entry.
        let failed = |map| move |source: MapError| BpfError::Map { map, source };
        lock(&self.storage).insert(listener, key, 0).map_err(failed(STORAGE))?;
        lock(&self.table).insert(key, cookie, 0).map_err(failed(TABLE))
    }

    pub(super) fn entries(&self) -> Result<usize, BpfError> {
        count(TABLE, lock(&self.table).keys())
    }
}
