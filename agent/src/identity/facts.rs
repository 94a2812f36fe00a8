//! What `/proc` and cgroupfs tell about a process. See proc(5) and cgroups(7).

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::action::ProcessFacts;

/// Facts about a process, as far as they can be read now. The pid may have been reused meanwhile: hints only.
pub fn process_facts(pid: u32) -> ProcessFacts {
    if pid == 0 {
        return ProcessFacts::default();
    }
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let comm = fs::read(proc.join("comm")).unwrap_or_default();
    let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
    let exe = fs::read_link(proc.join("exe")).ok().map(|path| path.to_string_lossy().into_owned());
    // The owner of the folder is the effective uid, or root for a process that cannot be dumped; `status` is exact.
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        .and_then(|id| id.parse().ok());
    match uid {
        Some(uid) => ProcessFacts { pid, uid, comm, exe },
        // Gone already. A uid of 0 beside a known pid would read as root.
        None => ProcessFacts { pid: 0, uid: 0, comm, exe },
    }
}

/// The kernel's id of a cgroup: the inode of its folder, which kernfs makes the 64-bit id on 64-bit hosts (Linux 5.5).
/// It is what `bpf_get_current_cgroup_id` returns.
pub fn cgroup_id(path: &Path) -> io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "a cgroup is a folder"));
    }
    Ok(meta.ino())
}

/// Path of a process's cgroup v2 relative to the root of the hierarchy, from `/proc/PID/cgroup` (`0::/a/b`).
pub fn cgroup_path_of(pid: u32) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 hierarchy"))
}
