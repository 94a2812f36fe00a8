//! What the daemon says to its helper, and what that answers. Both ends are the same program.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{super::limits::Others, scope::Manager};
use crate::{
    config::{LogFormat, Settings},
    net::namespace::NamespaceId,
};

/// The first message: said by the daemon before it has read a byte of anybody's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::app) struct Setup {
    /// Mount of the cgroup2 tree.
    pub(super) cgroup_root: PathBuf,
    /// Where the policies are.
    pub(super) policy_dir: PathBuf,
    /// The name under which the control socket was bound: what it is called by its connections.
    pub(super) control: PathBuf,
    /// `$CREDENTIALS_DIRECTORY`.
    pub(super) credentials: Option<PathBuf>,
    /// Where listeners in other network namespaces listen.
    pub(super) addresses: Vec<SocketAddr>,
    /// Most cgroups of sessions at once.
    pub(super) sessions: usize,
    /// `log.filter` of the settings.
    pub(super) filter: String,
    /// `log.format` of the settings.
    pub(super) format: LogFormat,
}

impl Setup {
    pub(in crate::app) fn new(settings: &Settings, root: &Path, control: PathBuf, addresses: Vec<SocketAddr>) -> Self {
        Self {
            cgroup_root: root.to_owned(),
            policy_dir: settings.policy_dir.clone(),
            control,
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            addresses,
            // Those that ended may linger until their last process is gone.
            sessions: settings.limits.sessions.saturating_mul(2),
            filter: settings.log.filter.clone(),
            format: settings.log.format,
        }
    }
}

/// One thing to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) enum Request {
    /// Read the policies again, and make the cgroups that they want governed. Answer: [`Answer::Governed`].
    Govern {},
    /// Make the cgroup of a session, limited as the policy of its workload says. Answer: [`Answer::Made`].
    Make {
        /// Name of the workload.
        workload: String,
        /// Id of the session.
        session: String,
    },
    /// Have the service manager make a scope for a session, limited as the policy of its workload says, and move the
    /// process that made this connection to the control socket into it. Brings the connection. Answer: [`Answer::Made`].
    MakeScope {
        /// Name of the workload.
        workload: String,
        /// Id of the session.
        session: String,
    },
    /// Move the process that made this connection to the control socket into a session's cgroup. Brings the connection.
    /// Answer: [`Answer::Done`].
    Enter {
        /// Id of the session.
        session: String,
    },
    /// Remove the cgroup of a session. Answer: [`Answer::Removed`].
    Remove {
        /// Relative to the root.
        cgroup: PathBuf,
    },
    /// Kill every process of a governed cgroup. Answer: [`Answer::Done`].
    Kill {
        /// Relative to the root.
        cgroup: PathBuf,
        /// Its kernel id.
        id: u64,
    },
    /// Stop every process of a governed cgroup where it is. Answer: [`Answer::Done`].
    Freeze {
        /// Relative to the root.
        cgroup: PathBuf,
        /// Its kernel id.
        id: u64,
    },
    /// In which other network namespaces a governed cgroup has processes. Answer: [`Answer::Elsewhere`].
    Elsewhere {
        /// Relative to the root.
        cgroup: PathBuf,
    },
    /// Listen in the network namespace of a process of a governed cgroup. Answer: [`Answer::Listening`], with the sockets.
    Listen {
        /// Relative to the root.
        cgroup: PathBuf,
        /// Which namespace.
        namespace: NamespaceId,
    },
    /// Open a file that a policy names as a credential. Answer: [`Answer::Opened`], with it.
    Credential {
        /// Which.
        path: PathBuf,
    },
    /// The program of a process in a governed cgroup. Answer: [`Answer::Executable`].
    Executable {
        /// Which process.
        pid: u32,
    },
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) enum Answer {
    /// To [`Setup`].
    Ready {
        /// Whether sessions can be scopes.
        manager: Manager,
    },
    /// These are there to be governed, relative to the root.
    Governed {
        /// In order.
        cgroups: Vec<PathBuf>,
    },
    /// The cgroup is there.
    Made(Made),
    /// Done.
    Done {},
    /// Whether it is gone; else somebody is in there still.
    Removed {
        /// Whether.
        gone: bool,
    },
    /// Some process of the cgroup is in each.
    Elsewhere {
        /// Not the home of the daemon.
        namespaces: Vec<NamespaceId>,
    },
    /// The sockets are with the message.
    Listening {},
    /// The file is with the message.
    Opened {},
    /// Its path, where it can be told.
    Executable {
        /// As `/proc/PID/exe` has it.
        path: Option<String>,
    },
    /// Nothing was done, or what was done was undone.
    Failed(Failed),
}

/// A session's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::app) struct Made {
    /// Relative to the root.
    pub(in crate::app) cgroup: PathBuf,
    /// Its kernel id.
    pub(in crate::app) id: u64,
    /// Cgroups in other trees.
    pub(in crate::app) others: Others,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub(in crate::app) struct Failed {
    /// What is wrong.
    pub(in crate::app) message: String,
    /// What to do about it.
    pub(in crate::app) help: Option<String>,
}

impl Failed {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}
