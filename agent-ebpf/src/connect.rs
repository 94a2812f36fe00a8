//! `connect4`, `connect6`: send a governed connection to the enforcer, and keep where it wanted to go.
//!
//! Plain TCP, TCP Fast Open, io_uring and sockets with mapped addresses all come through here. So do UDP sockets that are
//! to ask one name server: what they send is seen by no hook but the packet filter. What is refused gets ECONNREFUSED, as
//! from a closed port, so that clients report it as they report a dead server.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use core::ptr::{addr_of, read_volatile, write_volatile};
use portcullis_ebpf::{AF_INET, AF_INET6, DNS_PORT, Enforcer, IPPROTO_TCP, IPPROTO_UDP, RawOrigin, Reason};

use crate::{
    ALLOW, REFUSE, maps,
    refusal::{self, Attempt},
};

const ECONNREFUSED: i32 = 111;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
/// Third word of a mapped address, `::ffff:0:0/96`, network byte order.
pub const MAPPED: u32 = 0xffff_u32.to_be();

#[cgroup_sock_addr(connect4)]
pub fn connect4(cx: SockAddrContext) -> i32 {
    match to_enforcer4(cx.sock_addr) {
        Ok(()) => ALLOW,
        Err((reason, attempt)) => refuse(reason, &attempt),
    }
}

/// Puts the enforcer's IPv4 address in the place of the one that was asked for.
#[inline(always)]
pub fn to_enforcer4(ctx: *mut bpf_sock_addr) -> Result<(), (Reason, Attempt)> {
    // SAFETY: `ctx` is the program's context; volatile, so that each field is read in its own width.
    let (ip, port, family) = unsafe {
        (
            read_volatile(addr_of!((*ctx).user_ip4)),
            read_volatile(addr_of!((*ctx).user_port)),
            read_volatile(addr_of!((*ctx).family)),
        )
    };
    // A UDP socket of the other family takes such an address, too, and shows it mapped.
    let address = if family == AF_INET6 { [0, 0, MAPPED, ip] } else { [ip, 0, 0, 0] };
    let (enforcer, attempt) = admitted(ctx, family, AF_INET, address, port)?;
    let (v4, v4_port) = (enforcer.v4, enforcer.v4_port);
    if v4_port == 0 {
        return Err((Reason::Enforcer, attempt));
    }
    // SAFETY: both fields may be written by this program type.
    unsafe {
        write_volatile(&raw mut (*ctx).user_ip4, v4);
        write_volatile(&raw mut (*ctx).user_port, u32::from((v4_port as u16).to_be()));
    }
    Ok(())
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(cx: SockAddrContext) -> i32 {
    match to_enforcer6(cx.sock_addr) {
        Ok(()) => ALLOW,
        Err((reason, attempt)) => refuse(reason, &attempt),
    }
}

/// Puts the enforcer's IPv6 address, or its mapped one, in the place of the one that was asked for.
#[inline(always)]
pub fn to_enforcer6(ctx: *mut bpf_sock_addr) -> Result<(), (Reason, Attempt)> {
    // SAFETY: as in `to_enforcer4`.
    let (ip, port) = unsafe {
        (
            [
                read_volatile(addr_of!((*ctx).user_ip6[0])),
                read_volatile(addr_of!((*ctx).user_ip6[1])),
                read_volatile(addr_of!((*ctx).user_ip6[2])),
                read_volatile(addr_of!((*ctx).user_ip6[3])),
            ],
            read_volatile(addr_of!((*ctx).user_port)),
        )
    };
    // A socket that was bound to a mapped address can only reach another one, so mapped stays mapped.
    let mapped = ip[0] == 0 && ip[1] == 0 && ip[2] == MAPPED;
    let listener = if mapped { AF_INET } else { AF_INET6 };
    let (enforcer, attempt) = admitted(ctx, AF_INET6, listener, ip, port)?;
    let (to, to_port) =
        if mapped { ([0, 0, MAPPED, enforcer.v4], enforcer.v4_port) } else { (enforcer.v6, enforcer.v6_port) };
    if to_port == 0 {
        return Err((Reason::Enforcer, attempt));
    }
    // SAFETY: all of these may be written by this program type.
    unsafe {
        write_volatile(&raw mut (*ctx).user_ip6[0], to[0]);
        write_volatile(&raw mut (*ctx).user_ip6[1], to[1]);
        write_volatile(&raw mut (*ctx).user_ip6[2], to[2]);
        write_volatile(&raw mut (*ctx).user_ip6[3], to[3]);
        write_volatile(&raw mut (*ctx).user_port, u32::from((to_port as u16).to_be()));
    }
    Ok(())
}

/// The enforcer, if this may go to it: TCP, or UDP for a name server; not tied to a device, of a known session, enforcer
/// alive and with a socket of the family `listener` in the socket's network namespace. The origin is kept with the socket.
#[inline(always)]
fn admitted(
    ctx: *mut bpf_sock_addr,
    family: u32,
    listener: u32,
    address: [u32; 4],
    port: u32,
) -> Result<(&'static Enforcer, Attempt), (Reason, Attempt)> {
    // SAFETY: as in `to_enforcer4`; the socket of a sock_addr context is never null, and checked all the same.
    let (kind, protocol, sk) = unsafe {
        (
            read_volatile(addr_of!((*ctx).type_)),
            read_volatile(addr_of!((*ctx).protocol)),
            read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk)),
        )
    };
    let port = u32::from(u16::from_be(port as u16));
    let attempt = Attempt { family, kind, protocol, address, port };
    let asks = kind == SOCK_DGRAM && protocol == IPPROTO_UDP && port == DNS_PORT;
    if !(asks || (kind == SOCK_STREAM && protocol == IPPROTO_TCP)) || sk.is_null() {
        return Err((Reason::NotTcp, attempt));
    }
    // SAFETY: `sk` is not null, and this field may be read.
    if unsafe { read_volatile(addr_of!((*sk).bound_dev_if)) } != 0 {
        return Err((Reason::Device, attempt));
    }
    if !maps::alive() {
        return Err((Reason::Enforcer, attempt));
    }
    // SAFETY: helpers without preconditions; the context is the program's own, the buffer as long as it says.
    let origin = unsafe {
        let cgroup_id = bpf_get_current_cgroup_id();
        if !maps::is_session(cgroup_id) {
            return Err((Reason::Session, attempt));
        }
        let netns_cookie = bpf_get_netns_cookie(ctx.cast());
        if !maps::listens(netns_cookie, listener, protocol) {
            return Err((Reason::Namespace, attempt));
        }
        let mut comm = [0_u8; 16];
        bpf_get_current_comm(comm.as_mut_ptr().cast(), 16);
        RawOrigin {
            family,
            port,
            address,
            cgroup_id,
            netns_cookie,
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            uid: bpf_get_current_uid_gid() as u32,
            comm,
        }
    };
    // SAFETY: `sk` is the context's socket, not null.
    if !unsafe { maps::keep_origin(sk.cast(), &origin) } {
        return Err((Reason::Memory, attempt));
    }
    match maps::enforcer() {
        Some(enforcer) => Ok((enforcer, attempt)),
        None => Err((Reason::Enforcer, attempt)),
    }
}

#[inline(always)]
fn refuse(reason: Reason, attempt: &Attempt) -> i32 {
    refusal::by_task(reason, attempt);
    as_closed()
}

/// The verdict that looks like a closed port, or like a socket that nobody listens to.
#[inline(always)]
pub fn as_closed() -> i32 {
    // SAFETY: a helper without preconditions. Where it fails the kernel answers EPERM, which refuses as well.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}
