//! Asking the kernel about sockets: sock_diag(7), `INET_DIAG_CGROUP_ID` of linux/inet_diag.h [Linux 5.8].

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_CGROUP_ID: u16 = 21;
const HEADER: usize = 16;
/// Size of `struct inet_diag_msg`, and where the inode is in it.
const MESSAGE: usize = 72;
const INODE: usize = 68;

/// Which sockets are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of TCP, those that listen.
    Listener,
    /// Of UDP, those that are not connected.
    Resolver,
}

impl Kind {
    /// Protocol, and states as bits: `TCP_LISTEN`, `TCP_CLOSE`.
    fn asked(self) -> (u8, u32) {
        match self {
            Self::Listener => (6, 1 << 10),
            Self::Resolver => (17, 1 << 7),
        }
    }
}

/// The cgroup whose hooks a socket runs: that of the process that made it, whoever holds it now. `None` if there is no such
/// socket with this inode in this network namespace.
///
/// # Errors
/// The kernel does not answer, or breaks off.
pub fn cgroup(kind: Kind, family: i32, inode: u64) -> io::Result<Option<u64>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(netlink.as_raw_fd(), &request(kind, u8::try_from(family).unwrap_or(0)), MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match scan(&buffer[..n], inode)? {
            Scan::Found(cgroup) => return Ok(Some(cgroup)),
            Scan::More => {}
            Scan::Done => return Ok(None),
        }
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2` for the sockets of a family.
fn request(kind: Kind, family: u8) -> Vec<u8> {
    const BODY: usize = 8 + 48;
    let mut out = Vec::with_capacity(HEADER + BODY);
    out.extend_from_slice(&u32::try_from(HEADER + BODY).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    let (protocol, states) = kind.asked();
    out.extend_from_slice(&[family, protocol, 0, 0]);
    out.extend_from_slice(&states.to_ne_bytes());
    out.resize(HEADER + BODY, 0);
    out
}

#[derive(Debug, PartialEq, Eq)]
enum Scan {
    Found(u64),
    More,
    Done,
}

/// Looks for a socket in one datagram of the answer.
fn scan(mut data: &[u8], inode: u64) -> io::Result<Scan> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag is cut short");
    while !data.is_empty() {
        let length = number(data, 0).ok_or_else(cut)? as usize;
        let message = data.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(cut)?;
        match short(message, 4).ok_or_else(cut)? {
            NLMSG_DONE => return Ok(Scan::Done),
            NLMSG_ERROR => {
                let code = number(message, HEADER).ok_or_else(cut)?.cast_signed();
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            BY_FAMILY => {
                let body = &message[HEADER..];
                if u64::from(number(body, INODE).ok_or_else(cut)?) == inode {
                    let attributes = body.get(MESSAGE..).ok_or_else(cut)?;
                    let unknown =
                        || io::Error::new(io::ErrorKind::Unsupported, "this kernel does not tell a socket's cgroup");
                    return attribute(attributes, INET_DIAG_CGROUP_ID).map(Scan::Found).ok_or_else(unknown);
                }
            }
            _ => {}
        }
        data = data.get(aligned(length)..).unwrap_or_default();
    }
    Ok(Scan::More)
}

/// The 64-bit attribute of a type.
fn attribute(mut data: &[u8], wanted: u16) -> Option<u64> {
    while data.len() >= 4 {
        let length = usize::from(short(data, 0)?);
        if short(data, 2)? == wanted {
            return data.get(4..12)?.try_into().ok().map(u64::from_ne_bytes);
        }
        data = data.get(aligned(length.max(4))..)?;
    }
    None
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn short(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{
        net::{TcpListener, UdpSocket},
        os::unix::fs::MetadataExt,
    };

    use super::*;

    #[test]
    fn the_kernel_tells_the_cgroup_of_a_socket() {
        let inode = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
        let (listener, resolver) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (tcp, udp) = (inode(listener.as_raw_fd()), inode(resolver.as_raw_fd()));
        for (kind, own, other) in [(Kind::Listener, tcp, udp), (Kind::Resolver, udp, tcp)] {
            assert!(cgroup(kind, libc::AF_INET, own).unwrap().is_some_and(|id| id > 0), "{kind:?}");
            assert_eq!(cgroup(kind, libc::AF_INET6, own).unwrap(), None);
            assert_eq!(cgroup(kind, libc::AF_INET, other).unwrap(), None);
        }
        drop(listener);
        assert_eq!(cgroup(Kind::Listener, libc::AF_INET, tcp).unwrap(), None);
    }

    #[test]
    fn answers_cut_short_are_errors() {
        let mut message = vec![0; HEADER + MESSAGE];
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        message[HEADER + INODE..HEADER + INODE + 4].copy_from_slice(&7u32.to_ne_bytes());
        assert_eq!(scan(&message, 8).unwrap(), Scan::More);
        assert!(scan(&message, 7).is_err(), "no cgroup attribute");
        for n in 1..message.len() {
            assert!(scan(&message[..n], 7).is_err());
        }
        message[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert!(scan(&message, 7).is_err(), "a message of no length would be read for ever");
    }
}
