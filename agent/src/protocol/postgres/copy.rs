//! Masks on COPY TO STDOUT: rows are cut out of the data in their layout, their values masked and laid out again.
//!
//! Data that does not follow its layout ends the connection: passing what cannot be read would pass what is masked.

use bytes::{Bytes, BytesMut};

use super::{
    codec::{Format, put},
    mask::{Column, Masker, Value},
};
use crate::{
    mask::Hits,
    sql::{CopyFormat, CopyInfo},
    wire::{Reader, Rewrite},
};

/// Largest row that is put together from pieces.
const ROW_MAX: usize = 64 << 20;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// COPY data that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("COPY data does not follow its format")]
pub struct CopyError;

/// What happens to the columns.
#[derive(Clone, Debug)]
pub enum CopyColumns {
    /// The same to all, however many.
    All(Column),
    /// To each its own.
    Each(Vec<Column>),
}

impl CopyColumns {
    fn at(&self, index: usize) -> Result<&Column, CopyError> {
        match self {
            Self::All(column) => Ok(column),
            Self::Each(columns) => columns.get(index).ok_or(CopyError),
        }
    }
}

/// Masks the data of one COPY.
#[derive(Debug)]
pub struct CopyMasker {
    layout: Result<Layout, CopyError>,
    columns: CopyColumns,
    carry: BytesMut,
    header: bool,
}

#[derive(Debug)]
enum Layout {
    Text { delimiter: u8, null: Vec<u8> },
    Csv { delimiter: u8, quote: u8, escape: u8, null: Vec<u8> },
    Binary,
}

impl Layout {
    fn of(copy: &CopyInfo) -> Result<Self, CopyError> {
        let option = |name: &str| copy.options.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes());
        let byte = |name, default: u8| match option(name) {
            None => Ok(default),
            Some([one]) if one.is_ascii() => Ok(*one),
            Some(_) => Err(CopyError),
        };
        if option("encoding").is_some_and(|e| !matches!(e.to_ascii_lowercase().as_slice(), b"utf8" | b"utf-8")) {
            return Err(CopyError);
        }
        match copy.format {
            CopyFormat::Text => {
                Ok(Self::Text { delimiter: byte("delimiter", b'\t')?, null: option("null").unwrap_or(b"\\N").to_vec() })
            }
            CopyFormat::Csv => {
                let quote = byte("quote", b'"')?;
                Ok(Self::Csv {
                    delimiter: byte("delimiter", b',')?,
                    quote,
                    escape: byte("escape", quote)?,
                    null: option("null").unwrap_or(b"").to_vec(),
                })
            }
            CopyFormat::Binary => Ok(Self::Binary),
        }
    }
}

impl CopyMasker {
    /// For one COPY whose columns are known.
    pub fn new(copy: &CopyInfo, mut columns: CopyColumns) -> Self {
        let layout = Layout::of(copy);
        let binary = matches!(layout, Ok(Layout::Binary));
        let format = if binary { Format::Binary } else { Format::Text };
        match &mut columns {
            CopyColumns::All(column) => column.format = format,
            CopyColumns::Each(each) => each.iter_mut().for_each(|column| column.format = format),
        }
        let flag = |(name, value): &(String, String)| {
            name == "header" && !matches!(value.to_ascii_lowercase().as_str(), "false" | "off" | "0")
        };
        let header = binary || copy.options.iter().any(flag);
        Self { layout, columns, carry: BytesMut::new(), header }
    }

    /// Whether the data ended with a whole row.
    pub fn is_whole(&self) -> bool {
        self.carry.is_empty()
    }

    /// Masks the body of one CopyData.
    pub fn data(&mut self, masker: &Masker, body: &[u8], hits: &mut Hits) -> Result<Rewrite, CopyError> {
        let layout = self.layout.as_ref().map_err(|error| *error)?;
        if masker.is_idle() {
            return Ok(Rewrite::Pass);
        }
        if self.carry.len() + body.len() > ROW_MAX {
            return Err(CopyError);
        }
        let carried = !self.carry.is_empty();
        let joined: Bytes;
        let data: &[u8] = if carried {
            self.carry.extend_from_slice(body);
            joined = self.carry.split().freeze();
            &joined
        } else {
            body
        };
        let mut out = BytesMut::new();
        let mut rows = Rows { masker, columns: &self.columns, hits, out: &mut out, changed: false };
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            let row = match layout {
                Layout::Text { .. } => memchr::memchr(b'\n', rest).map(|n| n + 1),
                Layout::Csv { quote, escape, .. } => csv_row(rest, *quote, *escape),
                Layout::Binary => binary_row(rest, self.header)?,
            };
            let Some(end) = row else { break };
            let row = &rest[..end];
            let header = std::mem::take(&mut self.header);
            match layout {
                _ if header => rows.out.extend_from_slice(row),
                Layout::Text { delimiter, null } => rows.text(row, *delimiter, null)?,
                Layout::Csv { delimiter, quote, escape, null } => rows.csv(row, *delimiter, *quote, *escape, null)?,
                Layout::Binary => rows.binary(row)?,
            }
            at += end;
        }
        let changed = rows.changed;
        self.carry.extend_from_slice(&data[at..]);
        if !changed && !carried && self.carry.is_empty() {
            return Ok(Rewrite::Pass);
        }
        if out.is_empty() {
            return Ok(Rewrite::Drop);
        }
        let mut frame = BytesMut::with_capacity(out.len() + 5);
        put(&mut frame, b'd', |b| b.extend_from_slice(&out));
        Ok(Rewrite::Replace(frame.freeze()))
    }
}

/// End of a CSV row: a newline outside of quotes.
fn csv_row(data: &[u8], quote: u8, escape: u8) -> Option<usize> {
    let mut quoted = false;
    let mut i = 0;
    while i < data.len() {
        let b = data[i];
        if quoted && b == escape && escape != quote && data.get(i + 1).is_some_and(|n| *n == quote || *n == escape) {
            i += 1;
        } else if b == quote {
            quoted = !quoted;
        } else if b == b'\n' && !quoted {
            return Some(i + 1);
        }
        i += 1;
    }
    None
}

/// End of the header or of a tuple of PGCOPY.
fn binary_row(data: &[u8], header: bool) -> Result<Option<usize>, CopyError> {
    let mut r = Reader::new(data);
    if header {
        let fixed = SIGNATURE.len() + 8;
        let Ok(head) = r.take(fixed) else { return Ok(None) };
        if !head.starts_with(SIGNATURE) {
            return Err(CopyError);
        }
        let extra = u32::from_be_bytes(head[fixed - 4..].try_into().map_err(|_| CopyError)?);
        let end = fixed + usize::try_from(extra).map_err(|_| CopyError)?;
        return Ok((data.len() >= end).then_some(end));
    }
    let Ok(n) = r.i16() else { return Ok(None) };
    for _ in 0..n.max(0) {
        let Ok(length) = r.i32() else { return Ok(None) };
        match length {
            -1 => {}
            n if n < 0 => return Err(CopyError),
            n => {
                if r.take(usize::try_from(n).map_err(|_| CopyError)?).is_err() {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(data.len() - r.rest().len()))
}

struct Rows<'a> {
    masker: &'a Masker,
    columns: &'a CopyColumns,
    hits: &'a mut Hits,
    out: &'a mut BytesMut,
    changed: bool,
}

impl Rows<'_> {
    fn text(&mut self, row: &[u8], delimiter: u8, null: &[u8]) -> Result<(), CopyError> {
        let line = row.strip_suffix(b"\n").ok_or(CopyError)?;
        if line == b"\\." {
            self.out.extend_from_slice(row);
            return Ok(());
        }
        for (i, field) in split_text(line, delimiter).enumerate() {
            if i > 0 {
                self.out.extend_from_slice(&[delimiter]);
            }
            if field == null {
                self.out.extend_from_slice(field);
                continue;
            }
            let plain = unescape(field);
            match self.masker.value(self.columns.at(i)?, &plain, self.hits) {
                Value::Same => self.out.extend_from_slice(field),
                Value::Null => {
                    self.changed = true;
                    self.out.extend_from_slice(null);
                }
                Value::New(value) => {
                    self.changed = true;
                    escape_text(self.out, &value, delimiter);
                }
            }
        }
        self.out.extend_from_slice(b"\n");
        Ok(())
    }

    fn csv(&mut self, row: &[u8], delimiter: u8, quote: u8, escape: u8, null: &[u8]) -> Result<(), CopyError> {
        let line = row.strip_suffix(b"\n").ok_or(CopyError)?;
        let mut rest = line;
        for i in 0.. {
            let (raw, value, quoted, next) = csv_field(rest, delimiter, quote, escape)?;
            if i > 0 {
                self.out.extend_from_slice(&[delimiter]);
            }
            let masked = if !quoted && raw == null {
                Value::Same
            } else {
                self.masker.value(self.columns.at(i)?, &value, self.hits)
            };
            match masked {
                Value::Same => self.out.extend_from_slice(raw),
                Value::Null => {
                    self.changed = true;
                    self.out.extend_from_slice(null);
                }
                Value::New(value) => {
                    self.changed = true;
                    self.out.extend_from_slice(&[quote]);
                    for b in value {
                        if b == quote || b == escape {
                            self.out.extend_from_slice(&[escape]);
                        }
                        self.out.extend_from_slice(&[b]);
                    }
                    self.out.extend_from_slice(&[quote]);
                }
            }
            match next {
                Some(next) => rest = next,
                None => break,
            }
        }
        self.out.extend_from_slice(b"\n");
        Ok(())
    }

    fn binary(&mut self, row: &[u8]) -> Result<(), CopyError> {
        let mut r = Reader::new(row);
        let n = r.i16().map_err(|_| CopyError)?;
        self.out.extend_from_slice(&n.to_be_bytes());
        for i in 0..usize::try_from(n).unwrap_or(0) {
            let value = r.value().map_err(|_| CopyError)?;
            let new = match value {
                None => Value::Same,
                Some(value) => self.masker.value(self.columns.at(i)?, value, self.hits),
            };
            self.changed |= new != Value::Same;
            let value = match (&new, value) {
                (Value::Null, _) | (Value::Same, None) => None,
                (Value::New(value), _) => Some(value.as_slice()),
                (Value::Same, Some(value)) => Some(value),
            };
            match value {
                None => self.out.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(value) => {
                    let length = i32::try_from(value.len()).map_err(|_| CopyError)?;
                    self.out.extend_from_slice(&length.to_be_bytes());
                    self.out.extend_from_slice(value);
                }
            }
        }
        Ok(())
    }
}

fn split_text(line: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let now = rest?;
        let mut i = 0;
        while i < now.len() {
            match now[i] {
                b'\\' => i += 2,
                b if b == delimiter => {
                    rest = Some(&now[i + 1..]);
                    return Some(&now[..i]);
                }
                _ => i += 1,
            }
        }
        rest = None;
        Some(now)
    })
}

fn unescape(field: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    if memchr::memchr(b'\\', field).is_none() {
        return field.into();
    }
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.iter().copied();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        // What the server writes; it uses no octal or hex forms on output.
        match bytes.next() {
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(b'v') => out.push(11),
            Some(other) => out.push(other),
            None => out.push(b'\\'),
        }
    }
    out.into()
}

fn escape_text(out: &mut BytesMut, value: &[u8], delimiter: u8) {
    for b in value {
        let letter = match b {
            8 => b'b',
            12 => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            11 => b'v',
            b'\\' => b'\\',
            b if *b == delimiter => delimiter,
            b => {
                out.extend_from_slice(&[*b]);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
}

/// A CSV field: as it stands, its value, whether it was quoted, and what follows its delimiter.
type CsvField<'a> = (&'a [u8], Vec<u8>, bool, Option<&'a [u8]>);

fn csv_field(line: &[u8], delimiter: u8, quote: u8, escape: u8) -> Result<CsvField<'_>, CopyError> {
    let mut value = Vec::new();
    let mut quoted = false;
    let mut inside = false;
    let mut i = 0;
    while i < line.len() {
        let b = line[i];
        if inside && b == escape && line.get(i + 1).is_some_and(|n| *n == quote || *n == escape) {
            value.push(line[i + 1]);
            i += 2;
            continue;
        }
        if b == quote {
            inside = !inside;
            quoted = true;
        } else if b == delimiter && !inside {
            return Ok((&line[..i], value, quoted, Some(&line[i + 1..])));
        } else {
            value.push(b);
        }
        i += 1;
    }
    if inside { Err(CopyError) } else { Ok((line, value, quoted, None)) }
}
