//! Other network namespaces: containers, and whatever else has a loopback device of its own.
//!
//! A thread that moves to another namespace must never do anything else after: so each visit has a thread to itself.

use std::{fs::File, io, os::unix::fs::MetadataExt, thread};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

/// A network namespace; it stays as long as this does.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: NamespaceId,
}

/// Which one: device and inode, as namespaces(7) has it. Another may get the same once this one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamespaceId(u64, u64);

impl Namespace {
    /// That of the calling thread.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// That of a process.
    ///
    /// # Errors
    /// The process is gone, or is not ours to look at: ptrace(2), `PTRACE_MODE_READ`.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self { file, id: NamespaceId(metadata.dev(), metadata.ino()) })
    }

    /// Which one it is.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Does something in it, and waits for that.
    ///
    /// # Errors
    /// It may not be entered: that takes `CAP_SYS_ADMIN`.
    pub fn visit<T: Send>(&self, what: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let visit = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(what())
            })?;
            visit.join().unwrap_or_else(|_| Err(io::Error::other("the visit broke off")))
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_child_are_in_one_namespace() {
        let own = Namespace::own().unwrap();
        assert_eq!(own.id(), Namespace::of(std::process::id()).unwrap().id());
        assert_eq!(Namespace::of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
