//! `connect_unix`, `sendmsg_unix`: unix sockets by path, those of the session's list alone. Abstract names, and whatever
//! cannot be read, are refused: a socket of the host (a container engine, a message bus, an agent of keys) is a road out.
//!
//! Only naming a peer comes through here; `socketpair()` and accepted sockets name none. The path is compared as the
//! client writes it, so whoever may change a folder on it chooses what is reached.
//!
//! `struct bpf_sock_addr` has no field for a path. The context pointer is that of the kernel's `struct
//! bpf_sock_addr_kern`, whose places userspace takes from the kernel's own types ([`portcullis_ebpf::UnixPlaces`]). The
//! name lies in kernel memory already: nobody changes it after it was read here.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_probe_read_kernel, bpf_probe_read_kernel_str},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use portcullis_ebpf::{UNIX_CONTEXT_WORDS, UNIX_PATH_MAX, UNIX_PATH_ROOM, UnixPath};

use crate::{ALLOW, connect::refuse, maps};

const AF_UNIX: u16 = 1;
/// `sun_path` comes after `sun_family`.
const FAMILY_BYTES: u64 = 2;

// The loader knows no section of these two hooks. Which hook a program is for is said when it is loaded.
#[cgroup_sock_addr(connect4)]
pub fn connect_unix(cx: SockAddrContext) -> i32 {
    if is_listed(cx.sock_addr) { ALLOW } else { refuse() }
}

#[cgroup_sock_addr(connect4)]
pub fn sendmsg_unix(cx: SockAddrContext) -> i32 {
    if is_listed(cx.sock_addr) { ALLOW } else { refuse() }
}

/// Whether the peer is named by a path that the session may reach.
#[inline(always)]
fn is_listed(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: a helper without preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    // With the enforcer dead, nobody would end the session.
    if !maps::alive() || !maps::is_session(cgroup_id) {
        return false;
    }
    let Some(places) = maps::unix_places() else { return false };
    let mut context = [0_u64; UNIX_CONTEXT_WORDS];
    // SAFETY: the buffer is as long as said; the helper answers an address that cannot be read with an error.
    if unsafe { bpf_probe_read_kernel((&raw mut context).cast(), size_of_val(&context) as u32, ctx.cast()) } != 0 {
        return false;
    }
    let (Some(address), Some(length)) = (context.get(places.address as usize), context.get(places.length as usize))
    else {
        return false;
    };
    // The length is 32 bits wide; its upper half is padding.
    let (address, length) = (*address, *length & 0xffff_ffff);
    let mut family = 0_u16;
    // SAFETY: as above.
    if unsafe { bpf_probe_read_kernel((&raw mut family).cast(), 2, address as *const _) } != 0 || family != AF_UNIX {
        return false;
    }
    let bytes = length.wrapping_sub(FAMILY_BYTES);
    if bytes == 0 || bytes > UNIX_PATH_MAX as u64 {
        return false;
    }
    let mut key = UnixPath { cgroup_id, path: [0; UNIX_PATH_ROOM] };
    let path = address.wrapping_add(FAMILY_BYTES) as *const _;
    // Ends where the kernel sees the end: at the first NUL or at the length. One byte more for the helper's own NUL.
    // SAFETY: as above; the buffer has room for the longest path and a NUL.
    if unsafe { bpf_probe_read_kernel_str((&raw mut key.path).cast(), bytes as u32 + 1, path) } < 0 {
        return false;
    }
    key.path[0] == b'/' && maps::is_unix_path(&key)
}
