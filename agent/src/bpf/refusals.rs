//! What the hooks refused, told by them through a ring buffer.
//!
//! They count everything and tell some: [`portcullis_ebpf::REPORTS_PER_WINDOW`] of each cgroup and second, as long as
//! there is room. So what is told is for people; the counters are for sums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_ebpf::{AF_INET, AF_INET6, IPPROTO_UDP, RawRefusal, Reason, ToldRefusal};

use super::ring::{Ring, Told, Watched};
use crate::action::ProcessFacts;

const AF_UNIX: u32 = 1;

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What was tried, and why it is refused, in words.
    pub what: String,
    /// cgroup of the task, or of the packet's socket.
    pub cgroup_id: u64,
    /// The task, without its executable. Packets have none.
    pub process: Option<ProcessFacts>,
    /// How many refusals of this cgroup were not told so far.
    pub left_out: u64,
}

/// The reading end.
pub type Refusals = Ring<Refusal>;

/// The same, for waiting until there is something to read.
pub type WatchedRefusals = Watched<Refusal>;

impl Told for Refusal {
    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_raw(&ToldRefusal::from_bytes(bytes)?)
    }
}

impl Refusal {
    pub(super) fn from_raw(told: &ToldRefusal) -> Option<Self> {
        let ToldRefusal(raw, path) = told;
        let reason = *Reason::ALL.get(raw.reason as usize)?;
        let process = (raw.has_task != 0).then(|| ProcessFacts {
            pid: raw.pid,
            uid: raw.uid,
            comm: text(&raw.comm),
            ..ProcessFacts::default()
        });
        let what = words(reason, raw, &text(path));
        Some(Self { reason, what, cgroup_id: raw.cgroup_id, process, left_out: raw.left_out })
    }
}

fn words(reason: Reason, raw: &RawRefusal, path: &str) -> String {
    let protocol = protocol(raw);
    let to = match raw.family {
        AF_UNIX if path.is_empty() => "a unix socket without a name".to_owned(),
        AF_UNIX => format!("unix socket {path}"),
        _ => address(raw).map_or_else(|| "an unknown address".to_owned(), |address| address.to_string()),
    };
    match reason {
        Reason::Socket if raw.protocol == IPPROTO_UDP => {
            "UDP socket: only TCP sockets are made where names are not answered over UDP".into()
        }
        Reason::Socket => format!("{protocol} socket: only TCP sockets are made"),
        Reason::NotTcp if raw.protocol == IPPROTO_UDP => {
            format!("connect to {to} by UDP: only name servers are asked by it, at port 53")
        }
        Reason::NotTcp => format!("connect to {to} by {protocol}: only TCP is taken to the enforcer"),
        Reason::Device => format!("connect to {to}: the socket is bound to a device"),
        Reason::Enforcer => format!("connect to {to}: no enforcer was alive to take it"),
        Reason::Namespace => format!("connect to {to}: the enforcer does not listen in this network namespace"),
        Reason::Session => format!("connect to {to}: the cgroup is no session"),
        Reason::Memory => format!("connect to {to}: the kernel had no memory to keep it in mind"),
        Reason::Datagram => format!("datagram to {to} by {protocol}: only name servers are asked by it, at port 53"),
        Reason::Bind => format!("bind to {to}: nothing is offered to others from a session"),
        Reason::Option => {
            // As the caller gave them: they are signed.
            let (level, name) = (raw.kind.cast_signed(), raw.protocol.cast_signed());
            format!("socket option {name} of level {level}: it may choose another road")
        }
        Reason::Unix => format!("{to}: the policy does not list it"),
        Reason::Egress => format!("packet to {to} by {protocol}: only the enforcer is reached"),
        Reason::Ingress => format!("packet from {to} by {protocol}: only the enforcer is heard"),
        Reason::Family => format!("socket of address family {}: only TCP and unix sockets are made", raw.family),
        Reason::Foreign => match raw.family {
            0 => "descriptor of another process: what it is of acts in that one's name".into(),
            AF_UNIX => "unix socket that was made outside of the session".into(),
            AF_INET | AF_INET6 => format!("{protocol} socket that was made outside of the session"),
            family => format!("socket of address family {family} that was made outside of the session"),
        },
        Reason::Bpf => "call of bpf: programs of the kernel are not for sessions".into(),
        Reason::Trace => "tracing of a process outside of the session".into(),
        Reason::Perf => "call of perf_event_open: it looks into the kernel".into(),
        Reason::Questions => "question for a name by UDP: there are too many".into(),
        Reason::Cgroup => "change of a cgroup: tasks stay where their session is".into(),
    }
}

fn address(raw: &RawRefusal) -> Option<SocketAddr> {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(raw.address) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let [a, b, c, d, ..] = bytes;
    let ip: IpAddr = match raw.family {
        AF_INET => Ipv4Addr::new(a, b, c, d).into(),
        AF_INET6 => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(raw.port).ok()?))
}

/// See linux/in.h.
fn protocol(raw: &RawRefusal) -> String {
    const SOCK_RAW: u32 = 3;
    if raw.kind == SOCK_RAW {
        return format!("raw ({})", raw.protocol);
    }
    match raw.protocol {
        1 | 58 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        33 => "DCCP".into(),
        132 => "SCTP".into(),
        136 => "UDP-Lite".into(),
        262 => "MPTCP".into(),
        other => format!("protocol {other}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
