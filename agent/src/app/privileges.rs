//! The daemon's own user. It starts as root, has what only root may do done or handed over, and then is nobody but itself:
//! a user of its own with the three capabilities that BPF programs for the network take. What it still needs of root's
//! powers afterwards its privileged helper does.
//!
//! A user that the settings name must be there. Where they name none and the host has none of the usual name, as when it
//! is tried out of a source tree, the daemon stays root, and says so in its log and in `doctor`.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, lchown},
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability, CapsHashSet};
use miette::{IntoDiagnostic, WrapErr, miette};
use nix::{
    sys::prctl,
    unistd::{Gid, Uid, User, getgrouplist, setgroups, setresgid, setresuid, setuid},
};

use crate::config::Settings;

/// The user that a package makes.
const USUAL: &str = "portcullis";
/// All that is kept: for programs, for the verifier's trust in them, and for hooks of the network.
const KEPT: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];

/// Whom the daemon is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnUser {
    /// As the settings or the user database name it.
    pub(super) name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: Option<PathBuf>,
}

/// Who the daemon is to be.
///
/// # Errors
/// The settings name a user that is not there, or one that sessions may get.
pub(super) fn own_user(settings: &Settings) -> miette::Result<OwnUser> {
    let configured = settings.daemon.user.as_deref();
    let name = configured.unwrap_or(USUAL);
    let found = match name.parse() {
        // A number that the database does not know stands for itself, as in `sessions.uids`.
        Ok(uid) => match User::from_uid(Uid::from_raw(uid)).into_diagnostic()? {
            Some(user) => Some(known(user)?),
            None => Some(OwnUser {
                name: name.into(),
                uid: Uid::from_raw(uid),
                gid: Gid::from_raw(uid),
                groups: Vec::new(),
                home: None,
            }),
        },
        Err(_) => User::from_name(name).into_diagnostic()?.map(known).transpose()?,
    };
    match (found, configured) {
        (Some(user), _) if user.is_root() => Ok(user),
        (Some(user), _) if settings.sessions.uids.is_some_and(|range| range.has(user.uid.as_raw())) => Err(miette!(
            help = "take it out of `sessions.uids`",
            "user `{}` is to be the daemon's, and sessions may get it",
            user.name
        )),
        (Some(user), _) => Ok(user),
        (None, Some(name)) => Err(miette!(
            help =
                "make it: `useradd --system --no-create-home --shell /usr/sbin/nologin {name}`; or set `daemon.user`",
            "there is no user `{name}`, which the daemon is to run as"
        )),
        (None, None) => {
            tracing::warn!(
                "the daemon stays root: there is no user `{USUAL}`; make one, or name another as `user` in `[daemon]`"
            );
            let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
            Ok(OwnUser { name: "root".into(), uid, gid, groups: Vec::new(), home: None })
        }
    }
}

fn known(user: User) -> miette::Result<OwnUser> {
    let name = std::ffi::CString::new(user.name.as_str()).into_diagnostic()?;
    let groups = getgrouplist(&name, user.gid).into_diagnostic()?;
    Ok(OwnUser { name: user.name, uid: user.uid, gid: user.gid, groups, home: Some(user.dir) })
}

/// Makes a folder if it is not there, and gives it to the daemon's user with all that is below the folders `whole`. What
/// is the user's already stays as it is: this happens once, when a daemon that was root becomes another, or root again.
///
/// # Errors
/// It is somebody else's, or cannot be given.
pub(super) fn give(folder: &Path, whole: &[&Path], user: &OwnUser) -> miette::Result<()> {
    let failed = || format!("cannot give {} to user `{}`", folder.display(), user.name);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).into_diagnostic().wrap_err_with(failed)?;
    let owner = fs::symlink_metadata(folder).into_diagnostic().wrap_err_with(failed)?.uid();
    // One that is not there will be the user's.
    let is_own = |path: &Path| fs::symlink_metadata(path).map_or(true, |found| found.uid() == user.uid.as_raw());
    if is_own(folder) && whole.iter().all(|path| is_own(path)) {
        return Ok(());
    }
    if owner != 0 && !is_own(folder) && !user.is_root() {
        return Err(miette!(
            help = format!("if it is to be the daemon's: chown -R {} {}", user.name, folder.display()),
            "{} belongs to user {owner}, and the daemon runs as `{}`",
            folder.display(),
            user.name
        ));
    }
    // The folder itself last: if this breaks off, it is done again.
    for path in whole {
        give_all(path, user).into_diagnostic().wrap_err_with(failed)?;
    }
    give_one(folder, user).into_diagnostic().wrap_err_with(failed)
}

fn give_all(path: &Path, user: &OwnUser) -> std::io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all(&entry?.path(), user)?;
        }
    }
    give_one(path, user)
}

fn give_one(path: &Path, user: &OwnUser) -> std::io::Result<()> {
    lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
}

/// Becomes that user for good, with three capabilities and no way to others. Call it in a process of a single thread.
///
/// # Errors
/// Something is still there that was to be given up, or something is not there that is needed. The process must end.
pub(super) fn become_user(user: &OwnUser) -> miette::Result<()> {
    if fs::read_dir("/proc/self/task").into_diagnostic()?.count() != 1 {
        return Err(miette!("the process has more than one thread, and only one of them would become another user"));
    }
    let keep: CapsHashSet = KEPT.into();
    let had = caps::read(None, CapSet::Permitted).into_diagnostic()?;
    if let Some(lacking) = KEPT.iter().find(|capability| !had.contains(capability)) {
        return Err(miette!(
            help = "give it in CapabilityBoundingSet= of the unit, or in the container's settings",
            "the daemon was started without {lacking}"
        ));
    }
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).into_diagnostic()? {
        for capability in caps::read(None, CapSet::Bounding).into_diagnostic()?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability).into_diagnostic()?;
        }
    }
    let parent = std::os::unix::process::parent_id();
    let dies_with_it = prctl::get_pdeathsig().into_diagnostic()?;
    prctl::set_keepcaps(true).into_diagnostic()?;
    let became = setgroups(&user.groups)
        .and_then(|()| setresgid(user.gid, user.gid, user.gid))
        .and_then(|()| setresuid(user.uid, user.uid, user.uid));
    became.into_diagnostic().wrap_err_with(|| format!("the daemon cannot become user `{}`", user.name))?;
    prctl::set_keepcaps(false).into_diagnostic()?;
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).into_diagnostic()?;
    }
    for set in [CapSet::Permitted, CapSet::Effective] {
        caps::set(None, set, &keep).into_diagnostic().wrap_err("capabilities cannot be given up")?;
    }
    prctl::set_no_new_privs().into_diagnostic()?;
    // The change of the user undid these.
    prctl::set_dumpable(false).into_diagnostic()?;
    if let Some(signal) = dies_with_it {
        prctl::set_pdeathsig(signal).into_diagnostic()?;
        if std::os::unix::process::parent_id() != parent {
            return Err(miette!("whoever started the daemon ended meanwhile"));
        }
    }
    let kept = caps::read(None, CapSet::Permitted).into_diagnostic()?;
    if kept != keep || !Uid::current().eq(&user.uid) || setuid(Uid::from_raw(0)).is_ok() {
        return Err(miette!("something of root's powers is still there after it was given up"));
    }
    Ok(())
}

impl OwnUser {
    /// Whether it is root of the host.
    pub(super) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// What programs that it asks for credentials may need to write.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref().filter(|home| home.parent().is_some() && home.is_dir())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        crate::config::parse(text, "test").unwrap()
    }

    #[test]
    fn a_user_that_is_named_must_be_there() {
        let error = own_user(&settings("[daemon]\nuser = \"no-such-user-here\"")).unwrap_err();
        assert!(error.to_string().contains("no user `no-such-user-here`"), "{error}");
        let nobody = own_user(&settings("[daemon]\nuser = \"nobody\"")).unwrap();
        assert_eq!((nobody.name.as_str(), nobody.uid.as_raw()), ("nobody", 65_534));
        assert!(own_user(&settings("[daemon]\nuser = \"root\"")).unwrap().is_root());
        assert!(own_user(&settings("[daemon]\nuser = \"0\"")).unwrap().is_root());
        let number = own_user(&settings("[daemon]\nuser = \"1879100000\"")).unwrap();
        assert_eq!((number.uid.as_raw(), number.gid.as_raw(), number.groups.len()), (1_879_100_000, 1_879_100_000, 0));
    }

    #[test]
    fn no_session_may_get_the_daemons_user() {
        let text = "[daemon]\nuser = \"59001\"\n[sessions]\nuids = \"59000-59999\"";
        assert!(own_user(&settings(text)).unwrap_err().to_string().contains("sessions may get it"));
    }
}
