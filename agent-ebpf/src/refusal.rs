//! What was refused: counted by reason always, told to the agent as often as its cgroup may.
//!
//! Telling is a courtesy to people: where there is no room or no time for it, the refusal stands and is only counted.

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::LruHashMap,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_ktime_get_ns,
    },
};
use portcullis_ebpf::{
    MAX_REPORTING, REPORT_WINDOW_NS, REPORTS_PER_WINDOW, RawRefusal, Reason, Reporting, UNIX_PATH_ROOM, UnixPath,
};

use crate::maps;

/// What somebody tried.
pub struct Attempt {
    pub family: u32,
    /// Type of the socket; for an option, its level.
    pub kind: u32,
    /// Protocol of the socket; for an option, its name.
    pub protocol: u32,
    /// As in [`RawRefusal`].
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u32,
}

impl Attempt {
    /// A socket without an address.
    #[inline(always)]
    pub fn socket(family: u32, kind: u32, protocol: u32) -> Self {
        Self { family, kind, protocol, address: [0; 4], port: 0 }
    }
}

/// Tells of an attempt of the running task.
#[inline(always)]
pub fn by_task(reason: Reason, attempt: &Attempt) {
    // SAFETY: a helper without preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    report(reason, cgroup_id, Task::Running, attempt, None);
}

/// Tells of an attempt of the running task to name this unix socket.
#[inline(always)]
pub fn by_path(reason: Reason, attempt: &Attempt, to: &UnixPath) {
    report(reason, to.cgroup_id, Task::Running, attempt, Some(&to.path));
}

/// Counts what is not worth telling: what programs do all the time, and mean no harm with.
#[inline(always)]
pub fn quietly(reason: Reason) {
    count(reason);
}

/// Tells of a packet of a cgroup's socket. Which task runs meanwhile says nothing.
#[inline(always)]
pub fn by_packet(reason: Reason, cgroup_id: u64, attempt: &Attempt) {
    report(reason, cgroup_id, Task::Unknown, attempt, None);
}

enum Task {
    Running,
    Unknown,
}

#[inline(always)]
fn count(reason: Reason) {
    if let Some(counter) = maps::REFUSED.get_ptr_mut(reason as u32) {
        // SAFETY: a slot of this processor. Where another program comes in between on it, one count may be lost.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn report(reason: Reason, cgroup_id: u64, task: Task, attempt: &Attempt, path: Option<&[u8; UNIX_PATH_ROOM]>) {
    count(reason);
    let Some(reporting) = lately(&maps::REPORTING, cgroup_id) else { return };
    // SAFETY: a value of the map. Other CPUs write it too: then a few more or fewer are told or counted as left out.
    let told = unsafe { take_turn(reporting, REPORTS_PER_WINDOW, REPORT_WINDOW_NS) };
    let entry = if told { maps::REFUSALS.reserve(0) } else { None };
    let Some(mut entry) = entry else {
        // SAFETY: as above.
        unsafe { (*reporting).left_out += 1 };
        return;
    };
    let mut raw = RawRefusal {
        reason: reason as u32,
        family: attempt.family,
        kind: attempt.kind,
        protocol: attempt.protocol,
        address: attempt.address,
        port: attempt.port,
        pid: 0,
        uid: 0,
        has_task: 0,
        cgroup_id,
        // SAFETY: as above.
        left_out: unsafe { core::ptr::read_volatile(&raw const (*reporting).left_out) },
        comm: [0; 16],
    };
    if let Task::Running = task {
        raw.has_task = 1;
        // SAFETY: helpers without preconditions; the buffer is as long as said.
        unsafe {
            raw.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            raw.uid = bpf_get_current_uid_gid() as u32;
            bpf_get_current_comm(raw.comm.as_mut_ptr().cast(), 16);
        }
    }
    let told = entry.as_mut_ptr();
    // SAFETY: the entry is as large as its type; every byte of it is written.
    unsafe {
        (&raw mut (*told).0).write(raw);
        match path {
            Some(path) => (&raw mut (*told).1).write(*path),
            None => (&raw mut (*told).1).write([0; UNIX_PATH_ROOM]),
        }
    }
    entry.submit(0);
}

/// How often something of a cgroup happened lately.
#[inline(always)]
pub fn lately(table: &LruHashMap<u64, Reporting, MAX_REPORTING>, cgroup_id: u64) -> Option<*mut Reporting> {
    if let Some(known) = table.get_ptr_mut(&cgroup_id) {
        return Some(known);
    }
    let new = Reporting { since_ns: 0, told: 0, left_out: 0 };
    let _ = table.insert(&cgroup_id, &new, BPF_ANY as u64);
    table.get_ptr_mut(&cgroup_id)
}

/// Whether it may happen now, once more.
///
/// # Safety
/// `reporting` must be a value of the map.
#[inline(always)]
pub unsafe fn take_turn(reporting: *mut Reporting, most: u64, window_ns: u64) -> bool {
    // SAFETY: the helper has no precondition; the rest is as above.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now.wrapping_sub((*reporting).since_ns) >= window_ns {
            (*reporting).since_ns = now;
            (*reporting).told = 0;
        }
        if (*reporting).told >= most {
            return false;
        }
        (*reporting).told += 1;
    }
    true
}
