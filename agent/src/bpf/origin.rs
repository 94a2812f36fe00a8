//! Where an accepted connection wanted to go, as the kernel kept it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::maps::MapError;
use portcullis_ebpf::{AF_INET, AF_INET6, RawOrigin};

/// Where a client wanted to go, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address that the client gave to `connect()`. A mapped address stays mapped.
    pub address: SocketAddr,
    /// cgroup of the task that connected: the identity.
    pub cgroup_id: u64,
    /// Network namespace of the client's socket.
    pub netns_cookie: u64,
    /// Process that connected. A hint: io_uring connects from a kernel thread.
    pub pid: u32,
    /// User of that process. A hint, as above.
    pub uid: u32,
    /// Name of the task. A hint, as above.
    pub comm: String,
}

/// Why a connection has no origin. It must be closed.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// It did not come through the redirect.
    #[error("the connection did not come through the redirect")]
    Missing,
    /// The client asked for the enforcer's own address.
    #[error("the client asked for the enforcer itself")]
    Enforcer,
    /// The kernel's record has a family that we do not redirect.
    #[error("the kernel kept an address of unknown family {0}")]
    Family(u32),
    /// The map cannot be read.
    #[error("the kernel's origins cannot be read")]
    Map(#[source] MapError),
}

impl Origin {
    pub(super) fn from_raw(raw: &RawOrigin) -> Result<Self, OriginError> {
        let mut bytes = [0; 16];
        for (place, word) in bytes.chunks_exact_mut(4).zip(raw.address) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let [a, b, c, d, ..] = bytes;
        let ip: IpAddr = match raw.family {
            AF_INET => Ipv4Addr::new(a, b, c, d).into(),
            AF_INET6 => Ipv6Addr::from(bytes).into(),
            other => return Err(OriginError::Family(other)),
        };
        let port = u16::try_from(raw.port).map_err(|_| OriginError::Missing)?;
        let comm = raw.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            address: SocketAddr::new(ip, port),
            cgroup_id: raw.cgroup_id,
            netns_cookie: raw.netns_cookie,
            pid: raw.pid,
            uid: raw.uid,
            comm: String::from_utf8_lossy(comm).into_owned(),
        })
    }
}
