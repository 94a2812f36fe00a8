//! Which sockets a governed task makes, and which it uses: of any family but unix sockets, those made in its own session.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_ebpf::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, LsmPlaces, Reason};

use super::{AF_UNIX, EAFNOSUPPORT, EPERM, PASS, arguments, belongs, governed_task, read};
use crate::{
    maps,
    refusal::{self, Attempt},
};

const AF_NETLINK: u32 = 16;
const NETLINK_ROUTE: u32 = 0;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

#[lsm(hook = "socket_create")]
pub fn lsm_socket_create(cx: LsmContext) -> i32 {
    if let Some(calls) = maps::LSM_CALLS.get_ptr_mut(0) {
        // SAFETY: a slot of this processor.
        unsafe { *calls += 1 };
    }
    if governed_task().is_none() {
        return PASS;
    }
    let Some([family, kind, protocol, by_kernel]) = arguments::<4>(&cx) else { return EPERM };
    let (family, kind, protocol) = (family as u32, kind as u32, protocol as u32);
    if by_kernel as u32 != 0 || family == AF_UNIX {
        return PASS;
    }
    // Nobody has chosen the protocol yet: it is the one that the type stands for.
    let named = if protocol == 0 && kind == SOCK_DGRAM { IPPROTO_UDP } else { protocol };
    let attempt = Attempt::socket(family, kind, named);
    // Tells of addresses and routes, as any program asks; changing them takes powers that no session has. Whoever starts a
    // container sets up its loopback device so.
    if family == AF_NETLINK && protocol == NETLINK_ROUTE {
        return PASS;
    }
    if family != AF_INET && family != AF_INET6 {
        refusal::by_task(Reason::Family, &attempt);
        return EAFNOSUPPORT;
    }
    if kind == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP) {
        return PASS;
    }
    // The cgroup's hook says whether the enforcer answers there.
    if kind == SOCK_DGRAM && named == IPPROTO_UDP {
        return PASS;
    }
    refusal::by_task(Reason::Socket, &attempt);
    EPERM
}

#[lsm(hook = "socket_connect")]
pub fn lsm_socket_connect(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_sendmsg")]
pub fn lsm_socket_sendmsg(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_recvmsg")]
pub fn lsm_socket_recvmsg(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_bind")]
pub fn lsm_socket_bind(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_listen")]
pub fn lsm_socket_listen(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_accept")]
pub fn lsm_socket_accept(cx: LsmContext) -> i32 {
    uses(&cx)
}

#[lsm(hook = "socket_setsockopt")]
pub fn lsm_socket_setsockopt(cx: LsmContext) -> i32 {
    uses(&cx)
}

/// Judges the use of the socket that is the hook's first argument. Unix sockets are judged by their peers, when they get
/// one: many programs are handed a pair as their standard input and output.
#[inline(always)]
fn uses(cx: &LsmContext) -> i32 {
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([socket])) = (maps::lsm_places(), arguments::<1>(cx)) else { return EPERM };
    // The kernel's own sockets, as of network file systems, have no file, and no task ever gets one in hand.
    if read::<u64>(socket, places.socket_file) == Some(0) {
        return PASS;
    }
    judge(own, socket, places, OfUnix::Pass)
}

/// What is said of unix sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OfUnix {
    /// They are judged elsewhere.
    Pass,
    /// They are judged as all others are.
    Judge,
}

/// The verdict on a `struct socket`, by its address.
#[inline(always)]
pub(super) fn judge(own: u64, socket: u64, places: &LsmPlaces, of_unix: OfUnix) -> i32 {
    let Some(sock) = read::<u64>(socket, places.socket_sock).filter(|sock| *sock != 0) else { return EPERM };
    let family = read::<u16>(sock, places.sock_family).unwrap_or(0).into();
    if of_unix == OfUnix::Pass && family == AF_UNIX {
        return PASS;
    }
    if read::<u64>(sock, places.sock_cgroup).is_some_and(|cgroup| belongs(own, cgroup, places)) {
        return PASS;
    }
    let kind = read::<u16>(sock, places.sock_kind).unwrap_or(0).into();
    let protocol = read::<u16>(sock, places.sock_protocol).unwrap_or(0).into();
    refusal::by_task(Reason::Foreign, &Attempt::socket(family, kind, protocol));
    EPERM
}
