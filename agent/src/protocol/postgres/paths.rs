//! What the guard of instruction counts runs: rows as the relay takes them from one side to the other, and a text that
//! comes again.

use std::sync::Arc;

use bytes::BytesMut;

use super::{
    codec::{self, Format, put},
    mask::{Column, Masker, Passed, Plan, Rule},
    relay::texts::{Meaning, Texts},
};
use crate::{
    action::{Action, MaskSpec, MaskWith},
    mask::{Hits, KnownSecrets, MaskSet},
    sql::{self, Names},
    wire::{Budget, OutQueue, Rewrite},
};

/// Masks and a plan for rows of four text columns.
pub struct Rows {
    masker: Masker,
    plan: Plan,
    /// What goes to the client.
    pub output: OutQueue,
}

impl Rows {
    /// With so many masked columns of the four; the daemon knows one secret.
    pub fn new(masked: usize) -> Self {
        let spec = MaskSpec { columns: vec!["public.t.c".into()], ..MaskSpec::new(MaskWith::Redact) };
        let masks = MaskSet::compile(&[spec], [7; 32]).unwrap_or_else(|_| MaskSet::none());
        let rule = |at| match masks.column("public", "t", "c") {
            Some(mask) if at < masked => Rule::Column(mask),
            _ => Rule::Scan,
        };
        let columns = (0..4).map(|at| Column { rule: rule(at), type_oid: 25, format: Format::Text }).collect();
        let secrets = Arc::new(KnownSecrets::new([&b"correct-horse-battery"[..]]));
        Self { masker: Masker { masks: Arc::new(masks), secrets }, plan: Plan { columns }, output: OutQueue::default() }
    }

    /// So many rows, as the upstream sends them.
    pub fn input(rows: usize) -> BytesMut {
        let mut input = BytesMut::new();
        for row in 0..rows {
            put(&mut input, b'D', |out| {
                out.extend_from_slice(&4i16.to_be_bytes());
                for column in 0..4 {
                    let value = format!("value {row} of column {column}, of some length");
                    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
            });
        }
        input
    }

    /// Takes all rows of `input` to the output, many at a time where that can be. How many.
    pub fn take(&mut self, input: &mut BytesMut) -> u64 {
        const CAP: usize = 1 << 20;
        let mut rows = 0;
        if let Passed::Rows(passed, bytes) = self.masker.pass(&self.plan, input, CAP) {
            rows += passed;
            self.output.push(bytes);
        }
        while let Ok(Some(frame)) = codec::cut(input, |_| CAP) {
            let Ok(rewritten) = self.masker.row(&self.plan, frame.body(), &mut Hits::default()) else { break };
            match rewritten {
                Rewrite::Pass => self.output.push(frame.into_bytes()),
                Rewrite::Replace(bytes) => self.output.push(bytes),
                Rewrite::Drop => {}
            }
            rows += 1;
        }
        rows
    }
}

/// Texts of a connection, as the relay reads them.
pub struct Reading {
    texts: Texts,
    memory: Arc<Budget>,
}

impl Default for Reading {
    fn default() -> Self {
        Self { texts: Texts::default(), memory: Budget::new(1 << 20) }
    }
}

impl Reading {
    /// What a text means, all of its names being in `public`.
    pub fn read(&mut self, text: &str) -> Action {
        let meaning = self.texts.get(text, 0).unwrap_or_else(|| {
            let meaning = Meaning::new(text, sql::classify(text, &Public));
            self.texts.keep(text, 0, &meaning, &self.memory);
            meaning
        });
        meaning.action
    }
}

/// Everything is in one schema.
struct Public;

impl Names for Public {
    fn relation_schema(&self, schema: Option<&str>, _name: &str) -> Option<Arc<str>> {
        Some(schema.unwrap_or("public").into())
    }

    fn function_schema(&self, schema: Option<&str>, _name: &str) -> Option<Arc<str>> {
        Some(schema.unwrap_or("public").into())
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        Some("public".into())
    }

    fn columns(&self, _schema: &str, _name: &str) -> Option<Arc<[Arc<str>]>> {
        None
    }
}
