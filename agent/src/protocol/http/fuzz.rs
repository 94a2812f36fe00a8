//! What a fuzzer runs: the properties that hold for any bytes of a peer.

use std::sync::Arc;

use bytes::BytesMut;

use super::{
    guard::{Guard, HEAD_MAX, Violation},
    masker::Masker,
    path,
    websocket::frames::{self, Event, Kind, Sender, Walker},
};
use crate::{
    action::{Detector, MaskSpec, MaskWith},
    mask::{Hits, KnownSecrets, MaskSet},
};

/// Feeds a stream to the guard: however it is cut, the same passes and the same is wrong; what has passed passes again as
/// it is, and another reader finds the same heads in it. Then reads it as a path: what is sent is read as what was judged.
pub fn http(data: &[u8]) {
    let (first, stream) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let whole = feed(stream, stream.len().max(1));
    assert_eq!(feed(stream, first % 37 + 1), whole, "a cut changes nothing");
    let again = feed(&whole.0, first % 11 + 1);
    assert_eq!((&again.0, again.1), (&whole.0, None), "what has passed passes");
    if whole.0.starts_with(b"GET ") || whole.0.starts_with(b"POST ") {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let read = request.parse(&whole.0).map(|status| status.is_complete());
        assert!(read == Ok(true) || whole.0.len() >= HEAD_MAX, "another reader does not read the head: {read:?}");
    }
    let text = String::from_utf8_lossy(stream);
    let printable = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if text.starts_with('/') && printable && text.len() < 500 {
        let Ok(readings) = path::readings(&text) else { return };
        let sent = path::readings(&readings[0]);
        assert_eq!(sent.as_ref(), Ok(&readings), "what is sent is read as what was judged");
        for reading in &readings {
            assert!(reading.starts_with('/'), "{reading}");
            assert!(!reading.split('/').any(|segment| matches!(segment, "." | "..")), "{reading} has dots");
        }
    }
}

/// A message of WebSocket as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// UTF-8.
    Text(Vec<u8>),
    /// Anything.
    Binary(Vec<u8>),
}

/// Who sends the frames that [`websocket`] reads: the first bit of the first byte tells.
#[must_use]
pub fn is_from_client(data: &[u8]) -> bool {
    data.first().is_none_or(|first| first & 1 == 0)
}

/// Reads the bytes behind the first as frames of WebSocket, and returns their messages, for another reader to find as well.
///
/// However they are cut, the same comes of them; text is UTF-8, and nothing is longer than it may be. What is written as
/// frames is read as what it was.
pub fn websocket(data: &[u8]) -> Vec<Said> {
    const MOST: usize = 1 << 12;
    let (choice, stream) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let sender = if is_from_client(data) { Sender::Client } else { Sender::Server };
    let read = |stream: &[u8], piece: usize| {
        let (mut walker, mut input, mut events) = (Walker::new(sender, MOST), BytesMut::new(), Vec::new());
        for piece in stream.chunks(piece.max(1)) {
            input.extend_from_slice(piece);
            loop {
                match walker.feed(&mut input) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(violation) => return (events, Err(violation)),
                }
                assert!(walker.held() <= 2 * MOST, "what is kept is bounded");
            }
        }
        (events, Ok(()))
    };
    let whole = read(stream, stream.len());
    assert_eq!(read(stream, choice / 2 % 13 + 1), whole, "a cut changes nothing");
    let mask = (sender == Sender::Client).then_some([1, 2, 3, 250]);
    if stream.len() <= MOST {
        let kind = if std::str::from_utf8(stream).is_ok() { Kind::Text } else { Kind::Binary };
        let written = [frames::message(kind, stream, mask), frames::closing(Some(1000), "", mask)].concat();
        let events = vec![Event::Message(kind, stream.to_vec()), Event::Close(Some(1000), String::new())];
        assert_eq!(read(&written, choice / 2 % 13 + 1), (events, Ok(())), "what is written is read");
    }
    let mut messages = Vec::new();
    for event in whole.0 {
        match event {
            Event::Message(kind, content) => {
                assert!(content.len() <= MOST, "nothing is longer than it may be");
                assert!(kind == Kind::Binary || std::str::from_utf8(&content).is_ok(), "text is UTF-8");
                messages.push(if kind == Kind::Text { Said::Text(content) } else { Said::Binary(content) });
            }
            Event::Ping(content) => assert!(content.len() <= frames::CONTROL_MAX, "a ping is short"),
            Event::Pong | Event::Close(..) => {}
        }
    }
    messages
}

fn feed(stream: &[u8], piece: usize) -> (Vec<u8>, Option<Violation>) {
    let (mut guard, mut input, mut output) = (Guard::default(), BytesMut::new(), BytesMut::new());
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        if let Err(violation) = guard.feed(&mut input, &mut output) {
            return (output.to_vec(), Some(violation));
        }
    }
    (output.to_vec(), None)
}

const SECRET: &[u8] = b"correct-horse-battery";
const EMAIL: &[u8] = b"someone.else@example.com";

/// Masks a message of Protocol Buffers, and the same bytes as messages of gRPC that come in pieces. The first byte chooses
/// where they are cut, and how deep a text lies in others.
///
/// A message keeps its length, and what changes in it becomes an asterisk. No secret comes through, whatever it stands in;
/// nothing that detectors find comes through a text field, and what is around it is read as before. However a stream is
/// cut, the same comes of it.
pub fn protobuf(data: &[u8]) {
    let (choice, bytes) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let spec = MaskSpec { detect: vec![Detector::Email, Detector::CreditCard], ..MaskSpec::new(MaskWith::Redact) };
    let Ok(masks) = MaskSet::compile(&[spec], [7; 32]).map(Arc::new) else { return };
    let secrets = Arc::new(KnownSecrets::new([SECRET]));
    let blotted = |message: &[u8]| {
        let (mut out, mut hits) = (message.to_vec(), Hits::default());
        masks.blot_message(&mut out, &secrets, &mut hits);
        assert_eq!(out.len(), message.len(), "a message keeps its length");
        assert!(
            out.iter().zip(message).all(|(new, old)| new == old || *new == b'*'),
            "what changes becomes an asterisk"
        );
        assert!(hits.count > 0 || out == message, "what changes is counted");
        out
    };
    blotted(bytes);
    let at = choice % (bytes.len() + 1);
    for secret in
        [SECRET.to_vec(), data_encoding::BASE64.encode(SECRET).into(), data_encoding::HEXLOWER.encode(SECRET).into()]
    {
        let joined = [&bytes[..at], &secret, &bytes[at..]].concat();
        for message in [joined.clone(), within(&joined, choice % 40)] {
            assert!(!contains(&blotted(&message), &secret), "a known secret came through");
        }
    }
    // Beside other fields, and as deep as is looked.
    let text = [b"to ", EMAIL, b" and nobody else"].concat();
    let (depth, rest) = (choice % 30, within(bytes, 0));
    let message = within(&[within(&text, 0), rest].concat(), depth);
    let out = blotted(&message);
    assert!(!contains(&out, &[b"to ", EMAIL].concat()), "an address came through a text field");
    // What is printable to its end is taken for text, of which a length may then be a part, and a part of what is found.
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    let mut known = Hits::default();
    MaskSet::none().blot_message(&mut bytes.to_vec(), &secrets, &mut known);
    if known.count == 0 && !bytes.contains(&b'@') && digits < 12 {
        assert_eq!(shape(&out, depth + 1), shape(&message, depth + 1), "what is around a text is read as before");
    }
    in_pieces(&masks, &secrets, bytes, choice);
}

/// Bytes that are taken for messages of gRPC: as they are, and behind one that is whole.
fn in_pieces(masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>, bytes: &[u8], choice: usize) {
    let first = [&[0x0a, 24][..], EMAIL].concat();
    let whole = [&[0, 0, 0, 0, 26][..], &first, bytes].concat();
    for stream in [bytes, &whole] {
        let run = |piece: usize| {
            let Ok(mut masker) = Masker::new(masks, secrets, "application/grpc") else { return (Vec::new(), None) };
            let mut out = Vec::new();
            let fed = stream.chunks(piece).try_for_each(|piece| masker.push(piece, &mut out));
            let ended = fed.and_then(|()| masker.finish(&mut out));
            (out, Some(ended.map(|hits| (hits.count, hits.detectors))))
        };
        let one = run(stream.len().max(1));
        assert_eq!(run(choice % 29 + 1), one, "a cut changes nothing");
        assert!(!contains(&one.0, EMAIL) || contains(bytes, EMAIL), "an address came through");
    }
}

/// Bytes as the content of the first field of a message, that of another, and so on.
fn within(bytes: &[u8], depth: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=depth {
        let (mut length, mut head) = (out.len(), vec![0x0a]);
        while length > 0x7f {
            head.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        head.push(u8::try_from(length).unwrap_or_default());
        out = [head, out].concat();
    }
    out
}

/// Another reader: numbers, kinds and lengths of the fields of what [`within`] made, down to a depth.
fn shape(message: &[u8], depth: usize) -> Vec<(u8, usize)> {
    let (mut found, mut rest) = (Vec::new(), message);
    while let [0x0a, tail @ ..] = rest {
        let (mut length, mut read) = (0, 0);
        for (n, byte) in tail.iter().take(5).enumerate() {
            length |= usize::from(byte & 0x7f) << (7 * n);
            read = n + 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let Some(content) = tail.get(read..read + length) else { break };
        found.push((0x0a, length));
        if depth > 0 {
            found.extend(shape(content, depth - 1));
        }
        rest = &tail[read + length..];
    }
    found
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}
