//! What a fuzzer runs: the properties that hold for any request to a model and any answer.

use std::sync::Arc;

use super::{
    ask::{Api, Ask},
    deltas::Deltas,
    told::Told,
};
use crate::{
    mask::{KnownSecrets, MaskSet},
    protocol::http::MaskPieces,
};

const APIS: [Api; 3] = [Api::Chat, Api::Responses, Api::Messages];
/// What no answer may show.
const SECRET: &str = "correct-horse-battery-staple";

/// Reads bytes as a request in each form: what is read names a model and is the same again.
pub fn request(bytes: &[u8]) {
    let Ok(body) = serde_json::from_slice(bytes) else { return };
    for api in APIS {
        if let (Ok(ask), Ok(again)) = (Ask::read(api, &body), Ask::read(api, &body)) {
            assert!(!ask.model.is_empty() && !ask.target().as_str().contains(char::is_whitespace));
            assert_eq!(ask.thread.chain, again.thread.chain);
            assert!(ask.facts() == again.facts());
        }
    }
}

/// Takes bytes for an answer in each form, and cuts them anywhere: what is said of it is the same, and of a stream what
/// is sent does not depend on the cut and shows no secret.
pub fn answer(bytes: &[u8]) {
    let at = bytes.first().map_or(0, |first| usize::from(*first) % bytes.len().max(1));
    let secrets = Arc::new(KnownSecrets::new([SECRET.as_bytes()]));
    for api in APIS {
        for kind in ["application/json", "text/event-stream"] {
            let told = |cut: usize| {
                let mut told = Told::new(api, kind);
                told.push(&bytes[..cut]);
                told.push(&bytes[cut..]);
                told.finish()
            };
            assert_eq!(told(0), told(at));
        }
        let masked = |cut: usize| {
            let mut deltas = Box::new(Deltas::new(api, Arc::new(MaskSet::none()), Arc::clone(&secrets)));
            let mut out = Vec::new();
            let done = deltas.push(&bytes[..cut], &mut out).and_then(|()| deltas.push(&bytes[cut..], &mut out));
            done.and_then(|()| deltas.finish(&mut out)).map(|_| out)
        };
        let out = masked(0);
        assert_eq!(out, masked(at));
        if let Ok(out) = out {
            assert!(!out.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
        }
    }
}
