//! Frames of WebSocket (RFC 6455 section 5), without sockets: what has one reading becomes messages, all else an error.
//!
//! Stricter than some: lengths are as short as they can be, and only what a client sends is masked. A message is put
//! together in memory up to a bound. Failure mode: an error, and nothing is read after it.

use bytes::{Buf, BytesMut};

/// Longest content of a frame that controls (section 5.5), in bytes.
pub const CONTROL_MAX: usize = 125;

/// Which side sends the frames. A client masks them, a server does not (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The one that asked for the upgrade.
    Client,
    /// The one that agreed.
    Server,
}

/// What a message is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Anything.
    Binary,
}

/// What came whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message, of however many frames.
    Message(Kind, Vec<u8>),
    /// To be answered with the same content.
    Ping(Vec<u8>),
    /// An answer.
    Pong,
    /// The sender sends nothing more. No code is there where none was sent.
    Close(Option<u16>, String),
}

/// What is wrong, with the code to close with (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Violation {
    /// 1002 for the protocol, 1007 for text that is none, 1009 for what is too long.
    pub code: u16,
    /// For people.
    pub text: &'static str,
}

const fn protocol(text: &'static str) -> Violation {
    Violation { code: 1002, text }
}

const NOT_UTF8: Violation = Violation { code: 1007, text: "a text is not UTF-8" };
const TOO_LONG: Violation = Violation { code: 1009, text: "a message is too long to be looked into" };

/// Opcodes (section 5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Reads what one side sends.
#[derive(Debug)]
pub struct Walker {
    sender: Sender,
    limit: usize,
    /// The frame whose content comes.
    frame: Option<Frame>,
    /// The message that comes.
    message: Option<(Kind, Vec<u8>)>,
    control: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Closed,
    Broken(Violation),
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: u8,
    last: bool,
    left: usize,
    mask: [u8; 4],
}

impl Walker {
    /// For frames of one side, with messages up to `limit` bytes.
    pub fn new(sender: Sender, limit: usize) -> Self {
        Self { sender, limit, frame: None, message: None, control: Vec::new(), state: State::Open }
    }

    /// Takes from `input` what comes next; `None`: more must come. What follows a close is dropped (section 5.5.1).
    ///
    /// # Errors
    /// It breaks the protocol, and will not be read further.
    pub fn feed(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            match self.state {
                State::Broken(violation) => return Err(violation),
                State::Closed => {
                    input.clear();
                    return Ok(None);
                }
                State::Open => {}
            }
            let Some(frame) = &mut self.frame else {
                match self.head(input) {
                    Ok(true) => continue,
                    Ok(false) => return Ok(None),
                    Err(violation) => return Err(self.broken(violation)),
                }
            };
            let now = frame.left.min(input.len());
            let content = match (&mut self.message, frame.opcode) {
                (Some((_, message)), CONTINUATION | TEXT | BINARY) => message,
                _ => &mut self.control,
            };
            let from = content.len();
            content.extend_from_slice(&input[..now]);
            input.advance(now);
            unmask(&mut content[from..], &mut frame.mask);
            frame.left -= now;
            if frame.left > 0 {
                return Ok(None);
            }
            let (opcode, last) = (frame.opcode, frame.last);
            self.frame = None;
            match self.ended(opcode, last) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(violation) => return Err(self.broken(violation)),
            }
        }
    }

    /// Whether a close came.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes that are kept of a message that is not whole yet.
    pub fn held(&self) -> usize {
        self.message.as_ref().map_or(0, |(_, message)| message.capacity())
    }

    fn broken(&mut self, violation: Violation) -> Violation {
        self.message = None;
        self.state = State::Broken(violation);
        violation
    }

    /// Reads the head of a frame; false: more must come. What is wrong for sure is said at once.
    fn head(&mut self, input: &mut BytesMut) -> Result<bool, Violation> {
        let Some(first) = input.first().copied() else { return Ok(false) };
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return Err(protocol("a frame has a reserved bit, which only an extension could have"));
        }
        let controls = match (opcode, &self.message) {
            (CONTINUATION, Some(_)) | (TEXT | BINARY, None) => false,
            (CONTINUATION, None) => return Err(protocol("a frame goes on with a message that did not begin")),
            (TEXT | BINARY, Some(_)) => return Err(protocol("a message begins within another")),
            (CLOSE | PING | PONG, _) if last => true,
            (CLOSE | PING | PONG, _) => return Err(protocol("a frame that controls is not whole")),
            _ => return Err(protocol("a frame is of no known kind")),
        };
        let Some(second) = input.get(1).copied() else { return Ok(false) };
        match (self.sender, second & 0x80 != 0) {
            (Sender::Client, false) => return Err(protocol("a frame of a client is not masked")),
            (Sender::Server, true) => return Err(protocol("a frame of a server is masked")),
            _ => {}
        }
        let short = usize::from(second & 0x7f);
        if controls && short > CONTROL_MAX {
            return Err(protocol("a frame that controls is too long"));
        }
        let (length, at) = match short {
            126 => {
                let Some(bytes) = input.get(2..4) else { return Ok(false) };
                let length = u16::from_be_bytes([bytes[0], bytes[1]]);
                if length < 126 {
                    return Err(protocol("the length of a frame is not written in the shortest way"));
                }
                (u64::from(length), 4)
            }
            127 => {
                let Some(bytes) = input.get(2..10).and_then(|bytes| bytes.first_chunk::<8>()) else { return Ok(false) };
                let length = u64::from_be_bytes(*bytes);
                if length <= u64::from(u16::MAX) || length >> 63 != 0 {
                    return Err(protocol("the length of a frame is not written in the shortest way"));
                }
                (length, 10)
            }
            short => (short as u64, 2),
        };
        let before = self.message.as_ref().map_or(0, |(_, message)| message.len());
        let left = usize::try_from(length).ok().filter(|left| controls || *left <= self.limit.saturating_sub(before));
        let left = left.ok_or(TOO_LONG)?;
        let mut mask = [0; 4];
        let mut end = at;
        if self.sender == Sender::Client {
            let Some(bytes) = input.get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>()) else {
                return Ok(false);
            };
            mask = *bytes;
            end = at + 4;
        }
        input.advance(end);
        match opcode {
            TEXT => self.message = Some((Kind::Text, Vec::new())),
            BINARY => self.message = Some((Kind::Binary, Vec::new())),
            _ => {}
        }
        self.frame = Some(Frame { opcode, last, left, mask });
        Ok(true)
    }

    fn ended(&mut self, opcode: u8, last: bool) -> Result<Option<Event>, Violation> {
        match opcode {
            PING => Ok(Some(Event::Ping(std::mem::take(&mut self.control)))),
            PONG => {
                self.control.clear();
                Ok(Some(Event::Pong))
            }
            CLOSE => {
                let (code, reason) = close(&std::mem::take(&mut self.control))?;
                self.state = State::Closed;
                self.message = None;
                Ok(Some(Event::Close(code, reason)))
            }
            _ if !last => Ok(None),
            _ => match self.message.take() {
                Some((Kind::Text, text)) if std::str::from_utf8(&text).is_err() => Err(NOT_UTF8),
                message => Ok(message.map(|(kind, content)| Event::Message(kind, content))),
            },
        }
    }
}

/// What a close says (section 5.5.1).
fn close(content: &[u8]) -> Result<(Option<u16>, String), Violation> {
    let Some((code, reason)) = content.split_first_chunk::<2>() else {
        return if content.is_empty() { Ok((None, String::new())) } else { Err(protocol("a close has half a code")) };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4, and what was registered since.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a close has a code that nobody may send"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok((Some(code), reason.to_owned()))
}

/// Takes a mask off or puts it on (section 5.3), and turns it to where the next byte begins.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let mut quads = bytes.chunks_exact_mut(4);
    for quad in &mut quads {
        quad.iter_mut().zip(*mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    let rest = quads.into_remainder();
    let turned = rest.len();
    rest.iter_mut().zip(*mask).for_each(|(byte, mask)| *byte ^= mask);
    mask.rotate_left(turned);
}

/// A message as one frame.
pub fn message(kind: Kind, content: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let opcode = if kind == Kind::Text { TEXT } else { BINARY };
    frame(opcode, content, mask)
}

/// An answer to a ping.
pub fn pong(content: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    frame(PONG, &content[..content.len().min(CONTROL_MAX)], mask)
}

/// A close. A reason that is too long is left out.
pub fn closing(code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let Some(code) = code else { return frame(CLOSE, b"", mask) };
    let reason = if reason.len() + 2 > CONTROL_MAX { "" } else { reason };
    frame(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat(), mask)
}

fn frame(opcode: u8, content: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 14);
    out.push(0x80 | opcode);
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match (u8::try_from(content.len()), u16::try_from(content.len())) {
        (Ok(short @ ..126), _) => out.push(masked | short),
        (_, Ok(medium)) => {
            out.push(masked | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(content.len() as u64).to_be_bytes());
        }
    }
    if let Some(mut mask) = mask {
        out.extend_from_slice(&mask);
        let from = out.len();
        out.extend_from_slice(content);
        unmask(&mut out[from..], &mut mask);
    } else {
        out.extend_from_slice(content);
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 250];

    /// Every event of a stream in pieces, and what broke it.
    fn read(sender: Sender, stream: &[u8], piece: usize) -> (Vec<Event>, Option<u16>) {
        let (mut walker, mut input, mut events) = (Walker::new(sender, 1 << 20), BytesMut::new(), Vec::new());
        for piece in stream.chunks(piece.max(1)) {
            input.extend_from_slice(piece);
            loop {
                match walker.feed(&mut input) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(violation) => return (events, Some(violation.code)),
                }
            }
        }
        (events, None)
    }

    fn part(head: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![head, 0x80 | u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(&MASK);
        let (from, mut mask) = (out.len(), MASK);
        out.extend_from_slice(content);
        unmask(&mut out[from..], &mut mask);
        out
    }

    #[test]
    fn messages_are_whole_wherever_they_are_cut() {
        let long = "x".repeat(70_000);
        let stream = [
            part(0x01, "gr\u{fc}".as_bytes()),
            part(0x89, b"ping"),
            part(0x00, b""),
            part(0x80, b"n"),
            part(0x8a, b"unasked"),
            message(Kind::Binary, &[0xff; 300], Some(MASK)),
            message(Kind::Text, long.as_bytes(), Some(MASK)),
            closing(Some(1000), "bye", Some(MASK)),
            b"whatever".to_vec(),
        ]
        .concat();
        let want = vec![
            Event::Ping(b"ping".to_vec()),
            Event::Message(Kind::Text, "gr\u{fc}n".into()),
            Event::Pong,
            Event::Message(Kind::Binary, vec![0xff; 300]),
            Event::Message(Kind::Text, long.into()),
            Event::Close(Some(1000), "bye".into()),
        ];
        for piece in (1..600).chain([70_000, stream.len()]) {
            assert_eq!(read(Sender::Client, &stream, piece), (want.clone(), None), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_code() {
        let unmasked = message(Kind::Text, b"x", None);
        let huge = [&[0x82, 0xff][..], &(1u64 << 40).to_be_bytes(), &MASK].concat();
        let cases: Vec<(&str, Vec<u8>, u16)> = vec![
            ("not masked", unmasked.clone(), 1002),
            ("reserved bit 1", part(0xc1, b"x"), 1002),
            ("reserved bit 2", part(0xa1, b"x"), 1002),
            ("reserved bit 3", part(0x91, b"x"), 1002),
            ("unknown opcode 3", part(0x83, b"x"), 1002),
            ("unknown opcode 11", part(0x8b, b"x"), 1002),
            ("a ping in parts", part(0x09, b"x"), 1002),
            ("a close in parts", part(0x08, b""), 1002),
            ("a long ping", [&[0x89, 0xfe, 0, 126][..], &MASK, &[0; 126]].concat(), 1002),
            ("going on with nothing", part(0x80, b"x"), 1002),
            ("a message in a message", [part(0x01, b"x"), part(0x81, b"y")].concat(), 1002),
            ("a length of two bytes that fits in one", [&[0x81, 0xfe, 0, 125][..], &MASK, &[0; 125]].concat(), 1002),
            (
                "a length of eight bytes that fits in two",
                [&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff][..]].concat(),
                1002,
            ),
            ("a length with the highest bit", [&[0x81, 0xff, 0x80][..], &[0; 7]].concat(), 1002),
            ("half a code", part(0x88, b"x"), 1002),
            ("code 1005", part(0x88, &1005u16.to_be_bytes()), 1002),
            ("code 999", part(0x88, &999u16.to_be_bytes()), 1002),
            ("code 2000", part(0x88, &2000u16.to_be_bytes()), 1002),
            ("code 5000", part(0x88, &5000u16.to_be_bytes()), 1002),
            ("a reason that is no text", part(0x88, &[3, 0xe8, 0xff]), 1007),
            ("a text that is none", part(0x81, b"\xff"), 1007),
            ("a text that ends within a character", [part(0x01, b"\xc3"), part(0x80, b"")].concat(), 1007),
            ("a text with a surrogate", part(0x81, b"\xed\xa0\x80"), 1007),
            ("far too long", huge, 1009),
            (
                "too long in two",
                [part(0x02, b"x"), [&[0x80, 0xff][..], &(1u64 << 20).to_be_bytes(), &MASK].concat()].concat(),
                1009,
            ),
        ];
        for (what, stream, code) in cases {
            for piece in 1..=stream.len() {
                let (events, broke) = read(Sender::Client, &stream, piece);
                assert_eq!(broke, Some(code), "{what} in pieces of {piece}: {events:?}");
                assert!(events.is_empty(), "{what}: {events:?}");
            }
        }
        assert_eq!(read(Sender::Server, &part(0x81, b"x"), 9).1, Some(1002), "a server masks nothing");
        assert_eq!(read(Sender::Server, &unmasked, 9), (vec![Event::Message(Kind::Text, b"x".to_vec())], None));
        // As long as it may be, in one frame or in two.
        let most = vec![0; 1 << 20];
        let (events, broke) = read(Sender::Client, &message(Kind::Binary, &most, Some(MASK)), 1 << 20);
        assert_eq!((events, broke), (vec![Event::Message(Kind::Binary, most)], None));
    }

    #[test]
    fn what_is_broken_stays_broken() {
        let mut walker = Walker::new(Sender::Client, 100);
        let mut input = BytesMut::from(&part(0x83, b"x")[..]);
        assert!(walker.feed(&mut input).is_err());
        let mut fine = BytesMut::from(&part(0x81, b"x")[..]);
        assert!(walker.feed(&mut fine).is_err());
    }
}
