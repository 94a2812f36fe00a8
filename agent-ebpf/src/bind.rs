//! `bind4`, `bind6`: no named ports.
//!
//! Clients that bind before they connect ask for any port of any or a loopback address, and get it. A chosen port or
//! another address is refused: nothing may be offered to others from a session. (A socket can listen without `bind`;
//! the packet filter lets nobody but the enforcer reach it.)

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, Reason};

use crate::{
    ALLOW, REFUSE,
    refusal::{self, Attempt},
};

const MAPPED: u32 = 0xffff_u32.to_be();
const LAST_ONE: u32 = 1_u32.to_be();

#[cgroup_sock_addr(bind4)]
pub fn bind4(cx: SockAddrContext) -> i32 {
    let ctx = cx.sock_addr;
    // SAFETY: `ctx` is the program's context.
    let (ip, port) = unsafe { (read_volatile(addr_of!((*ctx).user_ip4)), read_volatile(addr_of!((*ctx).user_port))) };
    if port == 0 && local4(ip) { ALLOW } else { refuse(AF_INET, [ip, 0, 0, 0], port) }
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(cx: SockAddrContext) -> i32 {
    let ctx = cx.sock_addr;
    // SAFETY: as in `bind4`.
    let (a, b, c, d, port) = unsafe {
        (
            read_volatile(addr_of!((*ctx).user_ip6[0])),
            read_volatile(addr_of!((*ctx).user_ip6[1])),
            read_volatile(addr_of!((*ctx).user_ip6[2])),
            read_volatile(addr_of!((*ctx).user_ip6[3])),
            read_volatile(addr_of!((*ctx).user_port)),
        )
    };
    let local = a == 0 && b == 0 && ((c == 0 && (d == 0 || d == LAST_ONE)) || (c == MAPPED && local4(d)));
    if port == 0 && local { ALLOW } else { refuse(AF_INET6, [a, b, c, d], port) }
}

#[inline(always)]
fn refuse(family: u32, address: [u32; 4], port: u32) -> i32 {
    let port = u32::from(u16::from_be(port as u16));
    refusal::by_task(Reason::Bind, &Attempt { family, kind: 0, protocol: 0, address, port });
    REFUSE
}

/// Any address, or one of 127.0.0.0/8.
#[inline(always)]
fn local4(ip: u32) -> bool {
    ip == 0 || u32::from_be(ip) >> 24 == 127
}
