//! What is recorded.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::action::{CallNote, ProcessFacts, PromptRef, Target, TurnNote, Verb};

/// One line of the record. Values are what the agent was allowed to see: the masked view, and never a credential.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339 with microseconds, UTC. Set by the recorder when it is appended.
    #[serde(default)]
    pub timestamp: String,
    /// Tenant of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Arc<str>>,
    /// Workload name; empty where no policy claims the process.
    #[serde(default)]
    pub workload: Arc<str>,
    /// Session id.
    #[serde(default)]
    pub session_id: Arc<str>,
    /// Connection id within the daemon's life; 0 for events of no connection.
    #[serde(default)]
    pub connection_id: u64,
    /// W3C trace id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<Arc<str>>,
    /// Upstream name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Arc<str>>,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// How a command was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionNote {
    /// `allow`, `notify`, `hold`, `suggest`, `deny`.
    pub effect: Arc<str>,
    /// The rule.
    pub rule: Arc<str>,
    /// Who approved or denied, where a person did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reviewers: Vec<String>,
    /// The reason that the agent was shown, or the reviewer gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
}

impl DecisionNote {
    /// Whether the command or connection went through. A held command has the effect `hold` where it was approved, and
    /// `deny` where it was not.
    pub fn passed(&self) -> bool {
        matches!(&*self.effect, "allow" | "notify" | "hold")
    }
}

/// What was masked in a response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedNote {
    /// How many values.
    pub count: u64,
    /// Which column masks and detectors hit: `column:public.customers.email`, `detect:iban`.
    pub detectors: Vec<String>,
}

/// What a turn cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that went in.
    pub input: u64,
    /// Tokens that came out.
    pub output: u64,
    /// Millionths of the policy's currency; absent where it has no price for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Whether the service did not say, and this is a guess by the length of texts that is rather too high.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventBody {
    /// A session began.
    SessionStart {
        /// Why it runs.
        intent: Option<Arc<str>>,
        /// Command line that `run` was given.
        command: Vec<String>,
        /// Who started it.
        operator: String,
        /// Kernel id of its cgroup.
        cgroup: u64,
        /// Seconds it may live.
        ttl_seconds: Option<u64>,
    },
    /// A session ended.
    SessionEnd {
        /// `exited`, `expired`, `quarantined`, `shutdown`, `lost`.
        why: Arc<str>,
    },
    /// A connection was opened or refused.
    Connect {
        /// What the client asked for.
        address: Arc<str>,
        /// Protocol spoken.
        protocol: Option<Arc<str>>,
        /// Login and database that the client named.
        database: Option<Arc<str>>,
        /// Who opened it.
        process: ProcessFacts,
        /// Whether it may.
        decision: DecisionNote,
    },
    /// A connection ended.
    Disconnect {
        /// Why, in a word or a sentence.
        why: Arc<str>,
        /// Bytes from client.
        bytes_in: u64,
        /// Bytes to client.
        bytes_out: u64,
    },
    /// A command was decided. Written before it is forwarded.
    Command {
        /// Number within the connection, from 1; its `Result` carries the same.
        seq: u64,
        /// The exact command, as text where it is text.
        command: Arc<str>,
        /// BLAKE3 of the exact bytes that are forwarded, hex.
        hash: String,
        /// Verb and target of each part.
        action: Vec<(Verb, Target)>,
        /// The decision.
        decision: DecisionNote,
        /// Id of the hold, if it waited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hold: Option<Arc<str>>,
        /// How long it waited, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waited_ms: Option<u64>,
        /// The turn of a conversation with a model that it belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prompt_ref: Option<PromptRef>,
    },
    /// A turn of a conversation with a model: a request that goes to it. Its `Command` has the same number, and is before it.
    Turn {
        /// Number of the request within the connection.
        seq: u64,
        /// Who, and what the user said last.
        turn: TurnNote,
        /// BLAKE3 of the instructions that the model got before all else, hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
        /// Names of the tools that it was offered.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<String>,
        /// W3C trace id of the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trace: Option<Arc<str>>,
        /// What in it reads like an attempt to give the model other orders.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        injection: Vec<String>,
    },
    /// What a model answered.
    Answer {
        /// As in its `Turn`.
        seq: u64,
        /// The turn's id.
        turn: Arc<str>,
        /// The model that answered, where it says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<Arc<str>>,
        /// Why it stopped, in the words of its service; what went wrong, if it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop: Option<Arc<str>>,
        /// Whether there is no whole answer.
        failed: bool,
        /// The tools that it asks for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        calls: Vec<CallNote>,
        /// Tokens and money.
        usage: Usage,
        /// From the request to the first piece of the answer, microseconds.
        first_us: u64,
        /// From the request to the end of the answer, microseconds.
        duration_us: u64,
    },
    /// A hold changed state.
    Hold {
        /// Its id.
        id: Arc<str>,
        /// The command that waits.
        seq: u64,
        /// `requested`, `estimated`, `approved` (one of two), `granted`, `denied`, `expired`, `withdrawn`.
        state: Arc<str>,
        /// The exact command.
        command: Arc<str>,
        /// BLAKE3 of the exact bytes, hex.
        hash: String,
        /// Rule that asked.
        rule: Arc<str>,
        /// Who acted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reviewer: Option<String>,
        /// What they said; of an estimate, where it comes from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Rows that it would change or return, as far as is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimated_rows: Option<u64>,
    },
    /// A command's response ended.
    Result {
        /// As in its `Command`.
        seq: u64,
        /// The server's tag (`SELECT 3`) or its error's SQLSTATE and message.
        result: Arc<str>,
        /// Whether it failed.
        failed: bool,
        /// Names of the columns.
        #[serde(default, skip_serializing_if = "is_empty")]
        columns: Arc<[Arc<str>]>,
        /// Masked values of the first rows; NULL is null.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sample: Vec<Vec<Option<String>>>,
        /// Rows in all.
        rows: u64,
        /// Bytes of the response in all.
        bytes: u64,
        /// What was masked.
        #[serde(default)]
        masked: MaskedNote,
        /// From forwarding to the end of the response, microseconds.
        duration_us: u64,
    },
    /// The kernel or the listener refused something.
    Refused {
        /// What, where to, and why.
        what: String,
        /// Who.
        process: ProcessFacts,
    },
    /// The daemon changed: start, stop, policy loaded or refused.
    Daemon {
        /// What happened.
        what: String,
    },
}

fn is_empty(columns: &Arc<[Arc<str>]>) -> bool {
    columns.is_empty()
}
