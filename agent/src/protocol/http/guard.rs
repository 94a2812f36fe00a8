//! Strict framing of HTTP/1.1 requests (RFC 9112), before anything else reads them.
//!
//! Two readers that disagree on where a request ends let one request hide in another. So only what has one reading passes
//! to the library that serves requests: lines end with CRLF, one Host, one Content-Length or one `chunked`, no folded
//! lines, no white space where none belongs, targets that begin with `/`. What passes is passed to the byte. Failure mode:
//! the first byte that is in doubt ends the connection, with an answer that says why.

use bytes::{Buf, BytesMut};

/// Longest head of a request, in bytes; longest section of trailers.
pub const HEAD_MAX: usize = 64 << 10;
/// Most header fields of a request.
pub const FIELDS_MAX: usize = 96;
/// Longest line that tells a chunk's size.
const SIZE_LINE_MAX: usize = 20;

/// What is wrong with a request. Shown to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

/// Walks through the requests of one connection.
#[derive(Debug, Default)]
pub struct Guard {
    state: State,
    /// What it was in when it broke.
    broke: Option<Place>,
}

/// Where in a stream something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the head of a request, of which nothing has passed.
    Head,
    /// In a body, whose head has passed.
    Body,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of a body are left.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Broken(Violation),
}

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

impl Guard {
    /// Moves what has one reading from `input` to `output`. More may be moved once more has come.
    ///
    /// # Errors
    /// Something has none; it and all that follows stays in `input`.
    pub fn feed(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), Violation> {
        loop {
            let before = (input.len(), self.state);
            match self.state {
                State::Broken(violation) => return Err(violation),
                State::Head => {
                    // Some clients end a body with an empty line too many (RFC 9112 section 2.2).
                    while input.starts_with(b"\r\n") {
                        input.advance(2);
                    }
                    if let Some(end) = self.section(input, b"\r\n\r\n")? {
                        let framing = self.or_break(head(&input[..end]))?;
                        output.extend_from_slice(&input.split_to(end));
                        self.state = match framing {
                            Framing::None | Framing::Length(0) => State::Head,
                            Framing::Length(length) => State::Body(length),
                            Framing::Chunked => State::ChunkSize,
                        };
                    }
                }
                State::Body(left) => self.state = pass(left, input, output).map_or(State::Head, State::Body),
                State::ChunkSize => {
                    if let Some(end) = self.line(input)? {
                        let size = self.or_break(chunk_size(&input[..end - 2]))?;
                        output.extend_from_slice(&input.split_to(end));
                        self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                    }
                }
                State::Chunk(left) => self.state = pass(left, input, output).map_or(State::ChunkEnd, State::Chunk),
                State::ChunkEnd => {
                    if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
                        self.or_break(Err::<(), _>(Violation("a chunk is not followed by CRLF")))?;
                    }
                    if input.len() >= 2 {
                        output.extend_from_slice(&input.split_to(2));
                        self.state = State::ChunkSize;
                    }
                }
                State::Trailers => {
                    let end = if input.starts_with(b"\r\n") { Some(2) } else { self.section(input, b"\r\n\r\n")? };
                    if let Some(end) = end {
                        if end > 2 {
                            self.or_break(trailers(&input[..end - 2]))?;
                        }
                        // They are checked, and left out (RFC 9110 section 6.5.1 lets us): no rule sees them.
                        input.advance(end);
                        output.extend_from_slice(b"\r\n");
                        self.state = State::Head;
                    }
                }
            }
            if before == (input.len(), self.state) {
                return Ok(());
            }
        }
    }

    /// Where it broke, if it did.
    pub fn broke(&self) -> Option<Place> {
        self.broke
    }

    fn or_break<T>(&mut self, result: Result<T, Violation>) -> Result<T, Violation> {
        result.inspect_err(|violation| {
            self.broke = Some(if self.state == State::Head { Place::Head } else { Place::Body });
            self.state = State::Broken(*violation);
        })
    }

    /// Length of a section that ends with an empty line, once it is there. What is wrong for sure is said at once.
    fn section(&mut self, input: &BytesMut, end: &[u8]) -> Result<Option<usize>, Violation> {
        let seen = &input[..input.len().min(HEAD_MAX)];
        let found = memchr::memmem::find(seen, end).map(|at| at + end.len());
        let until = found.unwrap_or(seen.len());
        self.or_break(line_ends(&seen[..until]))?;
        if found.is_none() && input.len() >= HEAD_MAX {
            self.or_break(Err::<(), _>(Violation("the head of the request is too long")))?;
        }
        Ok(found)
    }

    /// Length of a short line with its CRLF, once it is there.
    fn line(&mut self, input: &BytesMut) -> Result<Option<usize>, Violation> {
        let seen = &input[..input.len().min(SIZE_LINE_MAX)];
        let found = memchr::memchr(b'\n', seen).map(|at| at + 1);
        self.or_break(line_ends(&seen[..found.unwrap_or(seen.len())]))?;
        if found.is_none() && seen.len() == SIZE_LINE_MAX {
            self.or_break(Err::<(), _>(Violation("the size of a chunk has no end, or an extension")))?;
        }
        Ok(found)
    }
}

/// Moves up to `left` bytes; returns how many are left then, or `None` for none.
fn pass(left: u64, input: &mut BytesMut, output: &mut BytesMut) -> Option<u64> {
    let now = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    output.extend_from_slice(&input.split_to(now));
    Some(left - now as u64).filter(|left| *left > 0)
}

/// Every CR is followed by LF and every LF follows a CR. A CR at the end may be.
fn line_ends(text: &[u8]) -> Result<(), Violation> {
    for at in memchr::memchr2_iter(b'\r', b'\n', text) {
        let fine = match text[at] {
            b'\r' => text.get(at + 1).is_none_or(|next| *next == b'\n'),
            _ => at > 0 && text[at - 1] == b'\r',
        };
        if !fine {
            return Err(Violation("a line does not end with CRLF"));
        }
    }
    Ok(())
}

/// Checks a head with its empty line, and says how the body is framed.
fn head(text: &[u8]) -> Result<Framing, Violation> {
    let mut lines = text[..text.len() - 4].split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let version = request_line(lines.next().unwrap_or_default())?;
    let (mut hosts, mut length, mut chunked, mut count) = (0, None, false, 0);
    for line in lines {
        count += 1;
        if count > FIELDS_MAX {
            return Err(Violation("the request has too many header fields"));
        }
        let (name, value) = field(line)?;
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts += 1,
            b"content-length" => {
                let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
                let number = number.ok_or(Violation("Content-Length is not a number"))?;
                if length.replace(number).is_some() {
                    return Err(Violation("Content-Length stands there twice"));
                }
            }
            b"transfer-encoding" if value.eq_ignore_ascii_case(b"chunked") && !chunked => chunked = true,
            b"transfer-encoding" => return Err(Violation("the only Transfer-Encoding is chunked, once")),
            // What servers that hand fields on as variables take for the same (RFC 3875 section 4.1.18).
            b"content_length" | b"transfer_encoding" => {
                return Err(Violation("a header field has a name that others read in another way"));
            }
            _ => {}
        }
    }
    match (version, hosts) {
        (_, 2..) => return Err(Violation("Host stands there twice")),
        (Version::Http11, 0) => return Err(Violation("Host is missing")),
        _ => {}
    }
    match (length, chunked, version) {
        (Some(_), true, _) => Err(Violation("both Content-Length and Transfer-Encoding are there")),
        (None, true, Version::Http10) => Err(Violation("HTTP/1.0 has no Transfer-Encoding")),
        (None, true, Version::Http11) => Ok(Framing::Chunked),
        (Some(length), false, _) => Ok(Framing::Length(length)),
        (None, false, _) => Ok(Framing::None),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

fn request_line(line: &[u8]) -> Result<Version, Violation> {
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next()) else {
        return Err(Violation("the request line is not METHOD TARGET VERSION"));
    };
    // What a client begins with that speaks HTTP/2 unasked (RFC 9113 section 3.4).
    if line == b"PRI * HTTP/2.0" {
        return Err(Violation("HTTP/2 was not agreed on for this connection"));
    }
    if method.is_empty() || method.len() > 32 || !method.iter().all(|b| b.is_ascii_uppercase() || *b == b'-') {
        return Err(Violation("the method has characters that no method has"));
    }
    match target {
        _ if method == b"CONNECT" => return Err(Violation("CONNECT is refused: there is no proxy here")),
        b"*" if method == b"OPTIONS" => {}
        [b'/', rest @ ..] if rest.iter().all(|b| b.is_ascii_graphic() && *b != b'#') => {}
        _ => return Err(Violation("the target of a request begins with `/` and is printable ASCII")),
    }
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Violation("the version is neither HTTP/1.1 nor HTTP/1.0")),
    }
}

/// Name and value of a header field (RFC 9112 section 5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return Err(Violation("a header field goes on over several lines"));
    }
    let colon = memchr::memchr(b':', line).ok_or(Violation("a header field has no `:`"))?;
    let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if name.is_empty() || !name.iter().all(token) {
        return Err(Violation("the name of a header field has characters that no name has"));
    }
    if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(Violation("the value of a header field has control characters"));
    }
    Ok((name, value))
}

/// Without the white space around it, which is spaces and tabs and nothing else (RFC 9110 section 5.6.3).
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Hexadecimal digits and nothing else: extensions are understood in many ways.
fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let digits = (1..=15).contains(&line.len()) && line.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(line).ok().filter(|_| digits).and_then(|text| u64::from_str_radix(text, 16).ok());
    size.ok_or(Violation("the size of a chunk is not a hexadecimal number"))
}

fn trailers(text: &[u8]) -> Result<(), Violation> {
    let lines = text[..text.len() - 2].split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.map(field).try_for_each(|field| field.map(drop))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
