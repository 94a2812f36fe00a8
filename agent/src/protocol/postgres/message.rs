//! Masks on errors and notices: what they quote of rows.
//!
//! A message of a command that may reach masked columns quotes nothing but names of the catalogue: a cast that fails tells
//! the value (`invalid input syntax for type integer: "..."`), a constraint the key, a function whatever it likes. What
//! the server says of the statement itself, with a position in it, is told as it is.
//! Fields: <https://www.postgresql.org/docs/current/protocol-error-fields.html>.

use bytes::{BufMut, BytesMut};

use super::{
    codec,
    deny::{Message, fields},
    mask::Masker,
};
use crate::{
    mask::{Hits, REDACTED},
    wire::Rewrite,
};

/// Whether a message may quote values of masked columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotes {
    /// It can quote none.
    Harmless,
    /// It may.
    Hidden,
}

impl Masker {
    /// Masks the texts of an ErrorResponse or NoticeResponse. One that cannot be read is replaced.
    pub fn message(&self, tag: u8, body: &[u8], quotes: Quotes, hits: &mut Hits) -> Rewrite {
        let Some(fields) = fields(body) else {
            let message = Message::error("XX000", "the upstream sent an error that cannot be read");
            return Rewrite::Replace(message.encode());
        };
        let mut changed = false;
        let mut texts: Vec<(u8, Vec<u8>)> = Vec::with_capacity(fields.len());
        for (kind, text) in &fields {
            let hidden = if quotes == Quotes::Hidden { without_values(*kind, text, &fields) } else { None };
            if hidden.is_some() {
                hits.add(&"column:message".into());
            }
            let new = self.text(hidden.as_deref().unwrap_or(text), hits).or(hidden);
            changed |= new.is_some();
            texts.push((*kind, new.unwrap_or_else(|| text.to_vec())));
        }
        if !changed {
            return Rewrite::Pass;
        }
        let mut out = BytesMut::new();
        codec::put(&mut out, tag, |b| {
            for (kind, text) in &texts {
                b.put_u8(*kind);
                codec::put_cstr(b, text);
            }
            b.put_u8(0);
        });
        Rewrite::Replace(out.freeze())
    }
}

/// A field without what it may quote of a row; `None` if it quotes nothing.
fn without_values(kind: u8, text: &[u8], fields: &[(u8, &[u8])]) -> Option<Vec<u8>> {
    let field = |kind| fields.iter().find(|(k, _)| *k == kind).map(|(_, text)| *text);
    let code = field(b'C').unwrap_or_default();
    // The statement's own words, quoted where they stand.
    if code.starts_with(b"42") && field(b'P').is_some() {
        return None;
    }
    // Of the server, its settings, its locks, and the session: no row has a part in them.
    const HARMLESS: [&[u8]; 14] =
        [b"01", b"08", b"0A", b"25", b"26", b"28", b"34", b"3D", b"3F", b"40", b"53", b"55", b"57", b"58"];
    if HARMLESS.iter().any(|class| code.starts_with(class)) {
        return None;
    }
    match kind {
        // What functions and rules say in their own words.
        b'M' if code.starts_with(b"P0") || code.starts_with(b"00") => Some(REDACTED.into()),
        b'M' => without_quotes(text, &[b's', b't', b'c', b'd', b'n'].map(|kind| field(kind).unwrap_or_default())),
        // Detail, hint, where it was, the query in a function.
        b'D' | b'H' | b'W' | b'q' => Some(REDACTED.into()),
        _ => None,
    }
}

/// A message without quoted texts that are no names, and without what stands behind a colon.
fn without_quotes(text: &[u8], names: &[&[u8]]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    let mut changed = false;
    loop {
        let at = rest.iter().position(|byte| matches!(byte, b'"' | b':')).unwrap_or(rest.len());
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        match after {
            [] => break,
            [b':', behind @ ..] => {
                out.push(b':');
                if behind.is_empty() {
                    break;
                }
                out.extend_from_slice(b" ");
                out.extend_from_slice(REDACTED.as_bytes());
                changed = true;
                break;
            }
            [_, quoted @ ..] => {
                let end = quoted.iter().position(|byte| *byte == b'"').unwrap_or(quoted.len());
                let name = &quoted[..end];
                out.push(b'"');
                if names.contains(&name) && !name.is_empty() {
                    out.extend_from_slice(name);
                } else {
                    out.extend_from_slice(REDACTED.as_bytes());
                    changed = true;
                }
                out.push(b'"');
                // A value may hold quotes of its own: what follows is told only behind a name.
                match (quoted.get(end + 1..), names.contains(&name)) {
                    (Some(behind), true) => rest = behind,
                    _ => break,
                }
            }
        }
    }
    changed.then_some(out)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mask::{KnownSecrets, MaskSet};

    fn told(fields: &[(u8, &str)], quotes: Quotes) -> Vec<(char, String)> {
        let mut body = Vec::new();
        for (kind, text) in fields {
            body.push(*kind);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        let masker = Masker { masks: Arc::new(MaskSet::none()), secrets: Arc::new(KnownSecrets::empty()) };
        let bytes = match masker.message(b'E', &body, quotes, &mut Hits::default()) {
            Rewrite::Pass | Rewrite::Drop => body,
            Rewrite::Replace(frame) => frame[5..].to_vec(),
        };
        let read = super::fields(&bytes).unwrap();
        read.into_iter().map(|(kind, text)| (char::from(kind), String::from_utf8(text.to_vec()).unwrap())).collect()
    }

    fn message(code: &str, text: &str, more: &[(u8, &str)]) -> String {
        let fields = [&[(b'C', code), (b'M', text)], more].concat();
        let told = told(&fields, Quotes::Hidden);
        assert_eq!(super::tests::told(&fields, Quotes::Harmless).len(), told.len());
        told.into_iter().skip(1).map(|(kind, text)| format!("{kind}={text} ")).collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn values_that_a_row_has_are_not_quoted() {
        for (code, text, more, wanted) in [
            (
                "22P02",
                "invalid input syntax for type integer: \"a@b.c\"",
                &[][..],
                "M=invalid input syntax for type integer: [redacted]",
            ),
            ("22003", "value \"123\" is out of range for type integer", &[], "M=value \"[redacted]\""),
            ("22003", "value \"1\" \"2\" is out", &[], "M=value \"[redacted]\""),
            (
                "23505",
                "duplicate key value violates unique constraint \"t_email_key\"",
                &[(b'D', "Key (email)=(a@b.c) already exists."), (b'n', "t_email_key"), (b't', "t")],
                "M=duplicate key value violates unique constraint \"t_email_key\" D=[redacted] n=t_email_key t=t",
            ),
            ("42P01", "relation \"a@b.c\" does not exist", &[], "M=relation \"[redacted]\""),
            ("42703", "column \"emial\" does not exist", &[(b'P', "8")], "M=column \"emial\" does not exist P=8"),
            ("P0001", "it is a@b.c", &[(b'W', "in f")], "M=[redacted] W=[redacted]"),
            ("00000", "it is a@b.c", &[], "M=[redacted]"),
            ("57014", "canceling statement due to user request", &[], "M=canceling statement due to user request"),
            ("22012", "division by zero", &[], "M=division by zero"),
        ] {
            assert_eq!(message(code, text, more), wanted);
        }
    }
}
