//! Sockets that another process made and keeps: a service manager (sd_listen_fds(3)) or our own supervisor. They outlive
//! the daemon, so that nobody else can take its ports while it is dead.
#![expect(unsafe_code, reason = "a descriptor that was handed over is a number")]

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{SockType, getsockopt, sockopt},
};

use super::{
    deaf,
    sockdiag::{self, Kind},
};

/// Names the descriptors that the supervisor hands to the daemon, by number and comma.
pub const VARIABLE: &str = "PORTCULLIS_LISTENERS";

/// What the daemon serves.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Where redirected connections arrive.
    pub listeners: Vec<TcpListener>,
    /// Where questions for names over UDP are answered from; see [`deaf`].
    pub resolvers: Vec<UdpSocket>,
}

impl Sockets {
    /// From descriptors, each of one or the other kind.
    ///
    /// # Errors
    /// One is neither.
    pub fn from_descriptors(all: impl IntoIterator<Item = OwnedFd>) -> io::Result<Self> {
        let mut sockets = Self::default();
        for fd in all {
            sockets.add(fd)?;
        }
        Ok(sockets)
    }

    /// The descriptors again.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        let resolvers = self.resolvers.into_iter().map(OwnedFd::from);
        self.listeners.into_iter().map(OwnedFd::from).chain(resolvers).collect()
    }

    fn add(&mut self, fd: OwnedFd) -> io::Result<()> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("a socket is {what}"));
        if getsockopt(&fd, sockopt::SockType) == Ok(SockType::Datagram) {
            let socket = UdpSocket::from(fd);
            let port = socket.local_addr().map_err(|_| wrong("not a UDP socket"))?.port();
            if port == 0 || socket.peer_addr().is_ok() {
                return Err(wrong("not a UDP socket that is bound and not connected"));
            }
            deaf::deafen(&socket)?;
            self.resolvers.push(socket);
        } else {
            let listener = TcpListener::from(fd);
            listener.local_addr().map_err(|_| wrong("not a TCP socket"))?;
            listener.set_nonblocking(true)?;
            self.listeners.push(listener);
        }
        Ok(())
    }
}

/// Takes the sockets that were handed to this process; none if none were. Call it once, before anything opens files.
///
/// # Errors
/// A descriptor is neither a listening TCP socket nor a bound UDP socket.
pub fn take() -> io::Result<Sockets> {
    let ours = std::env::var(VARIABLE).ok();
    let numbers: Vec<RawFd> = match &ours {
        Some(list) => list
            .split(',')
            .map(|n| n.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE}={list}"))))
            .collect::<io::Result<_>>()?,
        None => sd_notify::listen_fds()?.collect(),
    };
    let all = numbers.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
    Sockets::from_descriptors(all)
}

fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} is {what}"));
    if number <= 2 {
        return Err(wrong("one of the standard three"));
    }
    // SAFETY: whoever started us says that it opened this descriptor for us, and nothing else in this process has taken
    // it. That it is what it should be is checked next.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let checked = (|| {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| wrong("not open"))?;
        match getsockopt(&fd, sockopt::SockType).map_err(|_| wrong("not a socket"))? {
            SockType::Stream if getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) => Ok(()),
            SockType::Datagram => Ok(()),
            _ => Err(wrong("neither a listening stream socket nor one of datagrams")),
        }
    })();
    if let Err(error) = checked {
        // Not ours to close, then.
        let _ = fd.into_raw_fd();
        return Err(error);
    }
    Ok(fd)
}

/// The kernel id of the cgroup whose hooks connections to this listener run.
///
/// # Errors
/// The kernel does not tell.
pub fn cgroup_id(listener: &TcpListener) -> io::Result<u64> {
    cgroup_of(listener.as_raw_fd(), listener.local_addr()?, Kind::Listener)
}

/// The same of a UDP socket, whose hook sees it close.
///
/// # Errors
/// The kernel does not tell.
pub fn cgroup_of_resolver(socket: &UdpSocket) -> io::Result<u64> {
    cgroup_of(socket.as_raw_fd(), socket.local_addr()?, Kind::Resolver)
}

fn cgroup_of(socket: RawFd, address: SocketAddr, kind: Kind) -> io::Result<u64> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{socket}"))?.ino();
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    sockdiag::cgroup(kind, family, inode)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the socket is of another network namespace"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn taken(fd: RawFd) -> io::Result<Sockets> {
        Sockets::from_descriptors([adopt(fd)?])
    }

    #[test]
    fn only_sockets_that_can_be_served_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kept = taken(listener.into_raw_fd()).unwrap();
        assert_eq!(kept.listeners[0].local_addr().unwrap(), address);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        assert_eq!(taken(socket.into_raw_fd()).unwrap().resolvers[0].local_addr().unwrap(), bound);
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(bound).unwrap();
        let unix = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert!(taken(connected.into_raw_fd()).is_err() && taken(unix.into_raw_fd()).is_err());
        let stream = std::net::TcpStream::connect(address).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let others = [stream.into_raw_fd(), file.into_raw_fd()];
        for fd in others {
            assert!(adopt(fd).is_err(), "{fd}");
        }
        assert!(adopt(1).is_err() && adopt(999_999).is_err() && adopt(-1).is_err());
    }
}
