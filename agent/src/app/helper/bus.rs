//! Calls of methods over D-Bus, and no more of it: what the specification (dbus.freedesktop.org/doc) calls version 1.
//!
//! The helper is one thread that starts no program: so no library with an executor of its own, and not busctl. It connects
//! before it gives up connect(2), so that one connection is all there ever is: an answer that is late, too long or not
//! understood ends it, and then every call fails.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// The system's bus, where every systemd of the last ten years has it.
pub(super) const SOCKET: &str = "/run/dbus/system_bus_socket";
/// For the answer to one call.
const PATIENCE: Duration = Duration::from_secs(8);
/// Longest answer, in bytes.
const LONGEST: u32 = 64 << 10;
/// Longest line before there are messages, in bytes.
const LONGEST_LINE: usize = 512;

/// A call was not answered, or not well.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// Nobody answers.
    #[error("the system's bus cannot be used: {0}")]
    Io(#[from] io::Error),
    /// That is not how D-Bus is spoken.
    #[error("the system's bus says what is not understood: {0}")]
    Malformed(&'static str),
    /// The answer is no.
    #[error("{0}")]
    Refused(String),
    /// An earlier call ended the connection.
    #[error("the connection to the system's bus was lost")]
    Lost,
}

/// A method of an object, and the signature of its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    /// Whose.
    pub(super) destination: &'static str,
    /// Of which object.
    pub(super) path: &'static str,
    /// Of which of its interfaces.
    pub(super) interface: &'static str,
    /// Which.
    pub(super) member: &'static str,
    /// Types of its arguments.
    pub(super) signature: &'static str,
}

/// What a property is set to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(u64),
    Flag(bool),
    Numbers(&'a [u32]),
}

/// Arguments, or any other values one after the other.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
}

impl Out {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Also an object path.
    pub(super) fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// Only ours are written: none is longer than its length can say.
    fn signature(&mut self, signature: &str) {
        self.bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// An array of structures, which `elements` writes.
    fn structures(&mut self, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        // Not counted, and there also where no element is.
        self.align(8);
        let start = self.bytes.len();
        elements(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[(&str, Value<'_>)]) {
        self.structures(|out| {
            for (name, value) in properties {
                out.align(8);
                out.text(name);
                out.variant(*value);
            }
        });
    }

    /// An array of structures without any.
    pub(super) fn nothing(&mut self) {
        self.structures(|_| {});
    }

    fn variant(&mut self, value: Value<'_>) {
        match value {
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Number(number) => {
                self.signature("t");
                self.align(8);
                self.bytes.extend_from_slice(&number.to_le_bytes());
            }
            Value::Flag(flag) => {
                self.signature("b");
                self.u32(flag.into());
            }
            Value::Numbers(numbers) => {
                self.signature("au");
                self.length(numbers.len() * 4);
                numbers.iter().for_each(|number| self.u32(*number));
            }
        }
    }
}

/// A connection that has introduced itself.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Usable,
    Lost,
}

impl Bus {
    /// Connects to the system's bus, as the user that this process is.
    pub(super) fn system() -> Result<Self, BusError> {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream, serial: 0, state: State::Usable };
        bus.log_in()?;
        bus.call(&HELLO, Out::default())?;
        Ok(bus)
    }

    /// The kernel tells the bus who we are; the number, in hex of its digits, must be the same.
    fn log_in(&mut self) -> Result<(), BusError> {
        let uid = nix::unistd::geteuid().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > LONGEST_LINE {
                return Err(BusError::Malformed("a line without an end"));
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(BusError::Refused("it does not let this user in".into()));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    /// Calls a method, and waits for its answer, of which only is told whether it is an error.
    pub(super) fn call(&mut self, method: &Method, arguments: Out) -> Result<(), BusError> {
        if self.state == State::Lost {
            return Err(BusError::Lost);
        }
        let answered = self.ask(method, arguments);
        if !matches!(answered, Ok(()) | Err(BusError::Refused(_))) {
            self.state = State::Lost;
        }
        answered
    }

    fn ask(&mut self, method: &Method, arguments: Out) -> Result<(), BusError> {
        self.serial += 1;
        self.stream.write_all(&request(method, self.serial, &arguments))?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let answer = self.message()?;
            // Others are signals to us.
            if answer.reply_to == Some(self.serial) {
                return match answer.kind {
                    METHOD_RETURN => Ok(()),
                    _ => Err(BusError::Refused(answer.text())),
                };
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    }

    fn message(&mut self) -> Result<Message, BusError> {
        let mut start = [0; Message::START];
        self.stream.read_exact(&mut start)?;
        let rest = Message::rest(&start)?;
        let mut bytes = start.to_vec();
        bytes.resize(Message::START + rest, 0);
        self.stream.read_exact(&mut bytes[Message::START..])?;
        Message::parse(&bytes)
    }
}

const HELLO: Method = Method {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "Hello",
    signature: "",
};

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
/// Nobody is started to answer.
const NO_AUTO_START: u8 = 2;
const VERSION: u8 = 1;

/// Codes of header fields.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

fn request(method: &Method, serial: u32, arguments: &Out) -> Vec<u8> {
    let mut out = Out { bytes: vec![b'l', METHOD_CALL, NO_AUTO_START, VERSION] };
    out.length(arguments.bytes.len());
    out.u32(serial);
    out.structures(|out| {
        for (code, kind, value) in [
            (field::PATH, "o", method.path),
            (field::INTERFACE, "s", method.interface),
            (field::MEMBER, "s", method.member),
            (field::DESTINATION, "s", method.destination),
            (field::SIGNATURE, "g", method.signature),
        ] {
            if value.is_empty() {
                continue;
            }
            out.align(8);
            out.bytes.push(code);
            out.signature(kind);
            match kind {
                "g" => out.signature(value),
                _ => out.text(value),
            }
        }
    });
    out.align(8);
    out.bytes.extend_from_slice(&arguments.bytes);
    out.bytes
}

/// What the bus sent.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    /// The first argument, if it is text.
    said: Option<String>,
}

impl Message {
    /// What is always there, up to the length of the header's fields.
    const START: usize = 16;

    /// How many bytes follow the start.
    fn rest(start: &[u8]) -> Result<usize, BusError> {
        let (body, fields) = Self::lengths(start).ok_or(BusError::Malformed("no header"))?;
        if body > LONGEST || fields > LONGEST {
            return Err(BusError::Malformed("a message that is too long"));
        }
        Ok((fields as usize).next_multiple_of(8) + body as usize)
    }

    fn lengths(start: &[u8]) -> Option<(u32, u32)> {
        let mut input = In::new(start)?;
        input.at = 4;
        let body = input.u32()?;
        input.u32()?;
        Some((body, input.u32()?))
    }

    fn parse(bytes: &[u8]) -> Result<Self, BusError> {
        Self::parsed(bytes).ok_or(BusError::Malformed("a message that breaks off"))
    }

    fn parsed(bytes: &[u8]) -> Option<Self> {
        let (_, fields) = Self::lengths(bytes)?;
        let end = Self::START.checked_add(fields as usize)?;
        let mut input = In::new(bytes.get(..end)?)?;
        input.at = Self::START;
        let (mut reply_to, mut signature) = (None, "");
        while input.at < end {
            input.align(8);
            let code = input.byte()?;
            match (code, input.signature()?) {
                (field::REPLY_SERIAL, "u") => reply_to = Some(input.u32()?),
                (field::SIGNATURE, "g") => signature = input.signature()?,
                (_, "s" | "o") => drop(input.text()?),
                (_, "g") => drop(input.signature()?),
                (_, "u") => drop(input.u32()?),
                _ => return None,
            }
        }
        let mut body = In::new(bytes)?;
        body.at = end.next_multiple_of(8);
        let said = if signature.starts_with('s') { Some(body.text()?.to_owned()) } else { None };
        Some(Self { kind: *bytes.get(1)?, reply_to, said })
    }

    /// For a person.
    fn text(&self) -> String {
        let said = self.said.as_deref().unwrap_or("it does not say why");
        said.chars().filter(|c| !c.is_control()).take(300).collect()
    }
}

/// Values one after the other; none is read beyond the end.
struct In<'a> {
    bytes: &'a [u8],
    at: usize,
    number: fn([u8; 4]) -> u32,
}

impl<'a> In<'a> {
    /// A message says first in which order the bytes of its numbers are.
    fn new(message: &'a [u8]) -> Option<Self> {
        let number = match message.first()? {
            b'l' => u32::from_le_bytes,
            b'B' => u32::from_be_bytes,
            _ => return None,
        };
        Some(Self { bytes: message, at: 0, number })
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some((self.number)(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        self.ended(length as usize)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        self.ended(length.into())
    }

    fn ended(&mut self, length: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// An error as systemd sends one, in this order of bytes.
    fn refusal(order: u8) -> Vec<u8> {
        let number = |n: u32| if order == b'l' { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut out = vec![order, 3, 1, VERSION];
        let mut fields = vec![field::REPLY_SERIAL, 1, b'u', 0];
        fields.extend(number(7));
        fields.extend([4, 1, b's', 0]);
        fields.extend(number(5));
        fields.extend(b"a.b.C\0\0\0");
        fields.extend([field::SIGNATURE, 1, b'g', 0, 1, b's', 0]);
        out.extend(number(9));
        out.extend(number(2));
        out.extend(number(fields.len() as u32));
        out.extend(&fields);
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend(number(4));
        out.extend(b"no\n!\0");
        out
    }

    #[test]
    fn an_answer_is_understood_whole_and_no_other_is() {
        for order in [b'l', b'B'] {
            let bytes = refusal(order);
            assert_eq!(Message::rest(&bytes).unwrap(), bytes.len() - Message::START);
            let message = Message::parse(&bytes).unwrap();
            assert_eq!((message.kind, message.reply_to), (3, Some(7)));
            assert_eq!(message.text(), "no!");
            for end in 0..bytes.len() {
                assert!(Message::parse(&bytes[..end]).is_err(), "cut at {end}");
            }
            // Whatever is in it: nothing is read beyond its end.
            for at in 0..bytes.len() {
                for byte in [0, 1, 0x7f, 0xff] {
                    let mut other = bytes.clone();
                    other[at] = byte;
                    let _ = Message::parse(&other);
                    let _ = Message::rest(&other);
                }
            }
        }
        let mut long = refusal(b'l');
        long[4..8].copy_from_slice(&(LONGEST + 1).to_le_bytes());
        assert!(matches!(Message::rest(&long), Err(BusError::Malformed("a message that is too long"))));
    }

    #[test]
    fn a_call_is_written_as_the_specification_has_it() {
        let bytes = request(&HELLO, 1, &Out::default());
        let mut wanted = vec![b'l', 1, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0x6d, 0, 0, 0];
        wanted.extend(b"\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0");
        wanted.extend(b"\x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
        wanted.extend(b"\x03\x01s\0\x05\0\0\0Hello\0\0\0");
        wanted.extend(b"\x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
        assert_eq!(bytes, wanted);
        // The padding before the arguments is not one of the fields.
        assert_eq!(wanted.len(), (16 + 0x6d_usize).next_multiple_of(8));

        let mut out = Out::default();
        out.properties(&[("A", Value::Number(5)), ("B", Value::Flag(true)), ("C", Value::Numbers(&[9]))]);
        out.nothing();
        let mut wanted = vec![0x3c, 0, 0, 0, 0, 0, 0, 0];
        wanted.extend(b"\x01\0\0\0A\0\x01t\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        wanted.extend(b"\x01\0\0\0B\0\x01b\0\0\0\0\x01\0\0\0");
        wanted.extend(b"\x01\0\0\0C\0\x02au\0\0\0\x04\0\0\0\x09\0\0\0");
        wanted.extend([0; 4]);
        assert_eq!(out.bytes, wanted);
    }
}
