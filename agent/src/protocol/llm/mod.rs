//! APIs of models over HTTP: OpenAI's chat completions and responses, Anthropic's messages, and servers that speak like
//! either, answers in one piece and as server-sent events.
//!
//! A POST to a path that ends in `/chat/completions`, `/responses` or `/messages` is a request to a model. It is judged as
//! `read model:NAME`, with the facts `llm.*`; a request that names no model, or whose body cannot be read, is refused. Every
//! other request of such an upstream is judged as HTTP, by method and path. [`Budgets`] limit requests, tokens and money; what
//! reads like an attempt to give the model other orders ([`injection`]) is recorded, or refused.
//!
//! Masked: requests by masks with `direction = "request"`, answers by detectors and known secrets, also where a secret comes
//! in several pieces ([`deltas`]). Recorded: each turn with the last thing that the user said, and each answer with its tool calls,
//! tokens, price and time. The session's other commands refer to the turn they came from (`identity::Turns`).
//!
//! A refusal is problem details that are also an error as both families of clients read it. Limits: requests of
//! `limits.command` bytes, answers, or each event of one that streams, that are read up to [`told::ANSWER_MAX`]; beyond, it
//! passes, masked, and where it would have told the tokens they are guessed. Budgets are kept in memory: a daemon that starts
//! anew starts them anew.

mod ask;
mod budget;
mod deltas;
pub mod fuzz;
mod injection;
mod lens;
mod told;

pub use budget::Budgets;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::http;
use crate::{
    action::{Action, ProtocolId},
    policy::Route,
    session::{BoxIo, ConnectionCx, Ended, Protocol, SessionError},
};

/// The protocol.
#[derive(Debug, Default)]
pub struct Llm {
    budgets: Arc<Budgets>,
}

impl Protocol for Llm {
    fn id(&self) -> ProtocolId {
        ProtocolId::Llm
    }

    fn serve<'a>(&'a self, client: BoxIo, cx: &'a Arc<ConnectionCx>) -> BoxFuture<'a, Result<Ended, SessionError>> {
        let lens = Arc::new(lens::Models { budgets: Arc::clone(&self.budgets) });
        Box::pin(http::serve(client, cx, Some(lens)))
    }
}

/// What a line `METHOD /path` with a body of a decision case or a question would do.
pub fn classify(line: &str, routes: &[Route]) -> Action {
    let Some(mut request) = http::request_of(line, routes) else {
        return http::classify(line, routes);
    };
    request.spoken_as(ProtocolId::Llm);
    if let Some(api) = ask::Api::of(&request) {
        let body = request.body_json().filter(|_| request.readings().len() == 1);
        match body.and_then(|body| ask::Ask::read(api, body).ok()) {
            Some(ask) => request.judge_as(crate::action::Verb::Read, ask.target(), ask.facts()),
            None => return Action::opaque(ProtocolId::Llm, crate::action::Target::new("llm:opaque")),
        }
    }
    request.action()
}
