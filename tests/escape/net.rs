//! Attempts to send something, by every kind of socket and every way to use it.

use std::mem::{size_of, zeroed};

use crate::{Attempt, Target};

const INET: i32 = libc::AF_INET;
const INET6: i32 = libc::AF_INET6;
const MPTCP: i32 = 262;
const SCTP: i32 = 132;
const DCCP: i32 = 33;
const UDPLITE: i32 = 136;

/// Where to.
#[derive(Clone, Copy)]
enum To {
    V4,
    V6,
    /// The IPv4 witness through an IPv6 socket.
    Mapped,
    Loopback4,
    Loopback6,
}

impl To {
    fn family(self) -> i32 {
        if matches!(self, Self::V4 | Self::Loopback4) { INET } else { INET6 }
    }
}

/// How it is sent.
#[derive(Clone, Copy)]
enum How {
    Connect,
    SendTo,
    SendMsg,
}

pub fn socket(family: i32, kind: i32, protocol: i32) -> i32 {
    // SAFETY: a plain system call.
    unsafe { libc::socket(family, kind, protocol) }
}

/// An address and its length.
pub fn address(target: &Target, to: u8, port: u16) -> (libc::sockaddr_storage, u32) {
    // SAFETY: all zeros is a valid address of no family.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let place = &raw mut storage;
    let v6 = match to {
        0 | 3 => None,
        1 => Some(target.v6),
        2 => Some(target.v4.to_ipv6_mapped()),
        _ => Some(std::net::Ipv6Addr::LOCALHOST),
    };
    match v6 {
        None => {
            let ip = if to == 0 { target.v4 } else { std::net::Ipv4Addr::LOCALHOST };
            // SAFETY: sockaddr_storage is larger and more aligned than any address.
            let address = unsafe { &mut *place.cast::<libc::sockaddr_in>() };
            address.sin_family = INET as u16;
            address.sin_port = port.to_be();
            address.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            (storage, size_of::<libc::sockaddr_in>() as u32)
        }
        Some(ip) => {
            // SAFETY: as above.
            let address = unsafe { &mut *place.cast::<libc::sockaddr_in6>() };
            address.sin6_family = INET6 as u16;
            address.sin6_port = port.to_be();
            address.sin6_addr.s6_addr = ip.octets();
            (storage, size_of::<libc::sockaddr_in6>() as u32)
        }
    }
}

fn place(target: &Target, to: To) -> (libc::sockaddr_storage, u32) {
    address(target, to as u8, target.port)
}

pub fn connect(fd: i32, (storage, length): (libc::sockaddr_storage, u32)) -> i32 {
    // SAFETY: the address is valid for its length.
    unsafe { libc::connect(fd, (&raw const storage).cast(), length) }
}

pub fn send(fd: i32, data: &[u8], flags: i32) -> isize {
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags | libc::MSG_NOSIGNAL) }
}

fn sendto(fd: i32, data: &[u8], flags: i32, (storage, length): (libc::sockaddr_storage, u32)) -> isize {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: buffer and address are valid for their lengths.
    unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, (&raw const storage).cast(), length) }
}

fn sendmsg(fd: i32, data: &[u8], (mut storage, length): (libc::sockaddr_storage, u32)) -> isize {
    let mut piece = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = length;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    // SAFETY: everything the message names lives until the call returns.
    unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) }
}

pub fn option(fd: i32, level: i32, name: i32, value: &[u8]) -> i32 {
    // SAFETY: the value is valid for its length.
    unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as u32) }
}

fn on(fd: i32, level: i32, name: i32) -> i32 {
    option(fd, level, name, &1i32.to_ne_bytes())
}

/// What a raw socket of this protocol must be given to be a packet.
fn payload(target: &Target, kind: i32, protocol: i32) -> Vec<u8> {
    let port = target.port.to_be_bytes();
    let length = (8 + target.marker.len()) as u16;
    let udp = [&[0x99, 0x99], &port[..], &length.to_be_bytes(), &[0, 0], &target.marker].concat();
    match (kind, protocol) {
        (libc::SOCK_RAW, 17) => udp,
        (libc::SOCK_RAW, 6) => {
            let mut tcp = vec![0x99, 0x99, port[0], port[1]];
            tcp.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            tcp.extend_from_slice(&target.marker);
            tcp
        }
        // A whole IPv4 packet; the kernel fills in lengths and sums.
        (libc::SOCK_RAW, 255) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0];
            ip.extend_from_slice(&target.v4.octets());
            ip.extend_from_slice(&udp);
            ip
        }
        (libc::SOCK_RAW | libc::SOCK_DGRAM, 1) => [&[8, 0, 0, 0, 0, 1, 0, 1], &target.marker[..]].concat(),
        (libc::SOCK_RAW | libc::SOCK_DGRAM, 58) => [&[128, 0, 0, 0, 0, 1, 0, 1], &target.marker[..]].concat(),
        _ => target.marker.clone(),
    }
}

fn plain(target: &Target, to: To, kind: i32, protocol: i32, how: How) -> bool {
    let fd = socket(to.family(), kind, protocol);
    let (data, there) = (payload(target, kind, protocol), place(target, to));
    match how {
        How::Connect => {
            connect(fd, there);
            send(fd, &data, 0);
        }
        How::SendTo => {
            sendto(fd, &data, 0, there);
        }
        How::SendMsg => {
            sendmsg(fd, &data, there);
        }
    }
    false
}

/// A TCP connection after something was done to its socket.
fn tcp(name: &str, to: To, prepare: impl Fn(i32, &Target) + 'static) -> Attempt {
    let attempt = move |target: &Target| {
        let fd = socket(to.family(), libc::SOCK_STREAM, 0);
        prepare(fd, target);
        connect(fd, place(target, to));
        send(fd, &target.marker, 0);
        false
    };
    (format!("tcp {name}"), Box::new(attempt))
}

fn other(name: &str, attempt: impl Fn(&Target) -> bool + 'static) -> Attempt {
    (name.to_owned(), Box::new(attempt))
}

pub fn attempts() -> Vec<Attempt> {
    let mut all: Vec<Attempt> = Vec::new();
    let places =
        [("v4", To::V4), ("v6", To::V6), ("mapped", To::Mapped), ("lo4", To::Loopback4), ("lo6", To::Loopback6)];
    for (place, to) in places {
        let icmp = if to.family() == INET { 1 } else { 58 };
        for (name, kind, protocol) in [
            ("udp", libc::SOCK_DGRAM, 17),
            ("udplite", libc::SOCK_DGRAM, UDPLITE),
            ("ping", libc::SOCK_DGRAM, icmp),
            ("raw icmp", libc::SOCK_RAW, icmp),
            ("raw udp", libc::SOCK_RAW, 17),
            ("raw tcp", libc::SOCK_RAW, 6),
            ("raw ip", libc::SOCK_RAW, 255),
        ] {
            for (way, how) in [("connect", How::Connect), ("sendto", How::SendTo), ("sendmsg", How::SendMsg)] {
                let attempt = move |target: &Target| plain(target, to, kind, protocol, how);
                all.push(other(&format!("{name} {place} {way}"), attempt));
            }
        }
        for (name, kind, protocol) in [
            ("tcp", libc::SOCK_STREAM, 6),
            ("mptcp", libc::SOCK_STREAM, MPTCP),
            ("sctp stream", libc::SOCK_STREAM, SCTP),
            ("sctp seqpacket", libc::SOCK_SEQPACKET, SCTP),
            ("dccp", 6, DCCP),
        ] {
            let attempt = move |target: &Target| plain(target, to, kind, protocol, How::Connect);
            all.push(other(&format!("{name} {place}"), attempt));
        }
        all.push(other(&format!("fast open {place}"), move |target| {
            let fd = socket(to.family(), libc::SOCK_STREAM, 0);
            sendto(fd, &target.marker, libc::MSG_FASTOPEN, self::place(target, to));
            false
        }));
    }
    all.extend(tcp_variants());
    all.extend(udp_variants());
    all
}

fn tcp_variants() -> Vec<Attempt> {
    let device = |fd: i32, target: &Target| {
        option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
    };
    let bind = |fd: i32, there: (libc::sockaddr_storage, u32)| {
        // SAFETY: the address is valid for its length.
        unsafe { libc::bind(fd, (&raw const there.0).cast(), there.1) };
    };
    // Type 0 routing by way of the witness, and loose source routing.
    let rthdr = |target: &Target| {
        let mut header = vec![0, 2, 0, 1, 0, 0, 0, 0];
        header.extend_from_slice(&target.v6.octets());
        header
    };
    let lsrr = |target: &Target| [&[131, 7, 4][..], &target.v4.octets(), &[0]].concat();
    vec![
        tcp("bound to the device v4", To::V4, device),
        tcp("bound to the device v6", To::V6, device),
        tcp("bound to the device, loopback", To::Loopback4, device),
        tcp("fast open connect v4", To::V4, |fd, _| {
            on(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
        }),
        tcp("fast open connect v6", To::V6, |fd, _| {
            on(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
        }),
        tcp("fast open bound to the device", To::V4, move |fd, target| {
            device(fd, target);
            sendto(fd, &target.marker, libc::MSG_FASTOPEN, place(target, To::V4));
        }),
        tcp("fast open with a routing header", To::V6, move |fd, target| {
            option(fd, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &rthdr(target));
            sendto(fd, &target.marker, libc::MSG_FASTOPEN, place(target, To::V6));
        }),
        tcp("routing header", To::Loopback6, move |fd, target| {
            option(fd, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &rthdr(target));
        }),
        tcp("loose source route", To::Loopback4, move |fd, target| {
            option(fd, libc::IPPROTO_IP, libc::IP_OPTIONS, &lsrr(target));
        }),
        tcp("mark", To::V4, |fd, _| {
            on(fd, libc::SOL_SOCKET, libc::SO_MARK);
        }),
        tcp("transparent", To::V4, move |fd, target| {
            on(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT);
            bind(fd, address(target, 0, 0));
        }),
        tcp("free bind", To::V4, move |fd, target| {
            on(fd, libc::IPPROTO_IP, libc::IP_FREEBIND);
            bind(fd, address(target, 0, 0));
        }),
        tcp("source port", To::V4, move |fd, target| bind(fd, address(target, 3, 40_000))),
        tcp("source port of the enforcer", To::V4, move |fd, target| {
            on(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT);
            bind(fd, address(target, 3, target.enforcer));
        }),
        tcp("repair", To::V4, |fd, _| {
            on(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR);
        }),
        tcp("after a connection was taken back", To::V4, |fd, target| {
            connect(fd, place(target, To::Loopback4));
            // SAFETY: all zeros is an address of no family.
            connect(fd, (unsafe { zeroed() }, size_of::<libc::sockaddr>() as u32));
        }),
        tcp("after listening", To::V4, |fd, _| {
            // SAFETY: plain system calls.
            unsafe { libc::listen(fd, 1) };
        }),
        tcp("not blocking", To::V4, |fd, _| {
            // SAFETY: a plain system call.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        }),
        tcp("straight to the enforcer", To::Loopback4, |_, target| {
            let fd = socket(INET, libc::SOCK_STREAM, 0);
            connect(fd, address(target, 3, target.enforcer));
            send(fd, &target.marker, 0);
        }),
        tcp("by a grandchild in a session of its own", To::V4, |_, target| {
            // SAFETY: one thread; the children run on copies and end here.
            unsafe {
                if libc::fork() == 0 {
                    libc::setsid();
                    if libc::fork() == 0 {
                        plain(target, To::V4, libc::SOCK_STREAM, 0, How::Connect);
                    }
                    libc::_exit(0);
                }
                libc::usleep(100_000);
            }
        }),
        other("smc v4", |target| {
            let fd = socket(43, libc::SOCK_STREAM, 0);
            connect(fd, place(target, To::V4));
            send(fd, &target.marker, 0);
            false
        }),
        other("smc v6", |target| {
            let fd = socket(43, libc::SOCK_STREAM, 1);
            connect(fd, place(target, To::V6));
            send(fd, &target.marker, 0);
            false
        }),
    ]
}

fn udp_variants() -> Vec<Attempt> {
    let udp = || socket(INET, libc::SOCK_DGRAM, 0);
    vec![
        other("udp to port 53", move |target| {
            sendto(udp(), &target.marker, 0, address(target, 0, 53));
            false
        }),
        other("udp corked", move |target| {
            let fd = udp();
            connect(fd, place(target, To::V4));
            send(fd, &target.marker, libc::MSG_MORE);
            send(fd, b"", 0);
            false
        }),
        other("udp broadcast", move |target| {
            let fd = udp();
            on(fd, libc::SOL_SOCKET, libc::SO_BROADCAST);
            option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
            let mut all = target.clone();
            all.v4 = std::net::Ipv4Addr::BROADCAST;
            sendto(fd, &target.marker, 0, address(&all, 0, target.port));
            false
        }),
        other("multicast join", move |_| {
            let group = [[239, 77, 77, 77], [0, 0, 0, 0]].concat();
            option(udp(), libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &group);
            let fd = socket(INET, libc::SOCK_STREAM, 0);
            option(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &group);
            false
        }),
        other("multicast send", move |target| {
            let mut all = target.clone();
            all.v4 = std::net::Ipv4Addr::new(239, 77, 77, 77);
            let fd = udp();
            option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
            sendto(fd, &target.marker, 0, address(&all, 0, target.port));
            false
        }),
        other("udp bound, then connected", move |target| {
            let fd = udp();
            let any = address(target, 3, 0);
            // SAFETY: the address is valid for its length.
            unsafe { libc::bind(fd, (&raw const any.0).cast(), any.1) };
            connect(fd, place(target, To::V4));
            send(fd, &target.marker, 0);
            false
        }),
    ]
}
