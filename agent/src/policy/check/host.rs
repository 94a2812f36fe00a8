//! What a workload may have of the host.

use super::Checker;
use crate::policy::{
    file::{self, At},
    spec::{Filesystem, LimitSpec, RunAs, Temporary},
};

/// Less than this and the command itself does not start, in bytes.
const LEAST_MEMORY: u64 = 4 << 20;
/// `PID_MAX_LIMIT` in linux/threads.h.
const MOST_PIDS: u32 = 1 << 22;
/// In hundredths of a processor. The kernel gives no less than one hundredth.
const CPU: std::ops::RangeInclusive<f64> = 1.0..=102_400.0;

/// What private temporary folders hide.
const TEMPORARY: [&str; 3] = ["/tmp/", "/var/tmp/", "/dev/shm/"];

impl Checker<'_> {
    /// What only the launcher can do is not asked of cgroups that others make.
    pub(super) fn claim(&mut self, workload: &file::Workload) {
        let Some(claim) = workload.claim.as_ref().filter(|claim| claim.value) else { return };
        if workload.session.require_intent {
            let help = "leave out `require_intent`, or `claim`";
            self.hinted(&claim.span, "nobody states an intent for a cgroup that others make", help);
        }
        let file::Limits { memory, pids, cpu, wall: _ } = &workload.limits;
        if memory.is_some() || pids.is_some() || cpu.is_some() {
            let help = "set `MemoryMax`, `TasksMax` or `CPUQuota` of the unit, or the container's limits";
            self.hinted(&claim.span, "who makes a cgroup sets its limits", help);
        }
        if is_private(workload) {
            // `read-only` goes with it.
            let help = "set `PrivateTmp` or `ProtectSystem` of the unit, or the container's mounts";
            self.hinted(&claim.span, "who makes a cgroup says what its processes see", help);
        }
    }

    pub(super) fn temporary(&mut self, workload: &file::Workload) -> Temporary {
        if !is_private(workload) {
            return Temporary::Shared;
        }
        for At { span, value: path } in workload.unix.iter().flat_map(|unix| &unix.value) {
            if TEMPORARY.iter().any(|folder| path.starts_with(folder)) {
                self.hinted(
                    span,
                    "with `private_tmp`, that folder is another",
                    "a socket elsewhere, such as in `/run`",
                );
            }
        }
        Temporary::Private
    }

    pub(super) fn filesystem(&mut self, workload: &file::Workload) -> Filesystem {
        let Some(At { span, value }) = &workload.filesystem else { return Filesystem::Host };
        if *value == Filesystem::ReadOnly && !is_private(workload) {
            self.hinted(span, "without temporary folders hardly a program runs", "add `private_tmp = true`");
        }
        *value
    }

    pub(super) fn run_as(&mut self, workload: &file::Workload) -> RunAs {
        let Some(At { span, value }) = &workload.user else { return RunAs::Caller };
        if *value != RunAs::Caller && !is_private(workload) {
            let text = "files of a user of its own would outlive the session";
            self.hinted(span, text, "add `private_tmp = true`");
        }
        *value
    }

    pub(super) fn limits(&mut self, limits: &file::Limits) -> LimitSpec {
        if let Some(At { span, value }) = &limits.memory
            && value.0 < LEAST_MEMORY
        {
            self.hinted(span, "no command runs in so little memory", "at least `4MiB`");
        }
        if let Some(At { span, value }) = &limits.pids
            && !(1..=MOST_PIDS).contains(value)
        {
            self.error(span, format!("`pids` is a number from 1 to {MOST_PIDS}"));
        }
        let cpu = limits.cpu.as_ref().and_then(|At { span, value }| {
            let hundredths = (value * 100.0).round();
            if CPU.contains(&hundredths) {
                return Some(hundredths as u32);
            }
            self.hinted(span, "`cpu` is a number of processors from 0.01 to 1024", "such as `0.5` or `2`");
            None
        });
        LimitSpec {
            memory: limits.memory.as_ref().map(|memory| memory.value.0),
            pids: limits.pids.as_ref().map(|pids| pids.value),
            cpu,
            wall: limits.wall.map(|wall| wall.0),
        }
    }
}

fn is_private(workload: &file::Workload) -> bool {
    workload.private_tmp.as_ref().is_some_and(|private| private.value)
}
