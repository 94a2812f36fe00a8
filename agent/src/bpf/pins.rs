//! The folder of pinned objects: found or mounted, locked, laid out, removed.
//!
//! ```text
//! <dir>/maps_<layout>/<map>      maps, which outlive the daemon
//! <dir>/links/<cgroup id>/<hook> links to governed cgroups, which enforce while no daemon runs
//! <dir>/own/<cgroup id>/<hook>   links to the enforcer's cgroup, which see its sockets close when it dies
//! <dir>/lsm/<hook>               links to the security module, for the whole host
//! ```
//! Where `/sys/fs/bpf` is a bpffs the folder is made there: its mount outlives every mount namespace. Else a bpffs is
//! mounted below the runtime folder. If that is done in a mount namespace of the daemon's own, the pins end with it, and
//! `verify` says so.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    BpfError,
    hooks::{Hook, Side},
    sys,
};

const HOST_BPFFS: &str = "/sys/fs/bpf";

/// The pins of one daemon, locked as long as this lives.
#[derive(Debug)]
pub struct Pins {
    /// Its name.
    dir: PathBuf,
    is_private: bool,
    /// Found once, by root: a host's bpffs lets nobody else look for a name in it.
    folder: File,
    /// `None` until it is the folder's owner who holds this.
    lock: Option<Flock<File>>,
}

impl Pins {
    /// Opens the folder, making it and a bpffs for it where needed, which takes root. Afterwards it must be the folder of
    /// whoever calls [`super::Kernel::open_in`].
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Pins { dir: dir.to_owned(), source };
        builder().create(dir).map_err(failed)?;
        if !is_bpffs(dir).map_err(failed)? {
            nix::mount::mount(
                Some("bpf"),
                dir,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            )
            .map_err(|e| failed(e.into()))?;
        }
        let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir);
        let is_private = is_mount(dir).map_err(failed)? && in_own_mount_namespace();
        let mut pins = Self { dir: dir.to_owned(), is_private, folder: folder.map_err(failed)?, lock: None };
        match pins.lock() {
            // A service's root may not look into the folder of the user that the daemon will be.
            Err(BpfError::Pins { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            locked => locked?,
        }
        Ok(pins)
    }

    fn lock(&mut self) -> Result<(), BpfError> {
        let failed = |source| BpfError::Pins { dir: self.dir.clone(), source };
        let lock = File::open(self.here()).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            Errno::EWOULDBLOCK => BpfError::InUse { dir: self.dir.clone() },
            e => failed(e.into()),
        })?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Makes the folders in it.
    pub(super) fn lay_out(&mut self) -> Result<(), BpfError> {
        if self.lock.is_none() {
            self.lock()?;
        }
        [self.maps(), self.links(Side::Governed), self.links(Side::Own), self.lsm()]
            .iter()
            .try_for_each(|folder| builder().create(folder))
            .map_err(|source| BpfError::Pins { dir: self.dir.clone(), source })
    }

    /// The folder's name.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder by our descriptor: a path for who may not look into the folders above it.
    pub fn here(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }

    /// Where a map of this layout is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Ids of cgroups that have pinned links.
    pub(super) fn cgroups(&self, side: Side) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.links(side))? {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Opens a pinned link, if there is one.
    pub(super) fn link(&self, cgroup: u64, hook: Hook) -> io::Result<Option<OwnedFd>> {
        match sys::open_pinned(&self.link_path(cgroup, hook)) {
            Ok(link) => Ok(Some(link)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Pins a link.
    pub(super) fn keep(&self, cgroup: u64, hook: Hook, link: &OwnedFd) -> io::Result<()> {
        use std::os::fd::AsFd;
        DirBuilder::new().recursive(true).mode(0o700).create(self.links(hook.side).join(cgroup.to_string()))?;
        sys::pin(link.as_fd(), &self.link_path(cgroup, hook))
    }

    /// Names of the pinned links to the security module.
    pub(super) fn lsm_links(&self) -> io::Result<Vec<String>> {
        fs::read_dir(self.lsm())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Opens a pinned link to the security module, if there is one.
    pub(super) fn lsm_link(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match sys::open_pinned(&self.lsm().join(name)) {
            Ok(link) => Ok(Some(link)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Pins a link to the security module in the place of an older one, in one step.
    pub(super) fn keep_lsm(&self, name: &str, link: &OwnedFd) -> io::Result<()> {
        use std::os::fd::AsFd;
        let new = self.lsm().join(format!("{name}_new"));
        // Left over where an earlier daemon died between the two steps.
        remove_file(&new)?;
        sys::pin(link.as_fd(), &new)?;
        fs::rename(&new, self.lsm().join(name))
    }

    /// Removes a pinned link to the security module; with it goes what it enforced.
    pub(super) fn drop_lsm(&self, name: &str) -> io::Result<()> {
        remove_file(&self.lsm().join(name))
    }

    /// Removes the pins of a cgroup's links; those of a living cgroup come off as their descriptors close.
    pub(super) fn drop_cgroup(&self, side: Side, cgroup: u64) -> io::Result<()> {
        remove_tree(&self.links(side).join(cgroup.to_string()))
    }

    /// Removes maps of other layouts, which no program uses any more.
    pub(super) fn drop_other_layouts(&self) -> io::Result<()> {
        let maps = self.maps();
        for entry in fs::read_dir(self.here())? {
            let entry = entry?;
            // A bpffs that was just mounted has files of the kernel's own.
            if entry.path() != maps && entry.file_name().to_string_lossy().starts_with("maps_") {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Whether the pins lie in a mount that ends with this process.
    pub(super) fn is_private(&self) -> bool {
        self.is_private
    }

    fn maps(&self) -> PathBuf {
        self.here().join(format!("maps_{}", portcullis_ebpf::LAYOUT))
    }

    fn lsm(&self) -> PathBuf {
        self.here().join("lsm")
    }

    fn links(&self, side: Side) -> PathBuf {
        self.here().join(match side {
            Side::Governed => "links",
            Side::Own => "own",
        })
    }

    fn link_path(&self, cgroup: u64, hook: Hook) -> PathBuf {
        self.links(hook.side).join(cgroup.to_string()).join(hook.name)
    }
}

fn builder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

/// Where pins go when the settings do not say: the host's bpffs, in a folder named after the runtime folder so that
/// daemons side by side do not meet, else a mount in the runtime folder.
pub(super) fn default_dir(runtime_dir: &Path) -> PathBuf {
    if !is_bpffs(Path::new(HOST_BPFFS)).unwrap_or(false) {
        return runtime_dir.join("bpf");
    }
    // bpffs allows no dots in names.
    let name = runtime_dir.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    Path::new(HOST_BPFFS).join(format!("portcullis{name}"))
}

/// Removes pins, the mount if it was made for them, and the folder. Enforcement of every cgroup pinned here ends.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map(|_| ())?,
    }
    if is_bpffs(dir)? {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_tree(&entry.path())?;
            }
        }
        if is_mount(dir)? {
            nix::mount::umount2(dir, MntFlags::MNT_DETACH)?;
        }
    }
    fs::remove_dir(dir)
}

/// Whether whoever started this program gave it a mount namespace of its own, as service managers do.
fn in_own_mount_namespace() -> bool {
    let of = |pid: u32, what: &str| fs::read_link(format!("/proc/{pid}/{what}")).ok();
    let own = std::process::id();
    let mut starter = std::os::unix::process::parent_id();
    // Our own supervisor is this program, too.
    while starter != 0 && of(starter, "exe") == of(own, "exe") {
        starter = parent(starter);
    }
    // 0: the first process of a container; its namespace is the container's.
    starter != 0 && of(own, "ns/mnt") != of(starter, "ns/mnt")
}

/// The parent of a process; 0 if it has none, or is gone.
fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap_or(0)
}

/// Ids of the cgroups that have pinned links below a folder; none if there is no such folder.
pub(super) fn governed(dir: &Path) -> io::Result<Vec<u64>> {
    match fs::read_dir(dir.join("links")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?
            .map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())))
            .filter_map(Result::transpose)
            .collect(),
    }
}

fn is_bpffs(dir: &Path) -> io::Result<bool> {
    Ok(statfs(dir)?.filesystem_type() == BPF_FS_MAGIC)
}

fn is_mount(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
