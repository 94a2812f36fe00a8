//! The programs of the security module (LSM BPF), which see every task of the host and judge the governed ones: those in a
//! cgroup below a governed one, however deep. All others pass after a look at their cgroups.
//!
//! The cgroup hooks follow the cgroup that a socket was made in. So a socket that was made elsewhere and came to a session
//! passes them all; here it is refused by who uses it.
//!
//! Where the kernel keeps things userspace takes from the kernel's own types ([`portcullis_ebpf::LsmPlaces`]); what cannot
//! be read is refused. A pointer that is loaded from the context can only be used at places known to the verifier, so the
//! arguments are read as plain numbers.
//!
//! No hook sees a task come into a cgroup. `inode_permission` sees everything that leads there: opening `cgroup.procs` for
//! writing, writing to one that was opened before, clone3(2) into a cgroup, and making one.

mod files;
mod peers;
mod sockets;
mod tasks;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_probe_read_kernel},
    programs::LsmContext,
};
use core::mem::MaybeUninit;
use portcullis_ebpf::{LsmPlaces, MAX_GOVERNED_LEVEL};

use crate::maps;

/// Verdict: go on.
const PASS: i32 = 0;
const EPERM: i32 = -1;
const EAFNOSUPPORT: i32 = -97;
const ECONNREFUSED: i32 = -111;

const AF_UNIX: u32 = 1;

/// The running task's cgroup, if it is governed.
#[inline(always)]
fn governed_task() -> Option<u64> {
    let mut level = 1;
    while level <= MAX_GOVERNED_LEVEL {
        // SAFETY: a helper without preconditions: 0 where the cgroup does not lie so deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if id == 0 {
            return None;
        }
        if maps::is_governed(id) {
            // SAFETY: a helper without preconditions.
            return Some(unsafe { bpf_get_current_cgroup_id() });
        }
        level += 1;
    }
    None
}

/// Whether a cgroup of the kernel's, by its address, lies in a governed one. What cannot be read does not.
#[inline(always)]
fn is_in_governed(cgroup: u64, places: &LsmPlaces) -> bool {
    let Some(deepest) = read::<u32>(cgroup, places.cgroup_level) else { return false };
    let mut level = 1;
    while level <= MAX_GOVERNED_LEVEL {
        if level > deepest {
            return false;
        }
        let ancestor = read::<u64>(cgroup, places.cgroup_ancestors + 8 * level);
        if let Some(id) = ancestor.and_then(|ancestor| id_of(ancestor, places))
            && maps::is_governed(id)
        {
            return true;
        }
        level += 1;
    }
    false
}

/// Whether something of one cgroup may be used by a task of another that is governed: in the same session, or where no
/// session has it but it is governed all the same.
#[inline(always)]
fn belongs(own: u64, cgroup: u64, places: &LsmPlaces) -> bool {
    let Some(id) = id_of(cgroup, places) else { return false };
    id == own || (is_in_governed(cgroup, places) && !(maps::is_session(id) && maps::is_session(own)))
}

/// The id of a cgroup, by its address.
#[inline(always)]
fn id_of(cgroup: u64, places: &LsmPlaces) -> Option<u64> {
    read::<u64>(read::<u64>(cgroup, places.cgroup_node)?, places.node_id)
}

/// Reads kernel memory at a place of a structure.
#[inline(always)]
fn read<T: Copy>(structure: u64, place: u32) -> Option<T> {
    if structure == 0 {
        return None;
    }
    let mut value = MaybeUninit::<T>::uninit();
    let from = structure.wrapping_add(place.into()) as *const _;
    // SAFETY: the buffer is as long as said; the helper answers an address that cannot be read with an error, and fills
    // the buffer all the same. `T` is a number or an array of them.
    let read = unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from) };
    // SAFETY: as above.
    (read == 0).then(|| unsafe { value.assume_init() })
}

/// The hook's first arguments, as numbers. The upper half of one that is shorter is not defined.
#[inline(always)]
fn arguments<const N: usize>(cx: &LsmContext) -> Option<[u64; N]> {
    let mut all = MaybeUninit::<[u64; N]>::uninit();
    // SAFETY: as in `read`; the context holds the hook's arguments.
    let read = unsafe { bpf_probe_read_kernel(all.as_mut_ptr().cast(), (8 * N) as u32, cx.as_ptr()) };
    // SAFETY: as above.
    (read == 0).then(|| unsafe { all.assume_init() })
}
