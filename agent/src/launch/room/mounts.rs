//! The mounts that this process sees: proc_pid_mountinfo(5).

use std::{io, path::PathBuf};

use crate::config::cgroup::unescape;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is.
    pub(super) point: PathBuf,
    /// Kind of file system.
    pub(super) kind: String,
    /// Whether nothing can be written by way of it.
    pub(super) read_only: bool,
    /// Whether no symbolic link in it is followed.
    pub(super) ignores_links: bool,
}

/// All, in the order in which they were mounted.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    text.lines()
        .map(|line| parse(line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a mount cannot be read")))
        .collect()
}

fn parse(line: &str) -> Option<Mount> {
    // 36 35 98:0 ROOT MOUNT_POINT options [optional fields] - FS_TYPE source super_options
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    Some(Mount {
        point: unescape(point).into(),
        kind: right.split(' ').next()?.to_owned(),
        read_only: has("ro"),
        ignores_links: has("nosymfollow"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let mount = |point: &str, kind: &str, read_only| {
            Some(Mount { point: point.into(), kind: kind.into(), read_only, ignores_links: !read_only })
        };
        let line = "30 23 0:26 / /sys/fs/bpf rw,nosuid,nosymfollow shared:7 - bpf bpf rw,mode=700";
        assert_eq!(parse(line), mount("/sys/fs/bpf", "bpf", false));
        let line = "31 30 8:1 /sub /a\\040b ro,nodev - ext4 /dev/sda1 rw";
        assert_eq!(parse(line), mount("/a b", "ext4", true));
        assert_eq!(parse("31 30 8:1 /sub"), None);
        assert!(all().is_ok_and(|all| all.iter().any(|mount| mount.kind == "proc")));
    }
}
