//! `egress`, `ingress`: the last word. Whatever road a packet found to here, it goes to the enforcer's listener over
//! the loopback device, or nowhere; and comes from there, or from nowhere. Of UDP, besides, questions go and answers come.
//!
//! The packet itself is parsed: the fields of its socket lie when a device is bound or a routing header sends the
//! packet elsewhere. Verdicts of parent and child cgroups are combined with AND, so no child can undo this.

use aya_ebpf::{helpers::generated::bpf_skb_cgroup_id, macros::cgroup_skb, programs::SkBuffContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, Reason};

use crate::{
    ALLOW, REFUSE, maps, names,
    refusal::{self, Attempt},
};

/// The loopback device has this index in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// More-fragments flag and fragment offset.
const FRAGMENT: u16 = 0x3fff;

#[cgroup_skb(egress)]
pub fn egress(cx: SkBuffContext) -> i32 {
    let protocol = if on_loopback(&cx) { with_enforcer(&cx, End::Destination) } else { None };
    let reason = match protocol {
        Some(IPPROTO_TCP) => return ALLOW,
        Some(_) => match names::ask(&cx) {
            Ok(()) => return ALLOW,
            Err(reason) => reason,
        },
        None => Reason::Egress,
    };
    refuse(&cx, reason, End::Destination)
}

#[cgroup_skb(ingress)]
pub fn ingress(cx: SkBuffContext) -> i32 {
    let protocol = if on_loopback(&cx) { with_enforcer(&cx, End::Source) } else { None };
    match protocol {
        Some(IPPROTO_TCP) => return ALLOW,
        Some(_) if names::is_answer(&cx) => return ALLOW,
        _ => {}
    }
    refuse(&cx, Reason::Ingress, End::Source)
}

/// Tells the other side of the packet, as far as it can be read.
#[inline(always)]
fn refuse(cx: &SkBuffContext, reason: Reason, end: End) -> i32 {
    let mut attempt = Attempt::socket(0, 0, 0);
    let version = cx.load::<[u8; 1]>(0).map_or(0, |first| first[0] >> 4);
    if version == 4
        && let Ok(header) = cx.load::<Ipv4>(0)
    {
        attempt.family = AF_INET;
        attempt.protocol = header.protocol.into();
        attempt.address[0] = match end {
            End::Source => header.source,
            End::Destination => header.destination,
        };
        if header.version_ihl == 0x45 && matches!(header.protocol, IPPROTO_TCP | IPPROTO_UDP) {
            attempt.port = port(cx, 20, end);
        }
    } else if version == 6
        && let Ok(header) = cx.load::<Ipv6>(0)
    {
        attempt.family = AF_INET6;
        attempt.protocol = header.next.into();
        attempt.address = match end {
            End::Source => header.source,
            End::Destination => header.destination,
        };
        if matches!(header.next, IPPROTO_TCP | IPPROTO_UDP) {
            attempt.port = port(cx, 40, end);
        }
    }
    // SAFETY: the context is the program's own.
    let cgroup_id = unsafe { bpf_skb_cgroup_id(cx.skb.skb) };
    refusal::by_packet(reason, cgroup_id, &attempt);
    REFUSE
}

#[inline(always)]
fn port(cx: &SkBuffContext, at: usize, end: End) -> u32 {
    let Ok(ports) = cx.load::<[u16; 2]>(at) else { return 0 };
    let port = match end {
        End::Source => ports[0],
        End::Destination => ports[1],
    };
    u16::from_be(port).into()
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

#[inline(always)]
fn on_loopback(cx: &SkBuffContext) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { read_volatile(addr_of!((*cx.skb.skb).ifindex)) == LOOPBACK_IFINDEX }
}

/// TCP or UDP, if this is it over IPv4 without options or fragments, or over IPv6 without extension headers, with one of
/// the enforcer's addresses and ports at that end. Words are compared as they lie in the packet, in network byte order.
#[inline(always)]
fn with_enforcer(cx: &SkBuffContext, end: End) -> Option<u8> {
    let enforcer = maps::enforcer()?;
    let first = cx.load::<[u8; 4]>(0).ok()?;
    let (protocol, found) = match first[0] >> 4 {
        4 => {
            let header = cx.load::<Ipv4>(0).ok()?;
            let ports = cx.load::<[u16; 2]>(20).ok()?;
            let (address, port) = match end {
                End::Source => (header.source, ports[0]),
                End::Destination => (header.destination, ports[1]),
            };
            let found = header.version_ihl == 0x45
                && u16::from_be(header.fragment) & FRAGMENT == 0
                && enforcer.v4_port != 0
                && address == enforcer.v4
                && u32::from(u16::from_be(port)) == enforcer.v4_port;
            (header.protocol, found)
        }
        6 => {
            let header = cx.load::<Ipv6>(0).ok()?;
            let ports = cx.load::<[u16; 2]>(40).ok()?;
            let (address, port) = match end {
                End::Source => (header.source, ports[0]),
                End::Destination => (header.destination, ports[1]),
            };
            let found = enforcer.v6_port != 0
                && address[0] == enforcer.v6[0]
                && address[1] == enforcer.v6[1]
                && address[2] == enforcer.v6[2]
                && address[3] == enforcer.v6[3]
                && u32::from(u16::from_be(port)) == enforcer.v6_port;
            (header.next, found)
        }
        _ => return None,
    };
    (found && matches!(protocol, IPPROTO_TCP | IPPROTO_UDP)).then_some(protocol)
}

/// RFC 791, section 3.1.
#[repr(C)]
pub struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    pub length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    pub source: u32,
    destination: u32,
}

/// RFC 8200, section 3.
#[repr(C)]
pub struct Ipv6 {
    version_class_flow: u32,
    pub length: u16,
    next: u8,
    hops: u8,
    pub source: [u32; 4],
    destination: [u32; 4],
}
