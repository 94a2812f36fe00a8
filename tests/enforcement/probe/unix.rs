//! Unix sockets, with names as no library would write them.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Sends a byte to a unix socket. `kind`: `stream`, `seqpacket`, `dgram` (all connect first) or `send` (a datagram that
/// names its peer). `form`: how the name ends: `exact` at its last byte, `padded` with zeros, `dirty` with a NUL and then
/// anything, `two` not at all: no name. A leading `@` stands for the NUL of an abstract name.
pub fn reach(kind: &str, form: &str, name: &str) -> io::Result<String> {
    let (address, length) = address(form, name);
    let kind_of_socket = match kind {
        "stream" => libc::SOCK_STREAM,
        "seqpacket" => libc::SOCK_SEQPACKET,
        _ => libc::SOCK_DGRAM,
    };
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind_of_socket | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = (&raw const address).cast();
    let done = if kind == "send" {
        // SAFETY: both buffers are as long as said.
        unsafe { libc::sendto(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, address, length) }
    } else {
        // SAFETY: the address is as long as said.
        let done = unsafe { libc::connect(socket.as_raw_fd(), address, length) };
        if done == 0 {
            // SAFETY: the buffer is as long as said.
            unsafe { libc::send(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }
        } else {
            -1
        }
    };
    if done == 1 { Ok(String::new()) } else { Err(io::Error::last_os_error()) }
}

fn address(form: &str, name: &str) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: a structure of numbers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let whole = size_of_val(&address);
    let rest = name.strip_prefix('@').map(|rest| format!("\0{rest}"));
    let name = rest.as_deref().unwrap_or(name).as_bytes();
    for (place, byte) in address.sun_path.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    let length = match form {
        "exact" => 2 + name.len(),
        "two" => 2,
        "dirty" => {
            for place in address.sun_path.iter_mut().skip(name.len() + 1) {
                *place = b'/' as libc::c_char;
            }
            whole
        }
        _ => whole,
    };
    (address, length as libc::socklen_t)
}

/// Sends a byte through a pair of each kind.
pub fn pairs() -> io::Result<String> {
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
        let mut pair = [0; 2];
        // SAFETY: there is room for two descriptors.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new descriptors that nothing else owns.
        let [one, other] = pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let mut byte = [0_u8; 1];
        // SAFETY: the buffers are as long as said.
        let done = unsafe {
            libc::send(one.as_raw_fd(), b"x".as_ptr().cast(), 1, 0) == 1
                && libc::recv(other.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 0) == 1
        };
        if !done {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(String::new())
}
