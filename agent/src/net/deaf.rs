//! The UDP sockets that answers to questions for names are sent from. They read nothing: questions come another way, with
//! whose they are (`bpf`), and what others send to the port is dropped in the kernel.
#![expect(unsafe_code, reason = "a socket option that no library sets")]

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{setsockopt, sockopt};

/// Makes one at an address.
///
/// # Errors
/// The address is taken, or is not there.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    deafen(&socket)?;
    Ok(socket)
}

/// Makes a socket drop all that comes to it, share its address with no other, and never wait.
pub(super) fn deafen(socket: &UdpSocket) -> io::Result<()> {
    // Two sockets of UDP that both have one of these can be bound to one address, whoever they are of.
    setsockopt(socket, sockopt::ReuseAddr, &false)?;
    setsockopt(socket, sockopt::ReusePort, &false)?;
    socket.set_nonblocking(true)?;
    // BPF_RET | BPF_K: keep no byte.
    let mut nothing = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    // SAFETY: the option's value is as long as said, and what it points to lives until the call returns: the kernel copies
    // it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_and_hears_nothing() {
        let (deaf, other) = (bind("127.0.0.1:0".parse().unwrap()).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = deaf.local_addr().unwrap();
        other.send_to(b"x", address).unwrap();
        deaf.send_to(b"y", other.local_addr().unwrap()).unwrap();
        assert_eq!(other.recv_from(&mut [0; 8]).unwrap(), (1, address));
        assert_eq!(deaf.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
