//! `sendmsg4`, `sendmsg6`: no datagrams. Defence in depth behind `sock_create` and the packet filter.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, Reason};

use crate::{
    REFUSE,
    refusal::{self, Attempt},
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(cx: SockAddrContext) -> i32 {
    let ctx = cx.sock_addr;
    // SAFETY: `ctx` is the program's context; volatile, so that each field is read in its own width.
    let address = unsafe { [read_volatile(addr_of!((*ctx).user_ip4)), 0, 0, 0] };
    refuse(ctx, AF_INET, address)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(cx: SockAddrContext) -> i32 {
    let ctx = cx.sock_addr;
    // SAFETY: as in `sendmsg4`.
    let address = unsafe {
        [
            read_volatile(addr_of!((*ctx).user_ip6[0])),
            read_volatile(addr_of!((*ctx).user_ip6[1])),
            read_volatile(addr_of!((*ctx).user_ip6[2])),
            read_volatile(addr_of!((*ctx).user_ip6[3])),
        ]
    };
    refuse(ctx, AF_INET6, address)
}

#[inline(always)]
fn refuse(ctx: *mut bpf_sock_addr, family: u32, address: [u32; 4]) -> i32 {
    // SAFETY: as in `sendmsg4`.
    let (kind, protocol, port) = unsafe {
        (
            read_volatile(addr_of!((*ctx).type_)),
            read_volatile(addr_of!((*ctx).protocol)),
            read_volatile(addr_of!((*ctx).user_port)),
        )
    };
    let port = u32::from(u16::from_be(port as u16));
    refusal::by_task(Reason::Datagram, &Attempt { family, kind, protocol, address, port });
    REFUSE
}
