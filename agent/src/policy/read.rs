//! Text to [`File`], with every finding and not only the first: what serde stumbles over is noted, cut out of the
//! document, and the rest is read again.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{PolicyError, Source, did_you_mean};

/// More findings than anyone reads at once; also bounds the work on a hostile file.
const MAX_FINDINGS: usize = 50;

/// What reading gave.
pub(super) struct Read<T> {
    /// The document without what was cut out.
    pub(super) document: Option<T>,
    /// Keys of which whole tables were cut out, so that names may be missing.
    pub(super) lost: Vec<String>,
    /// The findings.
    pub(super) errors: Vec<PolicyError>,
}

/// Reads a document.
pub(super) fn read<T: DeserializeOwned>(source: &Source) -> Read<T> {
    let (mut table, syntax) = DeTable::parse_recoverable(&source.text);
    let mut read = Read { document: None, lost: Vec::new(), errors: Vec::new() };
    let mut errors: Vec<PolicyError> = syntax.iter().take(MAX_FINDINGS).map(|error| finding(source, error)).collect();
    if !errors.is_empty() {
        // A recovered document has holes; findings about those would mislead.
        read.errors = errors;
        return read;
    }
    let mut cut: Vec<Removed> = Vec::new();
    while errors.len() < MAX_FINDINGS {
        let error = match T::deserialize(toml::Deserializer::from(table.clone())) {
            Ok(document) => {
                read.document = Some(document);
                break;
            }
            Err(error) => error,
        };
        let missing = error.message().strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let Some(span) = error.span() else {
            errors.push(finding(source, &error));
            break;
        };
        // A key that is missing because it was cut out, or was misspelt, has been reported already.
        let reported = |name: &str| {
            let same = |key: &str| key == name || did_you_mean(key, [name]).is_some();
            cut.iter().any(|removed| removed.table == span && same(&removed.key))
        };
        if !missing.is_some_and(reported) {
            errors.push(finding(source, &error));
        }
        let whole = table.span();
        let Some(removed) = remove(&whole, table.get_mut(), &span) else { break };
        if removed.was_table {
            read.lost.push(removed.key.clone());
        }
        cut.push(removed);
    }
    read.errors = errors;
    read
}

struct Removed {
    /// Where the table stands that the key was in. Of a `[table]`, that is its header.
    table: Range<usize>,
    /// The key whose value, or whose element, was removed.
    key: String,
    /// Whether a whole table went.
    was_table: bool,
}

/// Removes the entry whose key or value stands at `span`, or the element of a list that does.
fn remove(whole: &Range<usize>, table: &mut DeTable<'_>, span: &Range<usize>) -> Option<Removed> {
    let found = table.iter().find(|(key, value)| {
        // A list of tables stands where its first table does, and only that one is to go.
        let is_element = |array: &DeArray<'_>| array.iter().any(|element| element.span() == *span);
        key.span() == *span || value.span() == *span && !value.get_ref().as_array().is_some_and(is_element)
    });
    if let Some((key, value)) = found {
        let (key, was_table) = (key.clone(), value.get_ref().is_table());
        table.remove(&key);
        return Some(Removed { table: whole.clone(), key: key.into_inner().into_owned(), was_table });
    }
    table.iter_mut().find_map(|(key, value)| remove_below(whole, key.get_ref(), value, span))
}

fn remove_below(
    whole: &Range<usize>,
    key: &str,
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
) -> Option<Removed> {
    let here = value.span();
    match value.get_mut() {
        DeValue::Table(table) => remove(&here, table, span),
        DeValue::Array(array) => {
            if let Some(place) = array.iter().position(|element| element.span() == *span) {
                let was_table = array[place].get_ref().is_table();
                let mut kept = DeArray::new();
                for (_, element) in array.iter().enumerate().filter(|(i, _)| *i != place) {
                    kept.push(element.clone());
                }
                *array = kept;
                return Some(Removed { table: whole.clone(), key: key.to_owned(), was_table });
            }
            array.iter_mut().find_map(|element| remove_below(whole, key, element, span))
        }
        _ => None,
    }
}

/// Says what serde or the parser found, in words for people.
fn finding(source: &Source, error: &toml::de::Error) -> PolicyError {
    let span = error.span().unwrap_or(0..0);
    let message = error.message().trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let at = |message: String| PolicyError::at(source, span.clone(), message);
    match quoted.split_first() {
        Some((wrong, known)) if message.starts_with("unknown field") => at(format!("unknown key `{wrong}`"))
            .label("not a key of this table")
            .help(did_you_mean(wrong, known.iter().copied()).unwrap_or_else(|| one_of("keys", known))),
        Some((wrong, known)) if message.starts_with("unknown variant") => at(format!("unknown value `{wrong}`"))
            .label("not one of the values here")
            .help(did_you_mean(wrong, known.iter().copied()).unwrap_or_else(|| one_of("values", known))),
        Some((name, _)) if message.starts_with("missing field") => {
            let header = source.text[span.clone()].find('\n').map_or(span.end, |line| span.start + line);
            PolicyError::at(source, span.start..header, format!("missing key `{name}`")).label("in this table")
        }
        _ => at(message.replace('\n', ", ")).label("here"),
    }
}

fn one_of(what: &str, known: &[&str]) -> String {
    format!("known {what}: {}", known.join(", "))
}
