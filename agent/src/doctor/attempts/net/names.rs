//! Attempts by way of the one thing that UDP is there for in a session: questions to name servers. What comes to the
//! enforcer's port is no arrival; what comes anywhere else is.

use std::{
    mem::zeroed,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    super::sys::{Address, in_background},
    Answer, Attempt, INET, INET6, Road, Target, To, UDP, address, any, bind, connect, control, device_number, on,
    option, own_port, place, send, sendmsg, sendto, socket, udp,
};

/// The port of DNS.
const DNS: u16 = 53;

fn open() -> i32 {
    socket(INET, libc::SOCK_DGRAM, 0)
}

fn open6() -> i32 {
    socket(INET6, libc::SOCK_DGRAM, 0)
}

/// An IPv4 address instead of the witness's.
fn other(target: &Target, v4: Ipv4Addr, port: u16) -> Address {
    address(&Target { v4, ..target.clone() }, To::V4, port)
}

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, to) in [("", To::V4), (", v6", To::V6), (", mapped", To::Mapped)] {
        all.push(udp(&format!("to port 53{name}"), move |target| {
            let fd = socket(to.family(), libc::SOCK_DGRAM, 0);
            sendto(fd, target.marker(), 0, address(target, to, DNS));
        }));
        all.push(udp(&format!("connected to port 53{name}"), move |target| {
            let fd = socket(to.family(), libc::SOCK_DGRAM, 0);
            connect(fd, address(target, to, DNS));
            send(fd, target.marker(), 0);
        }));
        all.push(udp(&format!("connected to port 53, sent elsewhere{name}"), move |target| {
            let fd = socket(to.family(), libc::SOCK_DGRAM, 0);
            connect(fd, address(target, to, DNS));
            sendto(fd, target.marker(), 0, place(target, to));
            // Now that it was at a name server, another connection, too.
            connect(fd, place(target, to));
            send(fd, target.marker(), 0);
        }));
    }
    all.extend(roundabout());
    all.extend(with_messages());
    all.extend(among_processes());
    all
}

fn roundabout() -> Vec<Attempt> {
    vec![
        udp("to port 53 of the host's own name server", |target| {
            sendto(open(), target.marker(), 0, other(target, Ipv4Addr::new(127, 0, 0, 53), DNS));
        }),
        udp("after a connection to port 53 was taken back", |target| {
            let fd = open();
            connect(fd, address(target, To::V4, DNS));
            // SAFETY: all zeros is an address of no family.
            connect(fd, (unsafe { zeroed() }, size_of::<libc::sockaddr>() as u32));
            sendto(fd, target.marker(), 0, place(target, To::V4));
            sendto(fd, target.marker(), 0, place(target, To::Loopback4));
        }),
        udp("many at once, of which the first is to port 53", |target| {
            many(target, open(), [address(target, To::V4, DNS), place(target, To::V4)]);
        }),
        udp("corked to port 53, sent elsewhere", |target| {
            let fd = open();
            sendto(fd, target.marker(), libc::MSG_MORE, address(target, To::V4, DNS));
            sendto(fd, target.marker(), 0, place(target, To::V4));
            // And the other way round.
            let fd = open();
            sendto(fd, target.marker(), libc::MSG_MORE, place(target, To::V4));
            sendto(fd, target.marker(), 0, address(target, To::V4, DNS));
        }),
        udp("broadcast to port 53", |target| {
            let fd = open();
            on(fd, libc::SOL_SOCKET, libc::SO_BROADCAST);
            option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
            sendto(fd, target.marker(), 0, other(target, Ipv4Addr::BROADCAST, DNS));
        }),
        udp("multicast to port 53", |target| {
            let fd = open();
            option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
            sendto(fd, target.marker(), 0, other(target, target.groups[0], DNS));
        }),
        udp("bound to the device, to port 53", |target| {
            let fd = open();
            option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, target.device.as_bytes());
            sendto(fd, target.marker(), 0, address(target, To::V4, DNS));
        }),
        udp("errors are asked for", |target| {
            let fd = open();
            on(fd, libc::IPPROTO_IP, libc::IP_RECVERR);
            connect(fd, address(target, To::V4, DNS));
            // Longer than any question, and then another address.
            let long = [target.marker(), &[b'x'; 3000]].concat();
            send(fd, &long, 0);
            sendto(fd, target.marker(), 0, place(target, To::V4));
        }),
        Attempt::effect(Road::Datagrams, "udp from a port of its choice", |target| {
            let fd = open();
            bind(fd, any(target, 0));
            let free = own_port(fd);
            // SAFETY: our own descriptor.
            unsafe { libc::close(fd) };
            free != 0 && bind(open(), any(target, free)) == 0
        }),
    ]
}

/// What comes with a message may choose another road for it.
fn with_messages() -> Vec<Attempt> {
    vec![
        udp("to port 53 with the device in the message", |target| {
            let info = [&device_number(&target.device).to_ne_bytes()[..], &[0; 8]].concat();
            let control = control(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            sendmsg(open(), target.marker(), address(target, To::V4, DNS), &control);
        }),
        udp("to port 53 with the device in the message, v6", |target| {
            let info = [&[0; 16][..], &device_number(&target.device).to_ne_bytes()].concat();
            let control = control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            sendmsg(open6(), target.marker(), address(target, To::V6, DNS), &control);
        }),
        udp("to port 53 with a source route in the message", |target| {
            let route = [&[131, 7, 4][..], &target.v4.octets(), &[0]].concat();
            let control = control(libc::IPPROTO_IP, libc::IP_RETOPTS, &route);
            sendmsg(open(), target.marker(), address(target, To::V4, DNS), &control);
        }),
        udp("to port 53 with a routing header in the message", |target| {
            // Of segments (RFC 8754), by way of the witness.
            let mut header = vec![0, 2, 4, 0, 0, 0, 0, 0];
            header.extend_from_slice(&target.v6.octets());
            let control = control(libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header);
            sendmsg(open6(), target.marker(), address(target, To::V6, DNS), &control);
        }),
        udp("to port 53, cut by the kernel", |target| {
            let twice = [target.marker(), target.marker()].concat();
            let size = (target.marker().len() as u16).to_ne_bytes();
            sendmsg(open(), &twice, address(target, To::V4, DNS), &control(UDP, 103, &size));
        }),
    ]
}

/// From one process in a session to another: effects, which the one that is sent something tells.
fn among_processes() -> Vec<Attempt> {
    let between = |name: &str, to: To, server: Option<To>| {
        Attempt::new(Road::Datagrams, format!("udp between processes{name}"), move |target| {
            let there = socket(to.family(), libc::SOCK_DGRAM, 0);
            let everywhere = match to.family() {
                INET => any(target, 0),
                _ => address(&Target { v6: Ipv6Addr::UNSPECIFIED, ..target.clone() }, To::V6, 0),
            };
            bind(there, everywhere);
            if let Some(server) = server {
                // It waits for an answer.
                sendto(there, target.marker(), 0, address(target, server, DNS));
            }
            let port = own_port(there);
            in_background(|| {
                let here = socket(to.family(), libc::SOCK_DGRAM, 0);
                sendto(here, b"between", 0, address(target, to, port));
                connect(here, address(target, to, port));
                send(here, b"between", 0);
            });
            let mut buffer = [0u8; 16];
            let mut ready = libc::pollfd { fd: there, events: libc::POLLIN, revents: 0 };
            // SAFETY: valid places for one descriptor and for what comes.
            let came = unsafe {
                libc::poll(&raw mut ready, 1, 200);
                libc::recv(there, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            };
            if came > 0 && buffer.starts_with(b"between") { Answer::Effect } else { Answer::Done }
        })
    };
    vec![
        between("", To::Loopback4, None),
        between(", v6", To::Loopback6, None),
        between(", of which one has asked", To::Loopback4, Some(To::V4)),
        between(", of which one has asked, v6", To::Loopback6, Some(To::V6)),
    ]
}

/// Two messages in one call.
fn many(target: &Target, fd: i32, mut to: [Address; 2]) {
    let mut piece =
        libc::iovec { iov_base: target.marker().as_ptr().cast_mut().cast(), iov_len: target.marker().len() };
    let piece = &raw mut piece;
    let mut both = to.each_mut().map(|(storage, length)| {
        // SAFETY: all zeros is a message of nothing.
        let mut message: libc::mmsghdr = unsafe { zeroed() };
        message.msg_hdr.msg_name = std::ptr::from_mut(storage).cast();
        message.msg_hdr.msg_namelen = *length;
        message.msg_hdr.msg_iov = piece;
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    // SAFETY: everything the messages name lives until the call returns.
    unsafe { libc::sendmmsg(fd, both.as_mut_ptr(), 2, 0) };
}
