//! Frames of the PostgreSQL protocol 3.0 and 3.2 ("Frontend/Backend Protocol", "Message Formats"), as borrowed views.
//!
//! A length is checked against its cap before anything is reserved; a body is read inside its own bounds and must be
//! used up, so that nothing can hide behind a field or swallow the next frame.

use bytes::{Bytes, BytesMut};

use crate::wire::{Reader, Short};

/// A frame that cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The declared length is below the smallest possible.
    #[error("a frame declares an impossible length")]
    Length,
    /// The declared length is over the cap.
    #[error("a frame of {declared} bytes is over the limit of {cap}")]
    Oversized {
        /// What the frame declares, its length field included.
        declared: usize,
        /// The cap for frames of its kind.
        cap: usize,
    },
}

/// A whole frame: tag, length and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
}

impl Frame {
    /// The frame's type.
    pub fn tag(&self) -> u8 {
        self.bytes[0]
    }

    /// What follows the length.
    pub fn body(&self) -> &[u8] {
        &self.bytes[5..]
    }

    /// A cursor over the body.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self.body())
    }

    /// All of it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// All of it, owned.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Types of the frames that a client may send after its login.
pub const FROM_CLIENT: &[u8] = b"QPBEDCHSFXdcf";

/// Cuts the next whole frame off `input`. `None`: more bytes are needed. `cap` gives the largest declared length that
/// a frame type may have.
pub fn cut(input: &mut BytesMut, cap: impl Fn(u8) -> usize) -> Result<Option<Frame>, CutError> {
    let Some(header) = input.first_chunk::<5>() else { return Ok(None) };
    let [tag, length @ ..] = *header;
    let length = i32::from_be_bytes(length);
    let declared = usize::try_from(length).map_err(|_| CutError::Length)?;
    if declared < 4 {
        return Err(CutError::Length);
    }
    let cap = cap(tag);
    if declared > cap {
        return Err(CutError::Oversized { declared, cap });
    }
    if input.len() <= declared {
        return Ok(None);
    }
    Ok(Some(Frame { bytes: input.split_to(declared + 1).freeze() }))
}

/// How many whole frames of this type, none over the cap, stand one after the other at the start, and their bytes.
pub fn whole(input: &[u8], tag: u8, cap: usize) -> (u64, usize) {
    let (mut frames, mut bytes) = (0, 0);
    while let Some(&[first, length @ ..]) = input[bytes..].first_chunk::<5>()
        && let Ok(declared) = usize::try_from(i32::from_be_bytes(length))
        && first == tag
        && (4..=cap).contains(&declared)
        && declared < input.len() - bytes
    {
        frames += 1;
        bytes += declared + 1;
    }
    (frames, bytes)
}

/// How many bytes the first frame takes that is not whole yet; 0 if that is not known, or not possible.
pub fn declared(input: &[u8]) -> usize {
    let length = input.first_chunk::<5>().map_or(0, |[_, length @ ..]| i32::from_be_bytes(*length));
    usize::try_from(length).map_or(0, |length| length + 1)
}

/// Cuts a packet without a tag (startup, SSLRequest, CancelRequest) and returns its body.
pub fn cut_untagged(input: &mut BytesMut, cap: usize) -> Result<Option<Bytes>, CutError> {
    let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
    let declared = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| CutError::Length)?;
    if declared < 8 {
        return Err(CutError::Length);
    }
    if declared > cap {
        return Err(CutError::Oversized { declared, cap });
    }
    if input.len() < declared {
        return Ok(None);
    }
    Ok(Some(input.split_to(declared).freeze().slice(4..)))
}

/// A text that must be UTF-8, because policy judges it and the upstream reads it as UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Encoding)
}

/// A body that does not follow its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fields end early, are left over, or have impossible counts.
    #[error("a frame is malformed")]
    Shape,
    /// Text is not UTF-8.
    #[error("text is not valid UTF-8, which is the encoding of this connection")]
    Encoding,
}

impl From<Short> for Malformed {
    fn from(_: Short) -> Self {
        Self::Shape
    }
}

/// Query ('Q').
pub fn query(body: &[u8]) -> Result<&str, Malformed> {
    let mut r = Reader::new(body);
    let sql = r.cstr()?;
    r.all()?;
    text(sql)
}

/// Parse ('P').
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Name of the statement; empty is the unnamed one.
    pub name: &'a str,
    /// Its text.
    pub sql: &'a str,
    /// The body without the name: what two equal statements of other names share.
    pub essence: &'a [u8],
    /// Object ids of the types that it declares for its parameters; 0 where it leaves that to the server.
    pub types: Vec<u32>,
}

impl<'a> Parse<'a> {
    /// Reads a body.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let name = text(r.cstr()?)?;
        let essence = r.rest();
        let sql = text(r.cstr()?)?;
        let types = r.count(4)?;
        let types = (0..types).map(|_| r.u32()).collect::<Result<_, _>>()?;
        r.all()?;
        Ok(Self { name, sql, essence, types })
    }
}

/// Bind ('B').
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Name of the portal.
    pub portal: &'a str,
    /// Name of the statement.
    pub statement: &'a str,
    /// The body without the names.
    pub essence: &'a [u8],
    /// Parameters as they came, each with whether it is binary.
    pub parameters: Vec<(Format, Option<&'a [u8]>)>,
    /// Formats of result columns: none (all text), one for all, or one each.
    pub formats: Vec<Format>,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As text.
    Text,
    /// In the type's binary form.
    Binary,
}

impl Format {
    /// From its code: 0 or 1, nothing else.
    pub fn from_code(code: i16) -> Result<Self, Malformed> {
        match code {
            0 => Ok(Self::Text),
            1 => Ok(Self::Binary),
            _ => Err(Malformed::Shape),
        }
    }
}

/// The format of item `index` when `formats` were given: none means text, one holds for all.
pub fn format_of(formats: &[Format], index: usize) -> Option<Format> {
    match formats {
        [] => Some(Format::Text),
        [all] => Some(*all),
        each => each.get(index).copied(),
    }
}

impl<'a> Bind<'a> {
    /// Reads a body.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let portal = text(r.cstr()?)?;
        let statement = text(r.cstr()?)?;
        let essence = r.rest();
        let codes = formats(&mut r)?;
        let n = r.count(4)?;
        if codes.len() > 1 && codes.len() != n {
            return Err(Malformed::Shape);
        }
        let parameters = (0..n)
            .map(|i| Ok((format_of(&codes, i).ok_or(Malformed::Shape)?, r.value()?)))
            .collect::<Result<_, Malformed>>()?;
        let formats = formats(&mut r)?;
        r.all()?;
        Ok(Self { portal, statement, essence, parameters, formats })
    }
}

fn formats(r: &mut Reader<'_>) -> Result<Vec<Format>, Malformed> {
    let n = r.count(2)?;
    (0..n).map(|_| Format::from_code(r.i16()?)).collect()
}

/// What Describe and Close name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement.
    Statement(&'a str),
    /// A portal.
    Portal(&'a str),
}

impl<'a> Named<'a> {
    /// Reads the body of Describe ('D') or Close ('C').
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let kind = r.u8()?;
        let name = text(r.cstr()?)?;
        r.all()?;
        match kind {
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            _ => Err(Malformed::Shape),
        }
    }
}

/// Execute ('E').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Name of the portal.
    pub portal: &'a str,
    /// Most rows to return; 0 means all.
    pub max_rows: i32,
}

impl<'a> Execute<'a> {
    /// Reads a body.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let portal = text(r.cstr()?)?;
        let max_rows = r.i32()?;
        r.all()?;
        Ok(Self { portal, max_rows })
    }
}

/// FunctionCall ('F').
pub fn function_call(body: &[u8]) -> Result<u32, Malformed> {
    let mut r = Reader::new(body);
    let oid = r.u32()?;
    let codes = formats(&mut r)?;
    let n = r.count(4)?;
    if codes.len() > 1 && codes.len() != n {
        return Err(Malformed::Shape);
    }
    for _ in 0..n {
        r.value()?;
    }
    Format::from_code(r.i16()?)?;
    r.all()?;
    Ok(oid)
}

/// One column of a RowDescription ('T').
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the result.
    pub name: String,
    /// The table it comes from, 0 for an expression.
    pub table: u32,
    /// Which column of that table, from 1; 0 for an expression.
    pub attribute: i16,
    /// Type.
    pub type_oid: u32,
    /// How values come; in the description of a statement, always text.
    pub format: Format,
}

/// RowDescription ('T').
pub fn row_description(body: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut r = Reader::new(body);
    let n = r.count(19)?;
    let mut fields = Vec::with_capacity(n);
    for _ in 0..n {
        let name = String::from_utf8_lossy(r.cstr()?).into_owned();
        let table = r.u32()?;
        let attribute = r.i16()?;
        let type_oid = r.u32()?;
        r.take(2 + 4)?;
        let format = Format::from_code(r.i16()?)?;
        fields.push(Field { name, table, attribute, type_oid, format });
    }
    r.all()?;
    Ok(fields)
}

/// Appends a tagged frame whose body `fill` writes.
pub fn put(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.extend_from_slice(&[tag, 0, 0, 0, 0]);
    let start = out.len() - 4;
    fill(out);
    // A frame of ours is far below 2 GiB: its parts were cut from frames that are capped.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a string with its NUL. A NUL inside would end it early, so what follows one is left out.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.extend_from_slice(&[0]);
}
