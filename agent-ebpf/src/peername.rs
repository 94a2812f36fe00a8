//! `getpeername4`, `getpeername6`: show the client the address that it asked for. Display only: nothing relies on it.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use core::ptr::{addr_of, read_volatile, write_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6};

use crate::{ALLOW, maps};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(cx: SockAddrContext) -> i32 {
    show4(cx.sock_addr);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(cx: SockAddrContext) -> i32 {
    show6(cx.sock_addr);
    ALLOW
}

/// Puts the address that an IPv4 socket asked for in the place of the enforcer's.
#[inline(always)]
pub fn show4(ctx: *mut bpf_sock_addr) {
    // SAFETY: `ctx` is the program's context.
    let sk = unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)) };
    if !sk.is_null()
        // SAFETY: `sk` is the context's socket, not null.
        && let Some(origin) = unsafe { maps::origin_of(sk.cast()) }
        && origin.family == AF_INET
    {
        // SAFETY: both fields may be written by this program type.
        unsafe {
            write_volatile(&raw mut (*ctx).user_ip4, origin.address[0]);
            write_volatile(&raw mut (*ctx).user_port, u32::from((origin.port as u16).to_be()));
        }
    }
}

/// The same for an IPv6 socket.
#[inline(always)]
pub fn show6(ctx: *mut bpf_sock_addr) {
    // SAFETY: as in `show4`.
    let sk = unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)) };
    if !sk.is_null()
        // SAFETY: `sk` is the context's socket, not null.
        && let Some(origin) = unsafe { maps::origin_of(sk.cast()) }
        && origin.family == AF_INET6
    {
        // SAFETY: all of these may be written by this program type.
        unsafe {
            write_volatile(&raw mut (*ctx).user_ip6[0], origin.address[0]);
            write_volatile(&raw mut (*ctx).user_ip6[1], origin.address[1]);
            write_volatile(&raw mut (*ctx).user_ip6[2], origin.address[2]);
            write_volatile(&raw mut (*ctx).user_ip6[3], origin.address[3]);
            write_volatile(&raw mut (*ctx).user_port, u32::from((origin.port as u16).to_be()));
        }
    }
}
