//! `recvmsg4`, `recvmsg6`: an answer comes from the name server that was asked, as clients expect. Display only: nothing
//! relies on it. Of a socket that asked several at once, all answers come from the last.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    ALLOW,
    peername::{show4, show6},
};

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(cx: SockAddrContext) -> i32 {
    show4(cx.sock_addr);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(cx: SockAddrContext) -> i32 {
    show6(cx.sock_addr);
    ALLOW
}
