//! Turns of conversations with models: why a command came.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A tool that a model asked its agent to call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallNote {
    /// The call's id in the conversation.
    pub id: Arc<str>,
    /// The tool's name.
    pub name: Arc<str>,
    /// Its arguments, JSON as the model wrote it; long ones are cut.
    pub arguments: Arc<str>,
}

/// A turn: a request to a model and what the model answered. Written by the agent and the model: escape control characters
/// before it meets a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnNote {
    /// Its id: the connection and the number of the request, `12.3`.
    pub id: Arc<str>,
    /// The model that was asked.
    pub model: Arc<str>,
    /// The last thing that the user said; a long one is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Arc<str>>,
    /// Tool calls that the model asked for and whose results it has not got.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallNote>,
}

/// For people: what the user said, and what the model asked for. May have any characters.
impl fmt::Display for TurnNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prompt {
            Some(prompt) => write!(f, "[{}] \"{}\"", self.id, cut(prompt, 160))?,
            None => write!(f, "[{}] (nothing said by a user)", self.id)?,
        }
        for (n, call) in self.calls.iter().enumerate() {
            let joint = if n == 0 { " ->" } else { "," };
            write!(f, "{joint} {}({})", call.name, cut(&call.arguments, 120))?;
        }
        Ok(())
    }
}

/// The beginning of a text, of so many characters.
fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    match text.char_indices().nth(longest) {
        Some((at, _)) => Cow::Owned(format!("{}...", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// The turn that a command belongs to: the latest of its session. Several are candidates, of which none is more likely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptRef {
    /// Ids of turns.
    pub turns: Vec<Arc<str>>,
    /// Whether the trace that command and turn name told them apart from others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_trace: bool,
}

/// The trace id of a `traceparent` (W3C Trace Context, section 3.2.2).
pub fn trace_of(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.trim().split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_set = |text: &str| text.bytes().any(|b| b != b'0');
    (hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && is_set(trace) && is_set(span))
        .then_some(trace)
}

/// The trace id of the first `traceparent` in a command's text: a header field, or a comment in SQL (sqlcommenter, whose
/// values are quoted and percent-encoded).
pub fn trace_in(text: &str) -> Option<&str> {
    const NAME: &str = "traceparent";
    text.match_indices(NAME).find_map(|(at, _)| {
        let rest = text[at + NAME.len()..].trim_start_matches([':', '=', ' ', '\'', '"']);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        trace_of(&rest[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_found_in_fields_and_comments() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = format!("00-{trace}-b7ad6b7169203331-01");
        for text in [
            format!("GET / HTTP/1.1\ntraceparent: {parent}\naccept: */*"),
            format!("SELECT 1 /*app='x',traceparent='{parent}'*/"),
            format!("SELECT 'traceparent' /* traceparent='{parent}' */"),
        ] {
            assert_eq!(trace_in(&text), Some(trace), "{text}");
        }
        assert_eq!(trace_in("SELECT 1 /*traceparent='00-x'*/"), None);
    }

    #[test]
    fn a_trace_is_what_the_standard_says() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_of(&format!("00-{trace}-b7ad6b7169203331-01")), Some(trace));
        for wrong in [
            "",
            trace,
            &format!("00-{trace}"),
            &format!("ff-{trace}-b7ad6b7169203331-01"),
            &format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            &format!("00-{trace}-0000000000000000-01"),
        ] {
            assert_eq!(trace_of(wrong), None, "{wrong}");
        }
    }
}
