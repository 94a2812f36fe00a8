//! `released`, at the enforcer's cgroup: with a listening socket goes the leave to connect to its port.
//!
//! It runs when the last descriptor of a socket closes, before the port is free again, and however the processes that held
//! it came to their end. So whoever takes the port next is sent nothing, although the last heartbeat may still be fresh.

use aya_ebpf::{helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock, programs::SockContext};

use crate::{ALLOW, maps};

#[cgroup_sock(sock_release)]
pub fn released(cx: SockContext) -> i32 {
    let ctx = cx.sock;
    // SAFETY: the context of this program type is the socket.
    if let Some(listener) = unsafe { maps::listener_of(ctx.cast()) } {
        let listener = *listener;
        // SAFETY: the helper takes the program's context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
        // Not the entry of a socket that took this one's place.
        // SAFETY: the value is written once, as a whole.
        if unsafe { maps::LISTENERS.get(&listener) }.is_some_and(|of| *of == cookie) {
            let _ = maps::LISTENERS.remove(&listener);
        }
    }
    ALLOW
}
