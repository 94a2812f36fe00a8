//! The format of a policy file, as serde reads it and as the JSON schema describes it.

use std::{borrow::Cow, fmt, marker::PhantomData, ops::Range, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{
    Autonomy, ClientAuth, ClientTls, Effect, Filesystem, HoldScope, Inject, Injection, Place, Reviewer, RunAs, Tier,
    TlsMode, duration::Span, size::Size,
};
use crate::action::{Detector, Direction, Inference, MaskWith, Unresolved, Verb};

/// The policy of one workload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Portcullis policy")]
pub(super) struct File {
    /// The workload that this file is for.
    pub(super) workload: At<Workload>,
    /// Backends that the workload may reach.
    #[serde(default)]
    pub(super) upstream: Vec<At<Upstream>>,
    /// What it may do there. Nothing matches: deny. Several match: the strictest effect wins, whatever the order.
    #[serde(default)]
    pub(super) rule: Vec<At<Rule>>,
    /// What it must not see.
    #[serde(default)]
    pub(super) mask: Vec<At<Mask>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Workload {
    /// Letters, digits, `.`, `_` and `-`.
    pub(super) name: At<String>,
    /// Glob over cgroup paths, relative to the cgroup2 root.
    pub(super) cgroup: At<String>,
    /// Whether others make the cgroups that match, such as a service manager or a container runtime. Each is a session
    /// as long as it is there, and `portcullis run` starts none. Default: false.
    pub(super) claim: Option<At<bool>>,
    /// Tenant for records.
    pub(super) tenant: Option<At<String>>,
    /// The least strictness for everything that is not a read. Default: `confirm`.
    pub(super) autonomy: Option<Autonomy>,
    /// Unix sockets that it may reach: absolute paths, exactly as clients write them. The workload must not be able to
    /// change a folder on the way. Default: none.
    pub(super) unix: Option<At<Vec<At<String>>>>,
    #[serde(default)]
    pub(super) session: Session,
    /// What one session may use of the host. Default: as much as there is.
    #[serde(default)]
    pub(super) limits: Limits,
    /// Whether each session has `/tmp`, `/var/tmp` and `/dev/shm` of its own, in memory, and a folder
    /// (`$XDG_RUNTIME_DIR`) for unix sockets of its own. The working folder is there, wherever it is; other files in
    /// these folders are not. Needs root to launch. Default: no.
    pub(super) private_tmp: Option<At<bool>>,
    /// `read-only`: nothing can be written but the working folder and the private temporary ones. Default: `host`, as
    /// permissions allow.
    pub(super) filesystem: Option<At<Filesystem>>,
    /// Whom it runs as. `dedicated`: a user of the daemon's range (`sessions.uids`) that no other session has. `root`: the
    /// same, who is root in a user namespace of the session's own and nobody outside of it. Both need `private_tmp`, and
    /// root to launch. Default: `caller`, or whom root names with `--user`.
    pub(super) user: Option<At<RunAs>>,
}

/// Each but `wall` needs the host's cgroup controller of that name; without it no session is opened.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Memory of all its processes together, page cache and temporary files in memory included. A process that takes
    /// more is killed.
    pub(super) memory: Option<At<Size>>,
    /// Processes and threads at once. To make more of them fails.
    pub(super) pids: Option<At<u32>>,
    /// Processors at once, such as `1.5`. Who wants more waits.
    pub(super) cpu: Option<At<f64>>,
    /// Longest life of a session. When this or its `ttl` runs out, its processes are killed.
    pub(super) wall: Option<Span>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    /// Longest life of a session.
    pub(super) ttl: Option<Span>,
    /// Whether `portcullis run` must be given an intent.
    #[serde(default)]
    pub(super) require_intent: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    /// Letters, digits, `.`, `_` and `-`.
    pub(super) name: At<String>,
    /// `postgres`, `http`, or `llm` (models' APIs over HTTP).
    pub(super) protocol: At<String>,
    /// `host:port`, one or several.
    pub(super) address: At<Several<String>>,
    /// Databases that may be asked for. Default: any.
    pub(super) databases: Option<At<Vec<At<String>>>>,
    /// Preset of rules. Rules of this file only add strictness to it, unless they name it.
    pub(super) tier: Option<At<Tier>>,
    /// TLS toward the upstream. Default: `verify-full`.
    pub(super) tls: Option<At<Tls>>,
    /// TLS between the client and the enforcer. Default: `offer`.
    #[serde(default)]
    pub(super) client_tls: ClientTls,
    /// How the enforcer logs in. Default: without a secret.
    pub(super) credential: Option<At<Credential>>,
    /// `http`: what shows the upstream within TLS who the enforcer is: a chain of certificates and the key of its first, in
    /// one text of PEM. It is fetched for each connection, and goes with any credential.
    pub(super) client_certificate: Option<At<Secret>>,
    /// `http`: requests that do something else than their method says, such as a search that is a POST. The first that
    /// matches counts.
    #[serde(default)]
    pub(super) route: Vec<At<Route>>,
    /// `llm`: what models cost. The first that matches counts.
    #[serde(default)]
    pub(super) price: Vec<At<Price>>,
    /// `llm`: what each session may use.
    pub(super) session_budget: Option<At<Budget>>,
    /// `llm`: what all sessions of the workload together may use.
    pub(super) workload_budget: Option<At<Budget>>,
    /// `llm`: what to do where a tool's result or a user's text reads like an attempt to give the model other orders: `allow`,
    /// `warn` (default: it is on record) or `block`.
    pub(super) injection: Option<At<Injection>>,
    /// `http`: texts `PORTCULLIS_SECRET_NAME` in requests, in whose place this upstream is sent a secret, and no other is.
    #[serde(default)]
    pub(super) placeholder: Vec<At<Placeholder>>,
}

/// In any currency, the same everywhere.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Price {
    /// Glob over names of models.
    pub(super) model: At<String>,
    /// Of a million tokens that go in.
    pub(super) input: At<f64>,
    /// Of a million tokens that come out.
    pub(super) output: At<f64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    /// Requests.
    pub(super) requests: Option<At<u64>>,
    /// Tokens, those in and out together.
    pub(super) tokens: Option<At<u64>>,
    /// Money. A model without a price is refused then.
    pub(super) cost: Option<At<f64>>,
    /// How long until all of it is there again. Default: never, as long as the daemon runs.
    pub(super) per: Option<Span>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Placeholder {
    /// What stands behind `PORTCULLIS_SECRET_`: letters, digits and `_`.
    pub(super) name: At<String>,
    /// Where the secret comes from.
    pub(super) source: SecretKind,
    /// `file`: where it is. A relative path is looked up in `$CREDENTIALS_DIRECTORY`.
    pub(super) path: Option<At<PathBuf>>,
    /// `exec`: program and arguments, no shell.
    pub(super) argv: Option<At<Vec<String>>>,
    /// `exec`: how long the program may take. Default: `10s`.
    pub(super) timeout: Option<At<Span>>,
    /// Where it may stand: `header`, `header:NAME`, `query`, `query:NAME`, `body` (JSON, a form or plain text).
    #[serde(rename = "in")]
    pub(super) places: At<Vec<At<Place>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Globs over `METHOD /path`.
    pub(super) targets: At<Vec<At<String>>>,
    /// What they do: `read`, `write`, `delete`, `schema`, `admin` or `execute`.
    pub(super) verb: At<Verb>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// As libpq's `sslmode`. Default: `verify-full`.
    pub(super) mode: Option<TlsMode>,
    /// PEM file of trusted roots. Default: the system's.
    pub(super) ca: Option<At<PathBuf>>,
    /// PEM file of the client certificate.
    pub(super) cert: Option<At<PathBuf>>,
    /// PEM file of the client certificate's key.
    pub(super) key: Option<At<PathBuf>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// Where the secret comes from.
    pub(super) source: CredentialKind,
    /// Login name at the upstream; with `sigv4`, the access key's id.
    pub(super) user: Option<At<String>>,
    /// `file`: where it is. A relative path is looked up in `$CREDENTIALS_DIRECTORY`.
    pub(super) path: Option<At<PathBuf>>,
    /// `exec`: program and arguments, no shell.
    pub(super) argv: Option<At<Vec<String>>>,
    /// `exec`: how long the program may take; `oauth2`: how long the token endpoint may. Default: `10s`.
    pub(super) timeout: Option<At<Span>>,
    /// `oauth2`: URL of the token endpoint: `https`, or `http` on loopback.
    pub(super) token_url: Option<At<String>>,
    /// `oauth2`: TLS toward the token endpoint, as `tls` of an upstream. It is always verified.
    pub(super) token_tls: Option<At<Tls>>,
    /// `oauth2`: name of the client.
    pub(super) client_id: Option<At<String>>,
    /// `oauth2`: secret of the client. A public client has none.
    pub(super) client_secret: Option<At<Secret>>,
    /// `oauth2`: how the secret is sent. Default: `client_secret_basic`.
    pub(super) client_auth: Option<At<ClientAuth>>,
    /// `oauth2`: the refresh token to begin with. With one, tokens are obtained by it (RFC 6749 section 6), else by the
    /// client's own credentials (section 4.4).
    pub(super) refresh_token: Option<At<Secret>>,
    /// `oauth2`: what is asked for.
    pub(super) scopes: Option<At<Vec<At<String>>>>,
    /// `oauth2`: whom the token is for, where the server asks for that.
    pub(super) audience: Option<At<String>>,
    /// `http`: where in a request the secret stands: `bearer`, `basic`, `header:NAME`, `query:NAME`, `cookie:NAME`, or
    /// `sigv4:REGION/SERVICE`: a signature of AWS by it. What the agent has sent there is taken out. Default: `bearer`.
    pub(super) inject: Option<At<Inject>>,
    /// `sigv4`: the session token of temporary keys.
    pub(super) session_token: Option<At<Secret>>,
}

/// A secret that is a part of something.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    /// Where it comes from.
    pub(super) source: SecretKind,
    /// `file`: where it is. A relative path is looked up in `$CREDENTIALS_DIRECTORY`.
    pub(super) path: Option<At<PathBuf>>,
    /// `exec`: program and arguments, no shell.
    pub(super) argv: Option<At<Vec<String>>>,
    /// `exec`: how long the program may take. Default: `10s`.
    pub(super) timeout: Option<At<Span>>,
}

/// A kind of secret source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum SecretKind {
    /// The first line of a file.
    File,
    /// The output of a program.
    Exec,
}

/// A kind of secret source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CredentialKind {
    /// No secret.
    None,
    /// The first line of a file.
    File,
    /// The output of a program.
    Exec,
    /// A token that an authorization server gives out.
    OAuth2,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// A sentence for people; unique in the file.
    pub(super) name: At<String>,
    /// One upstream or several. Default: every one of the file.
    pub(super) upstream: Option<At<Several<String>>>,
    /// Only upstreams of this protocol.
    pub(super) protocol: Option<At<String>>,
    /// Default: every verb; `unknown` is then refused but never let through.
    pub(super) verbs: Option<At<Vec<At<Verb>>>>,
    /// Globs over targets: `schema.name` of `postgres`, `METHOD /path` of `http` and `llm`, `model:NAME` of `llm`. Default: every
    /// target.
    pub(super) targets: Option<At<Vec<At<String>>>>,
    /// Globs over targets that the rule does not match.
    pub(super) except: Option<At<Vec<At<String>>>>,
    /// A CEL expression over `sql` (`verb`, `has_where`, `has_limit`, `tables`, `functions`, `statements`, `text`, `params`) or `http`
    /// (`method`, `host`, `path`, `query`, `headers`, `upgrade`, `body_json`) or `llm` (`api`, `model`, `stream`, `max_tokens`, `tools`, `prompt`,
    /// `injection`), `workload`, `session` (`intent`), `upstream` and `database`.
    pub(super) when: Option<At<String>>,
    /// What to do.
    pub(super) effect: Effect,
    /// One sentence for whoever is refused or held.
    pub(super) reason: Option<At<String>>,
    /// `hold`: who may decide, `user:NAME` or `group:NAME`. Default: those of the daemon's settings.
    pub(super) reviewers: Option<At<Vec<At<Reviewer>>>>,
    /// `hold`: how many distinct reviewers. Default: `one`.
    pub(super) required: Option<At<Required>>,
    /// `hold`: how long a command waits. Default: `15m`.
    pub(super) expires: Option<At<Span>>,
    /// `hold`: how long an approval reaches. Default: `command`.
    pub(super) scope: Option<At<HoldScope>>,
    /// `hold`: run a change of rows, count them, and roll it back while it waits, on a connection of its own, where nothing
    /// that lasts can come of it. Among several rules that hold, `false` has the last word. Default: the planner is asked.
    pub(super) dry_run: Option<At<bool>>,
    /// Names the tier of its upstreams: where this rule matches, it stands in place of that tier.
    pub(super) tier: Option<At<Tier>>,
}

/// How many distinct reviewers must approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Required {
    /// One.
    One,
    /// Two.
    Two,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mask {
    /// One upstream or several. Default: every one of the file.
    pub(super) upstream: Option<At<Several<String>>>,
    /// Globs over `schema.table.column`; what is left out on the left may be anything.
    pub(super) columns: Option<At<Vec<At<String>>>>,
    /// `http`: globs over the places of values in JSON, keys and numbers of items joined by `/`: `**/email`,
    /// `customers/*/name`.
    pub(super) json: Option<At<Vec<At<String>>>>,
    /// Kinds of values found by their looks.
    pub(super) detect: Option<At<Vec<At<Detector>>>>,
    /// What takes the value's place.
    pub(super) with: MaskWith,
    /// `http`: `response` (default), or `request`: in what the workload sends, before it is judged. The whole body is read
    /// for it; a value that stands in the path, the query or a header field refuses the request.
    pub(super) direction: Option<At<Direction>>,
    /// For results whose values cannot be traced to columns, and responses that are no JSON where places in it are masked:
    /// `deny` refuses the statement or response (default), `mask` hides them. The strictest of an upstream's masks of
    /// columns or places counts.
    pub(super) unresolved: Option<At<Unresolved>>,
    /// For commands that use a hidden column without returning it, in a condition, an order, a group or a join: `allow`,
    /// `hold` (default), `deny`. Equality with a bound parameter passes. The strictest of an upstream's masks of columns
    /// counts.
    pub(super) inference: Option<At<Inference>>,
}

/// A value and where it stands in the file.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) span: Range<usize>,
    pub(super) value: T,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::deserialize(deserializer)?;
        Ok(Self { span: spanned.span(), value: spanned.into_inner() })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum Several<T> {
    One(T),
    Many(Vec<At<T>>),
}

impl Several<String> {
    /// Each value with its place; `span` is that of the whole.
    pub(super) fn each(&self, span: &Range<usize>) -> Vec<At<String>> {
        match self {
            Self::One(value) => vec![At { span: span.clone(), value: value.clone() }],
            Self::Many(values) => values.clone(),
        }
    }
}

impl<'de, T: Deserialize<'de> + From<String>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + From<String>> Visitor<'de> for OneOrMany<T> {
            type Value = Several<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Several<T>, E> {
                Ok(Several::One(value.to_owned().into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Several<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(values)).map(Several::Many)
            }
        }

        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

/// The JSON schema of a policy file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).into()
}
