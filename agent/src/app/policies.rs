//! Loading policies, again and again: on SIGHUP, on `portcullis reload`, and when a file changes.
//!
//! A set is taken whole or not at all. One that is refused leaves the old one in force, and `status` says why.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{cli, governor::Governor, trust::Trust};
use crate::{control::proto::PolicyStatus, policy::PolicySet, record::Event, session::House};

/// Time for an editor or a package manager to write all files of a change.
const SETTLE: Duration = Duration::from_millis(200);

/// Policies on disk and in force.
pub(super) struct Policies {
    dir: PathBuf,
    house: Arc<House>,
    governor: Arc<Governor>,
    trust: Arc<Trust>,
    state: Mutex<State>,
}

struct State {
    loaded_at: SystemTime,
    refused: Option<String>,
}

/// Reads a folder of policies; the error is rendered with its places.
pub(super) fn load(dir: &Path) -> Result<PolicySet, String> {
    PolicySet::load(dir).map_err(|errors| cli::render(&errors.into()))
}

impl Policies {
    pub(super) fn new(dir: PathBuf, house: Arc<House>, governor: Arc<Governor>, trust: Arc<Trust>) -> Self {
        let state = Mutex::new(State { loaded_at: SystemTime::now(), refused: None });
        Self { dir, house, governor, trust, state }
    }

    /// Loads again. `Ok` says what is in force now; `Err` why the set was refused.
    pub(super) async fn reload(self: &Arc<Self>, why: &'static str) -> Result<String, String> {
        let this = self.clone();
        let outcome = tokio::task::spawn_blocking(move || this.reload_now()).await;
        let outcome = outcome.unwrap_or_else(|error| Err(format!("loading failed: {error}")));
        let what = match &outcome {
            Ok(hash) => format!("policies loaded ({why}): {hash}"),
            Err(refused) => format!("policies refused ({why}), the old set stays: {refused}"),
        };
        match &outcome {
            Ok(_) => tracing::info!("{what}"),
            Err(_) => tracing::error!("{what}"),
        }
        if let Err(error) = self.house.recorder.append(Event::daemon(what)) {
            tracing::error!(%error, "a change of policies could not be recorded");
        }
        outcome
    }

    fn reload_now(&self) -> Result<String, String> {
        let outcome = load(&self.dir).and_then(|set| {
            self.governor.govern(&set).map_err(|error| cli::render(&error.into()))?;
            // Clients can read whom to trust before they can be answered under a name that is new.
            self.trust.tend(&set).map_err(|error| cli::render(&error))?;
            Ok(set)
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(set) => {
                let hash = set.hash().to_owned();
                // In force first: a connection that is entered now is judged by the new set.
                self.house.policies.store(Arc::new(set));
                self.house.live.rejudge(&self.house);
                for session in self.house.sessions.list() {
                    if let Err(error) = self.governor.give_unix(&self.house.policies, &session) {
                        // What a policy takes is taken first, so a session may miss what it newly gives.
                        tracing::error!(session = &*session.id, error, "a session's unix sockets could not be changed");
                    }
                }
                *state = State { loaded_at: SystemTime::now(), refused: None };
                Ok(hash)
            }
            Err(refused) => {
                state.refused = Some(refused.clone());
                Err(refused)
            }
        }
    }

    /// Whom clients trust.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// For `status`.
    pub(super) fn status(&self) -> PolicyStatus {
        let policies = self.house.policies.load();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded_at = jiff::Timestamp::try_from(state.loaded_at)
            .map_or(String::new(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        PolicyStatus {
            hash: policies.hash().to_owned(),
            workloads: policies.policies().iter().map(|p| p.workload().name.to_string()).collect(),
            loaded_at,
            refused: state.refused.clone(),
        }
    }
}

/// Loads again whenever a file of the folder changes, for ever. Without a watch (limits of inotify), SIGHUP and
/// `portcullis reload` still work.
pub(super) async fn watch(policies: Arc<Policies>) -> Result<(), notify::Error> {
    let (sender, mut changed) = mpsc::channel(1);
    let mut watcher: RecommendedWatcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let relevant = event.is_ok_and(|event| {
            !event.kind.is_access() && event.paths.iter().any(|p| p.extension().is_some_and(|e| e == "toml"))
        });
        if relevant {
            // A full channel already asks for the same.
            let _ = sender.try_send(());
        }
    })?;
    watcher.watch(&policies.dir, RecursiveMode::NonRecursive)?;
    while changed.recv().await.is_some() {
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
        // Reported by reload itself.
        let _ = policies.reload("a file changed").await;
    }
    Ok(())
}
