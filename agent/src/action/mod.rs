//! The canonical form in which every protocol speaks to policy: who ([`Subject`]) would do what ([`Action`]) to
//! which backend ([`Resource`]).
//!
//! An action is all of its parts: each (verb, target) pair of each statement, sub-select and call. Policy judges every
//! part and the strictest answer holds for the whole, so a protocol that forgets a part opens a hole, and one that
//! invents a part only refuses too much. When in doubt, protocols add [`Verb::Unknown`].

pub mod glob;
mod mask;
mod near;
mod turn;

pub use glob::{Glob, GlobError};
pub use mask::{Detector, Direction, Inference, MaskSpec, MaskWith, Unresolved};
pub use near::near;
pub use turn::{CallNote, PromptRef, TurnNote, trace_in, trace_of};

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// A protocol that the enforcer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProtocolId {
    /// PostgreSQL frontend/backend protocol 3.0 and 3.2.
    Postgres,
    /// HTTP/1.1 and 2, in the clear and over TLS.
    Http,
    /// Models' APIs over HTTP: OpenAI's chat completions and responses, Anthropic's messages.
    Llm,
}

impl ProtocolId {
    /// Every protocol, in the order of listings.
    pub const ALL: &'static [Self] = &[Self::Postgres, Self::Http, Self::Llm];

    /// The name that policies and records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Http => "http",
            Self::Llm => "llm",
        }
    }

    /// Whether its commands are requests of HTTP.
    pub fn is_http(self) -> bool {
        match self {
            Self::Postgres => false,
            Self::Http | Self::Llm => true,
        }
    }

    /// The character that separates the segments of this protocol's targets, for globs.
    pub fn separator(self) -> char {
        match self {
            Self::Postgres => '.',
            Self::Http | Self::Llm => '/',
        }
    }
}

impl fmt::Display for ProtocolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a part of an action does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Opens a connection to the upstream.
    Connect,
    /// Reads data.
    Read,
    /// Adds or changes data.
    Write,
    /// Removes data.
    Delete,
    /// Changes the shape of data: tables, indexes, views.
    Schema,
    /// Changes the server, its rights, its files, or other sessions.
    Admin,
    /// Calls code whose effects are not known: functions, procedures, commands.
    Execute,
    /// Changes only this session: transaction control, harmless settings.
    Session,
    /// Lets data be inferred without being returned.
    Infer,
    /// Not understood. Only a rule that names `unknown` can let it pass.
    Unknown,
}

impl Verb {
    /// Every verb.
    pub const ALL: &'static [Self] = &[
        Self::Connect,
        Self::Read,
        Self::Write,
        Self::Delete,
        Self::Schema,
        Self::Admin,
        Self::Execute,
        Self::Session,
        Self::Infer,
        Self::Unknown,
    ];

    /// The name that policies and records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Schema => "schema",
            Self::Admin => "admin",
            Self::Execute => "execute",
            Self::Session => "session",
            Self::Infer => "infer",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the verb may change something beyond this session. Unknown may.
    pub fn changes(self) -> bool {
        match self {
            Self::Write | Self::Delete | Self::Schema | Self::Admin | Self::Execute | Self::Unknown => true,
            Self::Connect | Self::Read | Self::Session | Self::Infer => false,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a part of an action touches, in the protocol's canonical text: `public.orders`, `fn:pg_catalog.now`.
///
/// SQL names are case-folded and quoted as PostgreSQL's `quote_identifier` would, so a dot inside an identifier cannot
/// pose as a separator: `public."we.ird"`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Target(Arc<str>);

impl Target {
    /// Takes text that already is in canonical form.
    pub fn new(canonical: impl Into<Arc<str>>) -> Self {
        Self(canonical.into())
    }

    /// A SQL relation. A schema of `None` means the name could not be resolved and renders as `?`, which only a glob
    /// that crosses segments matches.
    pub fn relation(schema: Option<&str>, name: &str) -> Self {
        Self::new(qualified("", schema, name))
    }

    /// A SQL function or procedure; as for [`Target::relation`].
    pub fn function(schema: Option<&str>, name: &str) -> Self {
        Self::new(qualified("fn:", schema, name))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn qualified(prefix: &str, schema: Option<&str>, name: &str) -> String {
    let mut out = String::with_capacity(prefix.len() + schema.map_or(1, str::len) + 1 + name.len());
    out.push_str(prefix);
    match schema {
        Some(schema) => push_identifier(&mut out, schema),
        None => out.push('?'),
    }
    out.push('.');
    push_identifier(&mut out, name);
    out
}

/// Appends an identifier, quoted unless it is `[a-z_][a-z0-9_$]*`.
pub fn push_identifier(out: &mut String, identifier: &str) {
    let plain = identifier.bytes().enumerate().all(|(i, b)| match b {
        b'a'..=b'z' | b'_' => true,
        b'0'..=b'9' | b'$' => i > 0,
        _ => false,
    });
    if plain && !identifier.is_empty() {
        out.push_str(identifier);
        return;
    }
    out.push('"');
    for c in identifier.chars() {
        if c == '"' {
            out.push('"');
        }
        out.push(c);
    }
    out.push('"');
}

/// How much of a command was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clarity {
    /// All of it.
    Parsed,
    /// Its kind, but not every part; the parts carry [`Verb::Unknown`] where they do not.
    Partial,
    /// Nothing: the only part is [`Verb::Unknown`].
    Opaque,
}

/// One (verb, target) pair.
pub type Part = (Verb, Target);

/// What a command would do.
#[derive(Clone, Debug)]
pub struct Action {
    /// The protocol it was spoken in.
    pub protocol: ProtocolId,
    /// Every part. Empty means that nothing at all is done (an empty query).
    pub parts: SmallVec<[Part; 2]>,
    /// How much was understood.
    pub clarity: Clarity,
    /// Typed facts for `when` expressions.
    pub facts: Facts,
}

impl Action {
    /// An action with one part and no facts.
    pub fn single(protocol: ProtocolId, verb: Verb, target: Target) -> Self {
        Self { protocol, parts: smallvec::smallvec![(verb, target)], clarity: Clarity::Parsed, facts: Facts::None }
    }

    /// A command that was not understood. `target` says what kind it was, for the record and for rules that name it.
    pub fn opaque(protocol: ProtocolId, target: Target) -> Self {
        Self { clarity: Clarity::Opaque, ..Self::single(protocol, Verb::Unknown, target) }
    }

    /// Whether any part may change something beyond this session.
    pub fn changes(&self) -> bool {
        self.parts.iter().any(|(verb, _)| verb.changes())
    }
}

/// Typed facts about a command.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Facts {
    /// None known: a `when` that asks for any cannot be evaluated.
    #[default]
    None,
    /// Facts of each SQL statement, in order. Every part belongs to exactly one statement.
    Sql(Arc<[SqlFacts]>),
    /// Facts of an HTTP request.
    Http(Arc<HttpFacts>),
}

/// Facts about one HTTP request: `http.*` in a `when`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpFacts {
    /// As sent.
    pub method: String,
    /// The upstream's name or address that it is for, in lower case, without port.
    pub host: String,
    /// In the form in which it is sent upstream.
    pub path: String,
    /// Parameters of the query, decoded. One that stands there twice has no value that all would agree on: `None`.
    pub query: BTreeMap<String, Option<String>>,
    /// Header fields, without credentials.
    pub headers: Fields,
    /// The protocol that it would go on with, `websocket`; empty for none.
    pub upgrade: String,
    /// Its body.
    pub body: Body,
    /// What it asks of a model.
    pub llm: Option<LlmFacts>,
}

impl HttpFacts {
    /// Without what differs from one request of a kind to the next: numbers and identifiers in the path, values of the query.
    pub fn shape(&self) -> String {
        let mut out = String::with_capacity(self.path.len() + self.host.len() + 32);
        for piece in [&self.method, " ", &self.host, " "] {
            out.push_str(piece);
        }
        for (n, segment) in self.path.split('/').enumerate() {
            out.push_str(if n > 0 { "/" } else { "" });
            out.push_str(if is_identifier(segment) { "?" } else { segment });
        }
        for (n, name) in self.query.keys().enumerate() {
            out.push_str(if n > 0 { "&" } else { "?" });
            out.push_str(name);
        }
        if self.query.is_empty() {
            out.push('?');
        }
        out
    }
}

fn is_identifier(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let hex = segment.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    digits > 0 && (digits == segment.len() || (hex && segment.len() >= 16))
}

/// Header fields as they came, taken apart only where somebody asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(String);

impl Fields {
    /// For fields that take this many bytes, names and values together.
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self(String::with_capacity(bytes + 3 * fields))
    }

    /// Appends one: its name in lower case, and its value, which has no line feed.
    pub fn push(&mut self, name: &str, value: &str) {
        for piece in [name, ": ", value, "\n"] {
            self.0.push_str(piece);
        }
    }

    /// By name, those of one name joined by `, `.
    pub fn by_name(&self) -> BTreeMap<&str, String> {
        let mut all = BTreeMap::<_, String>::new();
        for (name, value) in self.0.split_terminator('\n').filter_map(|field| field.split_once(": ")) {
            all.entry(name)
                .and_modify(|text| {
                    text.push_str(", ");
                    text.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        all
    }
}

/// Facts about one request to a model: `llm.*` in a `when`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LlmFacts {
    /// `chat`, `responses` or `messages`.
    pub api: &'static str,
    /// The model's name, as asked for.
    pub model: String,
    /// Whether the answer comes piece by piece.
    pub stream: bool,
    /// Most tokens of the answer, where the request says.
    pub max_tokens: Option<u64>,
    /// Names of the tools that it offers to the model.
    pub tools: Vec<String>,
    /// The last thing that the user said; a long one is cut.
    pub prompt: Option<Arc<str>>,
    /// What in its tool results and user texts reads like an attempt to give the model other orders.
    pub injection: Vec<&'static str>,
}

/// The body of a request, for policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// It has none.
    #[default]
    None,
    /// It was not read yet: the request is judged again once it is.
    Pending,
    /// It is no JSON that has one meaning, or was not read.
    Unknown,
    /// JSON without duplicate keys.
    Json(serde_json::Value),
}

/// Facts about one SQL statement: `sql.*` in a `when`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SqlFacts {
    /// Which of the action's parts are this statement's.
    #[serde(skip)]
    pub parts: Range<usize>,
    /// The leading keyword of what it does, in lower case: `select`, `insert`, `update`, `delete`, `create table`, ...
    pub verb: String,
    /// Whether an UPDATE, DELETE or SELECT has a WHERE clause that is not constantly true. Of several nested changing
    /// statements, whether all have.
    pub has_where: bool,
    /// Whether a top-level LIMIT or FETCH FIRST is there.
    pub has_limit: bool,
    /// The relations it names, canonical.
    pub tables: Vec<Target>,
    /// The functions it calls, canonical, without `fn:`. Safe built-ins included.
    pub functions: Vec<String>,
    /// How many statements the command has.
    pub statements: usize,
    /// The statement's text.
    pub text: String,
    /// Its bound parameters.
    #[serde(skip)]
    pub params: Params,
}

/// The parameters that a statement is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Params {
    /// It is none that can have any.
    #[default]
    None,
    /// It is prepared: they come with each execution, which is judged again.
    Pending,
    /// Some cannot be read.
    Unknown,
    /// Each as text; NULL is `None`.
    Known(Arc<[Option<Arc<str>>]>),
}

/// Facts about the process that opened a connection. Hints for people, never an identity: the cgroup is that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// Process id in the host's namespace; 0 if unknown.
    pub pid: u32,
    /// User id in the host's namespace.
    pub uid: u32,
    /// Task name as the kernel gave it.
    pub comm: String,
    /// Path of the executable, where it could be read.
    pub exe: Option<String>,
}

/// Who acts: one session of a workload, and the process in it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name of the workload, as in its policy.
    pub workload: Arc<str>,
    /// Tenant of the workload's policy, if it names one.
    pub tenant: Option<Arc<str>>,
    /// The session's id.
    pub session: Arc<str>,
    /// Kernel id of the session's cgroup.
    pub cgroup: u64,
    /// Why the session runs.
    pub intent: Option<Arc<str>>,
    /// W3C trace id of the session.
    pub trace_id: Arc<str>,
    /// When the session's rights end.
    pub ends_at: Option<SystemTime>,
    /// The process that opened the connection.
    pub process: ProcessFacts,
}

/// Which backend, as the policy names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Name of the upstream in the policy.
    pub upstream: Arc<str>,
    /// The protocol spoken.
    pub protocol: ProtocolId,
    /// `host:port` as the client asked for it.
    pub address: Arc<str>,
    /// Database, where the protocol has one.
    pub database: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_forge_separators() {
        assert_eq!(Target::relation(Some("public"), "orders").as_str(), "public.orders");
        assert_eq!(Target::relation(Some("public"), "a.b").as_str(), "public.\"a.b\"");
        assert_eq!(Target::relation(Some("Pub\"lic"), "*").as_str(), "\"Pub\"\"lic\".\"*\"");
        assert_eq!(Target::relation(None, "x").as_str(), "?.x");
        assert_eq!(Target::relation(Some("?"), "x").as_str(), "\"?\".x");
        assert_eq!(Target::function(Some("pg_catalog"), "now").as_str(), "fn:pg_catalog.now");
        assert_eq!(Target::relation(Some(""), "1a").as_str(), "\"\".\"1a\"");
    }
}
