//! The sockets that governed connections arrive at: made here, or handed over by whoever holds them.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use miette::{IntoDiagnostic, WrapErr, miette};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::{
    config::{Settings, cgroup},
    net::handed,
};

/// Connections that the kernel keeps while we are busy.
const BACKLOG: i32 = 1024;

/// Makes the sockets that the settings ask for.
pub(super) fn make(settings: &Settings) -> miette::Result<Vec<TcpListener>> {
    let mut all = vec![listen(settings.listen.v4.into())?];
    if let Some(v6) = settings.listen.v6 {
        all.push(listen(v6.into())?);
    }
    Ok(all)
}

/// Takes the sockets that were handed to this process; `None` if it was given none.
pub(super) fn take() -> miette::Result<Option<Vec<TcpListener>>> {
    let listeners = handed::take().into_diagnostic().wrap_err("the listening sockets cannot be taken over")?;
    for listener in &listeners {
        let address = listener.local_addr().into_diagnostic()?;
        if !address.ip().is_loopback() {
            return Err(miette!(
                help = "set ListenStream= to loopback addresses, as in deploy/portcullis.socket",
                "the socket that was handed over listens on {address}, where others can reach it"
            ));
        }
    }
    Ok((!listeners.is_empty()).then_some(listeners))
}

/// The cgroup that the sockets belong to: that of whoever made them. Our hook on accepted connections must be there.
pub(super) fn home(listeners: &[TcpListener], root: &Path) -> miette::Result<PathBuf> {
    let mut found: Option<u64> = None;
    for listener in listeners {
        let id = handed::cgroup_id(listener).into_diagnostic().wrap_err("the cgroup of a listening socket")?;
        if found.is_some_and(|other| other != id) {
            return Err(miette!("the listening sockets were made in different cgroups"));
        }
        found = Some(id);
    }
    let id = found.ok_or_else(|| miette!("no listening socket"))?;
    let path = cgroup::by_id(root, id).ok_or_else(|| {
        miette!(
            help = "restart what holds the sockets: portcullis.socket, or the supervisor",
            "the cgroup in which the listening sockets were made is gone"
        )
    })?;
    if path == root {
        return Err(miette!(
            help = "make them in a cgroup of their own: a hook on the root cgroup would see the whole host",
            "the listening sockets were made in the root cgroup"
        ));
    }
    Ok(path)
}

/// Makes one.
pub(super) fn listen(address: SocketAddr) -> miette::Result<TcpListener> {
    let bound = (|| {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(family, SockType::Stream, flags, None)?;
        // A restart must not wait for old connections; another listener's port is still not taken: socket(7).
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        socket::listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(TcpListener::from(socket))
    })();
    bound.map_err(|error: io::Error| {
        let help = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there; stop it, or set `listen` to another port",
            io::ErrorKind::AddrNotAvailable => "on a host without IPv6, set `listen.v6 = \"off\"`",
            _ => "set `listen` to another loopback address and port",
        };
        miette!(help = help, "cannot listen on {address}: {error}")
    })
}
