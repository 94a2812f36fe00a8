//! Standard input, output and error: the three descriptors that the command inherits.
//!
//! Hooks follow the cgroup that made a socket, so an internet socket among them is a road of its own, and not only to its
//! peer: connected to nothing, then to something else, it goes anywhere. The same holds for a unix socket of datagrams,
//! and for what io_uring and the kernel's own programs are held by.

use std::{
    io::{self, stderr, stdin, stdout},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt},
};

/// Names the first of the three that would be a road out, and what it is.
///
/// # Errors
/// What a descriptor is cannot be told.
pub(super) fn road() -> io::Result<Option<(&'static str, &'static str)>> {
    let (input, output, error) = (stdin(), stdout(), stderr());
    let all = [("input", input.as_fd()), ("output", output.as_fd()), ("error", error.as_fd())];
    for (name, fd) in all {
        if let Some(what) = kind(fd)? {
            return Ok(Some((name, what)));
        }
    }
    Ok(None)
}

/// `None` for files, pipes, terminals, and connected unix sockets, which lead to one peer only.
fn kind(fd: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    let kind = match getsockopt(&fd, sockopt::SockType) {
        Err(Errno::ENOTSOCK) => {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
            let is_anonymous = link.as_os_str().as_encoded_bytes().starts_with(b"anon_inode:");
            return Ok(is_anonymous.then_some("an object of the kernel"));
        }
        // Closed.
        Err(Errno::EBADF) => return Ok(None),
        kind => kind?,
    };
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let is_stream = matches!(kind, SockType::Stream | SockType::SeqPacket);
    Ok(match address.family() {
        Some(AddressFamily::Unix) if is_stream => None,
        Some(AddressFamily::Unix) => Some("a unix socket of datagrams"),
        _ => Some("a network socket"),
    })
}
