//! What a launcher asks of a session, and what it is told.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::unistd::{Uid, User};

use super::limits;
use crate::{
    bpf::UnixHooks,
    config::Settings,
    control::proto::{Code, Failure, OpenSession, Opened, SeenAs, SessionUser, Variables},
    identity::Session,
    launch::{self, room::Room},
    policy::{CredentialSource, Filesystem, Policy, RunAs, Temporary, WorkloadSpec},
    session::House,
};

/// Longest intent, in bytes.
const MAX_INTENT: usize = 8 << 10;

/// Refuses whoever cannot arrange what the policy wants of its sessions.
pub(super) fn may_launch(uid: u32, workload: &WorkloadSpec) -> Result<(), Failure> {
    let what = match (workload.run_as, workload.temporary, workload.filesystem) {
        _ if uid == 0 => return Ok(()),
        (RunAs::Dedicated | RunAs::Root, ..) => "a user",
        (_, Temporary::Private, _) | (.., Filesystem::ReadOnly) => "files",
        _ => return Ok(()),
    };
    let message =
        format!("the policy gives each session of `{}` {what} of its own, which only root can arrange", workload.name);
    Err(Failure::new(Code::Denied, message).help("run it with sudo"))
}

/// Refuses a session as the daemon's own user, whose files are the record and whose processes it could end.
pub(super) fn is_another(uid: u32, user: Option<&str>) -> Result<(), Failure> {
    let own = Uid::effective();
    // Root is refused by the launcher, where it is.
    let is_own = |uid: Uid| !own.is_root() && uid == own;
    let named = user.and_then(|name| User::from_name(name).ok().flatten());
    let runs_as = named.map_or(Uid::from_raw(uid), |user| user.uid);
    if !is_own(runs_as) && !is_own(Uid::from_raw(uid)) {
        return Ok(());
    }
    let message = "a session cannot run as the daemon's own user: it could change the record";
    Err(Failure::new(Code::Denied, message).help("name another with `--user`"))
}

/// The folder for a session's own unix sockets, without links on the way.
pub(super) fn sockets(settings: &Settings) -> io::Result<PathBuf> {
    std::fs::canonicalize(settings.sockets_dir())
}

/// Names of the variables that hold a secret which the policy keeps from its workload, or any that was used since the
/// daemon started. Of the workload's own, those in files are read for it; a program that makes secrets is not asked for one
/// that nobody uses.
pub(super) async fn secret_variables(house: &House, policy: &Policy, variables: &Variables) -> Vec<String> {
    for upstream in policy.upstreams() {
        for secret in upstream.secrets() {
            if matches!(secret.source, CredentialSource::File { .. })
                && let Err(error) = house.secrets.lease(&secret).await
            {
                // No login works with it either.
                tracing::warn!(upstream = &*upstream.name, %error, "a credential cannot be kept out of environments");
            }
        }
    }
    let known = house.secrets.known();
    let held = variables.0.iter().filter(|(_, value)| known.are_in(value.as_bytes()));
    held.map(|(name, _)| name.clone()).collect()
}

/// What the launcher of a session needs to know.
pub(super) fn opened(
    settings: &Settings,
    workload: &WorkloadSpec,
    session: &Session,
    cgroup: String,
    others: &limits::Others,
    unix: UnixHooks,
    unset: Vec<String>,
) -> io::Result<Opened> {
    let sockets = sockets(settings)?;
    let facts = launch::environment::Facts {
        session: &session.id,
        workload: &session.workload,
        intent: session.intent.as_deref(),
        trace_id: &session.trace_id,
        ca: &settings.ca_file(),
        bundle: &settings.bundle_file(),
        store: &settings.trust_store_file(),
        sockets: (session.temporary == Temporary::Private).then_some(&*sockets),
        now: SystemTime::now(),
    };
    let seen = if workload.run_as == RunAs::Root { SeenAs::Root } else { SeenAs::Itself };
    Ok(Opened {
        unix,
        session: session.id.to_string(),
        cgroup,
        cgroup_dir: session.cgroup_path.clone(),
        controllers: others.iter().map(|(name, other)| (name.clone(), other.path.clone())).collect(),
        room: Room {
            temporary: session.temporary,
            filesystem: workload.filesystem,
            sockets: sockets.clone(),
            keep: vec![settings.runtime_dir.clone()],
        },
        user: session.uid.map(|uid| SessionUser { uid, seen }),
        ends_at: session.ends_at.and_then(|at| jiff::Timestamp::try_from(at).ok()).map(|at| at.to_string()),
        env: launch::environment::variables(&facts),
        unset,
    })
}

/// Why the session runs, if it says so or must.
pub(super) fn intent(asked: &OpenSession, workload: &WorkloadSpec) -> Result<Option<Arc<str>>, Failure> {
    let intent = asked.intent.as_deref().map(str::trim).filter(|intent| !intent.is_empty());
    match intent {
        None if workload.require_intent => {
            Err(Failure::new(Code::Denied, format!("the policy of `{}` asks for an intent", workload.name))
                .help("add `--intent 'what it is for'`"))
        }
        Some(intent) if intent.len() > MAX_INTENT || intent.contains('\0') => {
            Err(Failure::new(Code::Usage, format!("an intent has at most {MAX_INTENT} bytes, and no NUL")))
        }
        intent => Ok(intent.map(Into::into)),
    }
}

/// How long it may live.
pub(super) fn ttl(asked: Option<u64>, workload: &WorkloadSpec) -> Result<Option<Duration>, Failure> {
    let asked = asked.map(Duration::from_secs);
    match (asked, workload.ttl) {
        (Some(asked), _) if asked.is_zero() => Err(Failure::new(Code::Usage, "a session must live some time")),
        (Some(asked), Some(most)) if asked > most => {
            let message = format!("the policy lets sessions of `{}` live {} seconds", workload.name, most.as_secs());
            Err(Failure::new(Code::Denied, message).help("ask for less with `--ttl`, or leave it out"))
        }
        (asked, most) => Ok([asked.or(most), workload.limits.wall].into_iter().flatten().min()),
    }
}
