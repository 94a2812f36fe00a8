//! The daemon's privileged helper: the one process that stays root, and does for the daemon what only root may do.
//!
//! The daemon parses what peers send and holds credentials, so it is what an attacker would take over; the helper reads
//! nothing but policy files, `/proc`, and the daemon's requests, and is a loop over those. It is started before the daemon
//! has read a byte of anybody's, on a socket pair, and ends when the daemon's end closes, however the daemon ended. The
//! other way round, a daemon without its helper ends, and whoever keeps it running starts both again; what is pinned in
//! the kernel refuses meanwhile.
//!
//! The helper takes the daemon's word for nothing that it can see for itself. What a daemon that somebody took over can
//! make it do:
//! - make cgroups of sessions, so many as the settings allow, in the cgroups that the policies name, with their limits:
//!   it reads the policies itself, and the daemon cannot write them. Below a slice of systemd's it has systemd make them;
//! - move a process that is connected to the control socket, which it asks the kernel itself, into such a cgroup, one for
//!   each and once: what is moved loses every road and gains none. One that is governed already is not moved;
//! - kill or freeze the processes of any session, and remove the cgroups of those that have none;
//! - listen on the daemon's own addresses in a network namespace in which a session has processes;
//! - read the files that policies name as credentials, which are the daemon's to use;
//! - learn which program a governed process runs.
//!
//! What it cannot: reach a cgroup beside or above the governed ones, be led out by `..`, by a link or by a mount; move,
//! kill or freeze a process of the host's by its number; take a process out of its session; move one from session to
//! session; read or write any other file; start a program; open a socket elsewhere; ask systemd for anything else. A
//! message that is too long or not understood ends the conversation, and so both.

mod bus;
mod cgroups;
mod channel;
mod confine;
mod proto;
mod scope;
mod serve;

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use miette::{IntoDiagnostic, WrapErr, miette};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socketpair, sockopt},
        time::{TimeVal, TimeValLike},
    },
};
use tokio_util::sync::CancellationToken;

use self::{
    channel::Channel,
    proto::{Answer, Request},
    scope::Manager,
};
use crate::{
    identity::Home,
    net::{handed::Sockets, namespace::NamespaceId},
};

pub(super) use proto::{Failed, Made, Setup};
pub(super) use serve::serve;

/// Name of the hidden command that is the helper.
pub(super) const COMMAND: &str = "privileged-helper";
/// Within which it answers, in seconds. It waits for nobody but the kernel and, less long, systemd.
const PATIENCE: i64 = 30;

/// Nothing was done.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    /// The helper did not.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// It is gone, or does not make sense. The daemon ends.
    #[error("the privileged helper is gone: {0}")]
    Gone(#[source] io::Error),
}

impl HelperError {
    /// What to do about it.
    pub(super) fn help(&self) -> Option<&str> {
        match self {
            Self::Failed(failed) => failed.help.as_deref(),
            Self::Gone(_) => Some("the daemon is being started again: try it then"),
        }
    }
}

/// The daemon's side of its helper.
#[derive(Debug)]
pub(super) struct Helper {
    channel: Mutex<Channel>,
    /// Another descriptor of the same, to see its end by.
    watched: OwnedFd,
    is_broken: AtomicBool,
    manager: Manager,
}

impl Helper {
    /// Starts it. Call it before anything is read of anybody's, and before there is a secret.
    ///
    /// # Errors
    /// It cannot be started, or does not start up: it has said why.
    pub(super) fn start(setup: &Setup) -> miette::Result<Self> {
        let (own, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .into_diagnostic()
            .wrap_err("no socket pair for the privileged helper")?;
        setsockopt(&own, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).into_diagnostic()?;
        let watched = own.try_clone().into_diagnostic()?;
        // The same program as this one, whatever was put in its place since.
        Command::new("/proc/self/exe")
            .arg0("portcullis")
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            // Signals of a terminal are for the daemon.
            .process_group(0)
            .spawn()
            .into_diagnostic()
            .wrap_err("the privileged helper cannot be started")?;
        let channel = Channel::new(own);
        channel.send(setup, &[]).into_diagnostic()?;
        let manager = match channel.receive().into_diagnostic()? {
            Some((Answer::Ready { manager }, _)) => manager,
            _ => return Err(miette!("the privileged helper did not start up")),
        };
        Ok(Self { channel: Mutex::new(channel), watched, is_broken: AtomicBool::new(false), manager })
    }

    /// Cancels the token when the helper is gone.
    pub(super) fn watch(self: &Arc<Self>, gone: CancellationToken) -> io::Result<()> {
        let this = self.clone();
        std::thread::Builder::new().name("helper".into()).spawn(move || {
            loop {
                let mut ends = [PollFd::new(this.watched.as_fd(), PollFlags::empty())];
                match poll(&mut ends, PollTimeout::NONE) {
                    Err(nix::errno::Errno::EINTR) => {}
                    _ => break gone.cancel(),
                }
            }
        })?;
        Ok(())
    }

    /// Has it read the policies and make the cgroups to be governed; which those are, relative to the root. May block,
    /// like all that follows.
    pub(super) fn govern(&self) -> Result<Vec<PathBuf>, HelperError> {
        match self.ask(&Request::Govern {}, &[])?.0 {
            Answer::Governed { cgroups } => Ok(cgroups),
            other => Err(self.broken(&other)),
        }
    }

    /// Where a session below `parent` is to live, relative to the root, and whether as a scope.
    pub(super) fn place(&self, parent: &str, session: &str) -> (Home, PathBuf) {
        match self.manager.scope(parent, session) {
            Some(scope) => (Home::Scope, scope.relative),
            None => (Home::Made, Path::new(parent).join(session)),
        }
    }

    /// Makes the cgroup of a session.
    pub(super) fn make(&self, workload: &str, session: &str) -> Result<Made, HelperError> {
        let request = Request::Make { workload: workload.into(), session: session.into() };
        match self.ask(&request, &[])?.0 {
            Answer::Made(made) => Ok(made),
            other => Err(self.broken(&other)),
        }
    }

    /// Has the scope of a session made, with the process at the other end of this connection of the control socket in it.
    pub(super) fn make_scope(
        &self,
        workload: &str,
        session: &str,
        connection: BorrowedFd<'_>,
    ) -> Result<Made, HelperError> {
        let request = Request::MakeScope { workload: workload.into(), session: session.into() };
        match self.ask(&request, &[connection])?.0 {
            Answer::Made(made) => Ok(made),
            other => Err(self.broken(&other)),
        }
    }

    /// Moves the process at the other end of this connection of the control socket in.
    pub(super) fn enter(&self, session: &str, connection: BorrowedFd<'_>) -> Result<(), HelperError> {
        self.done(&Request::Enter { session: session.into() }, &[connection])
    }

    /// Removes the cgroup of a session; a scope's, systemd removes. `false`: somebody is in there still.
    pub(super) fn remove(&self, cgroup: &Path) -> Result<bool, HelperError> {
        match self.ask(&Request::Remove { cgroup: cgroup.into() }, &[])?.0 {
            Answer::Removed { gone } => Ok(gone),
            other => Err(self.broken(&other)),
        }
    }

    /// Kills every process of a cgroup at once, those that are being made included [Linux 5.14].
    pub(super) fn kill(&self, cgroup: &Path, id: u64) -> Result<(), HelperError> {
        self.done(&Request::Kill { cgroup: cgroup.into(), id }, &[])
    }

    /// Stops every process of a cgroup where it is.
    pub(super) fn freeze(&self, cgroup: &Path, id: u64) -> Result<(), HelperError> {
        self.done(&Request::Freeze { cgroup: cgroup.into(), id }, &[])
    }

    /// In which network namespaces other than our own a cgroup has processes.
    pub(super) fn elsewhere(&self, cgroup: &Path) -> Result<Vec<NamespaceId>, HelperError> {
        match self.ask(&Request::Elsewhere { cgroup: cgroup.into() }, &[])?.0 {
            Answer::Elsewhere { namespaces } => Ok(namespaces),
            other => Err(self.broken(&other)),
        }
    }

    /// Listens in one of those.
    pub(super) fn listen(&self, cgroup: &Path, namespace: NamespaceId) -> Result<Sockets, HelperError> {
        let (answer, with) = self.ask(&Request::Listen { cgroup: cgroup.into(), namespace }, &[])?;
        match answer {
            Answer::Listening {} => Sockets::from_descriptors(with).map_err(|error| self.end(error)),
            other => Err(self.broken(&other)),
        }
    }

    /// Opens a credential's file that a policy names.
    ///
    /// # Errors
    /// It does not, or cannot.
    pub(super) fn credential(&self, path: &Path) -> io::Result<std::fs::File> {
        let denied = |error| io::Error::new(io::ErrorKind::PermissionDenied, error);
        let (answer, mut with) = self.ask(&Request::Credential { path: path.into() }, &[]).map_err(denied)?;
        match (answer, with.pop()) {
            (Answer::Opened {}, Some(file)) => Ok(file.into()),
            (other, _) => Err(denied(self.broken(&other))),
        }
    }

    /// The program of a governed process.
    pub(super) fn executable(&self, pid: u32) -> Option<String> {
        match self.ask(&Request::Executable { pid }, &[]).ok()?.0 {
            Answer::Executable { path } => path,
            _ => None,
        }
    }

    fn done(&self, request: &Request, with: &[BorrowedFd<'_>]) -> Result<(), HelperError> {
        match self.ask(request, with)?.0 {
            Answer::Done {} => Ok(()),
            other => Err(self.broken(&other)),
        }
    }

    fn ask(&self, request: &Request, with: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), HelperError> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(HelperError::Gone(io::ErrorKind::BrokenPipe.into()));
        }
        let answered = channel.send(request, with).and_then(|()| channel.receive());
        match answered {
            Ok(Some((Answer::Failed(failed), _))) => Err(failed.into()),
            Ok(Some(answered)) => Ok(answered),
            Ok(None) => Err(self.end(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.end(error)),
        }
    }

    fn broken(&self, answer: &Answer) -> HelperError {
        self.end(io::Error::new(io::ErrorKind::InvalidData, format!("it answers {answer:?}")))
    }

    /// Its next answer might be that to an earlier request: there is no next one.
    fn end(&self, error: io::Error) -> HelperError {
        use std::os::fd::AsRawFd;
        self.is_broken.store(true, Ordering::Relaxed);
        // The watch sees it.
        let _ = shutdown(self.watched.as_raw_fd(), Shutdown::Both);
        HelperError::Gone(error)
    }
}
