//! Masks on result rows: which column comes from where ([`Plan`]), and how a mask fits a PostgreSQL type.
//!
//! A column of a result is bound to its table column by the object id and attribute number of its RowDescription, so
//! an alias does not lose the mask. A computed column of a statement that could reach a masked one is hidden whole.
//! A value of a type that cannot hold the mask becomes NULL.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{self, Field, Format, Malformed};
use crate::{
    mask::{ColumnMask, Hits, KnownSecrets, MaskSet, Masked, REDACTED},
    wire::{Reader, Rewrite},
};

/// What happens to the values of one column.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Searched by detectors and for known secrets.
    Scan,
    /// A policy's column mask.
    Column(ColumnMask),
    /// Hidden whole: it may derive from a masked column.
    Hide(Arc<str>),
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    /// What happens to its values.
    pub rule: Rule,
    /// Its type.
    pub type_oid: u32,
    /// How values come.
    pub format: Format,
}

/// What happens to the rows of one result.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Columns in order.
    pub columns: Vec<Column>,
}

/// How a type takes a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Any text.
    Text,
    /// Only valid JSON; `jsonb` has a version byte before it in binary form.
    Json { binary_version: bool },
    /// Nothing but its own kind: NULL. Searched as it stands.
    Other,
    /// As `Other`; an eight-byte integer in binary form.
    Int8,
    /// As `Other`; `numeric` in binary form.
    Numeric,
    /// Carries no text worth searching: booleans, dates, small numbers.
    Plain,
}

fn family(type_oid: u32) -> Family {
    match type_oid {
        // name, text, unknown, bpchar, varchar, xml
        19 | 25 | 705 | 1042 | 1043 | 142 => Family::Text,
        114 => Family::Json { binary_version: false },
        3802 => Family::Json { binary_version: true },
        20 => Family::Int8,
        1700 => Family::Numeric,
        // bool, char, int2, int4, oid, xid, cid, float4, float8, money, date, time, timestamp(tz), interval, timetz, uuid
        16 | 18 | 21 | 23 | 26 | 28 | 29 | 700 | 701 | 790 | 1082 | 1083 | 1114 | 1184 | 1186 | 1266 | 2950 => {
            Family::Plain
        }
        _ => Family::Other,
    }
}

/// A value after its mask.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    /// As it was.
    Same,
    /// Another.
    New(Vec<u8>),
    /// NULL.
    Null,
}

/// What came of a look at many rows at once.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    /// So many rows, as they are.
    Rows(u64, Bytes),
    /// So many rows, each of which must be looked at by itself.
    Doubtful(u64),
    /// None can be passed in this way.
    None,
}

/// The masks that apply to one connection.
#[derive(Clone)]
pub struct Masker {
    /// The policy's.
    pub masks: Arc<MaskSet>,
    /// Credentials that the daemon has used.
    pub secrets: Arc<KnownSecrets>,
}

impl Masker {
    /// Whether values need no look at all.
    pub fn is_idle(&self) -> bool {
        self.masks.is_empty() && self.secrets.is_empty()
    }

    /// Takes the whole rows that have come, if nothing but a known secret could change rows of this plan and they hold
    /// none. All of them are searched at once.
    pub fn pass(&self, plan: &Plan, input: &mut BytesMut, cap: usize) -> Passed {
        if !self.changes_only_secrets(plan) {
            return Passed::None;
        }
        match codec::whole(input, b'D', cap) {
            (0, _) => Passed::None,
            (rows, bytes) if self.secrets.may_be_in(&input[..bytes]) => Passed::Doubtful(rows),
            (rows, bytes) => Passed::Rows(rows, input.split_to(bytes).freeze()),
        }
    }

    /// Whether rows of this plan change at most where their bytes hold a known secret.
    fn changes_only_secrets(&self, plan: &Plan) -> bool {
        let as_it_stands = |column: &Column| {
            matches!(column.rule, Rule::Scan)
                && (column.format == Format::Text || !matches!(family(column.type_oid), Family::Int8 | Family::Numeric))
        };
        !self.masks.has_detectors() && plan.columns.iter().all(as_it_stands)
    }

    fn scans(&self) -> bool {
        self.masks.has_detectors() || !self.secrets.is_empty()
    }

    /// Masks one value that is not NULL.
    pub fn value(&self, column: &Column, value: &[u8], hits: &mut Hits) -> Value {
        let family = family(column.type_oid);
        match &column.rule {
            Rule::Hide(label) => {
                hits.add(label);
                whole(family, column.format, REDACTED.as_bytes())
            }
            Rule::Column(mask) => self.by_column(mask, family, column.format, value, hits),
            Rule::Scan if self.scans() => self.scan(family, column.format, value, hits),
            Rule::Scan => Value::Same,
        }
    }

    fn by_column(&self, mask: &ColumnMask, family: Family, format: Format, value: &[u8], hits: &mut Hits) -> Value {
        let masked = match family {
            Family::Text => match mask.apply_text(value) {
                // A column mask that leaves a value as it is (an empty one, say) still leaves it to the detectors.
                Masked::Unchanged => return self.scan(family, format, value, hits),
                Masked::Null => Value::Null,
                Masked::Text(text) => Value::New(text.into_owned()),
            },
            Family::Json { .. } => match mask.apply_text(value) {
                Masked::Null => Value::Null,
                Masked::Unchanged | Masked::Text(_) => whole(family, format, REDACTED.as_bytes()),
            },
            _ => Value::Null,
        };
        hits.add(&mask.label);
        masked
    }

    fn scan(&self, family: Family, format: Format, value: &[u8], hits: &mut Hits) -> Value {
        let rendered;
        let searched: &[u8] = match (family, format) {
            (Family::Plain, _) => return Value::Same,
            (Family::Int8, Format::Binary) => match <[u8; 8]>::try_from(value) {
                Ok(bytes) => {
                    rendered = i64::from_be_bytes(bytes).to_string();
                    rendered.as_bytes()
                }
                Err(_) => return Value::Null,
            },
            (Family::Numeric, Format::Binary) => match numeric_digits(value) {
                Some(digits) => {
                    rendered = digits;
                    rendered.as_bytes()
                }
                None => return Value::Null,
            },
            (Family::Json { binary_version: true }, Format::Binary) => value.get(1..).unwrap_or_default(),
            _ => value,
        };
        match (self.masks.scrub(searched, &self.secrets, hits), family) {
            (Masked::Unchanged, _) => Value::Same,
            (Masked::Null, _) => Value::Null,
            (Masked::Text(text), Family::Text) => Value::New(text.into_owned()),
            (Masked::Text(text), Family::Json { binary_version }) => {
                if serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok() {
                    Value::New(versioned(binary_version && format == Format::Binary, &text))
                } else {
                    whole(family, format, REDACTED.as_bytes())
                }
            }
            (Masked::Text(_), _) => Value::Null,
        }
    }

    /// Masks a DataRow. The plan must have a column for each value, or the row is not understood.
    pub fn row(&self, plan: &Plan, body: &[u8], hits: &mut Hits) -> Result<Rewrite, Malformed> {
        let mut r = Reader::new(body);
        let n = r.count(4)?;
        if n != plan.columns.len() {
            return Err(Malformed::Shape);
        }
        let mut rebuilt: Option<BytesMut> = None;
        for column in &plan.columns {
            let before = body.len() - r.rest().len();
            let value = r.value()?;
            let new = value.map_or(Value::Same, |value| self.value(column, value, hits));
            if rebuilt.is_none() && new != Value::Same {
                let mut out = BytesMut::with_capacity(body.len() + 64);
                out.put_slice(&[b'D', 0, 0, 0, 0]);
                out.put_slice(&body[..before]);
                rebuilt = Some(out);
            }
            let Some(out) = &mut rebuilt else { continue };
            match (&new, value) {
                (Value::Same, Some(value)) => put_value(out, value)?,
                (Value::New(value), _) => put_value(out, value)?,
                (Value::Null, _) | (Value::Same, None) => out.put_i32(-1),
            }
        }
        r.all()?;
        let Some(mut out) = rebuilt else { return Ok(Rewrite::Pass) };
        let length = i32::try_from(out.len() - 1).map_err(|_| Malformed::Shape)?;
        out[1..5].copy_from_slice(&length.to_be_bytes());
        Ok(Rewrite::Replace(out.freeze()))
    }

    /// Masks text that is no value of a column: messages, notifications.
    pub fn text(&self, text: &[u8], hits: &mut Hits) -> Option<Vec<u8>> {
        match self.masks.scrub(text, &self.secrets, hits) {
            Masked::Unchanged => None,
            masked => Some(masked.or_text(text).into_owned()),
        }
    }
}

fn put_value(out: &mut BytesMut, value: &[u8]) -> Result<(), Malformed> {
    out.put_i32(i32::try_from(value.len()).map_err(|_| Malformed::Shape)?);
    out.put_slice(value);
    Ok(())
}

fn whole(family: Family, format: Format, text: &[u8]) -> Value {
    match family {
        Family::Text => Value::New(text.to_vec()),
        Family::Json { binary_version } => {
            let quoted = [b"\"", text, b"\""].concat();
            Value::New(versioned(binary_version && format == Format::Binary, &quoted))
        }
        _ => Value::Null,
    }
}

fn versioned(version: bool, json: &[u8]) -> Vec<u8> {
    if version { [&[1], json].concat() } else { json.to_vec() }
}

/// The integer digits of a `numeric` in binary form: base 10000 digits, most significant first.
fn numeric_digits(value: &[u8]) -> Option<String> {
    let mut r = Reader::new(value);
    let n = usize::try_from(r.i16().ok()?).ok()?;
    let weight = r.i16().ok()?;
    let sign = r.i16().ok()?;
    r.i16().ok()?;
    if n * 2 != r.rest().len() {
        return None;
    }
    // NaN and infinities have no digits.
    if n == 0 || weight < 0 || !matches!(sign, 0 | 0x4000) {
        return Some(String::new());
    }
    let mut digits = String::new();
    for i in 0..=weight.min(16) {
        let digit = if usize::try_from(i).ok()? < n { r.i16().ok()? } else { 0 };
        digits.push_str(&format!("{digit:04}"));
    }
    Some(digits.trim_start_matches('0').to_owned())
}

/// A sample of a row for the record: texts as they are, binary values as hex.
pub fn sample(plan: Option<&Plan>, frame: &Bytes) -> Vec<Option<String>> {
    const LONGEST: usize = 256;
    let mut r = Reader::new(frame.get(5..).unwrap_or_default());
    let Ok(n) = r.count(4) else { return Vec::new() };
    let mut row = Vec::with_capacity(n);
    for i in 0..n {
        let Ok(value) = r.value() else { break };
        let column = plan.and_then(|p| p.columns.get(i));
        let textual = column.is_none_or(|c| {
            c.format == Format::Text
                || matches!(family(c.type_oid), Family::Text | Family::Json { binary_version: false })
        });
        row.push(value.map(|value| {
            let shown = &value[..value.len().min(LONGEST)];
            let mut text = if textual {
                String::from_utf8_lossy(shown).into_owned()
            } else {
                format!("\\x{}", data_encoding::HEXLOWER.encode(shown))
            };
            if shown.len() < value.len() {
                text.push('…');
            }
            text
        }));
    }
    row
}

/// The plan for a RowDescription. `rule` tells what a column of a table gets; `computed` what any other gets.
pub fn plan(fields: &[Field], rule: impl Fn(u32, i16) -> Rule, computed: impl Fn(usize) -> Rule) -> Plan {
    let columns = fields
        .iter()
        .enumerate()
        .map(|(at, field)| Column {
            rule: if field.table == 0 { computed(at) } else { rule(field.table, field.attribute) },
            type_oid: field.type_oid,
            format: field.format,
        })
        .collect();
    Plan { columns }
}
