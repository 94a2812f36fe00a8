//! `portcullis uninstall`: takes away what enforces on while no daemon runs.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::{CliError, Exit, Place};
use crate::{
    bpf::{self, KernelSettings},
    config::cgroup,
};

const LEAVE: &str = "end them, or leave them every road with `--leave-ungoverned`";

/// Whether processes that are governed now may be left without anything that governs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ungoverned {
    /// No: they must end first.
    Refused,
    /// The operator says so.
    Accepted,
}

/// Removes the governed cgroups, then the pinned links, programs and maps. The daemon must have stopped.
pub(super) fn uninstall(place: &Place, ungoverned: Ungoverned, out: &mut dyn Write) -> Result<Exit, CliError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::Plain(Exit::Failed, "only root can remove pinned programs".into(), None));
    }
    let settings = place.settings()?;
    let plain = |message: String, help: &str| CliError::Plain(Exit::Failed, message, Some(help.into()));
    if std::os::unix::net::UnixStream::connect(settings.control_socket()).is_ok() {
        return Err(plain("the daemon runs".into(), "stop it: `systemctl disable --now portcullis.socket portcullis`"));
    }
    // Not known where there are no cgroups, as while a system is put together: then nothing is pinned, either.
    let root = settings.kernel.cgroup_root.clone().map_or_else(cgroup::root, Ok);
    let kernel = KernelSettings {
        pin_dir: settings.kernel.pin_dir.clone(),
        runtime_dir: settings.runtime_dir.clone(),
        cgroup_root: root.as_deref().unwrap_or(Path::new("/sys/fs/cgroup")).into(),
    };
    let failed = |error: std::io::Error| {
        plain(format!("{}: {error}", kernel.pin_dir().display()), "the folder of the pins could not be read or removed")
    };
    let pinned = bpf::pinned_cgroups(&kernel).map_err(failed)?;
    let governed: Vec<PathBuf> = if pinned.is_empty() {
        Vec::new()
    } else {
        let root = root.map_err(|error| plain(error.to_string(), "set `kernel.cgroup_root`"))?;
        pinned.into_iter().filter_map(|id| cgroup::by_id(&root, id)).collect()
    };
    for folder in &governed {
        let processes = cgroup::processes(folder);
        if !processes.is_empty() && ungoverned == Ungoverned::Refused {
            return Err(plain(format!("{} governed processes run in {}", processes.len(), folder.display()), LEAVE));
        }
        // A cgroup that is gone holds nobody: what came in since was counted would keep it.
        if let Err(error) = cgroup::remove(folder)
            && ungoverned == Ungoverned::Refused
        {
            return Err(plain(format!("{} is in use: {error}", folder.display()), LEAVE));
        }
    }
    bpf::remove_pins(&kernel).map_err(failed)?;
    for folder in &governed {
        writeln!(out, "no longer governed: {}", folder.display())?;
    }
    writeln!(out, "removed: {}", kernel.pin_dir().display())?;
    Ok(Exit::Ok)
}
