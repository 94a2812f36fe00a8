//! What is masked in requests, where a policy says so: before they are judged, so that what is judged, shown and sent is
//! the masked form.
//!
//! A body is looked into as what it is, whatever it is said to be: JSON if it parses as that, a form if it says so, text
//! otherwise. A path, a query or a header field cannot be masked without becoming another: a value there refuses the
//! request. Failure mode: refusal. Who may compute can always send a value in a form that nobody knows; this is a net for
//! what goes out by mistake.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::{StatusCode, header};

use super::{
    coding::Coding,
    deny::Problem,
    json::json,
    masker::{MaskError, Masker},
    request::{self, Request},
};
use crate::{
    action::Body,
    mask::{Hits, KnownSecrets, MaskSet, Masked},
};

/// The rule of refusals, for the record.
pub const RULE: &str = "http mask";

/// Masks for requests.
pub struct Outgoing {
    /// By the policy.
    pub masks: Arc<MaskSet>,
    /// Always.
    pub secrets: Arc<KnownSecrets>,
}

impl Outgoing {
    /// Looks into the head.
    ///
    /// # Errors
    /// It carries what is masked, or says that its body is encoded.
    pub fn head(&self, request: &Request) -> Result<(), Problem> {
        let mut hits = Hits::default();
        let mut look = |text: &[u8]| drop(self.masks.scrub(text, &self.secrets, &mut hits).or_text(text));
        look(request.target.as_bytes());
        look(request::decoded(&request.target).as_bytes());
        request.headers.values().for_each(|value| look(value.as_bytes()));
        if hits.count > 0 {
            let found = hits.detectors.join(", ");
            let detail = format!(
                "the policy masks {found} in requests, and this one has it in its path, its query or a header field"
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, "Refused by policy", detail));
        }
        match Coding::of(&request.headers) {
            Ok(None) => Ok(()),
            _ => Err(unreadable("its body is encoded: send it as it is")),
        }
    }

    /// The body as it is sent, and what was masked in it.
    ///
    /// # Errors
    /// It cannot be looked into.
    pub fn body(&self, request: &Request, body: &Bytes) -> Result<(Bytes, Hits), Problem> {
        let said = request.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_json = matches!(json(body), Body::Json(_));
        if !is_json && kind == "application/x-www-form-urlencoded" && !self.masks.has_places() {
            return Ok(self.form(body));
        }
        let read_as = match &*kind {
            _ if is_json => "application/json",
            // What says that it is JSON and is not, or has a name twice, is not for a guess.
            kind if kind.ends_with("json") || kind.starts_with("application/grpc") => kind,
            _ => "text/plain",
        };
        let masked = || -> Result<(Bytes, Hits), MaskError> {
            let mut masker = Masker::new(&self.masks, &self.secrets, read_as)?;
            if masker.passes(body) {
                return Ok((body.clone(), Hits::default()));
            }
            let mut out = Vec::with_capacity(body.len());
            masker.push(body, &mut out)?;
            let hits = masker.finish(&mut out)?;
            Ok((out.into(), hits))
        };
        masked().map_err(|error| unreadable(&error.to_string()))
    }

    /// Names and values of a form (URL Standard section 5), each decoded; what is masked is written anew.
    fn form(&self, body: &[u8]) -> (Bytes, Hits) {
        let mut hits = Hits::default();
        let mut masked = |text: &[u8]| -> Option<String> {
            let plain = request::decoded(&String::from_utf8_lossy(text));
            match self.masks.scrub(plain.as_bytes(), &self.secrets, &mut hits) {
                Masked::Unchanged => None,
                masked => Some(encoded(&masked.or_text(plain.as_bytes()))),
            }
        };
        let mut out = Vec::with_capacity(body.len());
        for (n, pair) in body.split(|b| *b == b'&').enumerate() {
            if n > 0 {
                out.push(b'&');
            }
            for (n, part) in pair.splitn(2, |b| *b == b'=').enumerate() {
                if n > 0 {
                    out.push(b'=');
                }
                let part = masked(part).map_or(Cow::Borrowed(part), |text| Cow::Owned(text.into_bytes()));
                out.extend_from_slice(&part);
            }
        }
        (out.into(), hits)
    }
}

fn unreadable(why: &str) -> Problem {
    let detail = format!("the policy masks requests, and this one cannot be looked into: {why}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail)
}

fn encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => out.push(char::from(*byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
