//! Masks by column: patterns over `schema.table.column`.

use std::{borrow::Cow, sync::Arc};

use super::{HashKey, MaskError, Masked, fit};
use crate::action::{Glob, MaskWith, push_identifier};

/// How the values of one column are masked.
///
/// A pattern of three segments or with a `**` is matched whole against `schema.table.column`. A shorter one is
/// matched at the end, in any schema: `customers.email` is column `email` of a table `customers` of whatever schema,
/// `*.ssn` and `ssn` are column `ssn` of every table. Names are compared without regard to case, quoted or not:
/// masking a column too many is the safe side, and `"Email"` is a common way to spell `email`.
#[derive(Clone)]
pub struct ColumnMask {
    /// What takes a value's place.
    pub with: MaskWith,
    /// The record's name for it: `column:` and the pattern as the policy has it.
    pub label: Arc<str>,
    key: Arc<HashKey>,
}

impl std::fmt::Debug for ColumnMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColumnMask").field("with", &self.with).field("label", &self.label).finish_non_exhaustive()
    }
}

impl ColumnMask {
    /// Masks a value that is not NULL, given as text. Whether the column's type can hold the answer is the protocol's
    /// business; where it cannot, the value becomes NULL.
    pub fn apply_text<'a>(&self, value: &'a [u8]) -> Masked<'a> {
        match self.with {
            MaskWith::Null => Masked::Null,
            MaskWith::Redact => Masked::Text(Cow::Borrowed(super::REDACTED.as_bytes())),
            MaskWith::Hash | MaskWith::Partial => {
                let mut out = Vec::with_capacity(value.len().min(64));
                fit::write(self.with, value, &self.key, &mut out);
                Masked::Text(Cow::Owned(out))
            }
        }
    }
}

pub(super) struct ColumnPattern {
    whole: Glob,
    /// The last segment alone.
    name: Glob,
    pub(super) mask: ColumnMask,
}

impl ColumnPattern {
    pub(super) fn compile(pattern: &str, with: MaskWith, key: &Arc<HashKey>) -> Result<Self, MaskError> {
        let glob = |text: &str| {
            Glob::new(text, '.').map_err(|source| MaskError::Pattern { pattern: pattern.to_owned(), source })
        };
        glob(pattern)?; // So that errors speak of the pattern as written.
        let mut segments = segments(pattern);
        let name = glob(segments.last().map_or("**", String::as_str))?;
        if segments.len() < 3 && !segments.iter().any(|s| s == "**") {
            segments.insert(0, "**".to_owned());
        }
        let mask = ColumnMask { with, label: format!("column:{pattern}").into(), key: key.clone() };
        Ok(Self { whole: glob(&segments.join("."))?, name, mask })
    }

    pub(super) fn matches(&self, target: &str) -> bool {
        self.whole.matches(target)
    }

    pub(super) fn matches_name(&self, name: &str) -> bool {
        self.name.matches(name)
    }
}

/// A pattern over places in JSON. One name alone, and what begins with `**/`, is found at any depth.
pub(super) struct PlacePattern {
    globs: Vec<Glob>,
    pub(super) mask: ColumnMask,
}

impl PlacePattern {
    pub(super) fn compile(pattern: &str, with: MaskWith, key: &Arc<HashKey>) -> Result<Self, MaskError> {
        let glob = |text: &str| {
            Glob::new(text, '/').map_err(|source| MaskError::Pattern { pattern: pattern.to_owned(), source })
        };
        glob(pattern)?; // So that errors speak of the pattern as written.
        let lower = pattern.to_lowercase();
        let anywhere = lower.strip_prefix("**/").or_else(|| (!lower.contains('/')).then_some(&*lower));
        let globs = match anywhere {
            Some(rest) => vec![glob(&format!("$/{rest}"))?, glob(&format!("$/**/{rest}"))?],
            None => vec![glob(&format!("$/{lower}"))?],
        };
        let mask = ColumnMask { with, label: format!("json:{pattern}").into(), key: key.clone() };
        Ok(Self { globs, mask })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        self.globs.iter().any(|glob| glob.matches(path))
    }
}

/// The canonical text of a name, in lower case.
pub(super) fn canonical(parts: &[&str]) -> String {
    let mut out = String::with_capacity(parts.iter().map(|p| p.len() + 1).sum());
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push('.');
        }
        push_identifier(&mut out, &part.to_lowercase());
    }
    out
}

/// The segments of a valid pattern, in lower case, quoted only where they must be.
fn segments(pattern: &str) -> Vec<String> {
    let mut segments = Vec::new();
    let mut rest = pattern;
    loop {
        let mut segment = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut name = String::new();
            let mut chars = quoted.char_indices().peekable();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' if chars.next_if(|(_, next)| *next == '"').is_some() => name.push('"'),
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    c => name.push(c),
                }
            }
            push_identifier(&mut segment, &name.to_lowercase());
            rest = &quoted[end..];
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            segment.push_str(&rest[..end].to_lowercase());
            rest = &rest[end..];
        }
        segments.push(segment);
        match rest.strip_prefix('.') {
            Some(next) => rest = next,
            None => return segments,
        }
    }
}
