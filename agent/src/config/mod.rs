//! The daemon's settings: `/etc/portcullis/portcullis.toml`, every path and port of it.
//!
//! Nothing is compiled in that a second daemon in a temporary folder could not change. A missing default file means the
//! defaults; a file that was named must be there. Unknown keys are errors with the place and a suggestion: a setting that
//! is silently ignored is a protection that is silently off.

pub mod cgroup;
mod diagnose;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod uids;

use std::{
    fmt, io,
    net::{SocketAddrV4, SocketAddrV6},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::policy::Reviewer;

pub use uids::UidRange;

/// Where settings are looked for when `--config` does not say.
pub const DEFAULT_FILE: &str = "/etc/portcullis/portcullis.toml";

/// What the daemon needs to know.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of policy files, one per workload.
    pub policy_dir: PathBuf,
    /// Folder that outlives a boot: the record, sessions, keys. Made with mode 0700.
    pub state_dir: PathBuf,
    /// Folder for `control.sock` and the certificates that governed processes trust. Made with mode 0755.
    pub runtime_dir: PathBuf,
    /// Who decides a hold whose rule names nobody.
    pub reviewers: Vec<Reviewer>,
    /// The daemon's process.
    pub daemon: DaemonSection,
    /// Where redirected connections arrive.
    pub listen: Listen,
    /// What the kernel side needs.
    pub kernel: KernelSection,
    /// What is written to standard error.
    pub log: Log,
    /// The control socket.
    pub control: Control,
    /// Caps.
    pub limits: LimitSection,
    /// The record.
    pub record: RecordSection,
    /// What sessions share out.
    pub sessions: SessionSection,
    /// The certificate authority that governed clients trust.
    pub ca: CaSection,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy_dir: "/etc/portcullis/policies".into(),
            state_dir: "/var/lib/portcullis".into(),
            runtime_dir: "/run/portcullis".into(),
            reviewers: vec![Reviewer::Group("portcullis".into())],
            daemon: DaemonSection::default(),
            listen: Listen::default(),
            kernel: KernelSection::default(),
            log: Log::default(),
            control: Control::default(),
            limits: LimitSection::default(),
            record: RecordSection::default(),
            sessions: SessionSection::default(),
            ca: CaSection::default(),
        }
    }
}

impl Settings {
    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }

    /// Empty. Each session with private temporary folders has its own in its place, for its unix sockets.
    pub fn sockets_dir(&self) -> PathBuf {
        self.runtime_dir.join("session")
    }

    /// Folder of the record's segments.
    pub fn record_dir(&self) -> PathBuf {
        self.record.dir.clone().unwrap_or_else(|| self.state_dir.join("record"))
    }

    /// Folder of the saved sessions.
    pub fn sessions_dir(&self) -> PathBuf {
        self.state_dir.join("sessions")
    }

    /// Folder of what governed clients trust. It is the daemon's own, because that changes.
    pub fn trust_dir(&self) -> PathBuf {
        self.runtime_dir.join("trust")
    }

    /// PEM of the certificate authorities that sign what governed clients see.
    pub fn ca_file(&self) -> PathBuf {
        self.trust_dir().join("ca.pem")
    }

    /// PEM of the system's roots followed by [`Settings::ca_file`], for clients that take one bundle only.
    pub fn bundle_file(&self) -> PathBuf {
        self.trust_dir().join("ca-bundle.pem")
    }

    /// The same certificates as a trust store of PKCS#12, for Java.
    pub fn trust_store_file(&self) -> PathBuf {
        self.trust_dir().join("ca-bundle.p12")
    }
}

/// The daemon's process.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonSection {
    /// The user that it runs as once it has started, by name or number; it must exist if it is named. Where absent:
    /// `portcullis` if there is one, else root.
    pub user: Option<String>,
}

/// Where redirected connections arrive. Loopback only: a port that others can reach is a road in.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// IPv4 address and port; port 0 takes any that is free.
    #[serde(deserialize_with = "loopback_v4")]
    pub v4: SocketAddrV4,
    /// IPv6 address and port; port 0 takes any that is free. `"off"` on hosts without IPv6: such connections are refused.
    #[serde(deserialize_with = "loopback_v6")]
    pub v6: Option<SocketAddrV6>,
}

impl Default for Listen {
    fn default() -> Self {
        use std::net::{Ipv4Addr, Ipv6Addr};
        // Below 1024, so that no other local user can take the port of a dead daemon.
        const PORT: u16 = 943;
        Self {
            v4: SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT),
            v6: Some(SocketAddrV6::new(Ipv6Addr::LOCALHOST, PORT, 0, 0)),
        }
    }
}

/// What the kernel side needs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelSection {
    /// Mount of the cgroup2 tree; found in `/proc/self/mountinfo` where absent.
    pub cgroup_root: Option<PathBuf>,
    /// Folder in a bpffs for pinned programs, links and maps, one for each daemon. Where absent: below `/sys/fs/bpf` if
    /// that is a bpffs, else `bpf` in the runtime folder, where one is mounted.
    pub pin_dir: Option<PathBuf>,
    /// Cgroup that the daemon moves to when it was started in the root cgroup (no service manager), relative to
    /// `cgroup_root`.
    pub daemon_cgroup: PathBuf,
    /// Time between heartbeats. The kernel refuses connections when several were missed.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
}

impl Default for KernelSection {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            pin_dir: None,
            daemon_cgroup: "portcullis-daemon".into(),
            heartbeat: Duration::from_millis(500),
        }
    }
}

/// What is written to standard error.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How.
    pub format: LogFormat,
    /// What: `info`, or a `tracing` filter such as `portcullis::session=debug,info`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object per line.
    Json,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Group that owns the socket (mode 0660). Where it does not exist, only root can connect.
    pub group: String,
    /// Who, beside root, may open sessions, list, follow, reload, revoke and quarantine.
    pub operators: Vec<Reviewer>,
    /// Longest request, in bytes.
    pub max_request: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            group: "portcullis".into(),
            operators: vec![Reviewer::Group("portcullis".into())],
            max_request: 256 << 10,
        }
    }
}

/// Caps.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSection {
    /// Redirected connections at once.
    pub connections: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// Memory for frames, prepared statements and parameters of all connections together, in bytes. A session gets a
    /// quarter of it, a connection an eighth.
    pub memory: usize,
    /// How long live connections may go on after SIGTERM.
    #[serde(deserialize_with = "duration")]
    pub drain: Duration,
}

impl Default for LimitSection {
    fn default() -> Self {
        Self { connections: 10_000, sessions: 1_000, memory: 1 << 30, drain: Duration::from_secs(30) }
    }
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordSection {
    /// Its folder; `record` in the state folder where absent.
    pub dir: Option<PathBuf>,
    /// Size at which a segment is sealed, in bytes; the recorder's default where absent.
    pub segment_bytes: Option<u64>,
}

/// What sessions share out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSection {
    /// Users, and groups of the same numbers, for sessions that get one of their own (`user` of a policy): such as
    /// `"59000-59999"`. Nothing else on the host may use them. Absent, such sessions are refused.
    pub uids: Option<UidRange>,
}

/// The certificate authority that governed clients trust.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaSection {
    /// How long one is valid. Its successor is in the trust files from the middle of that on, and signs from nine tenths on.
    #[serde(deserialize_with = "duration")]
    pub lifetime: Duration,
}

impl Default for CaSection {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// Settings that could not be had.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the settings file {}", path.display())]
    #[diagnostic(help("name another one with `--config FILE`, or make it readable for root"))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file does not say what it should.
    #[error("{message}")]
    Parse {
        /// What is wrong.
        message: String,
        /// The file.
        #[source_code]
        source_code: miette::NamedSource<String>,
        /// The place.
        #[label("here")]
        span: Option<miette::SourceSpan>,
        /// What to do.
        #[help]
        help: Option<String>,
    },
}

/// Reads settings. `None` reads [`DEFAULT_FILE`], and takes the defaults where that does not exist.
pub fn load(file: Option<&Path>) -> Result<Settings, ConfigError> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => Ok(Settings::default()),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

/// Reads settings from text; `name` is what errors call it.
pub fn parse(text: &str, name: &str) -> Result<Settings, ConfigError> {
    let wrong = |message: String, span: Option<std::ops::Range<usize>>, help: Option<String>| ConfigError::Parse {
        message,
        source_code: miette::NamedSource::new(name, text.to_owned()).with_language("toml"),
        span: span.map(Into::into),
        help,
    };
    let settings: Settings = toml::from_str(text)
        .map_err(|error| wrong(error.message().to_owned(), error.span(), diagnose::suggestion(error.message())))?;
    diagnose::check(&settings).map_err(|(key, message)| wrong(message, diagnose::locate(text, key), None))?;
    Ok(settings)
}

/// Parses `90s`, `15m`, `8h`, `1h 30m`. For settings and command lines.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.to_owned());
    let signed: jiff::SignedDuration = text.trim().parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(signed).map_err(|_| wrong())?;
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}

/// Not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a length of time above zero, such as `90s`, `15m`, `8h` or `1h 30m`")]
pub struct DurationError(String);

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(input)?).map_err(D::Error::custom)
}

fn loopback_v4<'de, D: Deserializer<'de>>(input: D) -> Result<SocketAddrV4, D::Error> {
    let text = String::deserialize(input)?;
    let address: SocketAddrV4 = text.parse().map_err(|_| not_an_address::<D::Error>(&text, "127.0.0.1:943"))?;
    if address.ip().is_loopback() { Ok(address) } else { Err(not_loopback::<D::Error>(&text)) }
}

fn loopback_v6<'de, D: Deserializer<'de>>(input: D) -> Result<Option<SocketAddrV6>, D::Error> {
    let text = String::deserialize(input)?;
    if text == "off" {
        return Ok(None);
    }
    let address: SocketAddrV6 = text.parse().map_err(|_| not_an_address::<D::Error>(&text, "[::1]:943"))?;
    if address.ip().is_loopback() { Ok(Some(address)) } else { Err(not_loopback::<D::Error>(&text)) }
}

fn not_an_address<E: serde::de::Error>(text: &str, example: impl fmt::Display) -> E {
    E::custom(format!("`{text}` is not an address and port, such as `{example}`"))
}

fn not_loopback<E: serde::de::Error>(text: &str) -> E {
    E::custom(format!("`{text}` is not a loopback address: only processes of this host may reach the enforcer"))
}
