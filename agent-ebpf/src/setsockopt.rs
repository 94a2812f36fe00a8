//! `setsockopt`: no options that choose a road (routing, device, mark, multicast, repair, header options).
//!
//! Group joins leave the host past the packet filter, and a device or a source route would change where an allowed
//! packet goes. Options that only tune a connection pass.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use core::ptr::{addr_of, read_volatile, write_volatile};
use portcullis_ebpf::Reason;

use crate::{
    ALLOW, REFUSE,
    refusal::{self, Attempt},
};

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SOL_IPV6: i32 = 41;
/// The kernel hands programs at most a page of an option's value.
const PAGE: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(cx: SockoptContext) -> i32 {
    let ctx = cx.sockopt;
    // SAFETY: `ctx` is the program's context.
    let (level, name, length) = unsafe {
        (
            read_volatile(addr_of!((*ctx).level)),
            read_volatile(addr_of!((*ctx).optname)),
            read_volatile(addr_of!((*ctx).optlen)),
        )
    };
    let harmless = match level {
        SOL_SOCKET => !matches!(
            name,
            5 | 25 // DONTROUTE, BINDTODEVICE
            | 36 | 62 // MARK, BINDTOIFINDEX
        ),
        SOL_IP => matches!(
            name,
            1 | 2 // TOS, TTL
            | 8 // PKTINFO
            | 10 | 11 // MTU_DISCOVER, RECVERR
            | 12 | 13 | 14 // RECVTTL, RECVTOS, MTU
            | 24 // BIND_ADDRESS_NO_PORT
            | 51 // LOCAL_PORT_RANGE
        ),
        SOL_IPV6 => matches!(
            name,
            16 | 67 // UNICAST_HOPS, TCLASS
            | 23 | 24 | 25 | 26 // MTU_DISCOVER, MTU, RECVERR, V6ONLY
            | 49 | 51 | 66 // RECVPKTINFO, RECVHOPLIMIT, RECVTCLASS
        ),
        SOL_TCP => !matches!(
            name,
            14 | 32 // MD5SIG, MD5SIG_EXT
            | 19..=22 | 29 // REPAIR, REPAIR_QUEUE, QUEUE_SEQ, REPAIR_OPTIONS, REPAIR_WINDOW
            | 31 // ULP
            | 38..=42 // authentication option and its repair
        ),
        _ => false,
    };
    if !harmless {
        refusal::by_task(Reason::Option, &Attempt::socket(0, level as u32, name as u32));
        return REFUSE;
    }
    if length > PAGE {
        // SAFETY: may be written by this program type; 0 tells the kernel to use the caller's value.
        unsafe { write_volatile(&raw mut (*ctx).optlen, 0) };
    }
    ALLOW
}
