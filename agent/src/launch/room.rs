//! What of the host's files a session sees: a mount namespace of its own.
//!
//! Everything here is done before privileges are given up, by mounts of the host's user namespace: nothing that the
//! session can become later may undo them. So it needs root; whoever calls `run` as somebody else sees the host as it is,
//! which its permissions must then suffice for, and a policy that asks for more refuses them.
//!
//! - The file systems by which hooks and cgroups are changed (bpffs, tracefs, debugfs, cgroup) are not there.
//! - Private temporary folders: each of [`TEMPORARY`] is empty and in memory, and goes with the last process. The working
//!   folder, where it lies in one of them, is put back.
//! - The folder for unix sockets of the session's own: no symbolic link in it is followed, so a path that begins with its
//!   own leads nowhere else. The kernel side lets such paths be reached.
//! - A read-only host: only the working folder and the temporary ones can be written.

mod mounts;
mod names;
#[expect(unsafe_code, reason = "mount_setattr(2) is in neither std nor nix")]
mod sys;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde::{Deserialize, Serialize};

pub(super) use names::settle;

use crate::policy::{Filesystem, Temporary};

/// Folders that anybody may write, and by which sessions would meet.
const TEMPORARY: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// Kinds of file systems that no session needs and that undo what governs it.
const HIDDEN: [&str; 5] = ["bpf", "tracefs", "debugfs", "cgroup", "cgroup2"];
/// Where a hybrid host mounts them, in a file system of another kind.
const TREES: &str = "/sys/fs/cgroup";
/// Written by way of the kernel's own checks, not as files.
const NOT_FILES: [&str; 2] = ["/dev", "/proc"];
/// linux/mount.h [Linux 5.10]
const MS_NOSYMFOLLOW: libc::c_ulong = 1 << 8;

/// What a session is to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Whose temporary folders.
    pub temporary: Temporary,
    /// Whether the host's files can be written.
    pub filesystem: Filesystem,
    /// An empty folder of the daemon's, where the session's own unix sockets go if its temporary folders are private.
    pub sockets: PathBuf,
    /// What stays to be seen where private folders would hide it; read-only.
    pub keep: Vec<PathBuf>,
}

/// Why a session cannot see what it should. Nothing may run then.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// Mounts are root's.
    #[error("the policy asks for files of the session's own, which only root can arrange")]
    NotRoot,
    /// What is to stay writable is everything.
    #[error("the policy keeps the host read-only but for the working folder, and that is `/`")]
    Everything,
    /// The folder for sockets could be exchanged by somebody else.
    #[error("{} can be written by others than root, so the session's sockets cannot be put below it", .0.display())]
    Untrusted(PathBuf),
    /// Still there after it was taken away.
    #[error("{} cannot be hidden: it is still mounted", .0.display())]
    Visible(PathBuf),
    /// The kernel follows symbolic links all the same.
    #[error("symbolic links in {} would be followed", .0.display())]
    Follows(PathBuf),
    /// A step failed.
    #[error("cannot {what} {}", path.display())]
    Step {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RoomError {
    /// What to do about it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NotRoot => Some("run it with sudo and `--user NAME`"),
            Self::Everything => Some("change to the folder that the command is to work in"),
            _ => None,
        }
    }
}

/// Enters a mount namespace of this kind, in the calling process of a single thread. `uid` and `gid` are those that the
/// session will have.
pub(super) fn enter(room: &Room, uid: u32, gid: u32) -> Result<(), RoomError> {
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false);
    if !may {
        return match (room.temporary, room.filesystem) {
            (Temporary::Shared, Filesystem::Host) => Ok(()),
            _ => Err(RoomError::NotRoot),
        };
    }
    let root = Path::new("/");
    let here = std::env::current_dir().map_err(step("find", Path::new(".")))?;
    // Shared memory and queues of System V and POSIX are temporary as well.
    let ipc = if room.temporary == Temporary::Private { CloneFlags::CLONE_NEWIPC } else { CloneFlags::empty() };
    unshare(CloneFlags::CLONE_NEWNS | ipc).map_err(errno("leave the mounts of", root))?;
    // What the host mounts later is seen; what is mounted here is not seen by the host.
    change(root, MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
    hide()?;
    let mut writable = Vec::new();
    if room.temporary == Temporary::Private {
        writable = private(room, &here)?;
        sockets(&room.sockets, uid, gid)?;
        writable.push(room.sockets.clone());
    }
    // By its name: what we stand in may lie below what was mounted since.
    enter_folder(&here)?;
    if room.filesystem == Filesystem::ReadOnly {
        read_only(&here, writable)?;
    }
    Ok(())
}

/// Takes the mounts of [`HIDDEN`] away. In the place of each is nothing, and nothing can be put there.
fn hide() -> Result<(), RoomError> {
    let hidden = || -> Result<Vec<PathBuf>, RoomError> {
        let all = mounts::all().map_err(step("read the mounts of", Path::new("/proc")))?;
        let is_hidden = |mount: &mounts::Mount| HIDDEN.contains(&&*mount.kind) || mount.point == Path::new(TREES);
        Ok(all.into_iter().filter(is_hidden).map(|mount| mount.point).collect())
    };
    // The last one first: it may lie on another. One that lies below another is gone with it.
    let points = hidden()?;
    for point in points.iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    if let Some(point) = hidden()?.pop() {
        return Err(RoomError::Visible(point));
    }
    for point in points.iter().filter(|point| point.is_dir()) {
        tmpfs(point, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "mode=0000")?;
    }
    Ok(())
}

/// Empties the temporary folders, and puts back what must stay. Returns what is new and can be written.
fn private(room: &Room, here: &Path) -> Result<Vec<PathBuf>, RoomError> {
    let mut covered: Vec<PathBuf> = Vec::new();
    for folder in TEMPORARY {
        // Where it is a link to another of them.
        let Ok(real) = fs::canonicalize(folder) else { continue };
        if !covered.contains(&real) {
            covered.push(real);
        }
    }
    let below = |path: &Path| covered.iter().any(|folder| path.starts_with(folder) && path != folder);
    let mut kept = Vec::new();
    let wanted = room.keep.iter().map(|path| (path.as_path(), Kept::ToRead)).chain([(here, Kept::ToWrite)]);
    for (path, how) in wanted {
        let real = fs::canonicalize(path).map_err(step("find", path))?;
        if below(&real) {
            let held = fs::File::open(&real).map_err(step("open", &real))?;
            kept.push((real, held, how));
        }
    }
    for folder in &covered {
        tmpfs(folder, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    }
    let queues = Path::new("/dev/mqueue");
    if mounts::all().map_err(step("read the mounts of", queues))?.iter().any(|mount| mount.point == queues) {
        // That of the new namespace: the old one's queues are not this session's.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("mqueue"), queues, Some("mqueue"), flags, None::<&str>).map_err(errno("mount", queues))?;
    }
    // Outer folders first, so that inner ones land in them.
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, held, how) in &kept {
        use std::os::fd::AsRawFd;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(step("make", path))?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(errno("put back", path))?;
        if *how == Kept::ToRead {
            sys::set_attributes(path, sys::Reach::Below, sys::Access::ReadOnly).map_err(step("protect", path))?;
        }
    }
    Ok(covered)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    ToRead,
    ToWrite,
}

/// Mounts the folder for the session's own unix sockets.
fn sockets(folder: &Path, uid: u32, gid: u32) -> Result<(), RoomError> {
    // Whoever could exchange a folder on the way could lead its paths elsewhere.
    for above in folder.ancestors() {
        let meta = fs::symlink_metadata(above).map_err(step("find", above))?;
        let sticky = meta.mode() & libc::S_ISVTX != 0;
        if !meta.is_dir() || meta.uid() != 0 || (meta.mode() & 0o022 != 0 && !sticky) {
            return Err(RoomError::Untrusted(above.to_owned()));
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let flags = flags | MsFlags::from_bits_retain(MS_NOSYMFOLLOW);
    tmpfs(folder, flags, &format!("mode=0700,uid={uid},gid={gid},size=64m"))?;
    let all = mounts::all().map_err(step("read the mounts of", folder))?;
    if !all.iter().rev().find(|mount| mount.point == folder).is_some_and(|mount| mount.ignores_links) {
        return Err(RoomError::Follows(folder.to_owned()));
    }
    Ok(())
}

/// Makes every mount read-only but the working folder and `writable`.
fn read_only(here: &Path, writable: Vec<PathBuf>) -> Result<(), RoomError> {
    if here == Path::new("/") {
        return Err(RoomError::Everything);
    }
    let mut writable: Vec<&Path> = writable.iter().map(PathBuf::as_path).collect();
    writable.extend(NOT_FILES.map(Path::new));
    // A mount of its own, or the whole that it lies in would be meant. Other mounts below it become read-only.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(here), here, None::<&str>, bind, None::<&str>).map_err(errno("mount", here))?;
    writable.push(here);
    let all = mounts::all().map_err(step("read the mounts of", here))?;
    // What was read-only before stays so.
    writable.retain(|path| all.iter().rev().find(|mount| mount.point == *path).is_some_and(|mount| !mount.read_only));
    sys::set_attributes(Path::new("/"), sys::Reach::Below, sys::Access::ReadOnly)
        .map_err(step("protect", Path::new("/")))?;
    for path in writable {
        sys::set_attributes(path, sys::Reach::Itself, sys::Access::Writable).map_err(step("open", path))?;
    }
    enter_folder(here)
}

fn tmpfs(folder: &Path, flags: MsFlags, options: &str) -> Result<(), RoomError> {
    mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options)).map_err(errno("mount", folder))
}

fn change(point: &Path, flags: MsFlags) -> Result<(), RoomError> {
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).map_err(errno("change the mounts of", point))
}

fn enter_folder(path: &Path) -> Result<(), RoomError> {
    std::env::set_current_dir(path).map_err(step("enter", path))
}

fn step(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RoomError {
    let path = path.to_owned();
    move |source| RoomError::Step { what, path, source }
}

fn errno(what: &'static str, path: &Path) -> impl FnOnce(nix::errno::Errno) -> RoomError {
    let wrong = step(what, path);
    move |error| wrong(error.into())
}
