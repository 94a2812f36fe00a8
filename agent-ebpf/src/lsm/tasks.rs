//! What a governed task does to other tasks and to the kernel.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_ebpf::Reason;

use super::{EPERM, PASS, arguments, belongs, governed_task, read};
use crate::{
    maps,
    refusal::{self, Attempt},
};

/// linux/ptrace.h: asked in passing, as by whoever lists processes.
const PTRACE_MODE_NOAUDIT: u32 = 4;

/// ptrace(2), the memory and descriptors of another process, and what of it in `/proc` only its owner reads.
#[lsm(hook = "ptrace_access_check")]
pub fn lsm_ptrace_access_check(cx: LsmContext) -> i32 {
    let Some(own) = governed_task() else { return PASS };
    let (Some(places), Some([task, mode])) = (maps::lsm_places(), arguments::<2>(&cx)) else { return EPERM };
    let cgroup = read::<u64>(task, places.task_set).and_then(|set| read::<u64>(set, places.set_cgroup));
    if cgroup.is_some_and(|cgroup| belongs(own, cgroup, places)) {
        return PASS;
    }
    if mode as u32 & PTRACE_MODE_NOAUDIT != 0 {
        refusal::quietly(Reason::Trace);
    } else {
        refusal::by_task(Reason::Trace, &Attempt::socket(0, 0, 0));
    }
    EPERM
}

#[lsm(hook = "bpf")]
pub fn lsm_bpf(_: LsmContext) -> i32 {
    never(Reason::Bpf)
}

#[lsm(hook = "perf_event_open")]
pub fn lsm_perf_event_open(_: LsmContext) -> i32 {
    never(Reason::Perf)
}

/// Refuses governed tasks whatever they ask for.
#[inline(always)]
fn never(reason: Reason) -> i32 {
    if governed_task().is_none() {
        return PASS;
    }
    refusal::by_task(reason, &Attempt::socket(0, 0, 0));
    EPERM
}
