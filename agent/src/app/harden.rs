//! What keeps the daemon's memory its own, for it holds credentials, and what it gives up once it serves.

use miette::{IntoDiagnostic, WrapErr};
use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    prctl,
    resource::{Resource, setrlimit},
};

use crate::launch;

/// No core dumps, no ptrace by the same user, no swap. Returns what could not be had, in words.
pub(super) fn process() -> Vec<String> {
    let mut lacking = Vec::new();
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        lacking.push(format!("core dumps could not be turned off: {error}"));
    }
    // Also stops core_pattern programs, which the limit does not: core(5).
    if let Err(error) = prctl::set_dumpable(false) {
        lacking.push(format!("the process could not be made undumpable: {error}"));
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
/// asks for credentials. No Landlock: a domain would take away what it reads of sessions' processes.
pub(super) fn calls() -> miette::Result<()> {
    let filters = launch::confine::filter::of_daemon().into_diagnostic().wrap_err("no system call filter")?;
    for filter in filters {
        seccompiler::apply_filter_all_threads(&filter).into_diagnostic().wrap_err("system calls cannot be given up")?;
    }
    Ok(())
}
