//! Names over UDP: questions of sessions' sockets, told to the agent as they leave, and answers, which arrive at the
//! socket that asked.
//!
//! The agent reads questions here and not from its own socket, which reads nothing: what comes by here is a session's, and
//! whose is known. What others on the host send to the agent's port is no question. Both ends of a datagram have ports that
//! come and go; sockets have numbers that do not, so an answer is for a socket.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{
    AF_INET, AF_INET6, ANSWER_STALE_NS, IPPROTO_UDP, QUESTION_BYTES, QUESTION_WINDOW_NS, QUESTIONS_PER_WINDOW,
    RawAnswer, RawQuestion, Reason,
};

use crate::{
    connect::MAPPED,
    maps,
    packets::{Ipv4, Ipv6},
    refusal::{lately, take_turn},
};

/// The header of a message: RFC 1035 section 4.1.1.
const HEADER: u32 = 12;
/// First byte of IPv4 addresses on the loopback device.
const LOOPBACK: u32 = 127;

const _: () = assert!(QUESTION_BYTES.is_power_of_two());

/// A datagram that is whole: one packet, as long as its headers say.
struct Datagram {
    /// Of the packet.
    family: u32,
    source: [u32; 4],
    source_port: u32,
    /// Where the message begins, and how long it is.
    at: u32,
    length: u32,
}

impl Datagram {
    /// From a packet whose headers are as the packet filter takes them.
    #[inline(always)]
    fn read(cx: &SkBuffContext) -> Option<Self> {
        // SAFETY: the context is the program's own.
        let packet = unsafe { read_volatile(addr_of!((*cx.skb.skb).len)) };
        let first = cx.load::<[u8; 1]>(0).ok()?;
        let (family, source, headers, whole) = if first[0] >> 4 == 4 {
            let header = cx.load::<Ipv4>(0).ok()?;
            (AF_INET, [0, 0, MAPPED, header.source], 20, u32::from(u16::from_be(header.length)))
        } else {
            let header = cx.load::<Ipv6>(0).ok()?;
            (AF_INET6, header.source, 40, u32::from(u16::from_be(header.length)) + 40)
        };
        // Source, destination, length, checksum: RFC 768.
        let udp = cx.load::<[u16; 4]>(headers).ok()?;
        let (headers, long) = (headers as u32, u32::from(u16::from_be(udp[2])));
        if whole != packet || headers + long != packet || long < 8 + HEADER {
            return None;
        }
        let source_port = u16::from_be(udp[0]).into();
        Some(Self { family, source, source_port, at: headers + 8, length: long - 8 })
    }
}

/// Tells the agent of a datagram to its port, if it may go there: a session's, no longer than a question, from an address
/// of the loopback device, with a live enforcer who still has the port.
#[inline(always)]
pub fn ask(cx: &SkBuffContext) -> Result<(), Reason> {
    let skb: *mut __sk_buff = cx.skb.skb;
    let Some(datagram) = Datagram::read(cx) else { return Err(Reason::Egress) };
    let is_local = match maps::enforcer() {
        Some(enforcer) if datagram.family == AF_INET6 => datagram.source == enforcer.v6,
        Some(_) => u32::from_be(datagram.source[3]) >> 24 == LOOPBACK,
        None => false,
    };
    if !is_local || datagram.length > QUESTION_BYTES as u32 {
        return Err(Reason::Egress);
    }
    // SAFETY: the context is the program's own; its socket is checked for null.
    let (cgroup_id, socket_cookie, sk) = unsafe {
        (bpf_skb_cgroup_id(skb), bpf_get_socket_cookie(skb.cast()), read_volatile(addr_of!((*skb).__bindgen_anon_2.sk)))
    };
    if sk.is_null() {
        return Err(Reason::Egress);
    }
    // SAFETY: `sk` is the context's socket, not null.
    let Some(origin) = (unsafe { maps::origin_of(sk.cast()) }) else { return Err(Reason::Egress) };
    if !maps::alive() {
        return Err(Reason::Enforcer);
    }
    // Who sent it, and whose the socket is, are one.
    if origin.cgroup_id != cgroup_id || !maps::is_session(cgroup_id) {
        return Err(Reason::Session);
    }
    if !maps::listens(origin.netns_cookie, datagram.family, IPPROTO_UDP) {
        return Err(Reason::Namespace);
    }
    let Some(asking) = lately(&maps::ASKING, cgroup_id) else { return Err(Reason::Questions) };
    // SAFETY: a value of the map.
    if !unsafe { take_turn(asking, QUESTIONS_PER_WINDOW, QUESTION_WINDOW_NS) } {
        return Err(Reason::Questions);
    }
    let Some(mut entry) = maps::QUESTIONS.reserve(0) else { return Err(Reason::Questions) };
    let told = entry.as_mut_ptr();
    // SAFETY: the entry is as large as its type; as much of it is written as its length says.
    let loaded = unsafe {
        (&raw mut (*told).0).write(RawQuestion {
            origin: *origin,
            socket_cookie,
            asked_ns: bpf_ktime_get_ns(),
            client: datagram.source,
            client_port: datagram.source_port,
            length: datagram.length,
        });
        // Read again and cut, in a form that verifiers of older kernels follow: from 1 to the size of the place.
        let length = ((&raw const (*told).0.length).read_volatile().wrapping_sub(1) & (QUESTION_BYTES as u32 - 1)) + 1;
        bpf_skb_load_bytes(skb.cast(), datagram.at, (&raw mut (*told).1).cast(), length)
    };
    if loaded != 0 {
        entry.discard(0);
        return Err(Reason::Egress);
    }
    entry.submit(0);
    Ok(())
}

/// Whether a datagram from the agent's port is an answer for the socket that it arrives at, and not an old one.
#[inline(always)]
pub fn is_answer(cx: &SkBuffContext) -> bool {
    let Some(datagram) = Datagram::read(cx) else { return false };
    let Ok(id) = cx.load::<[u8; 2]>(datagram.at as usize) else { return false };
    // SAFETY: the helper takes the program's context, whose socket is the one that receives.
    let socket_cookie = unsafe { bpf_get_socket_cookie(cx.skb.skb.cast()) };
    let answer = RawAnswer { socket_cookie, id: u16::from_be_bytes(id).into(), pad: 0 };
    // SAFETY: the value is written whole.
    let Some(sent) = (unsafe { maps::ANSWERS.get(&answer) }).copied() else { return false };
    let _ = maps::ANSWERS.remove(&answer);
    // SAFETY: a helper without preconditions.
    socket_cookie != 0 && unsafe { bpf_ktime_get_ns() }.wrapping_sub(sent) < ANSWER_STALE_NS
}
