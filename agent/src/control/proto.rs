//! What is said on the control socket.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{bpf::UnixHooks, launch::room::Room};

/// Version of this protocol. A daemon answers another version with an error that names both.
pub const VERSION: u32 = 2;

/// A request with its version.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the client.
    pub v: u32,
    /// The request, read only once the version is known to be ours.
    #[serde(flatten)]
    pub request: serde_json::Value,
}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// Makes a session and moves the asking process into its cgroup. Answered by one [`Opened`].
    OpenSession(OpenSession),
    /// Lists holds; with `watch`, lists them again at each change.
    Held {
        /// Keep the connection and send the list at each change.
        #[serde(default)]
        watch: bool,
    },
    /// Approves a hold.
    Approve {
        /// The hold.
        id: String,
        /// Also grants this session this command's shape for so many seconds.
        #[serde(default)]
        grant_seconds: Option<u64>,
        /// What the reviewer says.
        #[serde(default)]
        reason: Option<String>,
    },
    /// Denies a hold.
    Deny {
        /// The hold.
        id: String,
        /// What the reviewer says.
        #[serde(default)]
        reason: Option<String>,
    },
    /// Lists grants.
    Grants {},
    /// Takes a grant back.
    Revoke {
        /// The grant.
        id: String,
    },
    /// Lists sessions, live and recorded.
    Sessions {},
    /// The events of one session.
    Replay {
        /// The session, or the beginning of its id where that is unique.
        session: String,
    },
    /// The events that are recorded from now on.
    Follow {},
    /// Checks the whole record.
    AuditVerify {},
    /// How the daemon is.
    Status {},
    /// How the kernel side is, looked at now. Answered by one [`Examined`].
    Examine {},
    /// Reads the policies again.
    Reload {},
    /// Ends a session's rights and freezes its processes.
    Quarantine {
        /// The session.
        session: String,
    },
}

/// See [`Request::OpenSession`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// Name of the workload.
    pub workload: String,
    /// Why it runs.
    #[serde(default)]
    pub intent: Option<String>,
    /// How long it may live, in seconds; the policy's limit where absent.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Command line, for the record.
    pub command: Vec<String>,
    /// The user that the command will run as, where not the caller's.
    #[serde(default)]
    pub user: Option<String>,
    /// W3C trace id of the caller, to join.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Variables that the command would have, to be looked through for secrets.
    #[serde(default)]
    pub variables: Variables,
}

/// Values of a process's environment, by name. Neither shown nor recorded: secrets are what is looked for in them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables(pub BTreeMap<String, String>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Variables({})", self.0.len())
    }
}

/// A session, as answered to the launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Its id.
    pub session: String,
    /// Its cgroup as `/proc/self/cgroup` must show it now.
    pub cgroup: String,
    /// Its folder.
    pub cgroup_dir: PathBuf,
    /// Its cgroups of v1 controllers, as `/proc/self/cgroup` must show them now: path by controller.
    #[serde(default)]
    pub controllers: BTreeMap<String, String>,
    /// What it is to see of the host's files.
    pub room: Room,
    /// Whether the kernel judges its unix sockets; if not, it must be able to make none.
    pub unix: UnixHooks,
    /// The user that it gets for itself, where the policy says so.
    pub user: Option<SessionUser>,
    /// When it ends, RFC 3339.
    pub ends_at: Option<String>,
    /// Variables to set.
    pub env: BTreeMap<String, String>,
    /// Variables to remove: what the agent must not hold, or what would lead its clients past the enforcer.
    pub unset: Vec<String>,
}

/// See [`Opened::user`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUser {
    /// User and group id on the host.
    pub uid: u32,
    /// As what it appears to its processes.
    pub seen: SeenAs,
}

/// As what a session's own user appears to its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenAs {
    /// As what it is.
    Itself,
    /// As root, in a user namespace of its own.
    Root,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// One thing that was asked for.
    Item(Box<RawValue>),
    /// All is said.
    Done(Done),
    /// It failed; nothing follows.
    Error(Failure),
}

/// The end of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {}

/// Why a request failed. For operators: it may name paths, never a secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// What went wrong.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Failure {
    /// A failure without help.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request is not understood.
    Usage,
    /// The caller may not.
    Denied,
    /// What it names is not there.
    NotFound,
    /// It could not be done.
    Failed,
}

/// A session in a listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its id.
    pub session: String,
    /// Workload name.
    pub workload: String,
    /// `live`, or why it ended.
    pub state: String,
    /// RFC 3339.
    pub started_at: String,
    /// When its rights end or ended, RFC 3339; `None` if only with its last process.
    pub ends_at: Option<String>,
    /// Why it runs.
    pub intent: Option<String>,
    /// Who started it.
    pub operator: String,
    /// What was run.
    pub command: Vec<String>,
    /// Commands decided.
    pub commands: u64,
    /// Of them, refused.
    pub refused: u64,
    /// Of them, held.
    pub held: u64,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_seconds: u64,
    /// Where redirected connections arrive.
    pub listen: Vec<String>,
    /// Policies in force.
    pub policy: PolicyStatus,
    /// Cgroups whose processes are governed.
    pub governed: Vec<String>,
    /// Live sessions.
    pub sessions: usize,
    /// Live connections.
    pub connections: usize,
    /// Commands that wait.
    pub holds: usize,
    /// Sequence number of the record's last event.
    pub recorded: u64,
    /// How much the kernel refused governed processes, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Whom governed clients trust.
    #[serde(default)]
    pub ca: Option<CaStatus>,
    /// What is not as it should be. Empty is good.
    pub problems: Vec<String>,
}

/// The certificate authorities that governed clients trust.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaStatus {
    /// What the newest may vouch for, in words.
    pub scope: String,
    /// Whether its certificate says so.
    pub is_limited: bool,
    /// How many there are.
    pub count: usize,
    /// When the newest ends, RFC 3339.
    pub ends_at: String,
    /// Why clients cannot read of all of them.
    pub problem: Option<String>,
}

impl std::fmt::Display for CaStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "for {}, until {}", self.scope, self.ends_at)?;
        match self.count {
            0 | 1 => Ok(()),
            count => write!(f, "; {} older", count - 1),
        }
    }
}

/// How the kernel side is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Examined {
    /// How many hooks each governed cgroup should have.
    pub hooks: usize,
    /// Governed cgroups.
    pub governed: Vec<PathBuf>,
    /// Folder of the pinned objects.
    pub pin_dir: PathBuf,
    /// Milliseconds since the programs heard of the daemon; `None` if they were told that it stops.
    pub heartbeat_ms: Option<u64>,
    /// What is not as it should be.
    pub problems: Vec<ProblemView>,
    /// Why the programs of the kernel's security module do not enforce, or not all of them; `None` where they do.
    pub no_lsm: Option<String>,
    /// How sessions in the daemon's network namespace can ask for names.
    pub names: NamesOver,
}

/// See [`Examined::names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamesOver {
    /// Over TCP alone.
    Tcp,
    /// Over UDP as well.
    TcpAndUdp,
}

/// Something that makes enforcement incomplete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemView {
    /// What is wrong.
    pub message: String,
    /// What to do, where the host can do something.
    pub fix: Option<String>,
    /// What the kernel lacks, where it cannot.
    pub lacks: Option<String>,
}

/// The policies in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Hash over all of them.
    pub hash: String,
    /// Workload names.
    pub workloads: Vec<String>,
    /// When they were loaded, RFC 3339.
    pub loaded_at: String,
    /// Why a newer set was refused, if it was.
    pub refused: Option<String>,
}

/// What an approval led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// The hold's id.
    pub id: String,
    /// `granted`, `approved` (another reviewer must), `retry` or `denied`.
    pub outcome: String,
    /// A sentence for the reviewer.
    pub message: String,
    /// The grant that was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
}

/// The record's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether every byte is as it was written.
    pub intact: bool,
    /// Events that were checked.
    pub events: u64,
    /// Segments that were checked.
    pub segments: u64,
    /// The key that signed the record, hex.
    pub public_key: String,
    /// The first thing that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
