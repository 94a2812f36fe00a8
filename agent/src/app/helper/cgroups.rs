//! Cgroups by descriptor: what is opened once cannot be exchanged for another by its name.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::proto::Failed;

/// Longest path of a cgroup, in bytes.
const LONGEST: usize = 2048;

/// The cgroup2 tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: File,
    path: PathBuf,
}

/// A cgroup that is open.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: OwnedFd,
    /// Its kernel id.
    pub(super) id: u64,
}

impl Tree {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: File::open(path)?, path: path.to_owned() })
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a cgroup. No symbolic link is followed, no other file system entered, and nothing leads out of the tree.
    pub(super) fn cgroup(&self, relative: &Path) -> Result<Cgroup, Failed> {
        let failed = |error: io::Error| {
            Failed::new(format!("cannot open cgroup {}: {error}", self.path.join(relative).display()))
        };
        if !is_plain(relative) {
            return Err(Failed::new(format!("{} is no path of a cgroup", relative.display())));
        }
        // Name by name: openat2(2) would do it in one, but systemd's RestrictSUIDSGID= refuses it, whose flags no filter
        // sees.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut folder = OwnedFd::from(self.root.try_clone().map_err(failed)?);
        for name in relative {
            folder = openat(&folder, name, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        }
        let found = std::fs::metadata(by_number(&folder)).map_err(failed)?;
        if found.dev() != self.root.metadata().map_err(failed)?.dev() {
            return Err(Failed::new(format!("{} is not in the tree of cgroups", relative.display())));
        }
        let id = found.ino();
        Ok(Cgroup { folder, id })
    }
}

impl Cgroup {
    /// A file of it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        by_number(&self.folder).join(name)
    }

    /// Writes a file of it.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        std::fs::write(self.file(name), text)
    }

    /// Its processes that our pid namespace has. It has none once it is removed.
    pub(super) fn processes(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.file("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != 0).collect()
    }
}

/// A descriptor's own name for what it has open: proc_pid_fd(5).
fn by_number(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// Whether a path only leads down.
pub(super) fn is_plain(relative: &Path) -> bool {
    let bytes = relative.as_os_str().as_encoded_bytes();
    !bytes.is_empty()
        && bytes.len() <= LONGEST
        && !bytes.contains(&0)
        && bytes.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
        && relative.components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_lead_down_are_plain() {
        for plain in ["a", "a.slice/b", "a/..b/c..", "a b"] {
            assert!(is_plain(Path::new(plain)), "{plain}");
        }
        let long = "a/".repeat(LONGEST);
        for other in ["", "/", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../b", "../a", "a/..", "a\0b", &long] {
            assert!(!is_plain(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), tree.join("a/out")).unwrap();
        std::os::unix::fs::symlink("b", tree.join("a/in")).unwrap();
        std::fs::write(tree.join("a/file"), "").unwrap();
        let open = Tree::open(&tree).unwrap();
        assert_eq!(open.cgroup(Path::new("a/b")).unwrap().id, tree.join("a/b").metadata().unwrap().ino());
        for wrong in ["a/out", "a/in", "a/file", "a/missing", "a/b/../../../outside", "/etc"] {
            assert!(open.cgroup(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
