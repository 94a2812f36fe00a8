//! Packets of every device, as root sees them: packet(7). What leaves counts as well as what arrives, so no second host
//! is needed.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use super::{Setup, tagged};

const TCP: u8 = 6;
const UDP: u8 = 17;
const IGMP: u8 = 2;

pub(super) struct Sniffer {
    socket: OwnedFd,
    ports: Vec<u16>,
    enforcer: Vec<u16>,
    hosts: Vec<IpAddr>,
}

/// A packet that should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Number of its attempt, where it carries one.
    pub(super) number: Option<usize>,
    /// From which port to which of the witness's, where it is for one.
    pub(super) flow: Option<(u16, u16)>,
    /// Which of the groups it names, where it tells that one was joined.
    pub(super) group: Option<usize>,
}

impl Sniffer {
    pub(super) const NAME: &'static str = "packets";

    /// `None` for those who may not.
    pub(super) fn open(setup: &Setup, ports: &[u16]) -> Option<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        // Without the link's header, which differs from device to device.
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll).ok()?;
        // A busy host must not make it lose packets; where that is refused it has the default.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20));
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
        let hosts = loopback.into_iter().chain([setup.aim.v4.into(), setup.aim.v6.into()]).collect();
        Some(Self { socket, ports: ports.to_vec(), enforcer: setup.enforcer.clone(), hosts })
    }

    /// What came by since the last call.
    pub(super) fn seen(&mut self, marker: &str, groups: [Ipv4Addr; 2]) -> Vec<Seen> {
        let mut found = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((n, from)) => {
                    let protocol = from.map_or(0, |from| u16::from_be(from.protocol()));
                    found.extend(self.judge(protocol, &buffer[..n], marker, groups));
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return found,
            }
        }
    }

    fn judge(&self, protocol: u16, packet: &[u8], marker: &str, groups: [Ipv4Addr; 2]) -> Option<Seen> {
        let number = tagged(marker, packet);
        let parsed = parse(protocol, packet);
        // An answer of a connection that was seen when it began: it may come long after.
        if parsed.as_ref().is_some_and(|parsed| parsed.is_answer) {
            return None;
        }
        let port = parsed.as_ref().and_then(|p| p.ports);
        if let (Some(parsed), Some((from, to))) = (&parsed, port) {
            // To the enforcer and back: the one road there is.
            let is_loopback = parsed.to.is_loopback();
            if is_loopback && (self.enforcer.contains(&from) || self.enforcer.contains(&to)) {
                return None;
            }
            if self.ports.contains(&to) && self.hosts.contains(&parsed.to) {
                return Some(Seen { number, flow: Some((from, to)), group: None });
            }
        }
        let names = |group: &Ipv4Addr| memchr::memmem::find(packet, &group.octets()).is_some();
        let is_igmp = parsed.is_some_and(|p| p.protocol == IGMP);
        let group = groups.iter().rposition(names).filter(|_| is_igmp);
        (number.is_some() || group.is_some()).then_some(Seen { number, flow: None, group })
    }
}

struct Parsed {
    protocol: u8,
    to: IpAddr,
    /// From and to.
    ports: Option<(u16, u16)>,
    /// Whether it is a segment of TCP that begins nothing and carries nothing.
    is_answer: bool,
}

/// The fields that matter of an IP packet; `None` for anything else, and for what is too short.
fn parse(protocol: u16, packet: &[u8]) -> Option<Parsed> {
    let (protocol, to, rest): (u8, IpAddr, &[u8]) = match protocol {
        0x0800 => {
            let length = usize::from(packet.first()? & 15) * 4;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (*packet.get(9)?, to.into(), packet.get(length..)?)
        }
        0x86dd => {
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (*packet.get(6)?, to.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let number = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let ports = if matches!(protocol, TCP | UDP) { number(0).zip(number(2)) } else { None };
    const SYN: u8 = 2;
    let is_answer = protocol == TCP
        && rest.get(12..14).is_some_and(|word| word[1] & SYN == 0 && rest.len() <= usize::from(word[0] >> 4) * 4);
    Some(Parsed { protocol, to, ports, is_answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_answer_are_told_from_those_that_begin_or_carry_something() {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
        packet.extend_from_slice(&[0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        let parsed = |packet: &[u8]| parse(0x0800, packet).map(|p| (p.ports, p.is_answer));
        assert_eq!(parsed(&packet), Some((Some((0x1234, 80)), true)));
        packet[33] = 2;
        assert_eq!(parsed(&packet), Some((Some((0x1234, 80)), false)));
        packet[33] = 0x10;
        packet.push(b'x');
        assert_eq!(parsed(&packet), Some((Some((0x1234, 80)), false)));
        for length in 0..packet.len() {
            // Too short to tell, and no panic.
            let _ = parse(0x0800, &packet[..length]);
            let _ = parse(0x86dd, &packet[..length]);
        }
    }
}
