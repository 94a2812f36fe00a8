//! What a daemon is given and makes for itself while it is root: its cgroup, its sockets, its folders, its helper. What is
//! in the runtime folder stays root's, but for the certificates that clients trust: launchers mount there, and whoever
//! could exchange it could lead them astray.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{IntoDiagnostic, WrapErr};

use super::{
    harden,
    helper::{self, Helper},
    privileges::{self, OwnUser},
};
use crate::{
    bpf::{KernelSettings, Pins},
    config::{Settings, cgroup},
    control::server::Server,
    net::handed::Sockets,
};

/// Where a daemon is, and what it has.
pub(super) struct Place {
    /// Its cgroup, as `/a/b`.
    pub(super) own: String,
    /// Mount of the cgroup2 tree.
    pub(super) root: PathBuf,
    pub(super) sockets: Sockets,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) helper: Arc<Helper>,
    pub(super) control: Server,
    pub(super) pins: Pins,
}

impl Place {
    /// Makes all of it, for a daemon that is to be this user. Needs root, and a process of a single thread.
    pub(super) fn prepare(settings: &Settings, sockets: Sockets, user: &OwnUser) -> miette::Result<Self> {
        let (own, root) = own_cgroup(settings)?;
        let addresses: Vec<SocketAddr> =
            sockets.listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>().into_diagnostic()?;
        let socket = settings.control_socket();
        let setup = helper::Setup::new(settings, &root, Server::bound_at(&socket), addresses.clone());
        // Before there is a secret in this process.
        let helper = Arc::new(Helper::start(&setup)?);

        folder(&settings.runtime_dir, 0o755)?;
        folder(&settings.sockets_dir(), 0o755)?;
        let control = Server::bind(&socket, &settings.control.group, settings.control.max_request)?;
        // Of all that is there, only what clients read and change nothing by.
        let trust = settings.trust_dir();
        privileges::give(&trust, &[&trust], user)?;

        // Locked before it is given away, so that it is no other daemon's.
        let pins = Pins::open(&kernel_settings(settings, &root).pin_dir());
        let pins = pins.into_diagnostic().wrap_err("the kernel side cannot be loaded")?;
        privileges::give(pins.dir(), &[pins.dir()], user)?;
        let (record, sessions) = (settings.record_dir(), settings.sessions_dir());
        privileges::give(&settings.state_dir, &[&record, &sessions], user)?;
        if !record.starts_with(&settings.state_dir) {
            privileges::give(&record, &[&record], user)?;
        }
        if user.is_root() {
            keep_from_others(&settings.state_dir)?;
        }
        Ok(Self { own, root, sockets, addresses, helper, control, pins })
    }

    /// Leaves root behind for good.
    pub(super) fn leave(&self, settings: &Settings, user: &OwnUser) -> miette::Result<()> {
        privileges::become_user(user)?;
        // Its owner may.
        keep_from_others(&settings.state_dir)?;
        let record = settings.record_dir();
        // What a program that it asks for credentials may leave somewhere is its own affair.
        // systemd mounts the host's bpffs for root alone.
        let (pins, trust) = (self.pins.here(), settings.trust_dir());
        let mut writable = vec![settings.state_dir.as_path(), record.as_path(), pins.as_path(), trust.as_path()];
        writable.extend(user.home());
        writable.extend([Path::new("/tmp"), Path::new("/var/tmp")]);
        if let Some(lack) = harden::files(&writable) {
            tracing::warn!("{lack}");
        }
        tracing::info!(user = user.name, "root is left behind");
        Ok(())
    }
}

/// What the kernel side needs to know.
pub(super) fn kernel_settings(settings: &Settings, root: &Path) -> KernelSettings {
    KernelSettings {
        pin_dir: settings.kernel.pin_dir.clone(),
        runtime_dir: settings.runtime_dir.clone(),
        cgroup_root: root.to_owned(),
    }
}

/// The daemon's cgroup, and the mount of the tree. A daemon in the root cgroup moves to one of its own: hooks on the
/// root would see the whole host.
pub(super) fn own_cgroup(settings: &Settings) -> miette::Result<(String, PathBuf)> {
    let root = match &settings.kernel.cgroup_root {
        Some(root) => root.clone(),
        None => cgroup::root()?,
    };
    let own = cgroup::of_process(std::process::id())?;
    if own != "/" {
        return Ok((own, root));
    }
    let path = root.join(&settings.kernel.daemon_cgroup);
    std::fs::create_dir_all(&path)
        .and_then(|()| std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()))
        .into_diagnostic()
        .wrap_err_with(|| format!("the daemon cannot move to its own cgroup {}", path.display()))?;
    Ok((cgroup::of_process(std::process::id())?, root))
}

fn keep_from_others(folder: &Path) -> miette::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot keep {} from others", folder.display()))
}

fn folder(path: &Path, mode: u32) -> miette::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make folder {}", path.display()))
}
