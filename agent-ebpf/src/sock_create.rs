//! `sock_create`: of the internet families, only TCP, and UDP where the enforcer answers questions for names that come by
//! it. UDP-Lite, ping, raw, SCTP, DCCP and MPTCP sockets never come to be; some of them would pass every later hook. The
//! kernel asks only for these two families: others are the launcher's to refuse.

use aya_ebpf::{helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext};
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, Reason};

use crate::{
    ALLOW, REFUSE, maps,
    refusal::{self, Attempt},
};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

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
    let internet = family == AF_INET || family == AF_INET6;
    if internet && kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        return ALLOW;
    }
    if internet && kind == SOCK_DGRAM && protocol == IPPROTO_UDP {
        // SAFETY: the helper takes the program's context.
        let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
        // A socket of the one family may carry the other.
        if maps::listens(netns_cookie, AF_INET, IPPROTO_UDP) || maps::listens(netns_cookie, AF_INET6, IPPROTO_UDP) {
            return ALLOW;
        }
    }
    refusal::by_task(Reason::Socket, &Attempt::socket(family, kind, protocol));
    REFUSE
}
