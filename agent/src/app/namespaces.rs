//! Listeners in the network namespaces of sessions: a container's loopback is not the host's, so a connection that was
//! redirected there needs a listener of ours there.
//!
//! One is made, on the same addresses as at home, when a session's process is found in a namespace, and closed when none
//! is left in it. Where that fails, and until it is done, the kernel refuses the connections of that namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use miette::{IntoDiagnostic, WrapErr};
use tokio_util::sync::CancellationToken;

use super::listening;
use crate::{
    bpf::Kernel,
    identity::Session,
    net::namespace::{Namespace, NamespaceId},
};

/// Starts to serve a listener, until the token is cancelled.
pub(super) type Serve = dyn Fn(TcpListener, CancellationToken) -> io::Result<()> + Send + Sync;

/// Keeps account of other namespaces.
pub(super) struct Namespaces {
    kernel: Arc<Kernel>,
    addresses: Vec<SocketAddr>,
    home: NamespaceId,
    serve: Box<Serve>,
    stop: CancellationToken,
    others: Mutex<BTreeMap<NamespaceId, Other>>,
}

/// A namespace that is not ours.
enum Other {
    /// Cancelling closes the listeners.
    Served(CancellationToken),
    /// Told in the log, and tried again.
    Failed,
}

impl Namespaces {
    /// `addresses`: where we listen at home. `serve` needs a runtime. Cancelling `stop` closes everything.
    pub(super) fn new(
        kernel: Arc<Kernel>,
        addresses: Vec<SocketAddr>,
        serve: Box<Serve>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let home = Namespace::own()?.id();
        Ok(Self { kernel, addresses, home, serve, stop, others: Mutex::default() })
    }

    /// Listens in the namespace of a process that has just been moved into its session, if it is another one.
    pub(super) fn enter(&self, pid: u32) -> miette::Result<()> {
        let namespace = match Namespace::of(pid) {
            // A daemon with few capabilities may not look at other users' processes. The kernel looks at each connection.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            namespace => namespace.into_diagnostic().wrap_err("the network namespace of the process")?,
        };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        self.listen(&mut others, &namespace)
    }

    /// Listens wherever a session has a process, and nowhere else. May block.
    pub(super) fn tend(&self, sessions: &[Arc<Session>]) {
        // Held while the processes are read: one that entered before is then among them.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = BTreeSet::new();
        for session in sessions {
            let pids = std::fs::read_to_string(session.cgroup_path.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                // Gone, or not ours to look at.
                let Ok(namespace) = Namespace::of(pid) else { continue };
                if !present.insert(namespace.id()) {
                    continue;
                }
                let was_told = matches!(others.get(&namespace.id()), Some(Other::Failed));
                if let Err(error) = self.listen(&mut others, &namespace)
                    && !was_told
                {
                    tracing::error!(session = &*session.id, pid, "connections are refused: {error:?}");
                }
            }
        }
        others.retain(|id, other| {
            let stays = present.contains(id);
            if !stays && let Other::Served(stop) = other {
                stop.cancel();
            }
            stays
        });
    }

    fn listen(&self, others: &mut BTreeMap<NamespaceId, Other>, namespace: &Namespace) -> miette::Result<()> {
        let id = namespace.id();
        if id == self.home || matches!(others.get(&id), Some(Other::Served(_))) {
            return Ok(());
        }
        let opened = self.open(namespace);
        others.insert(id, opened.as_ref().map_or(Other::Failed, |stop| Other::Served(stop.clone())));
        opened.map(|_| tracing::info!(namespace = ?id, "listening in another network namespace"))
    }

    fn open(&self, namespace: &Namespace) -> miette::Result<CancellationToken> {
        let made = namespace.visit(|| self.addresses.iter().map(|address| listening::listen(*address)).collect());
        let made: Vec<miette::Result<TcpListener>> =
            made.into_diagnostic().wrap_err("the network namespace of a session cannot be entered")?;
        let stop = self.stop.child_token();
        let undo = stop.clone().drop_guard();
        for (listener, address) in made.into_iter().zip(&self.addresses) {
            let listener = match listener {
                // Many have no IPv6; the kernel refuses it then.
                Err(_) if address.is_ipv6() => continue,
                listener => listener?,
            };
            self.kernel.add_listener(&listener).into_diagnostic()?;
            (self.serve)(listener, stop.clone()).into_diagnostic()?;
        }
        undo.disarm();
        Ok(stop)
    }
}
