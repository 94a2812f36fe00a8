//! `sendmsg4`, `sendmsg6`: no datagrams. Defence in depth behind `sock_create` and the packet filter.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::REFUSE;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(_: SockAddrContext) -> i32 {
    REFUSE
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(_: SockAddrContext) -> i32 {
    REFUSE
}
