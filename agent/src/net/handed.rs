//! Listening sockets that another process made and keeps: a service manager (sd_listen_fds(3)) or our own supervisor. They
//! outlive the daemon, so that nobody else can take its port while it is dead.
#![expect(unsafe_code, reason = "a descriptor that was handed over is a number")]

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{SockType, getsockopt, sockopt},
};

use super::sockdiag;

/// Names the descriptors that the supervisor hands to the daemon, by number and comma.
pub const VARIABLE: &str = "PORTCULLIS_LISTENERS";

/// Takes the sockets that were handed to this process; none if none were. Call it once, before anything opens files.
///
/// # Errors
/// A descriptor is not a listening TCP socket.
pub fn take() -> io::Result<Vec<TcpListener>> {
    let ours = std::env::var(VARIABLE).ok();
    let numbers: Vec<RawFd> = match &ours {
        Some(list) => list
            .split(',')
            .map(|n| n.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE}={list}"))))
            .collect::<io::Result<_>>()?,
        None => sd_notify::listen_fds()?.collect(),
    };
    numbers.into_iter().map(adopt).collect()
}

fn adopt(number: RawFd) -> io::Result<TcpListener> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} is {what}"));
    if number <= 2 {
        return Err(wrong("one of the standard three"));
    }
    // SAFETY: whoever started us says that it opened this descriptor for us, and nothing else in this process has taken
    // it. That it is what it should be is checked next.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let checked = (|| {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| wrong("not open"))?;
        let stream = getsockopt(&fd, sockopt::SockType).map_err(|_| wrong("not a socket"))? == SockType::Stream;
        if !stream || !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
            return Err(wrong("not a listening stream socket"));
        }
        Ok(())
    })();
    if let Err(error) = checked {
        // Not ours to close, then.
        let _ = fd.into_raw_fd();
        return Err(error);
    }
    let listener = TcpListener::from(fd);
    listener.local_addr().map_err(|_| wrong("not a TCP socket"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The kernel id of the cgroup whose hooks connections to this listener run.
///
/// # Errors
/// The kernel does not tell.
pub fn cgroup_id(listener: &TcpListener) -> io::Result<u64> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()))?.ino();
    let family = if listener.local_addr()?.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    sockdiag::cgroup_of_listener(family, inode)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the socket is of another network namespace"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn only_listening_sockets_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = adopt(listener.into_raw_fd()).unwrap();
        assert_eq!(taken.local_addr().unwrap(), address);
        let stream = std::net::TcpStream::connect(address).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let others = [stream.into_raw_fd(), UdpSocket::bind("127.0.0.1:0").unwrap().into_raw_fd(), file.into_raw_fd()];
        for fd in others {
            assert!(adopt(fd).is_err(), "{fd}");
        }
        assert!(adopt(1).is_err() && adopt(999_999).is_err() && adopt(-1).is_err());
    }
}
