//! `sendmsg4`, `sendmsg6`: of datagrams with an address, only questions to name servers, which go to the enforcer.
//!
//! Datagrams of a connected socket do not come by here, but for those of an IPv6 socket to a mapped address; the packet
//! filter judges all of them.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET6, Reason};

use crate::{
    ALLOW, REFUSE,
    connect::{to_enforcer4, to_enforcer6},
    maps,
    refusal::{self, Attempt},
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(cx: SockAddrContext) -> i32 {
    if is_connected(cx.sock_addr) { ALLOW } else { verdict(to_enforcer4(cx.sock_addr)) }
}

/// Whether this is an IPv6 socket that asked before, and the address is the one that `connect6` gave it: the kernel sends
/// as if the client had named it. Where the client did, it asks the same name server again.
#[inline(always)]
fn is_connected(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: `ctx` is the program's context; volatile, so that each field is read in its own width.
    let (ip, port, family, sk) = unsafe {
        (
            read_volatile(addr_of!((*ctx).user_ip4)),
            read_volatile(addr_of!((*ctx).user_port)),
            read_volatile(addr_of!((*ctx).family)),
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)),
        )
    };
    let Some(enforcer) = maps::enforcer() else { return false };
    family == AF_INET6
        && enforcer.v4_port != 0
        && ip == enforcer.v4
        && u32::from(u16::from_be(port as u16)) == enforcer.v4_port
        && !sk.is_null()
        // SAFETY: `sk` is the context's socket, not null.
        && unsafe { maps::origin_of(sk.cast()) }.is_some()
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(cx: SockAddrContext) -> i32 {
    verdict(to_enforcer6(cx.sock_addr))
}

#[inline(always)]
fn verdict(sent: Result<(), (Reason, Attempt)>) -> i32 {
    match sent {
        Ok(()) => ALLOW,
        Err((reason, attempt)) => {
            let reason = if matches!(reason, Reason::NotTcp) { Reason::Datagram } else { reason };
            refusal::by_task(reason, &attempt);
            REFUSE
        }
    }
}
