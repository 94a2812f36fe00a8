//! The parts of a policy file that other modules need: workload, upstreams, credentials, reviewers.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::credential::{OAuth2Spec, Placeholder, SigningScope};
use crate::action::{Glob, ProtocolId, Verb};

/// Who may decide a hold: `user:alice` or `group:dba`, names of the host's user database.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Reviewer {
    /// A user by name.
    User(String),
    /// Every member of a group.
    Group(String),
}

impl TryFrom<String> for Reviewer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("user", name)) if !name.is_empty() => Ok(Self::User(name.into())),
            Some(("group", name)) if !name.is_empty() => Ok(Self::Group(name.into())),
            _ => Err(format!("a reviewer is `user:NAME` or `group:NAME`, not `{text}`")),
        }
    }
}

impl From<Reviewer> for String {
    fn from(reviewer: Reviewer) -> Self {
        reviewer.to_string()
    }
}

impl fmt::Display for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
        }
    }
}

/// The least strictness for everything that is not a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Autonomy {
    /// Changes are never forwarded, only recorded.
    Suggest,
    /// Changes wait for a reviewer.
    Confirm,
    /// Changes are reported afterwards.
    Notify,
    /// Rules alone decide.
    Autonomous,
}

/// A preset of rules for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Allows.
    Development,
    /// Allows, notifies on change.
    Staging,
    /// One approval per session before the first read; changes denied.
    ProductionRead,
    /// Holds each change; two reviewers for delete and schema.
    ProductionWrite,
    /// Denies all.
    Critical,
}

/// How the upstream's TLS is checked; the meanings are libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS, certificate not checked.
    Require,
    /// TLS, certificate chain checked.
    VerifyCa,
    /// TLS, chain and name checked.
    VerifyFull,
}

/// TLS toward an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// How it is checked.
    pub mode: TlsMode,
    /// PEM bundle of trusted roots; the system's where absent.
    pub ca: Option<PathBuf>,
    /// PEM certificate chain and key of the client, where the upstream asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Where an upstream's credential comes from. Resolved afresh at each login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRef {
    /// The upstream that it belongs to.
    pub upstream: Arc<str>,
    /// Login name at the upstream; with `exec`, the answer may override it.
    pub user: Option<String>,
    /// Its source.
    pub source: CredentialSource,
    /// Where in a request it stands; for HTTP only.
    pub inject: Inject,
    /// What goes with temporary keys of AWS.
    pub session_token: Option<CredentialSource>,
}

impl CredentialRef {
    /// A secret that is no login of its own.
    pub fn plain(upstream: Arc<str>, source: CredentialSource) -> Self {
        Self { upstream, user: None, source, inject: Inject::default(), session_token: None }
    }

    /// Every secret that it is made of.
    fn secrets(&self) -> Vec<Self> {
        let part = |source: &CredentialSource| Self::plain(Arc::clone(&self.upstream), source.clone());
        let mut all: Vec<Self> = match &self.source {
            CredentialSource::OAuth2(spec) => spec.client_secret.iter().chain(&spec.refresh_token).map(part).collect(),
            _ => vec![Self { session_token: None, ..self.clone() }],
        };
        all.extend(self.session_token.as_ref().map(part));
        all
    }
}

/// Where a credential stands in an HTTP request. Whatever a client sends in this place is taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Inject {
    /// `Authorization: Bearer` (RFC 6750).
    #[default]
    Bearer,
    /// `Authorization: Basic` (RFC 7617), with the credential's user.
    Basic,
    /// A header field, its name in lower case.
    Header(String),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
    /// A signature of AWS, Version 4, over the whole request.
    SigV4(SigningScope),
}

/// Header fields that say where a request ends, or whom it is for.
const FRAMES: &[&str] =
    &["connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"];

impl TryFrom<String> for Inject {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A token of RFC 9110 section 5.6.2: so it can be a field's name, a cookie's, and a parameter's without encoding.
        let token = |name: &str| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            !name.is_empty() && name.len() <= 128 && name.bytes().all(fits)
        };
        let plain =
            |name: &str| token(name) && !name.contains(['#', '%', '&', '+', '*', '\'', '`', '|', '^', '!', '$']);
        match text.split_once(':') {
            None if text == "bearer" => Ok(Self::Bearer),
            None if text == "basic" => Ok(Self::Basic),
            Some(("header", name)) if token(name) && !FRAMES.contains(&&*name.to_ascii_lowercase()) => {
                Ok(Self::Header(name.to_ascii_lowercase()))
            }
            Some(("query", name)) if plain(name) => Ok(Self::Query(name.to_owned())),
            Some(("cookie", name)) if token(name) => Ok(Self::Cookie(name.to_owned())),
            Some(("sigv4", scope)) => SigningScope::parse(scope)
                .map(Self::SigV4)
                .ok_or_else(|| format!("`sigv4:REGION/SERVICE`, such as `sigv4:eu-central-1/s3`, not `{text}`")),
            _ => Err(format!(
                "`bearer`, `basic`, `header:NAME`, `query:NAME`, `cookie:NAME` or `sigv4:REGION/SERVICE`, not `{text}`"
            )),
        }
    }
}

impl From<Inject> for String {
    fn from(inject: Inject) -> Self {
        match inject {
            Inject::Bearer => "bearer".into(),
            Inject::Basic => "basic".into(),
            Inject::Header(name) => format!("header:{name}"),
            Inject::Query(name) => format!("query:{name}"),
            Inject::Cookie(name) => format!("cookie:{name}"),
            Inject::SigV4(scope) => format!("sigv4:{}/{}", scope.region, scope.service),
        }
    }
}

/// A kind of secret source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CredentialSource {
    /// No secret: the upstream trusts the user name or the client certificate.
    None,
    /// Content of a file, without the line break at its end. A relative path is looked up in `$CREDENTIALS_DIRECTORY`.
    File {
        /// Where it is.
        path: PathBuf,
    },
    /// Standard output of a program: text, or JSON `{"user": ..., "password": ...}`.
    Exec {
        /// Program and arguments, no shell.
        argv: Vec<String>,
        /// How long it may take.
        timeout: Duration,
    },
    /// A bearer token that an authorization server gives out.
    OAuth2(Box<OAuth2Spec>),
}

/// Requests that do something else than their method says.
#[derive(Clone, Debug)]
pub struct Route {
    /// Over `METHOD /path`.
    pub targets: Vec<Glob>,
    /// What they do.
    pub verb: Verb,
}

impl Route {
    /// What a request does by the first of these that says.
    pub fn verb(routes: &[Self], target: &str) -> Option<Verb> {
        routes.iter().find(|route| route.targets.iter().any(|glob| glob.matches(target))).map(|route| route.verb)
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        let texts = |route: &Self| route.targets.iter().map(|glob| glob.as_str().to_owned()).collect::<Vec<_>>();
        self.verb == other.verb && texts(self) == texts(other)
    }
}

impl Eq for Route {}

/// A backend that a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    /// Its name.
    pub name: Arc<str>,
    /// The protocol it speaks.
    pub protocol: ProtocolId,
    /// `host:port` each; a host is a name, an IPv4 address or a bracketed IPv6 address.
    pub addresses: Vec<String>,
    /// Databases that may be asked for; empty means any.
    pub databases: Vec<String>,
    /// Preset of rules.
    pub tier: Option<Tier>,
    /// TLS toward it.
    pub tls: TlsSpec,
    /// Whether the client side may, must or must not use TLS toward the enforcer.
    pub client_tls: ClientTls,
    /// How to log in.
    pub credential: CredentialRef,
    /// What shows it who the enforcer is within TLS: certificates and key in one text of PEM.
    pub client_certificate: Option<CredentialSource>,
    /// Requests of HTTP whose verb is not that of their method. The first that matches counts.
    pub routes: Vec<Route>,
    /// Of models: prices, budgets, and what to do about injection.
    pub models: ModelSpec,
    /// Texts in requests of HTTP that stand for a secret.
    pub placeholders: Vec<Placeholder>,
}

/// What a policy says of an upstream with models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSpec {
    /// What models cost. The first that matches counts.
    pub prices: Vec<Price>,
    /// What each session may use.
    pub session: Option<Budget>,
    /// What all sessions of the workload together may use.
    pub workload: Option<Budget>,
    /// What to do about what reads like other orders.
    pub injection: Injection,
}

impl ModelSpec {
    /// The price of a model.
    pub fn price(&self, model: &str) -> Option<&Price> {
        self.prices.iter().find(|price| price.model.matches(model))
    }
}

/// What a model costs: millionths of the currency for a million tokens.
#[derive(Clone, Debug)]
pub struct Price {
    /// Over names of models.
    pub model: Glob,
    /// For what goes in.
    pub input: u64,
    /// For what comes out.
    pub output: u64,
}

impl Price {
    /// Millionths of the currency for so many tokens in and out, rounded up.
    pub fn of(&self, input: u64, output: u64) -> u64 {
        let each = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        u64::try_from((each(input, self.input) + each(output, self.output)).div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

impl PartialEq for Price {
    fn eq(&self, other: &Self) -> bool {
        (self.model.as_str(), self.input, self.output) == (other.model.as_str(), other.input, other.output)
    }
}

impl Eq for Price {}

/// What may be used of models. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Requests.
    pub requests: Option<u64>,
    /// Tokens in and out.
    pub tokens: Option<u64>,
    /// Millionths of the currency.
    pub cost: Option<u64>,
    /// How long until all of it is there again.
    pub per: Option<Duration>,
}

/// What to do where a text reads like an attempt to give a model other orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Injection {
    /// Nothing.
    Allow,
    /// Say so on record.
    #[default]
    Warn,
    /// Refuse the request.
    Block,
}

impl UpstreamSpec {
    /// Every secret that it names.
    pub fn secrets(&self) -> Vec<CredentialRef> {
        let values = self.placeholders.iter().map(|placeholder| &placeholder.source).chain(&self.client_certificate);
        let values = values.cloned().map(|source| CredentialRef::plain(Arc::clone(&self.name), source));
        self.credential.secrets().into_iter().chain(values).collect()
    }
}

/// TLS between client and enforcer, on the same host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientTls {
    /// As the client asks.
    #[default]
    Offer,
    /// Refused: an `SSLRequest` is answered `N`.
    Refuse,
    /// A login without TLS is refused.
    Require,
}

/// What one session may use of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSpec {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads at once.
    pub pids: Option<u32>,
    /// Processor time, in hundredths of a processor.
    pub cpu: Option<u32>,
    /// Longest life; when a session's time runs out, its processes are killed.
    pub wall: Option<Duration>,
}

/// Whose temporary folders and shared memory a session sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Temporary {
    /// The host's.
    #[default]
    Shared,
    /// Its own, in memory, which end with it.
    Private,
}

/// Whom the processes of a session run as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunAs {
    /// Whoever launches it, or the user that root names with `--user`.
    #[default]
    Caller,
    /// A user that no other session has at the time.
    Dedicated,
    /// The same, who is root in a user namespace of the session's own.
    Root,
}

/// What a session may write of the host's files, beside what permissions say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// As the host has them.
    #[default]
    Host,
    /// Only the working folder, and private temporary folders.
    ReadOnly,
}

/// The workload that a policy file is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Glob over cgroup paths relative to the cgroup2 root.
    pub cgroup: String,
    /// Whether others make the cgroups that match, and each is a session.
    pub claim: bool,
    /// Tenant for records.
    pub tenant: Option<Arc<str>>,
    /// Least strictness for non-reads.
    pub autonomy: Autonomy,
    /// Unix sockets of the host that it may reach: absolute paths of up to 108 bytes.
    pub unix: Vec<String>,
    /// Longest life of a session.
    pub ttl: Option<Duration>,
    /// Whether `run` must state an intent.
    pub require_intent: bool,
    /// What a session may use of the host.
    pub limits: LimitSpec,
    /// Whose temporary folders it sees.
    pub temporary: Temporary,
    /// What it may write.
    pub filesystem: Filesystem,
    /// Whom it runs as.
    pub run_as: RunAs,
}
