//! Attempts to send something, by every kind of socket and every way to use it.

mod names;

use std::mem::{size_of, zeroed};

use super::{
    Answer, Attempt, Road, Target,
    sys::{
        INET, INET6, To, address, bind, connect, control, device_number, in_background, on, option, place, send,
        sendmsg, sendto, socket, stored,
    },
};

const MPTCP: i32 = 262;
const SCTP: i32 = 132;
const DCCP: i32 = 33;
const UDPLITE: i32 = 136;
const SMC: i32 = 43;
const TCP: i32 = 6;
const UDP: i32 = 17;

/// How it is sent.
#[derive(Clone, Copy)]
enum How {
    Connect,
    SendTo,
    SendMsg,
}

/// What a raw socket of this protocol must be given to be a packet.
fn payload(target: &Target, kind: i32, protocol: i32) -> Vec<u8> {
    let port = target.port.to_be_bytes();
    let length = (8 + target.marker().len()) as u16;
    let udp = [&[0x99, 0x99], &port[..], &length.to_be_bytes(), &[0, 0], target.marker()].concat();
    match (kind, protocol) {
        (libc::SOCK_RAW, 17) => udp,
        (libc::SOCK_RAW, 6) => {
            let mut tcp = vec![0x99, 0x99, port[0], port[1]];
            tcp.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            tcp.extend_from_slice(target.marker());
            tcp
        }
        // A whole IPv4 packet; the kernel fills in lengths and sums.
        (libc::SOCK_RAW, 255) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0];
            ip.extend_from_slice(&target.v4.octets());
            ip.extend_from_slice(&udp);
            ip
        }
        (libc::SOCK_RAW | libc::SOCK_DGRAM, 1) => [&[8, 0, 0, 0, 0, 1, 0, 1], target.marker()].concat(),
        (libc::SOCK_RAW | libc::SOCK_DGRAM, 58) => [&[128, 0, 0, 0, 0, 1, 0, 1], target.marker()].concat(),
        _ => target.marker().to_vec(),
    }
}

fn plain(target: &Target, to: To, kind: i32, protocol: i32, how: How) {
    let fd = socket(to.family(), kind, protocol);
    // A raw IPv6 socket takes no port.
    let port = if kind == libc::SOCK_RAW { 0 } else { target.port };
    let (data, there) = (payload(target, kind, protocol), address(target, to, port));
    match how {
        How::Connect => {
            connect(fd, there);
            send(fd, &data, 0);
        }
        How::SendTo => {
            sendto(fd, &data, 0, there);
        }
        How::SendMsg => {
            sendmsg(fd, &data, there, &[]);
        }
    }
}

/// A TCP connection after something was done to its socket.
fn tcp(name: &str, to: To, prepare: impl Fn(i32, &Target) + 'static) -> Attempt {
    let attempt = move |target: &Target| {
        let fd = socket(to.family(), libc::SOCK_STREAM, 0);
        prepare(fd, target);
        connect(fd, place(target, to));
        send(fd, target.marker(), 0);
    };
    Attempt::sends(Road::Tcp, format!("tcp {name}"), attempt)
}

fn udp(name: &str, attempt: impl Fn(&Target) + 'static) -> Attempt {
    Attempt::sends(Road::Datagrams, format!("udp {name}"), attempt)
}

pub(super) fn attempts() -> Vec<Attempt> {
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
                all.push(Attempt::sends(Road::Datagrams, format!("{name} {place} {way}"), attempt));
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
            all.push(Attempt::sends(Road::Tcp, format!("{name} {place}"), attempt));
        }
        all.push(Attempt::sends(Road::Tcp, format!("fast open {place}"), move |target| {
            let fd = socket(to.family(), libc::SOCK_STREAM, 0);
            sendto(fd, target.marker(), libc::MSG_FASTOPEN, self::place(target, to));
        }));
    }
    all.extend(tcp_variants());
    all.extend(udp_variants());
    all.extend(names::attempts());
    all.extend(listening());
    all
}

fn tcp_variants() -> Vec<Attempt> {
    let device = |fd: i32, target: &Target| {
        option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
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
            sendto(fd, target.marker(), libc::MSG_FASTOPEN, place(target, To::V4));
        }),
        tcp("fast open with a routing header", To::V6, move |fd, target| {
            option(fd, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &rthdr(target));
            sendto(fd, target.marker(), libc::MSG_FASTOPEN, place(target, To::V6));
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
        tcp("transparent", To::V4, |fd, target| {
            on(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT);
            bind(fd, foreign(target, 0));
        }),
        tcp("free bind", To::V4, |fd, target| {
            on(fd, libc::IPPROTO_IP, libc::IP_FREEBIND);
            bind(fd, foreign(target, 0));
        }),
        tcp("source port", To::V4, |fd, target| {
            bind(fd, any(target, 0));
        }),
        tcp("source port of the enforcer", To::Loopback4, |fd, target| {
            on(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT);
            bind(fd, any(target, target.enforcer));
        }),
        tcp("repair", To::V4, |fd, _| {
            on(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR);
        }),
        tcp("after a connection was taken back", To::V4, |fd, target| {
            connect(fd, place(target, To::Loopback4));
            // SAFETY: all zeros is an address of no family.
            connect(fd, (unsafe { zeroed() }, size_of::<libc::sockaddr>() as u32));
        }),
        tcp("not blocking", To::V4, |fd, _| {
            // SAFETY: a plain system call.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        }),
        tcp("by a grandchild in a session of its own", To::V4, |_, target| {
            in_background(|| {
                // SAFETY: a plain system call.
                unsafe { libc::setsid() };
                in_background(|| plain(target, To::V4, libc::SOCK_STREAM, TCP, How::Connect));
            });
        }),
        tcp("to the enforcer, and on from there", To::Loopback4, |fd, target| {
            connect(fd, address(target, To::Loopback4, target.enforcer));
            send(fd, target.marker(), 0);
        }),
        smc("smc v4", To::V4, 0),
        smc("smc v6", To::V6, 1),
    ]
}

fn smc(name: &str, to: To, protocol: i32) -> Attempt {
    Attempt::sends(Road::Families, name, move |target| {
        let fd = socket(SMC, libc::SOCK_STREAM, protocol);
        connect(fd, place(target, to));
        send(fd, target.marker(), 0);
    })
}

/// The same as another address: RFC 5737, so nobody's.
fn foreign(target: &Target, port: u16) -> (libc::sockaddr_storage, u32) {
    let nobody = Target { v4: std::net::Ipv4Addr::new(198, 51, 100, 77), ..target.clone() };
    address(&nobody, To::V4, port)
}

/// Every address of this host.
fn any(target: &Target, port: u16) -> (libc::sockaddr_storage, u32) {
    address(&Target { v4: std::net::Ipv4Addr::UNSPECIFIED, ..target.clone() }, To::V4, port)
}

fn udp_variants() -> Vec<Attempt> {
    let open = || socket(INET, libc::SOCK_DGRAM, 0);
    let to_all = move |target: &Target, all: std::net::Ipv4Addr| {
        let fd = open();
        on(fd, libc::SOL_SOCKET, libc::SO_BROADCAST);
        option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
        let all = Target { v4: all, ..target.clone() };
        sendto(fd, target.marker(), 0, place(&all, To::V4));
    };
    vec![
        udp("corked", move |target| {
            let fd = open();
            connect(fd, place(target, To::V4));
            send(fd, target.marker(), libc::MSG_MORE);
            send(fd, b"", 0);
        }),
        udp("broadcast", move |target| to_all(target, std::net::Ipv4Addr::BROADCAST)),
        udp("multicast", move |target| to_all(target, target.groups[0])),
        // IGMP itself is the message: which group is joined.
        udp("multicast join", move |target| join(target, 0, open())),
        udp("multicast join by request", move |target| join_by_request(target, 1, open())),
        udp("bound, then connected", move |target| {
            let fd = open();
            bind(fd, any(target, 0));
            connect(fd, place(target, To::V4));
            send(fd, target.marker(), 0);
        }),
        udp("many at once", move |target| many(target, open())),
        udp("with the device in the message", move |target| {
            // struct in_pktinfo: device, source, destination.
            let info = [&device_number(&target.device).to_ne_bytes()[..], &[0; 8]].concat();
            let control = control(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            sendmsg(open(), target.marker(), place(target, To::V4), &control);
        }),
        udp("with the device in the message, v6", |target| {
            // struct in6_pktinfo: source, device.
            let info = [&[0; 16][..], &device_number(&target.device).to_ne_bytes()].concat();
            let control = control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            sendmsg(socket(INET6, libc::SOCK_DGRAM, 0), target.marker(), place(target, To::V6), &control);
        }),
        udp("cut by the kernel", move |target| {
            // UDP_SEGMENT: two datagrams in one call.
            let twice = [target.marker(), target.marker()].concat();
            let size = (target.marker().len() as u16).to_ne_bytes();
            sendmsg(open(), &twice, place(target, To::V4), &control(UDP, 103, &size));
        }),
    ]
}

/// The attempts that join the groups of a target: what tells of it names the group, and nothing else.
pub(in crate::doctor) const JOINS: [&str; 2] = ["udp multicast join", "udp multicast join by request"];

/// Joins a group by way of the witness's device.
fn join(target: &Target, group: usize, fd: i32) {
    let device = device_number(&target.device).to_ne_bytes();
    let group = [&target.groups[group].octets()[..], &[0; 4], &device].concat();
    option(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &group);
    let_it_tell();
}

/// The same by the protocol-independent option (RFC 3678).
fn join_by_request(target: &Target, group: usize, fd: i32) {
    const MCAST_JOIN_GROUP: i32 = 42;
    let device = device_number(&target.device).to_ne_bytes();
    let family = (INET as u16).to_ne_bytes();
    // struct group_req: device, and the group as a sockaddr_storage.
    let mut request = [&device[..], &[0; 4], &family, &[0; 2], &target.groups[group].octets()].concat();
    request.resize(136, 0);
    option(fd, libc::IPPROTO_IP, MCAST_JOIN_GROUP, &request);
    let_it_tell();
}

/// A group is told by a timer, and not at all if it is left before; a slow machine is late with it.
fn let_it_tell() {
    // SAFETY: a plain system call.
    unsafe { libc::usleep(200_000) };
}

fn many(target: &Target, fd: i32) {
    let (mut storage, length) = place(target, To::V4);
    let mut piece =
        libc::iovec { iov_base: target.marker().as_ptr().cast_mut().cast(), iov_len: target.marker().len() };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    message.msg_hdr.msg_name = (&raw mut storage).cast();
    message.msg_hdr.msg_namelen = length;
    message.msg_hdr.msg_iov = &raw mut piece;
    message.msg_hdr.msg_iovlen = 1;
    let mut both = [message, message];
    // SAFETY: everything the messages name lives until the call returns.
    unsafe { libc::sendmmsg(fd, both.as_mut_ptr(), 2, 0) };
}

/// The port that a socket is bound to; 0 for none.
fn own_port(fd: i32) -> u16 {
    // Both families have their port in the same place.
    let (mut storage, mut length) = stored(&0u16);
    length += size_of::<libc::sockaddr_in6>() as u32;
    // SAFETY: a valid place of at least this length.
    unsafe { libc::getsockname(fd, (&raw mut storage).cast(), &raw mut length) };
    // SAFETY: sockaddr_storage is larger and more aligned than any address.
    u16::from_be(unsafe { (*(&raw const storage).cast::<libc::sockaddr_in>()).sin_port })
}

/// The other direction: being asked is a road, too.
fn listening() -> Vec<Attempt> {
    let listens = |name: &str, to: To, is_bound: bool| {
        Attempt::new(Road::Listening, name, move |target| {
            let fd = socket(to.family(), libc::SOCK_STREAM, 0);
            if is_bound {
                let everywhere = match to.family() {
                    INET => any(target, 0),
                    _ => address(&Target { v6: std::net::Ipv6Addr::UNSPECIFIED, ..target.clone() }, To::V6, 0),
                };
                bind(fd, everywhere);
            }
            // SAFETY: a plain system call.
            if unsafe { libc::listen(fd, 8) } != 0 {
                return Answer::Done;
            }
            let port = own_port(fd);
            in_background(|| {
                // SAFETY: a plain system call.
                unsafe { libc::usleep(500_000) };
            });
            Answer::Listens(port)
        })
    };
    vec![
        listens("listening, bound, v4", To::V4, true),
        listens("listening, not bound, v4", To::V4, false),
        listens("listening, bound, v6", To::V6, true),
        listens("listening, not bound, v6", To::V6, false),
    ]
}
