//! Finding the cgroup2 tree, and saying where in it a process or a workload lives.
//!
//! On a pure v2 host it is `/sys/fs/cgroup`, on a hybrid one usually `/sys/fs/cgroup/unified`, and in containers
//! anything: so it is looked up in `/proc/self/mountinfo` (see proc_pid_mountinfo(5)).

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Why there is no cgroup2 tree.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum CgroupError {
    /// The list of mounts could not be read.
    #[error("cannot read /proc/self/mountinfo")]
    #[diagnostic(help("mount proc on /proc"))]
    Mounts(#[source] io::Error),
    /// None is mounted.
    #[error("no cgroup2 file system is mounted")]
    #[diagnostic(help("mount one: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`, or set `kernel.cgroup_root`"))]
    Missing,
    /// A process's cgroup could not be told.
    #[error("cannot tell the cgroup of process {pid}")]
    Unknown {
        /// Which process.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The mount point of the cgroup2 tree.
pub fn root() -> Result<PathBuf, CgroupError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
    root_in(&mounts).ok_or(CgroupError::Missing)
}

/// As [`root`], from the text of a mountinfo file. A mount of the whole tree is preferred to one of a part.
pub fn root_in(mountinfo: &str) -> Option<PathBuf> {
    let mut part = None;
    for line in mountinfo.lines() {
        // 36 35 98:0 ROOT MOUNT_POINT options [optional fields] - FS_TYPE source super_options
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if right.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(point);
        }
        part.get_or_insert(point);
    }
    part
}

/// The tree of a controller of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Tree {
    /// What of the tree is mounted: `/`, or the part that a container sees.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
}

/// The tree of this cgroup v1 controller, from the text of a mountinfo file.
pub fn v1_tree(mountinfo: &str, controller: &str) -> Option<V1Tree> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let is_v1 = right.next() == Some("cgroup");
        let has = right.nth(1)?.split(',').any(|option| option == controller);
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (is_v1 && has).then(|| V1Tree { root: unescape(root).into(), point: unescape(point).into() })
    })
}

/// The path of a cgroup v1 controller in a `/proc/PID/cgroup` text.
pub fn in_v1_listing<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The cgroup2 path of a process, as `/a/b`, relative to the root of our cgroup namespace.
pub fn of_process(pid: u32) -> Result<String, CgroupError> {
    let wrong = |source| CgroupError::Unknown { pid, source };
    in_listing(&listing(pid)?)
        .map(str::to_owned)
        .ok_or_else(|| wrong(io::Error::new(io::ErrorKind::InvalidData, "no cgroup2 line in /proc/PID/cgroup")))
}

/// The text of `/proc/PID/cgroup`: every tree's path of a process.
pub fn listing(pid: u32) -> Result<String, CgroupError> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|source| CgroupError::Unknown { pid, source })
}

/// The cgroup2 line of a `/proc/PID/cgroup` text.
pub fn in_listing(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The folder of the cgroup with this kernel id, which is its folder's inode number.
pub fn by_id(root: &Path, id: u64) -> Option<PathBuf> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(metadata) = folder.symlink_metadata() else { continue };
        if !metadata.is_dir() {
            continue;
        }
        if metadata.ino() == id {
            return Some(folder);
        }
        folders.extend(std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    None
}

/// The processes of a cgroup and of all below it. One that cannot be read has none: it is gone.
pub fn processes(folder: &Path) -> Vec<u32> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let listed = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        all.extend(listed.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    all
}

/// Removes a cgroup and those below it. Fails with `EBUSY` where a process lives; what was below and empty is gone then.
pub fn remove(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Whether the absolute cgroup path `path` is `parent` or lies below it. Both start with a slash.
pub fn is_within(path: &str, parent: &str) -> bool {
    let parent = parent.trim_end_matches('/');
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path below the cgroup root may be governed: not the root itself, and nothing that leads out.
pub fn may_be_governed(relative: &str) -> bool {
    !relative.is_empty() && relative.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
pub(crate) fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}
