//! `carry`, the sockops program of governed cgroups: carry the origin from the client's socket to its 4-tuple before the first packet
//! leaves, and forget the tuple when the client's socket closes.
//!
//! Before the first packet, because with Fast Open the enforcer may have accepted before `connect()` returns.

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
        bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, Tuple};

use crate::maps;

const MAPPED: u32 = 0xffff_u32.to_be();

#[sock_ops]
pub fn carry(cx: SockOpsContext) -> u32 {
    let ctx = cx.ops;
    // SAFETY: `ctx` is the program's context.
    let op = unsafe { read_volatile(addr_of!((*ctx).op)) };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        connecting(ctx);
    } else if op == BPF_SOCK_OPS_STATE_CB {
        // SAFETY: as above; the second argument is the new state.
        let state = unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_1.args[1])) };
        if state == BPF_TCP_CLOSE {
            // SAFETY: `ctx` is the program's context.
            if let Some((local, remote)) = unsafe { ends(ctx) } {
                let _ = maps::TUPLES.remove(&tuple(ctx, local, remote));
            }
        }
    }
    1
}

#[inline(always)]
fn connecting(ctx: *mut bpf_sock_ops) {
    // SAFETY: `ctx` is the program's context.
    let sk = unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_2.sk)) };
    if sk.is_null() {
        return;
    }
    // SAFETY: `sk` is the context's socket, not null.
    let Some(origin) = (unsafe { maps::origin_of(sk.cast()) }) else { return };
    // SAFETY: `ctx` is the program's context.
    let Some((local, remote)) = (unsafe { ends(ctx) }) else { return };
    // Without its tuple the connection has no origin, and the enforcer closes it: a full map refuses.
    // SAFETY: sockops are called with the socket locked; the helper only sets flags of that socket.
    unsafe {
        if bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG as i32) == 0 {
            let _ = maps::TUPLES.insert(&tuple(ctx, local, remote), origin, BPF_ANY as u64);
        }
    }
}

/// One end of a connection: address (mapped, if IPv4) and port.
pub type End = ([u32; 4], u32);

/// Local and remote end of the context's socket.
///
/// # Safety
/// `ctx` must be the program's context.
#[inline(always)]
pub unsafe fn ends(ctx: *mut bpf_sock_ops) -> Option<(End, End)> {
    // Every field is read before the first branch: the compiler would merge the branches into one access through a
    // computed context pointer, which the verifier refuses.
    // SAFETY: `ctx` is the program's context; volatile, so that each field is read in its own width.
    unsafe {
        let family = read_volatile(addr_of!((*ctx).family));
        let local4 = read_volatile(addr_of!((*ctx).local_ip4));
        let remote4 = read_volatile(addr_of!((*ctx).remote_ip4));
        let local6 = [
            read_volatile(addr_of!((*ctx).local_ip6[0])),
            read_volatile(addr_of!((*ctx).local_ip6[1])),
            read_volatile(addr_of!((*ctx).local_ip6[2])),
            read_volatile(addr_of!((*ctx).local_ip6[3])),
        ];
        let remote6 = [
            read_volatile(addr_of!((*ctx).remote_ip6[0])),
            read_volatile(addr_of!((*ctx).remote_ip6[1])),
            read_volatile(addr_of!((*ctx).remote_ip6[2])),
            read_volatile(addr_of!((*ctx).remote_ip6[3])),
        ];
        let local_port = read_volatile(addr_of!((*ctx).local_port));
        let remote_port = u32::from_be(read_volatile(addr_of!((*ctx).remote_port)));
        // The IPv6 fields of a mapped socket are filled in late; its IPv4 fields are right.
        let mapped = family == AF_INET6 && remote6[0] == 0 && remote6[1] == 0 && remote6[2] == MAPPED;
        if family == AF_INET || mapped {
            Some((([0, 0, MAPPED, local4], local_port), ([0, 0, MAPPED, remote4], remote_port)))
        } else if family == AF_INET6 {
            Some(((local6, local_port), (remote6, remote_port)))
        } else {
            None
        }
    }
}

/// The connection of the context's network namespace between these two.
#[inline(always)]
pub fn tuple(ctx: *mut bpf_sock_ops, client: End, server: End) -> Tuple {
    // SAFETY: the helper takes the program's context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    Tuple { netns_cookie, client: client.0, server: server.0, client_port: client.1, server_port: server.1 }
}
