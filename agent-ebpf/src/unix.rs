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
use core::ptr::{addr_of, read_volatile};
use portcullis_ebpf::{Reason, UNIX_CONTEXT_WORDS, UNIX_PATH_MAX, UNIX_PATH_ROOM, UnixPath};

use crate::{
    ALLOW,
    connect::as_closed,
    maps,
    refusal::{self, Attempt},
};

const AF_UNIX: u16 = 1;
/// `sun_path` comes after `sun_family`.
const FAMILY_BYTES: u64 = 2;

// The loader knows no section of these two hooks. Which hook a program is for is said when it is loaded.
#[cgroup_sock_addr(connect4)]
pub fn connect_unix(cx: SockAddrContext) -> i32 {
    judge(cx.sock_addr)
}

#[cgroup_sock_addr(connect4)]
pub fn sendmsg_unix(cx: SockAddrContext) -> i32 {
    judge(cx.sock_addr)
}

#[inline(always)]
fn judge(ctx: *mut bpf_sock_addr) -> i32 {
    // SAFETY: `ctx` is the program's context; volatile, so that each field is read in its own width.
    let (kind, protocol) = unsafe { (read_volatile(addr_of!((*ctx).type_)), read_volatile(addr_of!((*ctx).protocol))) };
    // SAFETY: a helper without preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    let mut name = UnixPath { cgroup_id, path: [0; UNIX_PATH_ROOM] };
    let reason = if !read_name(ctx, &mut name) {
        Reason::Unix
    } else if !maps::alive() {
        // With the enforcer dead, nobody would end the session.
        Reason::Enforcer
    } else if !maps::is_session(cgroup_id) {
        Reason::Session
    } else if name.path[0] == b'/' && (maps::is_unix_path(&name) || is_in_folder(&name)) {
        return ALLOW;
    } else {
        Reason::Unix
    };
    refusal::by_path(reason, &Attempt::socket(AF_UNIX.into(), kind, protocol), &name);
    as_closed()
}

/// Whether the path leads into the session's own folder and not out of it again. The launcher mounts that folder for the
/// session alone, and so that no symbolic link in it is followed: what is reached by such a path was made in it.
#[inline(always)]
fn is_in_folder(name: &UnixPath) -> bool {
    let length = maps::unix_folder_length(name.cgroup_id) as usize;
    if length == 0 || length > UNIX_PATH_MAX {
        return false;
    }
    let mut folder = UnixPath { cgroup_id: name.cgroup_id, path: [0; UNIX_PATH_ROOM] };
    for i in 0..UNIX_PATH_MAX {
        if i < length {
            folder.path[i] = name.path[i];
        }
        let up = name.path[i] == b'/' && name.path[i + 1] == b'.' && name.path[i + 2] == b'.';
        if up && matches!(name.path[i + 3], b'/' | 0) {
            return false;
        }
    }
    maps::is_unix_path(&folder)
}

/// Reads the peer's name: a path as the kernel sees it, or `@` and an abstract name up to its first NUL.
#[inline(always)]
fn read_name(ctx: *mut bpf_sock_addr, name: &mut UnixPath) -> bool {
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
    let path = address.wrapping_add(FAMILY_BYTES) as *const _;
    // Ends where the kernel sees the end: at the first NUL or at the length. One byte more for the helper's own NUL.
    // SAFETY: as above; the buffer has room for the longest path and a NUL.
    if unsafe { bpf_probe_read_kernel_str((&raw mut name.path).cast(), bytes as u32 + 1, path) } < 0 {
        return false;
    }
    if name.path[0] == 0 && bytes > 1 {
        name.path[0] = b'@';
        let rest = address.wrapping_add(FAMILY_BYTES + 1) as *const _;
        // For people only. One byte less than above, and so many are left.
        // SAFETY: as above.
        unsafe { bpf_probe_read_kernel_str((&raw mut name.path[1]).cast(), bytes as u32, rest) };
    }
    true
}
