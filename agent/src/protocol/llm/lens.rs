//! What becomes of a request to a model on its way through HTTP.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::{
    ask::{Api, Ask},
    budget::{Budgets, Reserved, Spent},
    deltas::Deltas,
    told::{Told, tokens},
};
use crate::{
    action::{ProtocolId, TurnNote, Verb, trace_of},
    mask::{KnownSecrets, MaskSet},
    policy::Injection,
    protocol::http::{Lens, MaskPieces, Problem, Request, Taken, Watch},
    record::{EventBody, Usage},
    session::ConnectionCx,
};

/// Judges requests to models.
pub struct Models {
    /// What may still be used.
    pub budgets: Arc<Budgets>,
}

impl Lens for Models {
    fn id(&self) -> ProtocolId {
        ProtocolId::Llm
    }

    fn takes(&self, request: &Request) -> bool {
        Api::of(request).is_some()
    }

    fn read(&self, cx: &Arc<ConnectionCx>, request: &mut Request, body: &Bytes) -> Result<Box<dyn Taken>, Problem> {
        let api = Api::of(request).ok_or_else(|| Problem::bad_request("this is no request to a model"))?;
        if request.readings().len() > 1 {
            return Err(Problem::bad_request("the path or method of a request to a model has more than one reading"));
        }
        let value = request.body_json();
        let value = value.ok_or_else(|| Problem::bad_request("the body is not JSON with one meaning"))?;
        let ask = Ask::read(api, value).map_err(|error| Problem::bad_request(error.to_string()))?;
        if cx.upstream.models.injection == Injection::Block && !ask.injection.is_empty() {
            let found = ask.injection.join(", ");
            let detail = format!("the request has text that reads like other orders for the model: {found}");
            return Err(Problem::new(StatusCode::FORBIDDEN, "Refused by policy", detail));
        }
        let input = tokens(body.len() as u64);
        let reserved = self.budgets.reserve(cx, &ask.model, input, ask.max_output).map_err(over_budget)?;
        request.judge_as(Verb::Read, ask.target(), ask.facts());
        request.ask_plain();
        let trace = request.header("traceparent").as_deref().and_then(trace_of).map(Arc::from);
        Ok(Box::new(Asked { cx: Arc::clone(cx), ask, reserved, input, trace, seq: 0 }))
    }

    fn refusal(&self, problem: &mut Problem) {
        let (kind, code) = match problem.status {
            StatusCode::FORBIDDEN => ("permission_error", "refused_by_policy"),
            StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", "budget_used_up"),
            StatusCode::PAYLOAD_TOO_LARGE => ("request_too_large", "too_large"),
            status if status.is_client_error() => ("invalid_request_error", "refused"),
            _ => ("api_error", "upstream"),
        };
        let hold = problem.hold.as_ref().map(|hold| format!(" (hold {hold})")).unwrap_or_default();
        let message = format!("{}{hold}", problem.detail);
        // As Anthropic's clients read it, and OpenAI's.
        problem.extension.insert("type".into(), json!("error"));
        problem.extension.insert("error".into(), json!({"type": kind, "code": code, "message": message}));
    }
}

fn over_budget(spent: Spent) -> Problem {
    match spent {
        Spent::Up { .. } => Problem::new(StatusCode::TOO_MANY_REQUESTS, "Budget used up", spent.to_string()),
        Spent::NoPrice(_) => Problem::new(StatusCode::FORBIDDEN, "Refused by policy", spent.to_string()),
    }
}

/// A request to a model that was read.
struct Asked {
    cx: Arc<ConnectionCx>,
    ask: Ask,
    reserved: Reserved,
    /// Tokens that go in, guessed.
    input: u64,
    trace: Option<Arc<str>>,
    seq: u64,
}

impl Asked {
    fn turn(&self) -> Arc<str> {
        format!("{}.{}", self.cx.id, self.seq).into()
    }
}

impl Taken for Asked {
    fn goes(&mut self, seq: u64) -> Result<(), Problem> {
        self.seq = seq;
        let turn = TurnNote {
            id: self.turn(),
            model: Arc::clone(&self.ask.model),
            prompt: self.ask.prompt.clone(),
            calls: Vec::new(),
        };
        let body = EventBody::Turn {
            seq,
            turn: turn.clone(),
            system: self.ask.system.clone(),
            tools: self.ask.tools.clone(),
            trace: self.trace.clone(),
            injection: match self.cx.upstream.models.injection {
                Injection::Allow => Vec::new(),
                Injection::Warn | Injection::Block => self.ask.injection.iter().map(ToString::to_string).collect(),
            },
        };
        self.cx.record(body).map_err(|refusal| Problem::refused(&refusal, None))?;
        self.cx.turns.asked(turn, self.trace.clone(), std::mem::take(&mut self.ask.thread));
        Ok(())
    }

    fn watch(self: Box<Self>, started: Instant) -> Box<dyn Watch> {
        Box::new(Answer { asked: *self, started, first: None, told: None, status: None })
    }
}

/// The answer of a model as it comes.
struct Answer {
    asked: Asked,
    started: Instant,
    first: Option<Duration>,
    told: Option<Told>,
    status: Option<StatusCode>,
}

impl Watch for Answer {
    fn begins(
        &mut self,
        status: StatusCode,
        content_type: &str,
        masks: &Arc<MaskSet>,
        secrets: &Arc<KnownSecrets>,
    ) -> Option<Box<dyn MaskPieces>> {
        let api = self.asked.ask.api;
        self.status = Some(status);
        self.told = Some(Told::new(api, content_type));
        let is_stream = content_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream");
        let looks = !secrets.is_empty() || masks.has_detectors();
        (is_stream && looks).then(|| Box::new(Deltas::new(api, Arc::clone(masks), Arc::clone(secrets))) as _)
    }

    fn sees(&mut self, piece: &[u8]) {
        if !piece.is_empty() {
            self.first.get_or_insert_with(|| self.started.elapsed());
        }
        if let Some(told) = &mut self.told {
            told.push(piece);
        }
    }

    fn ends(self: Box<Self>, broken: Option<&str>) {
        let Self { asked, started, first, told, status } = *self;
        let turn = asked.turn();
        let (said, guess) = told.map(Told::finish).unwrap_or_default();
        let answered = status.is_some_and(|status| status.is_success());
        // What the service refused it did not charge for, nor what it was never asked.
        let (input, output) = match (said.input, said.output) {
            (Some(input), Some(output)) => (input, output),
            _ if !answered => (0, 0),
            (input, output) => (input.unwrap_or(asked.input), output.unwrap_or(guess)),
        };
        let estimated = answered && (said.input.is_none() || said.output.is_none());
        let usage = Usage { input, output, cost: asked.reserved.cost(input, output), estimated };
        asked.reserved.settle(&usage);
        let failed = broken.is_some() || !answered || said.error.is_some();
        let why = broken.map(Arc::from).or_else(|| said.error.clone());
        let refused = || status.filter(|_| !answered).map(|status| Arc::from(format!("status {}", status.as_u16())));
        let calls = if failed { Vec::new() } else { said.calls() };
        asked.cx.turns.answered(&turn, calls.clone(), said.id.clone());
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let body = EventBody::Answer {
            seq: asked.seq,
            turn,
            model: said.model.clone(),
            stop: why.or_else(refused).or_else(|| said.stop.clone()),
            failed,
            calls,
            usage,
            first_us: micros(first.unwrap_or_default()),
            duration_us: micros(started.elapsed()),
        };
        // A record that fails refuses all that follows.
        let _ = asked.cx.record(body);
    }
}
