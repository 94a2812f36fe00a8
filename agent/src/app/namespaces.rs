//! Listeners in the network namespaces of sessions: a container's loopback is not the host's, so a connection that was
//! redirected there needs a listener of ours there.
//!
//! One is made, on the same addresses as at home, when a session's process is found in a namespace, and closed when none
//! is left in it: by the privileged helper, who alone may look and enter there. Where that fails, and until it is done, the kernel refuses the connections of that namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use miette::{IntoDiagnostic, WrapErr};
use tokio_util::sync::CancellationToken;

use super::{governor::Governor, resolver::Resolver};
use crate::{bpf::Kernel, identity::Session, net::namespace::NamespaceId};

/// Starts to serve a listener, until the token is cancelled.
pub(super) type Serve = dyn Fn(TcpListener, CancellationToken) -> io::Result<()> + Send + Sync;

/// Keeps account of other namespaces.
pub(super) struct Namespaces {
    kernel: Arc<Kernel>,
    governor: Arc<Governor>,
    serve: Box<Serve>,
    resolver: Arc<Resolver>,
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
    /// `serve` needs a runtime. Cancelling `stop` closes everything.
    pub(super) fn new(
        kernel: Arc<Kernel>,
        governor: Arc<Governor>,
        serve: Box<Serve>,
        resolver: Arc<Resolver>,
        stop: CancellationToken,
    ) -> Self {
        Self { kernel, governor, serve, resolver, stop, others: Mutex::default() }
    }

    /// Listens in the namespace of a process that has just been moved into its session, if it is another one. May block.
    pub(super) fn enter(&self, session: &Session) -> miette::Result<()> {
        let cgroup = self.relative(session)?;
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for namespace in self.governor.helper().elsewhere(cgroup).into_diagnostic()? {
            self.listen(&mut others, cgroup, namespace)?;
        }
        Ok(())
    }

    fn relative<'a>(&self, session: &'a Session) -> miette::Result<&'a Path> {
        session.cgroup_path.strip_prefix(self.governor.root()).into_diagnostic()
    }

    /// Listens wherever a session has a process, and nowhere else. May block.
    pub(super) fn tend(&self, sessions: &[Arc<Session>]) {
        // Held while the processes are read: one that entered before is then among them.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = BTreeSet::new();
        for session in sessions {
            let Ok(cgroup) = self.relative(session) else { continue };
            // A cgroup that is gone has no processes.
            for namespace in self.governor.helper().elsewhere(cgroup).unwrap_or_default() {
                if !present.insert(namespace) {
                    continue;
                }
                let was_told = matches!(others.get(&namespace), Some(Other::Failed));
                if let Err(error) = self.listen(&mut others, cgroup, namespace)
                    && !was_told
                {
                    tracing::error!(session = &*session.id, "connections are refused: {error:?}");
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

    fn listen(&self, others: &mut BTreeMap<NamespaceId, Other>, cgroup: &Path, id: NamespaceId) -> miette::Result<()> {
        if matches!(others.get(&id), Some(Other::Served(_))) {
            return Ok(());
        }
        let opened = self.open(cgroup, id);
        others.insert(id, opened.as_ref().map_or(Other::Failed, |stop| Other::Served(stop.clone())));
        opened.map(|_| tracing::info!(namespace = ?id, "listening in another network namespace"))
    }

    fn open(&self, cgroup: &Path, id: NamespaceId) -> miette::Result<CancellationToken> {
        let made = self.governor.helper().listen(cgroup, id);
        let made = made.into_diagnostic().wrap_err("no listener of the privileged helper's")?;
        let stop = self.stop.child_token();
        let undo = stop.clone().drop_guard();
        for listener in made.listeners {
            self.kernel.add_listener(&listener).into_diagnostic()?;
            (self.serve)(listener, stop.clone()).into_diagnostic()?;
        }
        for socket in made.resolvers {
            self.resolver.serve(socket, stop.clone()).into_diagnostic()?;
        }
        undo.disarm();
        Ok(stop)
    }
}
