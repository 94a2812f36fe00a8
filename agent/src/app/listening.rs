//! The sockets that governed connections arrive at, and that names are answered from: made here, or handed over by whoever
//! holds them.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use miette::{IntoDiagnostic, WrapErr, miette};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::{
    config::{Settings, cgroup},
    identity,
    net::{
        deaf,
        handed::{self, Sockets},
    },
};

/// Connections that the kernel keeps while we are busy.
const BACKLOG: i32 = 1024;

/// Makes the sockets that the settings ask for.
pub(super) fn make(settings: &Settings) -> miette::Result<Sockets> {
    let mut all = Sockets::default();
    for address in [Some(settings.listen.v4.into()), settings.listen.v6.map(SocketAddr::from)].into_iter().flatten() {
        let listener = listen(address)?;
        let address = listener.local_addr().into_diagnostic()?;
        all.listeners.push(listener);
        match deaf::bind(address) {
            Ok(resolver) => all.resolvers.push(resolver),
            Err(error) => tracing::warn!("names are not answered over UDP: no socket at {address}: {error}"),
        }
    }
    Ok(all)
}

/// Takes the sockets that were handed to this process; `None` if it was given none.
pub(super) fn take() -> miette::Result<Option<Sockets>> {
    let sockets = handed::take().into_diagnostic().wrap_err("the listening sockets cannot be taken over")?;
    let addresses = sockets.listeners.iter().map(TcpListener::local_addr);
    let addresses: Vec<SocketAddr> = addresses.collect::<io::Result<_>>().into_diagnostic()?;
    for address in &addresses {
        if !address.ip().is_loopback() {
            return Err(miette!(
                help = "set ListenStream= to loopback addresses, as in deploy/portcullis.socket",
                "the socket that was handed over listens on {address}, where others can reach it"
            ));
        }
    }
    for resolver in &sockets.resolvers {
        let address = resolver.local_addr().into_diagnostic()?;
        if !addresses.contains(&address) {
            return Err(miette!(
                help = "set ListenDatagram= to the addresses of ListenStream=, as in deploy/portcullis.socket",
                "a UDP socket was handed over for {address}, where there is no TCP socket"
            ));
        }
    }
    Ok((!addresses.is_empty()).then_some(sockets))
}

/// Those of the UDP sockets that were made where the others were: our hook there sees them close. Names are answered over
/// UDP by no others.
pub(super) fn at_home(resolvers: Vec<UdpSocket>, home: &Path) -> Vec<UdpSocket> {
    let Ok(home) = identity::cgroup_id(home) else { return Vec::new() };
    let is_there = |resolver: &UdpSocket| match handed::cgroup_of_resolver(resolver) {
        Ok(id) if id == home => true,
        Ok(_) => {
            tracing::warn!("names are not answered over UDP: its socket was made in another cgroup than the listeners");
            false
        }
        Err(error) => {
            tracing::warn!(
                "names are not answered over UDP: the kernel does not tell where its socket was made: {error}"
            );
            false
        }
    };
    resolvers.into_iter().filter(is_there).collect()
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
