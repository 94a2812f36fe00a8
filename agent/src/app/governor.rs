//! Which cgroups are governed, and what the kernel is told about them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use arc_swap::ArcSwap;

use super::helper::{Helper, HelperError};
use crate::{bpf::UnixHooks, config::cgroup, control::peer::Fence, identity::Session, policy::PolicySet};

/// What the daemon asks of the kernel side. Implemented by `bpf::Kernel`; a trait so that the order of steps is tested
/// without root.
pub(super) trait Enforcement: Send + Sync {
    /// Governs a stable parent and all below it. Idempotent.
    fn govern(&self, cgroup: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// Lets a session's cgroup reach the enforcer.
    fn allow_session(&self, cgroup_id: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// Lets an allowed session reach exactly these unix sockets. Nothing where it is not allowed.
    fn set_unix_paths(&self, cgroup_id: u64, paths: &[&str]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// Lets an allowed session reach every unix socket in this folder, which is its own.
    fn set_unix_folder(&self, cgroup_id: u64, folder: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
    /// Whether the kernel judges unix sockets.
    fn unix_hooks(&self) -> UnixHooks;
    /// Refuses it everything again.
    fn forget_session(&self, cgroup_id: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl Enforcement for crate::bpf::Kernel {
    fn govern(&self, cgroup: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.govern(cgroup)?)
    }

    fn allow_session(&self, cgroup_id: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.allow_session(cgroup_id)?)
    }

    fn set_unix_paths(&self, cgroup_id: u64, paths: &[&str]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.set_unix_paths(cgroup_id, paths)?)
    }

    fn set_unix_folder(&self, cgroup_id: u64, folder: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.set_unix_folder(cgroup_id, folder)?)
    }

    fn unix_hooks(&self) -> UnixHooks {
        self.unix_hooks()
    }

    fn forget_session(&self, cgroup_id: u64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.forget_session(cgroup_id)?)
    }
}

/// Why a workload's cgroup cannot be governed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub(super) enum GovernError {
    /// The pattern has no stable parent.
    #[error("workload `{workload}`: `{pattern}` names no cgroup that can be governed")]
    #[diagnostic(help("begin it with a name of its own, such as `portcullis.slice/{workload}/*`"))]
    Pattern {
        /// Of which workload.
        workload: String,
        /// Its pattern.
        pattern: String,
    },
    /// A cgroup that has a governed one below it, or the daemon itself.
    #[error("cgroup `{}` cannot be governed: {what}", cgroup.display())]
    #[diagnostic(help("give the workload a cgroup of its own, or stop its sessions and restart the daemon"))]
    Conflict {
        /// Which.
        cgroup: PathBuf,
        /// With what.
        what: String,
    },
    /// The folders could not be made.
    #[error(transparent)]
    #[diagnostic(help(
        "where systemd runs, let it make the slice: `systemctl start NAME.slice`; else the tree must be writable"
    ))]
    Make(#[from] HelperError),
    /// The helper has read others.
    #[error("the policies changed while they were read")]
    #[diagnostic(help("read them once more: `portcullis reload`"))]
    Changed,
    /// The kernel side failed.
    #[error("cgroup `{}` cannot be governed", cgroup.display())]
    Kernel {
        /// Which.
        cgroup: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Keeps account of the governed cgroups.
pub(super) struct Governor {
    root: PathBuf,
    own: String,
    kernel: Arc<dyn Enforcement>,
    helper: Arc<Helper>,
    /// Relative to `root`. A cgroup that was governed stays so: its processes do not become free by a reload.
    governed: RwLock<BTreeSet<PathBuf>>,
    /// Held from reading the policies to telling the kernel, so that the last to tell has read the newest.
    telling: Mutex<()>,
}

impl Governor {
    /// `root`: mount of the cgroup2 tree; `own`: the daemon's cgroup as `/a/b`.
    pub(super) fn new(root: PathBuf, own: String, kernel: Arc<dyn Enforcement>, helper: Arc<Helper>) -> Self {
        Self { root, own, kernel, helper, governed: RwLock::default(), telling: Mutex::default() }
    }

    /// Mount of the cgroup2 tree.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Who does what only root may do.
    pub(super) fn helper(&self) -> &Arc<Helper> {
        &self.helper
    }

    /// The kernel side.
    pub(super) fn kernel(&self) -> &dyn Enforcement {
        &*self.kernel
    }

    /// Tells the kernel which unix sockets the policy in force lets an allowed session reach. Called when a session is
    /// allowed and when policies changed; a workload without a policy reaches none.
    pub(super) fn give_unix(
        &self,
        policies: &ArcSwap<PolicySet>,
        session: &Session,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let policies = policies.load();
        let policy = policies.by_workload(&session.workload);
        let paths: Vec<&str> = policy.iter().flat_map(|policy| &policy.workload().unix).map(String::as_str).collect();
        self.kernel.set_unix_paths(session.cgroup_id, &paths)
    }

    /// Makes and governs the stable parents of all workloads. On an error, those that were governed stay so.
    pub(super) fn govern(&self, policies: &PolicySet) -> Result<(), GovernError> {
        let before = self.governed();
        let mut parents = stable_parents(policies)?;
        let wanted = parents.clone();
        parents.retain(|cgroup| !before.iter().any(|known| cgroup.starts_with(known)));
        for cgroup in &parents {
            // Two redirectors in one path would take each other's rewritten address for the client's wish.
            if let Some(child) = before.iter().find(|known| known.starts_with(cgroup)) {
                let what = format!("`{}` below it is governed already", child.display());
                return Err(GovernError::Conflict { cgroup: cgroup.clone(), what });
            }
            if cgroup::is_within(&self.own, &format!("/{}", cgroup.display())) {
                let what = "the daemon itself lives in it".into();
                return Err(GovernError::Conflict { cgroup: cgroup.clone(), what });
            }
        }
        // It makes sessions by its own reading of the policies, so it must have these.
        if self.helper.govern()? != Vec::from_iter(wanted) {
            return Err(GovernError::Changed);
        }
        for cgroup in parents {
            let path = self.root.join(&cgroup);
            self.kernel.govern(&path).map_err(|source| GovernError::Kernel { cgroup: cgroup.clone(), source })?;
            self.governed.write().unwrap_or_else(PoisonError::into_inner).insert(cgroup);
        }
        Ok(())
    }

    /// What is governed, relative to the root.
    pub(super) fn governed(&self) -> BTreeSet<PathBuf> {
        self.governed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn covers(&self, cgroup: &str) -> bool {
        let governed = self.governed.read().unwrap_or_else(PoisonError::into_inner);
        governed.iter().any(|parent| cgroup::is_within(cgroup, &format!("/{}", parent.display())))
    }
}

/// The topmost stable parents of all workloads.
pub(super) fn stable_parents(policies: &PolicySet) -> Result<BTreeSet<PathBuf>, GovernError> {
    let mut all = BTreeSet::new();
    for policy in policies.policies() {
        let workload = policy.workload();
        let parent = policy.cgroup_parent();
        if !cgroup::may_be_governed(parent) {
            let (workload, pattern) = (workload.name.to_string(), workload.cgroup.clone());
            return Err(GovernError::Pattern { workload, pattern });
        }
        all.insert(PathBuf::from(parent));
    }
    let top: BTreeSet<PathBuf> =
        all.iter().filter(|one| !all.iter().any(|other| other != *one && one.starts_with(other))).cloned().collect();
    Ok(top)
}

/// The fence around the control socket: all that is governed, or that any policy in force claims.
pub(super) struct GovernedFence {
    pub(super) governor: Arc<Governor>,
    pub(super) policies: Arc<dyn Fn() -> Arc<PolicySet> + Send + Sync>,
}

impl GovernedFence {
    pub(super) fn new(governor: Arc<Governor>, policies: impl Fn() -> Arc<PolicySet> + Send + Sync + 'static) -> Self {
        Self { governor, policies: Arc::new(policies) }
    }
}

impl Fence for GovernedFence {
    fn is_governed(&self, cgroup: &str) -> bool {
        self.governor.covers(cgroup) || (self.policies)().by_cgroup(cgroup.trim_start_matches('/')).is_some()
    }
}

/// The policies in force, for what needs no more of the house.
pub(super) fn current(policies: &ArcSwap<PolicySet>) -> Arc<PolicySet> {
    policies.load_full()
}
