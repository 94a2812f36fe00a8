//! The helper's own side: one request after the other, until the daemon is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{IntoDiagnostic, WrapErr, miette};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::SigSet,
        socket::{SockType, UnixAddr, getpeername, getsockname, getsockopt, sockopt},
        stat::{Mode, umask},
    },
};

use super::{
    super::{daemon, governor, limits, listening, policies},
    bus::Bus,
    cgroups::{Cgroup, Tree, is_plain},
    channel::Channel,
    confine,
    proto::{Answer, Failed, Made, Request, Setup},
    scope::{self, Manager},
};
use crate::{
    config::cgroup,
    control::peer::Peer,
    identity,
    net::{
        deaf,
        handed::Sockets,
        namespace::{Namespace, NamespaceId},
    },
    policy::{CredentialRef, CredentialSource, Policy, PolicySet},
    secrets,
};

const FREEZE: &str = "cgroup.freeze";
/// Most network namespaces of one session.
const MOST_NAMESPACES: usize = 256;

/// Serves whoever holds the other end of standard input, which must be a socket of the kind that [`super::Helper::start`]
/// makes. Returns when that is closed.
///
/// # Errors
/// What came is not of the daemon's making. Nothing after it is done.
pub(in crate::app) fn serve() -> miette::Result<()> {
    // Of whoever started it, which may have left some open.
    crate::launch::confine::close_what_was_inherited().into_diagnostic()?;
    // Meant for the daemon, which finishes what it does first: it then closes its end.
    SigSet::all().thread_block().into_diagnostic()?;
    // The daemon looks into cgroups made here, whatever the service's mask keeps from others.
    umask(Mode::from_bits_truncate(0o022));
    let socket = io::stdin().as_fd().try_clone_to_owned().into_diagnostic()?;
    if getsockopt(&socket, sockopt::SockType).ok() != Some(SockType::SeqPacket) {
        return Err(miette!(help = "`portcullis daemon` starts it", "standard input is no socket of a daemon"));
    }
    let channel = Channel::new(socket);
    let Some((setup, _)) = channel.receive::<Setup>().into_diagnostic()? else { return Ok(()) };
    daemon::logging(&setup.filter, setup.format)?;
    let mut helper = Serving::new(setup).into_diagnostic().wrap_err("the cgroup2 tree cannot be opened")?;
    confine::confine()?;
    channel.send(&Answer::Ready { manager: helper.manager() }, &[]).into_diagnostic()?;
    loop {
        let (request, brought) = match channel.receive::<Request>() {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            // The daemon was killed with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => {
                tracing::error!(%error, "the daemon asks for what no daemon asks for: nothing more is done for it");
                return Err(error).into_diagnostic();
            }
        };
        let (answer, with) = match helper.answer(request, &brought) {
            Ok(answered) => answered,
            Err(failed) => {
                tracing::warn!("not done for the daemon: {failed}");
                (Answer::Failed(failed), Vec::new())
            }
        };
        let with: Vec<BorrowedFd<'_>> = with.iter().map(AsFd::as_fd).collect();
        match channel.send(&answer, &with) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            sent => sent.into_diagnostic()?,
        }
    }
}

/// What it knows.
struct Serving {
    setup: Setup,
    tree: Tree,
    /// To systemd, where sessions can be scopes of it.
    bus: Option<Bus>,
    home: NamespaceId,
    policies: Option<PolicySet>,
    /// Cgroups below which sessions are, relative to the root. None is ever taken away.
    governed: BTreeSet<PathBuf>,
    /// By session.
    made: BTreeMap<String, (Made, Launcher)>,
}

/// Whether a session's launcher was moved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launcher {
    Awaited,
    /// Or it was tried.
    In,
}

type Answered = Result<(Answer, Vec<OwnedFd>), Failed>;

impl Serving {
    fn new(setup: Setup) -> io::Result<Self> {
        let (tree, home) = (Tree::open(&setup.cgroup_root)?, Namespace::own()?.id());
        let (governed, made) = (BTreeSet::new(), BTreeMap::new());
        let bus = scope::systemd(&setup.cgroup_root);
        Ok(Self { setup, tree, bus, home, policies: None, governed, made })
    }

    fn manager(&self) -> Manager {
        if self.bus.is_some() { Manager::Systemd } else { Manager::Nobody }
    }

    fn answer(&mut self, request: Request, brought: &[OwnedFd]) -> Answered {
        let wanted = usize::from(matches!(request, Request::Enter { .. } | Request::MakeScope { .. }));
        if brought.len() != wanted {
            return Err(Failed::new(format!("{} descriptors came, not {wanted}", brought.len())));
        }
        let mut with = Vec::new();
        let answer = match request {
            Request::Govern {} => self.govern()?,
            Request::Make { workload, session } => self.make(&workload, &session)?,
            Request::MakeScope { workload, session } => self.make_scope(&workload, &session, &brought[0])?,
            Request::Enter { session } => self.enter(&session, &brought[0])?,
            Request::Remove { cgroup } => self.remove(&cgroup)?,
            Request::Kill { cgroup, id } => self.tell(&cgroup, id, "cgroup.kill")?,
            Request::Freeze { cgroup, id } => self.tell(&cgroup, id, FREEZE)?,
            Request::Elsewhere { cgroup } => {
                let namespaces = self.elsewhere(&self.open(&cgroup)?).into_iter().map(|found| found.id()).collect();
                Answer::Elsewhere { namespaces }
            }
            Request::Listen { cgroup, namespace } => {
                with = self.listen(&cgroup, namespace)?.into_descriptors();
                Answer::Listening {}
            }
            Request::Credential { path } => {
                with = vec![self.credential(&path)?.into()];
                Answer::Opened {}
            }
            Request::Executable { pid } => Answer::Executable { path: self.executable(pid) },
        };
        Ok((answer, with))
    }

    /// Whether a cgroup lies below a governed one.
    fn is_below(&self, relative: &Path) -> bool {
        is_plain(relative) && self.governed.iter().any(|parent| parent != relative && relative.starts_with(parent))
    }

    /// Opens a cgroup below a governed one.
    fn open(&self, relative: &Path) -> Result<Cgroup, Failed> {
        if !self.is_below(relative) {
            return Err(Failed::new(format!("{} is not below a governed cgroup", relative.display())));
        }
        self.tree.cgroup(relative)
    }

    fn govern(&mut self) -> Result<Answer, Failed> {
        let policies = policies::load(&self.setup.policy_dir).map_err(Failed::new)?;
        let parents = governor::stable_parents(&policies).map_err(|error| Failed::new(error.to_string()))?;
        for parent in &parents {
            let path = self.tree.path().join(parent);
            std::fs::create_dir_all(&path)
                .map_err(|error| Failed::new(format!("cannot make cgroup {}: {error}", path.display())))?;
            self.tree.cgroup(parent)?;
        }
        self.governed.extend(parents.iter().cloned());
        self.policies = Some(policies);
        Ok(Answer::Governed { cgroups: parents.into_iter().collect() })
    }

    /// The policy of a session that is to be made.
    fn policy(&self, workload: &str, session: &str) -> Result<&Arc<Policy>, Failed> {
        if !identity::is_session_id(session) || self.made.contains_key(session) {
            return Err(Failed::new("this is no name of a new session"));
        }
        if self.made.len() >= self.setup.sessions {
            return Err(Failed::new("as many cgroups of sessions are there as may be (`limits.sessions`)"));
        }
        let policy = self.policies.as_ref().and_then(|policies| policies.by_workload(workload));
        let policy = policy.filter(|policy| !policy.workload().claim);
        policy.ok_or_else(|| Failed::new(format!("no policy lets sessions of `{workload}` be made")))
    }

    fn make_scope(&mut self, workload: &str, session: &str, connection: &OwnedFd) -> Result<Answer, Failed> {
        let policy = self.policy(workload, session)?;
        let scope =
            self.manager().scope(policy.cgroup_parent(), session).filter(|scope| self.is_below(&scope.relative));
        let scope = scope.ok_or_else(|| Failed::new(format!("sessions of `{workload}` are not made as scopes")))?;
        let limits = policy.workload().limits.clone();
        let peer = self.launcher(connection)?;
        let description = format!("Portcullis session {session} of {workload}");
        let bus = self.bus.as_mut().ok_or_else(|| Failed::new("there is no bus"))?;
        let started = scope.start(bus, &description, peer.pid, &limits);
        started.map_err(|error| Failed::new(error.to_string()).help(error.help()))?;
        let id = self.tree.cgroup(&scope.relative)?.id;
        let limited = limits::check(&self.tree.path().join(&scope.relative), &limits);
        limited.map_err(|error| Failed::new(error.to_string()).help(error.help()))?;
        // Still the same process: so it was it that was moved.
        peer.check_alive().map_err(|error| Failed::new(error.to_string()))?;
        let made = Made { cgroup: scope.relative, id, others: limits::Others::new() };
        self.made.insert(session.to_owned(), (made.clone(), Launcher::In));
        Ok(Answer::Made(made))
    }

    fn make(&mut self, workload: &str, session: &str) -> Result<Answer, Failed> {
        let policy = self.policy(workload, session)?;
        let limits = policy.workload().limits.clone();
        let relative = Path::new(policy.cgroup_parent()).join(session);
        if !self.is_below(&relative) {
            return Err(Failed::new(format!("{} is not below a governed cgroup", relative.display())));
        }
        let path = self.tree.path().join(&relative);
        std::fs::create_dir(&path)
            .map_err(|error| Failed::new(format!("cannot make cgroup {}: {error}", path.display())))?;
        let limited = self.tree.cgroup(&relative).and_then(|cgroup| {
            let others = limits::put(self.tree.path(), &relative, &limits);
            let others = others.map_err(|error| Failed::new(error.to_string()).help(error.help()))?;
            Ok(Made { cgroup: relative.clone(), id: cgroup.id, others })
        });
        match limited {
            Ok(made) => {
                self.made.insert(session.to_owned(), (made.clone(), Launcher::Awaited));
                Ok(Answer::Made(made))
            }
            Err(failed) => {
                let _ = std::fs::remove_dir(&path);
                Err(failed)
            }
        }
    }

    fn enter(&mut self, session: &str, connection: &OwnedFd) -> Result<Answer, Failed> {
        let peer = self.launcher(connection)?;
        let Some((made, launcher)) = self.made.get_mut(session) else {
            return Err(Failed::new("no cgroup was made for this session"));
        };
        if *launcher == Launcher::In {
            return Err(Failed::new("a launcher was moved into this session before"));
        }
        // Whatever becomes of it: there is no second.
        *launcher = Launcher::In;
        let made = made.clone();
        let cgroup = self.open(&made.cgroup)?;
        if cgroup.id != made.id {
            return Err(Failed::new("another cgroup is in the place of the session's"));
        }
        limits::enter(&made.others, peer.pid).map_err(|error| Failed::new(error.to_string()).help(error.help()))?;
        cgroup.write("cgroup.procs", &peer.pid.to_string()).map_err(|error| {
            let path = self.tree.path().join(&made.cgroup);
            Failed::new(format!("cannot move process {} into {}: {error}", peer.pid, path.display()))
                .help("is the `portcullis run` process in a container of its own, or in a threaded cgroup?")
        })?;
        // Still the same process: so it was it that was moved.
        peer.check_alive().map_err(|error| Failed::new(error.to_string()))?;
        Ok(Answer::Done {})
    }

    /// The process that connected to the control socket: it asked to be moved, and no other was named by anybody.
    fn launcher(&self, connection: &OwnedFd) -> Result<Peer, Failed> {
        let not = |what: &str| Failed::new(format!("this is no connection of a launcher: {what}"));
        if getsockopt(connection, sockopt::SockType).ok() != Some(SockType::Stream) {
            return Err(not("it is no stream socket"));
        }
        // Who accepts shows the listener's name; who connects has none, unless it took one.
        let name = |found: nix::Result<UnixAddr>| found.map_err(|error| not(error.desc()));
        let (own, other) = (name(getsockname(connection.as_raw_fd()))?, name(getpeername(connection.as_raw_fd()))?);
        if own.path() != Some(self.setup.control.as_path()) {
            return Err(not("it does not come from the control socket"));
        }
        if !other.is_unnamed() {
            return Err(not("its other end has a name"));
        }
        let mut ends = [PollFd::new(connection.as_fd(), PollFlags::empty())];
        if poll(&mut ends, PollTimeout::ZERO) != Ok(0) {
            return Err(not("its other end is closed"));
        }
        let peer = Peer::of(connection).map_err(|error| not(&error.to_string()))?;
        if peer.pid == 1 || peer.pid == std::process::id() || peer.pid == std::os::unix::process::parent_id() {
            return Err(not("its other end is not a launcher's"));
        }
        let cgroup = cgroup::of_process(peer.pid).map_err(|error| not(&error.to_string()))?;
        let relative = Path::new(cgroup.trim_start_matches('/'));
        if self.governed.iter().any(|parent| relative.starts_with(parent)) {
            return Err(not("the process is governed already"));
        }
        peer.check_alive().map_err(|error| not(&error.to_string()))?;
        Ok(peer)
    }

    fn remove(&mut self, relative: &Path) -> Result<Answer, Failed> {
        if let Some(session) = scope::session_of(relative).filter(|_| self.is_below(relative)) {
            let gone = !self.tree.path().join(relative).exists();
            if gone {
                self.made.remove(session);
            }
            return Ok(Answer::Removed { gone });
        }
        let name = relative.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !identity::is_session_id(name) || !self.is_below(relative) {
            return Err(Failed::new(format!("{} is no cgroup of a session", relative.display())));
        }
        let others = limits::remove(relative);
        let removed = std::fs::remove_dir(self.tree.path().join(relative));
        let gone = others && removed.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true);
        if gone {
            self.made.remove(name);
        }
        Ok(Answer::Removed { gone })
    }

    fn tell(&mut self, relative: &Path, id: u64, file: &str) -> Result<Answer, Failed> {
        let cgroup = self.open(relative)?;
        if cgroup.id != id {
            return Err(Failed::new(format!("{} is another cgroup by now", relative.display())));
        }
        cgroup.write(file, "1").map_err(|error| Failed::new(format!("{file} of {}: {error}", relative.display())))?;
        if file == FREEZE
            && let Some(bus) = &mut self.bus
            && let Some(session) = scope::session_of(relative)
            && let Err(error) = scope::tell_frozen(bus, session)
        {
            tracing::warn!(session, %error, "systemd does not know that the scope of a session is frozen");
        }
        Ok(Answer::Done {})
    }

    fn elsewhere(&self, cgroup: &Cgroup) -> Vec<Namespace> {
        let mut found: BTreeMap<NamespaceId, Namespace> = BTreeMap::new();
        for pid in cgroup.processes() {
            // Gone, or, with the capabilities of a service, not ours to look at: the kernel looks at each connection.
            let Ok(namespace) = Namespace::of(pid) else { continue };
            if namespace.id() != self.home && found.len() < MOST_NAMESPACES {
                found.insert(namespace.id(), namespace);
            }
        }
        found.into_values().collect()
    }

    fn listen(&self, relative: &Path, wanted: NamespaceId) -> Result<Sockets, Failed> {
        let found = self.elsewhere(&self.open(relative)?);
        let namespace = found.iter().find(|namespace| namespace.id() == wanted);
        let namespace =
            namespace.ok_or_else(|| Failed::new("no process of the session is in that network namespace"))?;
        let addresses = &self.setup.addresses;
        let both = |address: &SocketAddr| (listening::listen(*address), deaf::bind(*address).ok());
        let made = namespace.visit(|| addresses.iter().map(both).collect());
        let made: Vec<(miette::Result<TcpListener>, Option<UdpSocket>)> = made
            .map_err(|error| Failed::new(format!("the network namespace of a session cannot be entered: {error}")))?;
        let mut sockets = Sockets::default();
        for ((listener, resolver), address) in made.into_iter().zip(addresses) {
            match listener {
                Ok(listener) => {
                    sockets.listeners.push(listener);
                    // Without one names are not answered over UDP there.
                    sockets.resolvers.extend(resolver);
                }
                // Many have no IPv6; the kernel refuses it then.
                Err(_) if address.is_ipv6() => {}
                Err(error) => return Err(Failed::new(error.to_string())),
            }
        }
        Ok(sockets)
    }

    /// Of those that the policies name, by whatever they name them.
    fn credential(&self, path: &Path) -> Result<File, Failed> {
        let named = self.policies.iter().flat_map(|set| set.policies()).flat_map(|policy| policy.upstreams());
        let is_it = |secret: CredentialRef| match &secret.source {
            CredentialSource::File { path: file } => {
                secrets::file::resolve(self.setup.credentials.as_deref(), file).is_ok_and(|file| file == path)
            }
            _ => false,
        };
        if !named.into_iter().any(|upstream| upstream.secrets().into_iter().any(is_it)) {
            return Err(Failed::new(format!("no policy names {} as a credential", path.display())));
        }
        secrets::file::open(path).map_err(|error| Failed::new(format!("cannot open {}: {error}", path.display())))
    }

    /// Of no process but a governed one, before and after it was read.
    fn executable(&self, pid: u32) -> Option<String> {
        let is_governed = || {
            let found = cgroup::of_process(pid).ok()?;
            let relative = Path::new(found.trim_start_matches('/'));
            self.governed.iter().any(|parent| relative.starts_with(parent)).then_some(())
        };
        is_governed()?;
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        is_governed()?;
        Some(path.to_string_lossy().into_owned())
    }
}
