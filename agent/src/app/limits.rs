//! What a session may use of the host, held by the kernel's cgroup controllers.
//!
//! A controller is in the cgroup2 tree, or on a hybrid host in a tree of its own (v1); there, the session gets a cgroup
//! of the same path. Limits of processes (setrlimit(2)) take no one's place: they count by process or by user, and not by
//! session. So where a controller is missing, a session that is to be limited by it is refused.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{config::cgroup, policy::LimitSpec};

/// Of which the kernel takes the processor time, in microseconds (`cpu.max` in cgroup-v2.rst).
const PERIOD: u64 = 100_000;
/// A folder that another session's end took away is made again so many times.
const TRIES: usize = 8;

/// A session cannot be limited as its policy says.
#[derive(Debug, thiserror::Error)]
pub(super) enum LimitError {
    /// Nothing on this host limits it.
    #[error("the policy limits `{0}`, and this host has no cgroup controller of that name")]
    Missing(&'static str),
    /// Whoever was asked to limit it did not.
    #[error("the session is not limited as its policy says: {} is {found}", path.display())]
    Loose {
        /// The file of the limit.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The list of mounts could not be read.
    #[error("cannot read the list of mounts: {0}")]
    Mounts(#[source] io::Error),
    /// A file or folder of a cgroup.
    #[error("cannot {what} {}: {source}", path.display())]
    Cgroup {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LimitError {
    /// What to do about it.
    pub(super) fn help(&self) -> &'static str {
        match self {
            Self::Missing("memory") => "boot with `cgroup_enable=memory`, or take `memory` out of the policy's limits",
            Self::Missing(_) => "mount that controller, or take the limit out of the policy",
            Self::Loose { .. } => {
                "`systemctl status` of the session's slice tells which controllers systemd could not turn on"
            }
            Self::Mounts(_) => "mount proc on /proc",
            Self::Cgroup { .. } => "the workload's cgroup and those above it must hold no processes of their own",
        }
    }
}

/// Cgroups of a session in trees other than the cgroup2 one: by controller, its path in that tree as processes see it
/// and its folder.
pub(super) type Others = BTreeMap<String, Other>;

/// See [`Others`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Other {
    /// As `/proc/PID/cgroup` shows it.
    pub(super) path: String,
    /// Its folder.
    pub(super) folder: PathBuf,
}

/// Limits the session whose cgroup is `relative` to `root`, the mount of the cgroup2 tree. Nobody is in there yet; the
/// launcher is to be moved into the others as well.
pub(super) fn put(root: &Path, relative: &Path, limits: &LimitSpec) -> Result<Others, LimitError> {
    let mut others = Others::new();
    let mut mounts = None;
    for controller in wanted(limits) {
        if enable(root, relative, controller)? {
            write_all(&root.join(relative), &v2(controller, limits))?;
            continue;
        }
        let mounts = match &mounts {
            Some(mounts) => mounts,
            None => mounts.insert(fs::read_to_string("/proc/self/mountinfo").map_err(LimitError::Mounts)?),
        };
        let tree = cgroup::v1_tree(mounts, controller).ok_or(LimitError::Missing(controller))?;
        let folder = tree.point.join(relative);
        make(&folder)?;
        let path = tree.root.join(relative).display().to_string();
        others.insert(controller.to_owned(), Other { path, folder: folder.clone() });
        if let Err(error) = write_all(&folder, &v1(controller, limits)) {
            remove(relative);
            return Err(error);
        }
    }
    Ok(others)
}

/// Looks whether the kernel holds whoever is in `folder`, of the cgroup2 tree, to these limits, which another set there.
pub(super) fn check(folder: &Path, limits: &LimitSpec) -> Result<(), LimitError> {
    for controller in wanted(limits) {
        for (name, most, presence) in v2(controller, limits) {
            let path = folder.join(name);
            let found = match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && presence == Presence::WithSwap => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LimitError::Missing(controller)),
                found => found.map_err(|source| LimitError::Cgroup { what: "read", path: path.clone(), source })?,
            };
            // `max` is no number. The kernel rounds memory down to whole pages.
            let within = |found: &str, most: &str| Some(share(found)? <= share(most)?);
            if within(&found, &most) != Some(true) {
                return Err(LimitError::Loose { path, found: found.trim_end().into() });
            }
        }
    }
    Ok(())
}

/// A number, or of two the first for each [`PERIOD`] of the second.
fn share(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        None => Some(number),
        Some(period) => number.checked_mul(PERIOD)?.checked_div(period.parse().ok()?),
    }
}

/// Moves a process into all of them.
pub(super) fn enter(others: &Others, pid: u32) -> Result<(), LimitError> {
    for Other { folder, .. } in others.values() {
        let path = folder.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(|source| LimitError::Cgroup { what: "write", path, source })?;
    }
    Ok(())
}

/// Removes what [`put`] made outside the cgroup2 tree. `false`: somebody is in there still.
pub(super) fn remove(relative: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    let mut gone = true;
    for tree in CONTROLLERS.iter().filter_map(|controller| cgroup::v1_tree(&mounts, controller)) {
        let mut folder = tree.point.join(relative);
        match fs::remove_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => {
                gone = false;
                continue;
            }
        }
        // Those above it were made for it. The first that is still of use ends this.
        while folder.pop() && folder != tree.point && fs::remove_dir(&folder).is_ok() {}
    }
    gone
}

/// What is left of sessions that are gone: the names in `parent`, relative to each tree.
pub(super) fn left_in(parent: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let trees = CONTROLLERS.iter().filter_map(|controller| cgroup::v1_tree(&mounts, controller));
    let folders = trees.flat_map(|tree| fs::read_dir(tree.point.join(parent)).into_iter().flatten().flatten());
    folders
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| parent.join(entry.file_name()))
        .collect()
}

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

fn wanted(limits: &LimitSpec) -> impl Iterator<Item = &'static str> {
    let there = [limits.memory.is_some(), limits.pids.is_some(), limits.cpu.is_some()];
    CONTROLLERS.into_iter().zip(there).filter_map(|(controller, there)| there.then_some(controller))
}

/// Turns a controller on from the root down to the session's cgroup. `false`: the cgroup2 tree does not have it.
fn enable(root: &Path, relative: &Path, controller: &str) -> Result<bool, LimitError> {
    let lists = |path: &Path| -> Result<bool, LimitError> {
        let text = fs::read_to_string(path).map_err(|source| LimitError::Cgroup {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
        Ok(text.split_whitespace().any(|name| name == controller))
    };
    if !lists(&root.join("cgroup.controllers"))? {
        return Ok(false);
    }
    let mut folder = root.to_owned();
    for name in relative {
        let path = folder.join("cgroup.subtree_control");
        if !lists(&path)? {
            write(&path, &format!("+{controller}"))?;
        }
        folder.push(name);
    }
    Ok(true)
}

/// A file of a controller, its content, and whether every kernel that has the controller has the file.
type File = (&'static str, String, Presence);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Always,
    /// Swap is accounted for only where the kernel was built and booted so.
    WithSwap,
}

/// Memory is what a session may have, in RAM or in swap: else it would be slow instead of stopped.
fn v2(controller: &str, limits: &LimitSpec) -> Vec<File> {
    use Presence::{Always, WithSwap};
    match controller {
        "memory" => limits
            .memory
            .map(|bytes| vec![("memory.max", bytes.to_string(), Always), ("memory.swap.max", "0".into(), WithSwap)]),
        "pids" => limits.pids.map(|pids| vec![("pids.max", pids.to_string(), Always)]),
        _ => limits.cpu.map(|cpu| vec![("cpu.max", format!("{} {PERIOD}", quota(cpu)), Always)]),
    }
    .unwrap_or_default()
}

fn v1(controller: &str, limits: &LimitSpec) -> Vec<File> {
    use Presence::{Always, WithSwap};
    match controller {
        "memory" => limits.memory.map(|bytes| {
            let bytes = bytes.to_string();
            // The second counts both and cannot be below the first.
            vec![
                ("memory.limit_in_bytes", bytes.clone(), Always),
                ("memory.memsw.limit_in_bytes", bytes, WithSwap),
                ("memory.swappiness", "0".into(), WithSwap),
            ]
        }),
        "pids" => limits.pids.map(|pids| vec![("pids.max", pids.to_string(), Always)]),
        _ => limits.cpu.map(|cpu| {
            let quota = quota(cpu).to_string();
            vec![("cpu.cfs_period_us", PERIOD.to_string(), Always), ("cpu.cfs_quota_us", quota, Always)]
        }),
    }
    .unwrap_or_default()
}

/// Hundredths of a processor as microseconds of each period.
fn quota(hundredths: u32) -> u64 {
    u64::from(hundredths) * (PERIOD / 100)
}

fn write_all(folder: &Path, files: &[File]) -> Result<(), LimitError> {
    for (name, content, presence) in files {
        let path = folder.join(name);
        if *presence == Presence::Always || path.exists() {
            write(&path, content)?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<(), LimitError> {
    fs::write(path, content).map_err(|source| LimitError::Cgroup { what: "write", path: path.to_owned(), source })
}

/// Makes a folder that is not there yet, and those above it.
fn make(folder: &Path) -> Result<(), LimitError> {
    let wrong = |source| LimitError::Cgroup { what: "make", path: folder.to_owned(), source };
    let parent = folder.parent().unwrap_or(folder);
    for _ in 0..TRIES {
        fs::create_dir_all(parent).map_err(wrong)?;
        match fs::create_dir(folder) {
            // The end of another session took the parent away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done.map_err(wrong),
        }
    }
    Err(wrong(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_policy_says() {
        let limits = LimitSpec { memory: Some(64 << 20), pids: Some(7), cpu: Some(150), wall: None };
        let texts = |files: Vec<File>| files.into_iter().map(|(name, text, _)| format!("{name}={text}")).collect();
        let all = |version: fn(&str, &LimitSpec) -> Vec<File>| -> Vec<Vec<String>> {
            wanted(&limits).map(|controller| texts(version(controller, &limits))).collect()
        };
        assert_eq!(
            all(v2),
            [
                vec!["memory.max=67108864".to_owned(), "memory.swap.max=0".into()],
                vec!["pids.max=7".into()],
                vec!["cpu.max=150000 100000".into()]
            ]
        );
        assert_eq!(
            all(v1)[2],
            ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=150000"],
            "the period first: a quota is checked against it"
        );
        assert_eq!(wanted(&LimitSpec::default()).count(), 0);
    }

    #[test]
    fn a_limit_that_another_did_not_set_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = LimitSpec { memory: Some(64 << 20), pids: Some(7), cpu: Some(150), wall: None };
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        let files = [("memory.max", "67108864\n"), ("pids.max", "7\n"), ("cpu.max", "300000 200000\n")];
        assert!(matches!(check(folder.path(), &limits), Err(LimitError::Missing("memory"))));
        for (name, text) in files {
            put(name, text);
        }
        assert!(check(folder.path(), &limits).is_ok());
        for (name, loose) in [
            ("memory.max", "max\n"),
            ("memory.max", "67108865\n"),
            ("memory.swap.max", "max\n"),
            ("pids.max", "8\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.max", "150001 100000\n"),
            ("cpu.max", "1 0\n"),
        ] {
            put(name, loose);
            let found = check(folder.path(), &limits);
            assert!(
                matches!(&found, Err(LimitError::Loose { path, .. }) if path.ends_with(name)),
                "{loose}: {found:?}"
            );
            match files.iter().find(|(file, _)| *file == name) {
                Some((_, text)) => put(name, text),
                None => put(name, "0\n"),
            }
        }
        assert!(check(folder.path(), &LimitSpec::default()).is_ok());
    }
}
