//! Sessions on disk: a JSON file each, so that a restarted daemon knows the cgroups that it governs.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    EndReason, Expiry, Home, IdentityError, Session, facts,
    ids::{is_session_id, is_trace_id},
};
use crate::policy::Temporary;

/// No session file of ours comes near this.
const MAX_FILE: u64 = 4 << 20;

/// What was found when the table was opened.
#[derive(Debug, Default)]
pub struct Restored {
    /// Sessions that live on.
    pub adopted: Vec<Arc<Session>>,
    /// Sessions that ended while the daemon was away. Their files are gone; record their end.
    pub lost: Vec<LostSession>,
    /// Files that could not be read as a session, and why. They are left where they are and give no rights.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Ids of claimed cgroups that are still there, and whose sessions were ended.
    pub spent: Vec<u64>,
}

/// A session that ended while the daemon was away.
#[derive(Clone, Debug)]
pub struct LostSession {
    /// Its id.
    pub id: Arc<str>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Tenant of the workload.
    pub tenant: Option<Arc<str>>,
    /// W3C trace id.
    pub trace_id: Arc<str>,
    /// [`EndReason::Expired`] or [`EndReason::Lost`].
    pub why: EndReason,
    /// Folder of its cgroup, where processes live on that were to be killed when its time ran out.
    pub kill: Option<PathBuf>,
}

/// A session as saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    pub(super) id: Arc<str>,
    pub(super) workload: Arc<str>,
    pub(super) tenant: Option<Arc<str>>,
    pub(super) intent: Option<Arc<str>>,
    pub(super) trace_id: Arc<str>,
    pub(super) cgroup_id: u64,
    pub(super) cgroup_path: PathBuf,
    pub(super) started_at: SystemTime,
    pub(super) ends_at: Option<SystemTime>,
    #[serde(default)]
    pub(super) expiry: Expiry,
    #[serde(default)]
    pub(super) home: Home,
    /// Why a claimed cgroup has no session any more.
    #[serde(default)]
    ended: Option<EndReason>,
    pub(super) temporary: Temporary,
    #[serde(default)]
    pub(super) uid: Option<u32>,
    pub(super) command: Vec<String>,
    pub(super) operator: String,
    /// The kernel's id of the boot: cgroup ids start over with the next.
    boot: String,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    boot: String,
}

impl Store {
    pub(super) fn open(dir: PathBuf) -> Result<Self, IdentityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(path).map_err(io_error("read", path))?.trim().to_owned();
        Ok(Self { dir, boot })
    }

    /// Writes and syncs the session's file, whole or not at all.
    pub(super) fn save(&self, session: &Session) -> Result<(), IdentityError> {
        self.write(session, None)
    }

    /// Says that a claimed cgroup is to have no session again. Failure is an error in the log: the cgroup would be
    /// claimed again by the next daemon.
    pub(super) fn spend(&self, session: &Session, why: EndReason) {
        if let Err(error) = self.write(session, Some(why)) {
            tracing::error!(session = &*session.id, %error, "the end of a session could not be saved");
        }
    }

    fn write(&self, session: &Session, ended: Option<EndReason>) -> Result<(), IdentityError> {
        let path = self.path(&session.id);
        let saved = Saved {
            id: session.id.clone(),
            workload: session.workload.clone(),
            tenant: session.tenant.clone(),
            intent: session.intent.clone(),
            trace_id: session.trace_id.clone(),
            cgroup_id: session.cgroup_id,
            cgroup_path: session.cgroup_path.clone(),
            started_at: session.started_at,
            ends_at: session.ends_at,
            expiry: session.expiry,
            home: session.home,
            ended,
            temporary: session.temporary,
            uid: session.uid,
            command: session.command.clone(),
            operator: session.operator.clone(),
            boot: self.boot.clone(),
        };
        let bytes = serde_json::to_vec(&saved).map_err(io::Error::other).map_err(io_error("encode", &path))?;
        let temporary = path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(io_error("save", &path))
    }

    /// Removes the session's file. Failure is not an error: the cgroup is gone by the next start, and the ttl with it.
    pub(super) fn remove(&self, id: &str) {
        let path = self.path(id);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the file of an ended session");
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// Reads every session file and sorts the sessions into those that live on and those that do not.
pub(super) fn restore(store: &Store) -> Result<Restored, IdentityError> {
    let mut restored = Restored::default();
    let mut cgroups = HashSet::new();
    let listing = || fs::read_dir(&store.dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = listing().map_err(io_error("list", &store.dir))?;
    paths.sort();
    for path in paths {
        if path.extension().is_some_and(|e| e == "new") {
            // Never finished: the session was refused.
            let _ = fs::remove_file(&path);
            continue;
        }
        let saved = match read(&path) {
            Ok(saved) => saved,
            Err(why) => {
                restored.unreadable.push((path, why));
                continue;
            }
        };
        let over = saved.ends_at.is_some_and(|at| at <= SystemTime::now());
        let same = saved.boot == store.boot
            && facts::cgroup_id(&saved.cgroup_path).is_ok_and(|id| id == saved.cgroup_id)
            && cgroups.insert(saved.cgroup_id);
        if saved.ended.is_some() {
            if same {
                restored.spent.push(saved.cgroup_id);
            } else {
                store.remove(&saved.id);
            }
            continue;
        }
        if same && !over {
            restored.adopted.push(Arc::new(Session::restored(saved)));
            continue;
        }
        store.remove(&saved.id);
        restored.lost.push(LostSession {
            id: saved.id,
            workload: saved.workload,
            tenant: saved.tenant,
            trace_id: saved.trace_id,
            why: if over { EndReason::Expired } else { EndReason::Lost },
            // Of another boot, or of another cgroup, it is nothing of this session's.
            kill: (over && same && saved.expiry == Expiry::Kill).then_some(saved.cgroup_path),
        });
    }
    Ok(restored)
}

fn read(path: &Path) -> Result<Saved, String> {
    let meta = fs::symlink_metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err("not a file, or too large".into());
    }
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let saved: Saved = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if !is_session_id(&saved.id) || path.file_stem().and_then(|s| s.to_str()) != Some(&*saved.id) {
        return Err("its name is not its session's id".into());
    }
    if !is_trace_id(&saved.trace_id) {
        return Err("its trace id is malformed".into());
    }
    Ok(saved)
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { what, path: path.to_owned(), source }
}
