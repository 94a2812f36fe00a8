//! Masking of answers that come as server-sent events: what a detector or a known secret would find in the whole text of an
//! answer is found in its pieces, too.
//!
//! The pieces of each text (a choice's content, a block, the arguments of a call) go through a scrubber of their own, which
//! holds back what may be the beginning of something: as long as the longest secret, and some KiB where a policy has
//! detectors for responses. What was held back comes in a copy of the text's last event before the event that ends it. All
//! else in an event is masked as any other event's. Failure mode: what cannot be looked into does not come through.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::ask::Api;
use crate::{
    mask::{Hits, KnownSecrets, MaskSet, StreamScrubber},
    protocol::http::{EVENT_MAX, MaskError, MaskPieces, is_whole_event, mask_event},
};

/// Most texts that come at once.
const CHANNELS: usize = 256;

/// Masks a stream of events.
pub struct Deltas {
    api: Api,
    masks: Arc<MaskSet>,
    secrets: Arc<KnownSecrets>,
    event: Vec<u8>,
    channels: BTreeMap<String, Channel>,
    hits: Hits,
}

/// One text.
struct Channel {
    scrubber: StreamScrubber,
    /// The beginning of a character whose end is held back.
    carry: Vec<u8>,
    /// Its last event: the lines beside the data, the data, and where in it the text stands.
    last: (Vec<u8>, Value, String),
}

/// A piece of a text in an event.
struct Piece {
    /// Which text.
    key: String,
    /// Where it stands.
    pointer: String,
    /// Nothing more comes of it.
    last: bool,
}

impl Deltas {
    /// For an answer of a form.
    pub fn new(api: Api, masks: Arc<MaskSet>, secrets: Arc<KnownSecrets>) -> Self {
        Self { api, masks, secrets, event: Vec::new(), channels: BTreeMap::new(), hits: Hits::default() }
    }

    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), MaskError> {
        // First as any event: what is found in it alone is gone then.
        let mut masked = Vec::with_capacity(event.len());
        mask_event(&self.masks, &self.secrets, event, &mut self.hits, &mut masked)?;
        let Some(mut value) = super::told::data(&masked) else {
            // A comment keeps the connection alive; anything else may be the end of the stream.
            if !is_comment(&masked) {
                self.end(|_| true, out);
            }
            out.extend_from_slice(&masked);
            return Ok(());
        };
        let pieces = pieces(self.api, &value);
        if let Some(ended) = ends(self.api, &value) {
            self.end(|key| ended.covers(key), out);
        }
        if pieces.is_empty() {
            out.extend_from_slice(&masked);
            return Ok(());
        }
        let head = heads(&masked);
        let mut changed = false;
        for Piece { key, pointer, last } in pieces {
            let Some(Value::String(text)) = value.pointer(&pointer) else { continue };
            if !self.channels.contains_key(&key) && self.channels.len() >= CHANNELS {
                return Err(MaskError::LongEvent);
            }
            let mut channel = self.channels.remove(&key).unwrap_or_else(|| Channel {
                scrubber: StreamScrubber::new(Arc::clone(&self.masks), Arc::clone(&self.secrets)),
                carry: Vec::new(),
                last: Default::default(),
            });
            let mut now = std::mem::take(&mut channel.carry);
            channel.scrubber.push(text.as_bytes(), &mut now);
            let now = if last {
                self.hits.merge(&channel.scrubber.finish(&mut now));
                String::from_utf8_lossy(&now).into_owned()
            } else {
                channel.scrubber.flush(&mut now);
                let now = channel.whole_characters(now);
                channel.last = (head.clone(), value.clone(), pointer.clone());
                self.channels.insert(key, channel);
                now
            };
            if now != *text {
                changed = true;
                set(&mut value, &pointer, now);
            }
        }
        if changed {
            write(&head, &value, out);
        } else {
            out.extend_from_slice(&masked);
        }
        Ok(())
    }

    /// Sends what is held back of texts that have ended.
    fn end(&mut self, ended: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
        let keys: Vec<String> = self.channels.keys().filter(|key| ended(key)).cloned().collect();
        for key in keys {
            let Some(Channel { scrubber, carry: mut rest, last: (head, value, pointer) }) = self.channels.remove(&key)
            else {
                continue;
            };
            self.hits.merge(&scrubber.finish(&mut rest));
            if !rest.is_empty() {
                let (mut value, pointer) = alone(&value, &pointer);
                set(&mut value, &pointer, String::from_utf8_lossy(&rest).into_owned());
                write(&head, &value, out);
            }
        }
    }
}

impl Channel {
    /// What is held back may begin within a character: its first bytes wait, too.
    fn whole_characters(&mut self, text: Vec<u8>) -> String {
        match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let (good, is_cut) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
                let mut text = error.into_bytes();
                if is_cut {
                    self.carry = text.split_off(good);
                }
                String::from_utf8_lossy(&text).into_owned()
            }
        }
    }
}

impl MaskPieces for Deltas {
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), MaskError> {
        for byte in piece {
            self.event.push(*byte);
            if is_whole_event(&self.event) {
                let event = std::mem::take(&mut self.event);
                self.event(&event, out)?;
            }
        }
        if self.event.len() > EVENT_MAX {
            return Err(MaskError::LongEvent);
        }
        Ok(())
    }

    fn held(&self) -> usize {
        self.event.len()
    }

    fn finish(mut self: Box<Self>, out: &mut Vec<u8>) -> Result<Hits, MaskError> {
        let rest = std::mem::take(&mut self.event);
        if !rest.is_empty() {
            self.event(&rest, out)?;
        }
        self.end(|_| true, out);
        Ok(self.hits)
    }
}

/// The pieces of texts that an event has.
fn pieces(api: Api, value: &Value) -> Vec<Piece> {
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or_default();
    let mut found = Vec::new();
    match api {
        Api::Chat => {
            for (at, choice) in array(value.get("choices")).iter().enumerate() {
                let Some(Value::Object(delta)) = choice.get("delta") else { continue };
                let (of, last) = (number(choice, "index"), choice.get("finish_reason").is_some_and(Value::is_string));
                // Every text of a delta, whatever servers call it: content, refusal, reasoning_content, ...
                for name in delta.keys().filter(|name| *name != "role" && delta[*name].is_string()) {
                    let pointer = format!("/choices/{at}/delta/{}", escaped(name));
                    found.push(Piece { key: format!("{of}/{name}"), pointer, last });
                }
                for (n, call) in array(delta.get("tool_calls")).iter().enumerate() {
                    let pointer = format!("/choices/{at}/delta/tool_calls/{n}/function/arguments");
                    found.push(Piece { key: format!("{of}/tool_calls/{}", number(call, "index")), pointer, last });
                }
            }
        }
        Api::Messages => {
            let delta = value.get("delta").and_then(Value::as_object).filter(|_| kind(value) == "content_block_delta");
            // A signature is over the text as it was: who changes it, changes nothing for the better.
            let names =
                delta.into_iter().flat_map(|delta| delta.keys()).filter(|name| *name != "type" && *name != "signature");
            found.extend(names.map(|name| Piece {
                key: format!("{}/{name}", number(value, "index")),
                pointer: format!("/delta/{}", escaped(name)),
                last: false,
            }));
        }
        Api::Responses => {
            if let Some(of) = kind(value).strip_suffix(".delta") {
                let place =
                    ["output_index", "content_index", "summary_index"].map(|name| number(value, name).to_string());
                found.push(Piece {
                    key: format!("{}/{of}", place.join("/")),
                    pointer: "/delta".to_owned(),
                    last: false,
                });
            }
        }
    }
    found.retain(|piece| value.pointer(&piece.pointer).is_some_and(Value::is_string));
    found
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn array(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Which texts end before an event.
enum Ended {
    All,
    /// Those whose keys begin so.
    Some(Vec<String>),
}

impl Ended {
    fn covers(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(starts) => starts.iter().any(|start| key.starts_with(start.as_str())),
        }
    }
}

fn ends(api: Api, value: &Value) -> Option<Ended> {
    let place = |name: &str| value.get(name).and_then(Value::as_u64).map(|at| Ended::Some(vec![format!("{at}/")]));
    match (api, kind(value)) {
        (Api::Chat, _) => {
            let choices = array(value.get("choices"));
            if choices.is_empty() {
                return Some(Ended::All);
            }
            // A last piece of a text ends it by itself.
            let over = choices.iter().filter(|choice| choice.get("finish_reason").is_some_and(Value::is_string));
            let says = |choice: &&Value| {
                choice.get("delta").and_then(Value::as_object).is_none_or(|delta| {
                    !delta.iter().any(|(name, text)| name != "role" && (text.is_string() || text.is_array()))
                })
            };
            let of = |choice: &Value| format!("{}/", choice.get("index").and_then(Value::as_u64).unwrap_or_default());
            let over: Vec<String> = over.filter(says).map(of).collect();
            (!over.is_empty()).then_some(Ended::Some(over))
        }
        (Api::Messages, "ping" | "content_block_delta") => None,
        (Api::Messages, "content_block_start" | "content_block_stop") => place("index"),
        (Api::Responses, "response.in_progress" | "response.queued" | "keepalive") => None,
        (Api::Responses, name) if name.ends_with(".delta") => None,
        (Api::Responses, name) if name.ends_with(".done") || name.ends_with(".added") => place("output_index"),
        (Api::Messages | Api::Responses, _) => Some(Ended::All),
    }
}

/// A name as a part of a JSON pointer (RFC 6901 section 3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn set(value: &mut Value, pointer: &str, text: String) {
    if let Some(place) = value.pointer_mut(pointer) {
        *place = Value::String(text);
    }
}

/// Of an event that is sent again, only the text that is meant, and where it stands then: the others were sent, and so was
/// what else it told.
fn alone(value: &Value, pointer: &str) -> (Value, String) {
    let mut value = value.clone();
    let parts: Vec<&str> = pointer.split('/').collect();
    let ["", "choices", at, "delta", rest @ ..] = &parts[..] else { return (value, pointer.to_owned()) };
    let choice = at.parse::<usize>().ok().and_then(|at| array(value.get("choices")).get(at).cloned());
    let mut choice = choice.unwrap_or_default();
    let (delta, place) = match rest {
        ["tool_calls", n, ..] => {
            let call = choice.pointer(&format!("/delta/tool_calls/{n}/index")).cloned().unwrap_or_default();
            (json!({"tool_calls": [{"index": call, "function": {"arguments": ""}}]}), "tool_calls/0/function/arguments")
        }
        [name] => (json!({name.replace("~1", "/").replace("~0", "~"): ""}), *name),
        _ => (json!({}), ""),
    };
    choice["delta"] = delta;
    value["choices"] = json!([choice]);
    (value, format!("/choices/0/delta/{place}"))
}

fn is_comment(event: &[u8]) -> bool {
    event.split(|b| matches!(b, b'\n' | b'\r')).all(|line| line.is_empty() || line.starts_with(b":"))
}

/// The lines of an event but its data.
fn heads(event: &[u8]) -> Vec<u8> {
    let lines = event.split(|b| matches!(b, b'\n' | b'\r'));
    let kept = lines.filter(|line| !line.is_empty() && !line.starts_with(b"data"));
    kept.flat_map(|line| line.iter().copied().chain([b'\n'])).collect()
}

fn write(head: &[u8], value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(head);
    out.extend_from_slice(format!("data: {value}\n\n").as_bytes());
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::action::{Detector, MaskSpec, MaskWith};

    const SECRET: &str = "correct-horse-battery-staple";

    fn run(api: Api, masks: &Arc<MaskSet>, bytes: &[u8]) -> (Vec<Value>, u64, String) {
        let secrets = Arc::new(KnownSecrets::new([SECRET.as_bytes()]));
        let whole = |at: usize| {
            let mut deltas = Box::new(Deltas::new(api, Arc::clone(masks), Arc::clone(&secrets)));
            let mut out = Vec::new();
            deltas.push(&bytes[..at], &mut out).unwrap();
            deltas.push(&bytes[at..], &mut out).unwrap();
            let hits = deltas.finish(&mut out).unwrap();
            (out, hits.count)
        };
        let (out, hits) = whole(0);
        assert_eq!(whole(bytes.len() / 2), (out.clone(), hits));
        let text = String::from_utf8(out).unwrap();
        let events = text.split("\n\n").filter_map(|event| crate::protocol::llm::told::data(event.as_bytes()));
        (events.collect(), hits, text.clone())
    }

    fn stream(events: &[Value]) -> Vec<u8> {
        events.iter().flat_map(|event| format!("event: x\ndata: {event}\n\n").into_bytes()).collect()
    }

    /// What a client puts together.
    fn text_of(events: &[Value], pointer: &str) -> String {
        events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
    }

    #[test]
    fn a_secret_in_any_two_pieces_is_masked() {
        let none = Arc::new(MaskSet::none());
        let said = format!("the password is {SECRET}, \u{fc}ber alles");
        for (at, _) in said.char_indices() {
            let (a, b) = said.split_at(at);
            let delta = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
            let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
            let (events, hits, text) =
                run(Api::Chat, &none, &[stream(&[delta(a), delta(b), end]), b"data: [DONE]\n\n".to_vec()].concat());
            assert_eq!(text_of(&events, "/choices/0/delta/content"), said.replace(SECRET, "[redacted]"), "{text}");
            assert_eq!(
                (hits, events.last().unwrap()["choices"][0]["finish_reason"].as_str()),
                (1, Some("stop")),
                "{text}"
            );
            assert!(text.ends_with("data: [DONE]\n\n"));

            let delta = |text: &str| json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": text}});
            let stop = json!({"type": "content_block_stop", "index": 1});
            let (events, hits, text) =
                run(Api::Messages, &none, &stream(&[delta(a), json!({"type": "ping"}), delta(b), stop]));
            assert_eq!(text_of(&events, "/delta/text"), said.replace(SECRET, "[redacted]"), "{text}");
            assert_eq!((hits, events.last().unwrap()["type"].as_str()), (1, Some("content_block_stop")), "{text}");

            let delta = |text: &str| json!({"type": "response.output_text.delta", "output_index": 2, "content_index": 0, "delta": text});
            let done =
                json!({"type": "response.output_text.done", "output_index": 2, "content_index": 0, "text": said});
            let (events, hits, text) = run(Api::Responses, &none, &stream(&[delta(a), delta(b), done]));
            assert_eq!(text_of(&events, "/delta"), said.replace(SECRET, "[redacted]"), "{text}");
            assert!(hits == 2 && !text.contains(SECRET), "{text}");
        }
    }

    #[test]
    fn arguments_of_calls_are_texts_too() {
        let delta = |index: u64, text: &str| json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "function": {"arguments": text}}]}}]});
        let (a, b) = SECRET.split_at(9);
        let last = json!({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "tool_calls"}]});
        let bytes = stream(&[delta(0, a), delta(1, "{}"), delta(0, b), delta(0, " and more"), last]);
        let (events, hits, text) = run(Api::Chat, &Arc::new(MaskSet::none()), &bytes);
        assert!(hits == 1 && !text.contains(b) && !text.contains(a), "{text}");
        let arguments = |of: u64| -> String {
            let calls = events.iter().filter_map(|event| event.pointer("/choices/0/delta/tool_calls/0"));
            calls.filter(|call| call["index"] == of).filter_map(|call| call["function"]["arguments"].as_str()).collect()
        };
        assert_eq!(arguments(0), "[redacted] and more");
        assert_eq!(arguments(1), "{}");
        assert_eq!(text_of(&events, "/choices/0/delta/content"), "x");
    }

    #[test]
    fn what_detectors_find_in_the_whole_is_masked_in_pieces() {
        let spec = MaskSpec {
            columns: Vec::new(),
            json: Vec::new(),
            detect: vec![Detector::Email],
            with: MaskWith::Redact,
            direction: Default::default(),
            unresolved: Default::default(),
            inference: Default::default(),
        };
        let masks = Arc::new(MaskSet::compile(&[spec], [1; 32]).unwrap());
        let delta = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        let pieces: Vec<Value> = ["write to an", "na@exam", "ple.com no", "w"].iter().map(|text| delta(text)).collect();
        let (events, hits, text) = run(Api::Chat, &masks, &stream(&pieces));
        let whole = text_of(&events, "/choices/0/delta/content");
        assert!(
            hits == 1 && !whole.contains("anna") && whole.starts_with("write to ") && whole.ends_with(" now"),
            "{text}"
        );
    }

    /// Each holds something back: so many are looked after, and no text beyond them comes through unseen.
    #[test]
    fn too_many_texts_at_once_end_the_stream() {
        let text = |of: usize| json!({"index": of, "delta": {"content": "correct-horse-"}});
        let one = |of: usize| json!({"choices": [text(of)]});
        let push = |bytes: &[u8]| {
            let secrets = Arc::new(KnownSecrets::new([SECRET.as_bytes()]));
            let mut deltas = Deltas::new(Api::Chat, Arc::new(MaskSet::none()), secrets);
            let mut out = Vec::new();
            (deltas.push(bytes, &mut out), String::from_utf8(out).unwrap())
        };
        let most: Vec<Value> = (0..CHANNELS).map(one).collect();
        assert_eq!(push(&stream(&most)).0, Ok(()));
        // The one too many comes in an event of its own, or beside others; a text that is known already does not count.
        let (refused, out) = push(&stream(&[most.clone(), vec![one(3), one(CHANNELS)]].concat()));
        assert_eq!(refused, Err(MaskError::LongEvent));
        assert!(!out.contains("correct-horse-") && !out.contains(&format!("\"index\":{CHANNELS}")), "{out}");
        let beside = json!({"choices": (0..=CHANNELS).map(text).collect::<Vec<_>>()});
        let (refused, out) = push(&stream(&[beside]));
        assert_eq!((refused, &*out), (Err(MaskError::LongEvent), ""));
        // Those that have ended make room.
        let over = |of: usize| json!({"choices": [{"index": of, "delta": {}, "finish_reason": "stop"}]});
        assert_eq!(push(&stream(&[most, vec![over(7), one(CHANNELS)]].concat())).0, Ok(()));
    }

    #[test]
    fn what_needs_no_mask_comes_as_it_came() {
        let bytes = b": ping\n\nevent: error\ndata: {\"type\": \"error\"}\n\ndata: not json\n\n";
        let (_, hits, text) = run(Api::Messages, &Arc::new(MaskSet::none()), bytes);
        assert_eq!((hits, text.as_bytes()), (0, &bytes[..]));
    }
}
