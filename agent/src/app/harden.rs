//! What keeps the daemon's memory its own, for it holds credentials, and what it gives up once it serves.

use std::path::Path;

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use miette::{IntoDiagnostic, WrapErr};
use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    prctl,
    resource::{RLIM_INFINITY, Resource, setrlimit},
};

use super::privileges::OwnUser;
use crate::launch;

/// No core dumps, no ptrace by the same user, no swap. Returns what could not be had, in words.
pub(super) fn process(user: &OwnUser) -> Vec<String> {
    let mut lacking = Vec::new();
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        lacking.push(format!("core dumps could not be turned off: {error}"));
    }
    // Also stops core_pattern programs, which the limit does not: core(5).
    if let Err(error) = prctl::set_dumpable(false) {
        lacking.push(format!("the process could not be made undumpable: {error}"));
    }
    // What is locked counts against this once the daemon is not root any more: it must not run out.
    let unlimited = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if let (Err(error), false) = (unlimited, user.is_root()) {
        lacking.push(format!("memory is not locked, so a secret may reach swap: {error}; set LimitMEMLOCK=infinity"));
        return lacking;
    }
    // On fault only: what is reserved and never touched must not be resident. [Linux 4.4]
    let flags = MlockAllFlags::from_bits_retain(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    if let Err(error) = mlockall(flags) {
        lacking.push(format!(
            "memory could not be locked, so a secret may reach swap: {error}; allow it with LimitMEMLOCK=infinity"
        ));
    }
    lacking
}

/// Gives up the system calls that a daemon which serves has no use for, in all of its threads and in the programs that it
/// asks for credentials.
pub(super) fn calls() -> miette::Result<()> {
    let filters = launch::confine::filter::of_daemon().into_diagnostic().wrap_err("no system call filter")?;
    for filter in filters {
        seccompiler::apply_filter_all_threads(&filter).into_diagnostic().wrap_err("system calls cannot be given up")?;
    }
    Ok(())
}

/// Gives up writing files but below `writable`, in the calling thread and all that it starts: so in a process of a single
/// thread. Reading is left to permissions: a policy that is loaded later may name any file. Says what could not be had.
pub(super) fn files(writable: &[&Path]) -> Option<String> {
    let lacking =
        |error: &dyn std::error::Error| format!("files are kept from the daemon by permissions alone: {error}");
    match domain(writable) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => None,
        Ok(RulesetStatus::NotEnforced) => {
            Some("files are kept from the daemon by permissions alone: no Landlock".into())
        }
        Err(error) => Some(lacking(&error)),
    }
}

fn domain(writable: &[&Path]) -> Result<RulesetStatus, RulesetError> {
    let writing = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(writing)?.create()?;
    for path in writable {
        // One that is not there cannot be written.
        if let Ok(folder) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(folder, writing))?;
        }
    }
    if let Ok(devices) = PathFd::new("/dev") {
        rules = rules.add_rule(PathBeneath::new(devices, AccessFs::WriteFile))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}
