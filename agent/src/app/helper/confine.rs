//! What the helper keeps of root's powers.

use caps::{CapSet, Capability, CapsHashSet};
use miette::{IntoDiagnostic, WrapErr};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use crate::launch;

/// To enter a session's network namespace, to see whose it is and which program a process runs, to take a port there that
/// is below 1024, to make a cgroup in the root of the tree, which not even its owner may write, and to move a process that
/// has more powers than this one where the cpuset controller is on. That a cgroup's files, and those of credentials, are
/// root's is all that the rest needs. Where the service manager gave less, less is kept.
const KEPT: [Capability; 5] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_SYS_NICE,
];

/// Gives up all others, and the system calls that it has no use for. Call it in a process of a single thread.
pub(super) fn confine() -> miette::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).into_diagnostic()?;
    prctl::set_dumpable(false).into_diagnostic()?;
    let keep: CapsHashSet = KEPT.into();
    caps::clear(None, CapSet::Ambient).into_diagnostic()?;
    caps::clear(None, CapSet::Inheritable).into_diagnostic()?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let kept = caps::read(None, set).into_diagnostic()?.intersection(&keep).copied().collect();
        caps::set(None, set, &kept).into_diagnostic().wrap_err("capabilities cannot be given up")?;
    }
    prctl::set_no_new_privs().into_diagnostic()?;
    for filter in launch::confine::filter::of_helper().into_diagnostic().wrap_err("no system call filter")? {
        seccompiler::apply_filter(&filter).into_diagnostic().wrap_err("system calls cannot be given up")?;
    }
    Ok(())
}
