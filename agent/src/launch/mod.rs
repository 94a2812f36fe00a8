//! `portcullis run`: asks the daemon for a session, is moved into its cgroup, gives up what a governed process must not
//! have, and becomes the command.
//!
//! Nothing of the command runs before the launcher has seen for itself that it is in the session's cgroup and that it is
//! confined; each failure on the way ends the launcher. Its descriptor of the control socket is closed before the
//! command starts.

pub mod confine;
pub mod environment;
pub mod room;
mod user;

use std::{convert::Infallible, ffi::OsString, io, os::unix::process::CommandExt, path::Path, time::Duration};

use crate::{
    config::cgroup::{self, CgroupError},
    control::{
        client::{ClientError, ask_one},
        proto::{OpenSession, Opened, Request, SeenAs},
    },
};

pub use user::{HostRoot, Target, UserError};

/// What `run` was asked to do.
#[derive(Debug)]
pub struct Launch {
    /// Name of the workload.
    pub workload: String,
    /// Why it runs.
    pub intent: Option<String>,
    /// How long it may live.
    pub ttl: Option<Duration>,
    /// The user to become.
    pub user: Option<String>,
    /// Whether host root may stay host root.
    pub root: HostRoot,
    /// Command and arguments; not empty.
    pub command: Vec<OsString>,
}

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The daemon did not give a session.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Which user to become cannot be told.
    #[error(transparent)]
    User(#[from] UserError),
    /// Where we are cannot be told.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// We are not where we should be.
    #[error("the launcher is in cgroup {found}, not in its session's {wanted}")]
    Elsewhere {
        /// Where it is.
        found: String,
        /// Where it must be.
        wanted: String,
    },
    /// A limit would not hold us.
    #[error("the launcher is in `{controller}` cgroup {found}, not in its session's {wanted}")]
    Unlimited {
        /// The controller of the limit.
        controller: String,
        /// Where it is.
        found: String,
        /// Where it must be.
        wanted: String,
    },
    /// The session would see what it should not.
    #[error("the session's files could not be arranged")]
    Room(#[from] room::RoomError),
    /// The process could not be confined.
    #[error("the process could not be confined")]
    Confine(#[source] confine::ConfineError),
    /// The command could not be started.
    #[error("cannot run `{command}`")]
    Exec {
        /// The program.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::User(error) => error.help(),
            Self::Room(error) => error.help().map(str::to_owned),
            Self::Elsewhere { .. } | Self::Unlimited { .. } | Self::Cgroup(_) => Some(
                "`portcullis status` tells what the daemon sees; is another service manager moving processes?".into(),
            ),
            _ => None,
        }
    }
}

/// Opens a session and becomes the command. Returns only if that failed.
pub fn launch(socket: &Path, what: Launch) -> LaunchError {
    match become_command(socket, what) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_command(socket: &Path, what: Launch) -> Result<Infallible, LaunchError> {
    let target = user::target(what.user.as_deref(), what.root, &user::Invoker::of_this_process());
    // The policy may say who the command is instead; else this is refused below.
    let target = match target {
        Err(error) if error != UserError::Root => return Err(error.into()),
        target => target,
    };
    let looked_through = environment::to_look_through(std::env::vars_os());
    let request = Request::OpenSession(OpenSession {
        workload: what.workload,
        intent: what.intent,
        ttl_seconds: what.ttl.map(|ttl| ttl.as_secs().max(1)),
        command: what.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        user: target.as_ref().ok().and_then(|target| target.as_ref().map(|target| target.name.clone())),
        trace_id: environment::trace_id(std::env::var("TRACEPARENT").ok().as_deref()),
        variables: looked_through.variables,
    });
    // The answer is read to its end and the socket is closed when this returns.
    let opened: Opened = ask_one(socket, &request)?;

    let target = match opened.user {
        Some(_) if what.user.is_some() => return Err(UserError::PolicysOwn.into()),
        Some(own) => Some(Target::of_session(own.uid, own.seen)),
        None => target?,
    };

    let found = cgroup::of_process(std::process::id())?;
    if found != opened.cgroup {
        return Err(LaunchError::Elsewhere { found, wanted: opened.cgroup });
    }
    let listing = cgroup::listing(std::process::id())?;
    for (controller, wanted) in &opened.controllers {
        let found = cgroup::in_v1_listing(&listing, controller).unwrap_or_default();
        if found != wanted {
            let (found, wanted) = (found.to_owned(), wanted.clone());
            return Err(LaunchError::Unlimited { controller: controller.clone(), found, wanted });
        }
    }

    let (program, arguments) = what
        .command
        .split_first()
        .ok_or_else(|| LaunchError::Exec { command: String::new(), source: io::ErrorKind::InvalidInput.into() })?;
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    for name in &looked_through.left_out {
        eprintln!("portcullis: `{}` is left out: it cannot be looked through for secrets", name.to_string_lossy());
        command.env_remove(name);
    }
    environment::apply(&mut command, &opened, target.as_ref());
    let (uid, gid) = match &target {
        Some(target) => (target.uid, target.gid),
        None => (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
    };
    room::enter(&opened.room, uid, gid)?;
    if let (Some(own), Some(target)) = (opened.user, &target) {
        room::settle(own, target)?;
    }
    let inside = match opened.user.map(|own| own.seen) {
        Some(SeenAs::Root) => confine::Inside::RootOfItsOwn,
        Some(SeenAs::Itself) | None => confine::Inside::Host,
    };
    confine::confine(&confine::Settings { user: target.map(Into::into), unix: opened.unix, inside })
        .map_err(LaunchError::Confine)?;
    let source = command.exec();
    Err(LaunchError::Exec { command: program.to_string_lossy().into_owned(), source })
}
