//! `accepted`, the sockops program of the enforcer's cgroup: when a handshake completes, move the origin from the 4-tuple to the new socket,
//! before anyone can accept it.

use aya_ebpf::{bindings::BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, macros::sock_ops, programs::SockOpsContext};
use core::ptr::{addr_of, read_volatile};

use crate::{
    carry::{ends, tuple},
    maps,
};

#[sock_ops]
pub fn accepted(cx: SockOpsContext) -> u32 {
    let ctx = cx.ops;
    // SAFETY: `ctx` is the program's context.
    let op = unsafe { read_volatile(addr_of!((*ctx).op)) };
    if op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return 1;
    }
    // SAFETY: as above.
    let sk = unsafe { read_volatile(addr_of!((*ctx).__bindgen_anon_2.sk)) };
    if sk.is_null() {
        return 1;
    }
    // SAFETY: as above.
    let Some((local, remote)) = (unsafe { ends(ctx) }) else { return 1 };
    let key = tuple(ctx, remote, local);
    // SAFETY: the entry is written once, before the first packet of this connection, and not changed after.
    if let Some(origin) = unsafe { maps::TUPLES.get(&key) } {
        let origin = *origin;
        // SAFETY: `sk` is the context's socket, not null. If memory is short it stays without an origin: refused.
        unsafe { maps::keep_origin(sk.cast(), &origin) };
        let _ = maps::TUPLES.remove(&key);
    }
    1
}
