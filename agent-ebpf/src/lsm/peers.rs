//! To which unix sockets a governed task connects or sends, on kernels that have no hooks for that below cgroups: to those
//! made in its own session, whatever their names, and to those of the session's list.
//!
//! The list's paths are compared with the name that the other side was bound to, which no folder or link that a client
//! could change has a part in. A server that was bound to a relative path is not found by any list.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::lsm, programs::LsmContext};
use portcullis_ebpf::{LsmPlaces, Reason, UNIX_PATH_MAX, UNIX_PATH_ROOM, UnixPath};

use super::{AF_UNIX, ECONNREFUSED, PASS, arguments, governed_task, id_of, read};
use crate::{
    maps,
    refusal::{self, Attempt},
};

/// `sun_path` comes after `sun_family`.
const FAMILY_BYTES: u32 = 2;

/// Its second argument is the listening `struct sock`.
#[lsm(hook = "unix_stream_connect")]
pub fn lsm_unix_stream_connect(cx: LsmContext) -> i32 {
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([_, sock])) = (maps::lsm_places(), arguments::<2>(&cx)) else { return ECONNREFUSED };
    judge(own, sock, places)
}

/// Its arguments are the `struct socket` that sends and the one that a datagram is for. One that is its peer already was
/// judged when it became that; of a pair that was handed down, as systemd hands one to a unit's process, neither was
/// connected to anything.
#[lsm(hook = "unix_may_send")]
pub fn lsm_unix_may_send(cx: LsmContext) -> i32 {
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([from, to])) = (maps::lsm_places(), arguments::<2>(&cx)) else { return ECONNREFUSED };
    let Some(sock) = read::<u64>(to, places.socket_sock) else { return ECONNREFUSED };
    let peer = read::<u64>(from, places.socket_sock).and_then(|from| read::<u64>(from, places.unix_peer));
    if sock != 0 && peer == Some(sock) {
        return PASS;
    }
    judge(own, sock, places)
}

#[inline(always)]
fn judge(own: u64, sock: u64, places: &LsmPlaces) -> i32 {
    let cgroup = read::<u64>(sock, places.sock_cgroup);
    if cgroup.and_then(|cgroup| id_of(cgroup, places)) == Some(own) {
        return PASS;
    }
    let mut name = UnixPath { cgroup_id: own, path: [0; UNIX_PATH_ROOM] };
    let reason = if !read_name(sock, places, &mut name) {
        Reason::Unix
    } else if !maps::alive() {
        // With the enforcer dead, nobody would end the session.
        Reason::Enforcer
    } else if !maps::is_session(own) {
        Reason::Session
    } else if name.path[0] == b'/' && maps::is_unix_path(&name) {
        return PASS;
    } else {
        Reason::Unix
    };
    let kind = read::<u16>(sock, places.sock_kind).unwrap_or(0).into();
    refusal::by_path(reason, &Attempt::socket(AF_UNIX, kind, 0), &name);
    ECONNREFUSED
}

/// Reads what a unix socket is bound to: a path, or `@` and an abstract name up to its first NUL.
#[inline(always)]
fn read_name(sock: u64, places: &LsmPlaces, name: &mut UnixPath) -> bool {
    let Some(address) = read::<u64>(sock, places.unix_address).filter(|address| *address != 0) else { return false };
    let Some(length) = read::<u32>(address, places.address_length) else { return false };
    // Wide, so that the verifier compares the same number that it finds in the call below.
    let bytes = (u64::from(length) & 0xffff_ffff).wrapping_sub(FAMILY_BYTES.into());
    // Of a path the kernel counts the NUL as well.
    if bytes == 0 || bytes > UNIX_PATH_MAX as u64 + 1 {
        return false;
    }
    let path = address.wrapping_add(u64::from(places.address_name + FAMILY_BYTES));
    // SAFETY: the buffer has room for the longest path and its NUL; the helper answers an address that cannot be read
    // with an error, and ends at the first NUL.
    if unsafe { bpf_probe_read_kernel_str((&raw mut name.path).cast(), UNIX_PATH_MAX as u32 + 1, path as *const _) } < 0
    {
        return false;
    }
    if name.path[0] == 0 && bytes > 1 {
        name.path[0] = b'@';
        // For people only. Zeros come after it: the buffer was cleared.
        // SAFETY: as above; one byte less than there is room, and never more than the name has.
        unsafe { bpf_probe_read_kernel_str((&raw mut name.path[1]).cast(), bytes as u32, (path + 1) as *const _) };
    }
    true
}
