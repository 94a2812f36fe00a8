//! Sessions of cgroups that others make: systemd units, containers.
//!
//! Their stable parent is governed before the first of them exists, so a cgroup below it reaches nothing until a policy
//! claims it. It is claimed as soon as it is made, which is before a process can be in it, and again looked for from
//! time to time and when policies change. One whose session was ended before it is not claimed again.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::{governor::Governor, lifecycle::Lifecycle};
use crate::{
    action::ProcessFacts,
    identity,
    policy::{Policy, WorkloadSpec},
    record::{Event, EventBody},
    session::House,
};

/// Time between looks for cgroups that no event told of.
const LOOK: Duration = Duration::from_secs(2);
/// Deepest cgroup below a governed one that is looked at.
const DEPTH: usize = 8;

/// Claims cgroups for workloads.
pub(super) struct Claims {
    house: Arc<House>,
    governor: Arc<Governor>,
    lifecycle: Arc<Lifecycle>,
    made: Arc<Notify>,
    /// Ids of the cgroups that could not be claimed, so that it is said once.
    failed: Mutex<HashSet<u64>>,
}

impl Claims {
    pub(super) fn new(house: Arc<House>, governor: Arc<Governor>, lifecycle: Arc<Lifecycle>) -> Self {
        Self { house, governor, lifecycle, made: Arc::default(), failed: Mutex::default() }
    }

    /// Claims, for ever.
    pub(super) async fn run(&self) {
        let mut watched = Vec::new();
        let mut watcher = self.watcher();
        loop {
            if self.wanted() {
                if let Some(watcher) = &mut watcher {
                    self.watch(watcher, &mut watched);
                }
                self.claim_all().await;
            }
            tokio::select! {
                () = self.made.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Whether any policy claims cgroups.
    fn wanted(&self) -> bool {
        self.house.policies.load().policies().iter().any(|policy| policy.workload().claim)
    }

    fn watcher(&self) -> Option<RecommendedWatcher> {
        let made = self.made.clone();
        notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_create()) {
                made.notify_one();
            }
        })
        .inspect_err(|error| tracing::warn!(%error, "new cgroups are not watched, only looked for"))
        .ok()
    }

    /// Watches the governed parents that are not watched yet.
    fn watch(&self, watcher: &mut RecommendedWatcher, watched: &mut Vec<PathBuf>) {
        for parent in self.governor.governed() {
            if watched.contains(&parent) {
                continue;
            }
            match watcher.watch(&self.governor.root().join(&parent), RecursiveMode::Recursive) {
                Ok(()) => watched.push(parent),
                Err(error) => tracing::warn!(%error, cgroup = %parent.display(), "a cgroup is not watched"),
            }
        }
    }

    async fn claim_all(&self) {
        let mut present = HashSet::new();
        for parent in self.governor.governed() {
            for cgroup in below(self.governor.root(), &parent) {
                let policies = self.house.policies.load_full();
                if let Some(policy) = cgroup.to_str().and_then(|path| policies.by_cgroup(path)) {
                    present.extend(self.claim(policy, &cgroup).await);
                }
            }
        }
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| present.contains(id));
    }

    /// Claims a cgroup if it is to be claimed; returns its id while it waits for that in vain.
    async fn claim(&self, policy: &Policy, cgroup: &Path) -> Option<u64> {
        let workload = policy.workload();
        let id = identity::cgroup_id(&self.governor.root().join(cgroup)).ok()?;
        let sessions = &self.house.sessions;
        if !workload.claim || sessions.by_cgroup(id).is_some() || sessions.is_spent(id) {
            return None;
        }
        let error = match self.lifecycle.claim(workload, cgroup, id).await {
            Ok(()) => {
                tracing::info!(cgroup = %cgroup.display(), workload = &*workload.name, "cgroup claimed");
                return None;
            }
            Err(error) => error,
        };
        if self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            tracing::error!(cgroup = %cgroup.display(), %error, "a cgroup cannot be claimed: it reaches nothing");
            self.record(workload, format!("cgroup /{} cannot be claimed: {error}", cgroup.display()));
        }
        Some(id)
    }

    fn record(&self, workload: &WorkloadSpec, what: String) {
        let event = Event {
            tenant: workload.tenant.clone(),
            workload: workload.name.clone(),
            body: EventBody::Refused { what, process: ProcessFacts::default() },
            ..Event::daemon("")
        };
        if let Err(error) = self.house.recorder.append(event) {
            tracing::error!(%error, "that a cgroup cannot be claimed could not be recorded");
        }
    }
}

/// Every cgroup below a governed one, relative to the root.
fn below(root: &Path, parent: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(parent.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&path)) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let child = path.join(entry.file_name());
            if depth < DEPTH {
                open.push((child.clone(), depth + 1));
            }
            found.push(child);
        }
    }
    found
}
