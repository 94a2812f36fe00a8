//! What the enforcer said of itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    path::PathBuf,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) v4: SocketAddrV4,
    pub(super) v6: Option<SocketAddrV6>,
    /// Id to path.
    pub(super) cgroups: BTreeMap<u64, PathBuf>,
}

impl Own {
    /// Whether this is one of its addresses.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        address == SocketAddr::V4(self.v4) || self.v6.is_some_and(|v6| address == SocketAddr::V6(v6))
    }

    pub(super) fn listens_on(&self, address: SocketAddr) -> bool {
        let ip = match address.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            ip => ip,
        };
        // Connecting to "any" address is connecting to this host.
        let here = |own: IpAddr| ip == own || ip.is_unspecified();
        (address.port() == self.v4.port() && here((*self.v4.ip()).into()))
            || self.v6.is_some_and(|v6| address.port() == v6.port() && here((*v6.ip()).into()))
    }
}
