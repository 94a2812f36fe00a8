//! Which files a governed task is handed by others, and which of the kernel's it changes.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::lsm, programs::LsmContext};
use portcullis_ebpf::{LsmPlaces, Reason};

use super::{
    EPERM, PASS, arguments, governed_task, read,
    sockets::{OfUnix, judge},
};
use crate::{
    maps,
    refusal::{self, Attempt},
};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const MAY_WRITE: i32 = 2;
/// linux/magic.h: files that are no files, and the two trees of cgroups.
const ANON_INODE_FS: u64 = 0x0904_1934;
const CGROUP: u64 = 0x0027_e0eb;
const CGROUP2: u64 = 0x6367_7270;

/// A descriptor that arrives over a unix socket (`SCM_RIGHTS`), or is fetched (`pidfd_getfd`).
///
/// Sockets must have been made in the session, whatever their family. Of the kernel's own objects only those pass that
/// wake somebody up: a ring of another process makes requests in its name, as do counters, programs and maps.
#[lsm(hook = "file_receive")]
pub fn lsm_file_receive(cx: LsmContext) -> i32 {
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([file])) = (maps::lsm_places(), arguments::<1>(&cx)) else { return EPERM };
    let Some(inode) = read::<u64>(file, places.file_inode) else { return EPERM };
    let Some(mode) = read::<u16>(inode, places.inode_mode) else { return EPERM };
    if mode & S_IFMT == S_IFSOCK {
        let Some(socket) = read::<u64>(file, places.file_private) else { return EPERM };
        return judge(own, socket, places, OfUnix::Judge);
    }
    match magic_of(inode, places) {
        Some(ANON_INODE_FS) if !is_harmless(file, places) => {}
        Some(_) => return PASS,
        None => {}
    }
    refusal::by_task(Reason::Foreign, &Attempt::socket(0, 0, 0));
    EPERM
}

/// Whether a file without a place in the tree only wakes somebody up.
#[inline(always)]
fn is_harmless(file: u64, places: &LsmPlaces) -> bool {
    let name = read::<u64>(file, places.file_dentry).and_then(|dentry| read::<u64>(dentry, places.dentry_name));
    let Some(name) = name else { return false };
    let mut start = [0_u8; 8];
    // SAFETY: the buffer is as long as said; the helper answers an address that cannot be read with an error.
    if unsafe { bpf_probe_read_kernel_str((&raw mut start).cast(), 8, name as *const _) } < 0 {
        return false;
    }
    // `[eventfd]`, `[eventpoll]`, `[timerfd]`, `[signalfd]`, `inotify`; cut by the NUL that the helper puts last.
    const HARMLESS: [&[u8; 8]; 5] = [b"[eventf\0", b"[eventp\0", b"[timerf\0", b"[signal\0", b"inotify\0"];
    let start = u64::from_ne_bytes(start);
    HARMLESS.into_iter().any(|name| u64::from_ne_bytes(*name) == start)
}

/// sendfile(2) and splice(2) to a socket, which before Linux 6.5 send no message.
#[lsm(hook = "file_permission")]
pub fn lsm_file_permission(cx: LsmContext) -> i32 {
    if cx.arg::<i32>(1) & MAY_WRITE == 0 {
        return PASS;
    }
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([file])) = (maps::lsm_places(), arguments::<1>(&cx)) else { return EPERM };
    let Some(inode) = read::<u64>(file, places.file_inode) else { return EPERM };
    let Some(mode) = read::<u16>(inode, places.inode_mode) else { return EPERM };
    if mode & S_IFMT != S_IFSOCK {
        return PASS;
    }
    let Some(socket) = read::<u64>(file, places.file_private) else { return EPERM };
    judge(own, socket, places, OfUnix::Pass)
}

/// Whoever may write to a cgroup's files, or make one, moves tasks out of their session. Into its own cgroup a task may
/// move others: systemd does that with a unit's process in two places, and the second is in the cgroup already.
#[lsm(hook = "inode_permission")]
pub fn lsm_inode_permission(cx: LsmContext) -> i32 {
    // Called for every folder on every path: the least comes first.
    if cx.arg::<i32>(1) & MAY_WRITE == 0 {
        return PASS;
    }
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([inode])) = (maps::lsm_places(), arguments::<1>(&cx)) else { return EPERM };
    match magic_of(inode, places) {
        Some(CGROUP2) if are_members_of(own, inode, places) => return PASS,
        Some(CGROUP | CGROUP2) => {}
        Some(_) => return PASS,
        None => return EPERM,
    }
    refusal::by_task(Reason::Cgroup, &Attempt::socket(0, 0, 0));
    EPERM
}

/// Whether an inode is the file `cgroup.procs` of this cgroup.
#[inline(always)]
fn are_members_of(cgroup: u64, inode: u64, places: &LsmPlaces) -> bool {
    let Some(node) = read::<u64>(inode, places.inode_private) else { return false };
    let parent = read::<u64>(node, places.node_parent);
    if parent.and_then(|parent| read::<u64>(parent, places.node_id)) != Some(cgroup) {
        return false;
    }
    let Some(name) = read::<u64>(node, places.node_name) else { return false };
    let mut text = [0_u64; 2];
    // SAFETY: the buffer is as long as said; the helper answers an address that cannot be read with an error.
    if unsafe { bpf_probe_read_kernel_str((&raw mut text).cast(), 16, name as *const _) } < 0 {
        return false;
    }
    text == [u64::from_ne_bytes(*b"cgroup.p"), u64::from_ne_bytes(*b"rocs\0\0\0\0")]
}

/// Which kind of file system an inode lies in.
#[inline(always)]
fn magic_of(inode: u64, places: &LsmPlaces) -> Option<u64> {
    read::<u64>(read::<u64>(inode, places.inode_super)?, places.super_magic)
}
