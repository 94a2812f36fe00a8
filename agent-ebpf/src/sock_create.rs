//! `sock_create`: of the internet families, only TCP. UDP, UDP-Lite, ping, raw, SCTP, DCCP and MPTCP sockets never come
//! to be; some of them would pass every later hook. The kernel asks only for these two families: others are the
//! launcher's to refuse.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, Reason};

use crate::{
    ALLOW, REFUSE,
    refusal::{self, Attempt},
};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

#[cgroup_sock(sock_create)]
pub fn sock_create(cx: SockContext) -> i32 {
    let ctx = cx.sock;
    // SAFETY: `ctx` is the program's context.
    let (family, kind, protocol) = unsafe {
        (
            read_volatile(addr_of!((*ctx).family)),
            read_volatile(addr_of!((*ctx).type_)),
            read_volatile(addr_of!((*ctx).protocol)),
        )
    };
    if (family == AF_INET || family == AF_INET6) && kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        ALLOW
    } else {
        refusal::by_task(Reason::Socket, &Attempt::socket(family, kind, protocol));
        REFUSE
    }
}
