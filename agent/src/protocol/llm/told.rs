//! What a model answered, as far as record and budgets ask for it: in one piece, or as server-sent events.
//!
//! Nothing is decided by it. What cannot be read leaves the answer without tokens, and they are guessed by its length.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::ask::{Api, cut};
use crate::{action::CallNote, protocol::http::is_whole_event};

/// Longest answer in one piece that is read, in bytes.
pub const ANSWER_MAX: usize = 1 << 20;
/// Longest arguments of a call on record, in bytes.
const ARGUMENTS_MAX: usize = 2 << 10;
/// Most calls of one answer on record.
const CALLS_MAX: usize = 64;
/// Bytes of text that are taken for a token where nobody says: most texts have more.
const TOKEN_BYTES: u64 = 3;

/// Reads one answer as it goes by.
#[derive(Debug)]
pub struct Told {
    api: Api,
    form: Form,
    /// What it said of itself.
    pub said: Said,
    /// Bytes in all.
    bytes: u64,
}

#[derive(Debug)]
enum Form {
    Whole(Vec<u8>),
    /// Event by event; `long`: of this one only the end is waited for.
    Events {
        event: Vec<u8>,
        long: bool,
    },
    /// Too long to be read.
    Passed,
}

/// What an answer says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The model.
    pub model: Option<Arc<str>>,
    /// What its service calls it.
    pub id: Option<Arc<str>>,
    /// Tokens that went in.
    pub input: Option<u64>,
    /// Tokens that came out.
    pub output: Option<u64>,
    /// Why it stopped.
    pub stop: Option<Arc<str>>,
    /// What the service says went wrong.
    pub error: Option<Arc<str>>,
    calls: BTreeMap<u64, Call>,
    /// Whether its end came.
    pub ended: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Call {
    fn append(&mut self, arguments: &str) {
        let room = ARGUMENTS_MAX.saturating_sub(self.arguments.len());
        self.arguments.push_str(cut(arguments, room));
    }
}

impl Said {
    /// The tools that it asks for.
    pub fn calls(&self) -> Vec<CallNote> {
        let note = |call: &Call| CallNote {
            id: call.id.as_str().into(),
            name: call.name.as_str().into(),
            arguments: call.arguments.as_str().into(),
        };
        self.calls.values().map(note).collect()
    }

    fn call(&mut self, at: u64) -> Option<&mut Call> {
        (self.calls.len() < CALLS_MAX || self.calls.contains_key(&at)).then(|| self.calls.entry(at).or_default())
    }

    fn name(&mut self, at: u64, id: Option<&Value>, name: Option<&Value>) {
        let Some(call) = self.call(at) else { return };
        for (to, from) in [(&mut call.id, id), (&mut call.name, name)] {
            if let Some(text) = from.and_then(Value::as_str).filter(|text| !text.is_empty()) {
                *to = cut(text, 256).to_owned();
            }
        }
    }

    fn argue(&mut self, at: u64, arguments: &str) {
        if let Some(call) = self.call(at) {
            call.append(arguments);
        }
    }

    fn head(&mut self, value: &Value) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(|text| Arc::from(cut(text, 256)));
        self.model = text("model").or(self.model.take());
        self.id = text("id").or(self.id.take());
    }

    fn usage(&mut self, value: Option<&Value>) {
        let Some(value) = value else { return };
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        let cached = ["cache_creation_input_tokens", "cache_read_input_tokens"];
        // Anthropic counts what was cached apart.
        let input = number("prompt_tokens").or_else(|| {
            let plain = number("input_tokens")?;
            Some(cached.iter().filter_map(|name| number(name)).fold(plain, u64::saturating_add))
        });
        self.input = input.or(self.input);
        self.output = number("completion_tokens").or_else(|| number("output_tokens")).or(self.output);
    }

    fn stopped(&mut self, reason: Option<&Value>) {
        if let Some(reason) = reason.and_then(Value::as_str) {
            self.stop = Some(cut(reason, 256).into());
            self.ended = true;
        }
    }

    fn failed(&mut self, error: Option<&Value>) {
        let Some(error) = error.filter(|error| !error.is_null()) else { return };
        let text = error.get("message").unwrap_or(error);
        let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
        self.error = Some(cut(&text, 512).into());
    }

    /// A whole answer.
    fn whole(&mut self, api: Api, value: &Value) {
        self.head(value);
        self.usage(value.get("usage"));
        self.failed(value.get("error"));
        match api {
            Api::Chat => {
                let mut at = 0;
                for choice in array(value.get("choices")) {
                    self.stopped(choice.get("finish_reason"));
                    for call in array(choice.get("message").and_then(|message| message.get("tool_calls"))) {
                        self.chat_call(at, call);
                        at += 1;
                    }
                }
            }
            Api::Messages => {
                self.stopped(value.get("stop_reason"));
                for (at, block) in (0..).zip(array(value.get("content"))) {
                    self.block(at, block);
                }
            }
            Api::Responses => {
                self.stopped(value.get("status"));
                for (at, item) in (0..).zip(array(value.get("output"))) {
                    if is_kind(item, "function_call") || is_kind(item, "custom_tool_call") {
                        self.name(at, item.get("call_id"), item.get("name"));
                        let text = item.get("arguments").or_else(|| item.get("input")).and_then(Value::as_str);
                        text.into_iter().for_each(|text| self.argue(at, text));
                    }
                }
            }
        }
    }

    fn chat_call(&mut self, at: u64, call: &Value) {
        let function = call.get("function");
        self.name(at, call.get("id"), function.and_then(|function| function.get("name")));
        let arguments = function.and_then(|function| function.get("arguments")).and_then(Value::as_str);
        arguments.into_iter().for_each(|text| self.argue(at, text));
    }

    fn block(&mut self, at: u64, block: &Value) {
        if is_kind(block, "tool_use") {
            self.name(at, block.get("id"), block.get("name"));
            // As a stream begins: an empty object, whose text comes later.
            if let Some(input) = block.get("input").filter(|input| input.as_object().is_none_or(|map| !map.is_empty()))
            {
                self.argue(at, &input.to_string());
            }
        }
    }

    /// An event of a stream.
    fn event(&mut self, api: Api, value: &Value) {
        self.failed(value.get("error"));
        match api {
            Api::Chat => {
                self.head(value);
                self.usage(value.get("usage").filter(|usage| usage.is_object()));
                for choice in array(value.get("choices")) {
                    let of = choice.get("index").and_then(Value::as_u64).unwrap_or_default();
                    for call in array(choice.get("delta").and_then(|delta| delta.get("tool_calls"))) {
                        let at = call.get("index").and_then(Value::as_u64).unwrap_or_default();
                        self.chat_call(of.saturating_mul(1 << 20).saturating_add(at), call);
                    }
                    self.stopped(choice.get("finish_reason"));
                }
            }
            Api::Messages => self.message_event(value),
            Api::Responses => {
                let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
                let response = value.get("response");
                if let (true, Some(response)) = (kind.starts_with("response."), response) {
                    self.head(response);
                    if matches!(kind, "response.completed" | "response.incomplete" | "response.failed") {
                        self.calls.clear();
                        self.whole(Api::Responses, response);
                    }
                }
            }
        }
    }

    fn message_event(&mut self, value: &Value) {
        let at = value.get("index").and_then(Value::as_u64).unwrap_or_default();
        match value.get("type").and_then(Value::as_str).unwrap_or_default() {
            "message_start" => {
                let Some(message) = value.get("message") else { return };
                self.head(message);
                self.usage(message.get("usage"));
            }
            "content_block_start" => {
                value.get("content_block").into_iter().for_each(|block| self.block(at, block));
            }
            "content_block_delta" => {
                let delta = value.get("delta").and_then(|delta| delta.get("partial_json")).and_then(Value::as_str);
                delta.into_iter().for_each(|text| self.argue(at, text));
            }
            "message_delta" => {
                self.usage(value.get("usage"));
                self.stopped(value.get("delta").and_then(|delta| delta.get("stop_reason")));
            }
            _ => {}
        }
    }
}

impl Told {
    /// Of an answer of this type.
    pub fn new(api: Api, content_type: &str) -> Self {
        let is_stream = content_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream");
        let form = if is_stream { Form::Events { event: Vec::new(), long: false } } else { Form::Whole(Vec::new()) };
        Self { api, form, said: Said::default(), bytes: 0 }
    }

    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let too_long = match &mut self.form {
            Form::Whole(all) => {
                all.extend_from_slice(piece);
                all.len() > ANSWER_MAX
            }
            Form::Events { event, long } => {
                for byte in piece {
                    event.push(*byte);
                    if is_whole_event(event) {
                        if !*long && let Some(value) = data(event) {
                            self.said.event(self.api, &value);
                        }
                        event.clear();
                        *long = false;
                    } else if event.len() > ANSWER_MAX {
                        // Others may follow that can be read. What ends an event has four bytes at most.
                        *long = true;
                        event.drain(..event.len() - 4);
                    }
                }
                false
            }
            Form::Passed => false,
        };
        if too_long {
            self.form = Form::Passed;
        }
    }

    /// Its end. Answers what it said, and how many tokens came out at most, guessed by its length.
    pub fn finish(mut self) -> (Said, u64) {
        if let Form::Whole(all) = &self.form
            && let Ok(value) = serde_json::from_slice(all)
        {
            self.said.whole(self.api, &value);
        }
        (self.said, tokens(self.bytes))
    }
}

/// Tokens of so many bytes, rather too many.
pub fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(TOKEN_BYTES)
}

/// The data of an event, if it is JSON.
pub fn data(event: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(event).ok()?;
    let mut data = String::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("data:")) {
        if !data.is_empty() {
            data.push('\n');
        }
        data.push_str(line.strip_prefix(' ').unwrap_or(line));
    }
    serde_json::from_str(&data).ok()
}

fn array(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn is_kind(value: &Value, kind: &str) -> bool {
    value.get("type").and_then(Value::as_str) == Some(kind)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(events: &[Value]) -> Vec<u8> {
        events.iter().flat_map(|event| format!("event: x\ndata: {event}\n\n").into_bytes()).collect()
    }

    /// At every cut, the same.
    fn told(api: Api, kind: &str, bytes: &[u8]) -> Said {
        let mut all = (0..=bytes.len()).map(|at| {
            let mut told = Told::new(api, kind);
            told.push(&bytes[..at]);
            told.push(&bytes[at..]);
            told.finish().0
        });
        let first = all.next().unwrap_or_default();
        assert!(all.all(|other| other == first));
        first
    }

    fn call() -> Vec<CallNote> {
        vec![CallNote { id: "c1".into(), name: "query".into(), arguments: r#"{"sql":"SELECT 1"}"#.into() }]
    }

    fn check(said: &Said, stop: &str) {
        assert_eq!((said.input, said.output, said.stop.as_deref()), (Some(12), Some(7), Some(stop)), "{said:?}");
        assert_eq!((said.calls(), said.model.as_deref(), said.id.as_deref()), (call(), Some("m"), Some("a1")));
        assert!(said.ended && said.error.is_none());
    }

    #[test]
    fn answers_of_chat_completions() {
        let function = json!({"name": "query", "arguments": "{\"sql\":\"SELECT 1\"}"});
        let whole = json!({"id": "a1", "model": "m", "usage": {"prompt_tokens": 12, "completion_tokens": 7},
            "choices": [{"finish_reason": "tool_calls", "message": {"tool_calls": [{"id": "c1", "function": function}]}}]});
        check(&told(Api::Chat, "application/json", whole.to_string().as_bytes()), "tool_calls");
        let delta =
            |delta: Value| json!({"id": "a1", "model": "m", "choices": [{"index": 0, "delta": delta}], "usage": null});
        let mut bytes = stream(&[
            delta(json!({"content": "x"})),
            delta(
                json!({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "query", "arguments": "{\"sql\":"}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "\"SELECT 1\"}"}}]})),
            json!({"id": "a1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
            json!({"id": "a1", "model": "m", "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 7}}),
        ]);
        bytes.extend_from_slice(b"data: [DONE]\n\n");
        check(&told(Api::Chat, "text/event-stream; charset=utf-8", &bytes), "tool_calls");
    }

    #[test]
    fn answers_of_messages() {
        let usage = json!({"input_tokens": 2, "cache_read_input_tokens": 10, "output_tokens": 7});
        let whole = json!({"id": "a1", "model": "m", "usage": usage, "stop_reason": "tool_use", "content": [
            {"type": "text", "text": "x"}, {"type": "tool_use", "id": "c1", "name": "query", "input": {"sql": "SELECT 1"}}]});
        check(&told(Api::Messages, "application/json", whole.to_string().as_bytes()), "tool_use");
        let bytes = stream(&[
            json!({"type": "message_start", "message": {"id": "a1", "model": "m",
                "usage": {"input_tokens": 2, "cache_read_input_tokens": 10, "output_tokens": 1}}}),
            json!({"type": "content_block_start", "index": 1,
                "content_block": {"type": "tool_use", "id": "c1", "name": "query", "input": {}}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{\"sql\":"}}),
            json!({"type": "ping"}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "\"SELECT 1\"}"}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}}),
        ]);
        check(&told(Api::Messages, "text/event-stream", &bytes), "tool_use");
    }

    #[test]
    fn answers_of_responses() {
        let item =
            json!({"type": "function_call", "call_id": "c1", "name": "query", "arguments": "{\"sql\":\"SELECT 1\"}"});
        let whole = json!({"id": "a1", "model": "m", "status": "completed", "output": [item], "error": null,
            "usage": {"input_tokens": 12, "output_tokens": 7}});
        check(&told(Api::Responses, "application/json", whole.to_string().as_bytes()), "completed");
        let bytes = stream(&[
            json!({"type": "response.created", "response": {"id": "a1", "model": "m", "status": "in_progress"}}),
            json!({"type": "response.completed", "response": whole}),
        ]);
        check(&told(Api::Responses, "text/event-stream", &bytes), "completed");
    }

    #[test]
    fn after_an_event_that_is_too_long_to_be_read_the_next_one_is() {
        let usage = json!({"input_tokens": 12, "output_tokens": 7});
        let end = stream(&[json!({"type": "response.completed",
            "response": {"id": "a1", "model": "m", "status": "completed", "usage": usage}})]);
        let image = |fill: usize| {
            // What it says must not be taken for what the answer says of itself.
            let response = json!({"id": "no", "usage": {"input_tokens": 1, "output_tokens": 1}});
            stream(&[json!({"type": "response.completed", "response": response, "image": "x".repeat(fill)})])
        };
        for fill in (ANSWER_MAX..ANSWER_MAX + 9).chain([3 * ANSWER_MAX]) {
            let long = image(fill);
            let mut told = Told::new(Api::Responses, "text/event-stream");
            // Its end comes in pieces.
            told.push(&long[..long.len() - 3]);
            for byte in &long[long.len() - 3..] {
                told.push(&[*byte]);
            }
            told.push(&end);
            let said = told.finish().0;
            assert_eq!((said.id.as_deref(), said.input, said.output), (Some("a1"), Some(12), Some(7)), "{fill}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_guessed() {
        let mut told = Told::new(Api::Chat, "application/json");
        told.push(&vec![b' '; ANSWER_MAX + 1]);
        assert_eq!(told.finish(), (Said::default(), (ANSWER_MAX as u64 + 1).div_ceil(3)));
        let error = self::told(Api::Chat, "application/json", br#"{"error": {"message": "too busy"}}"#);
        assert_eq!(error.error.as_deref(), Some("too busy"));
    }
}
