//! What a fuzzer runs: the properties that hold for any text.

use std::sync::Arc;

use super::{Names, StatementKind, classify, shape};
use crate::action::{Clarity, Verb};

/// A connection on which nothing shadows the built-ins and everything else is in `public`.
pub struct Fixed;

impl Names for Fixed {
    fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(match schema {
            Some(schema) => schema.into(),
            None if name.starts_with("pg_") => "pg_catalog".into(),
            None => "public".into(),
        })
    }

    fn function_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(match schema {
            Some(schema) => schema.into(),
            None if super::words::builtin(name) == super::words::Builtin::Other
                && !name.starts_with("pg_")
                && !matches!(name, "nextval" | "setval") =>
            {
                "public".into()
            }
            None => "pg_catalog".into(),
        })
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        Some("public".into())
    }

    fn columns(&self, schema: &str, _name: &str) -> Option<Arc<[Arc<str>]>> {
        (schema == "public").then(|| ["a", "b", "c"].map(Arc::from).into())
    }

    fn type_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(match schema {
            Some(schema) => schema.into(),
            None if super::words::builtin_type(name) => "pg_catalog".into(),
            None => "public".into(),
        })
    }

    fn attribute_calls(&self, name: &str) -> bool {
        // The functions of users that attacks call.
        matches!(name, "wipe" | "leak")
    }
}

/// Classifies a text and checks what must hold of any: it ends, every statement has its place, every part its
/// statement, and what is not understood says so.
pub fn classification(text: &str) {
    let classified = classify(text, &Fixed);
    let action = &classified.action;
    let mut end = 0;
    for statement in &classified.statements {
        assert!(statement.span.start >= end && text.get(statement.span.clone()).is_some(), "spans in order");
        end = statement.span.end;
        if statement.kind == StatementKind::Opaque {
            assert_ne!(action.clarity, Clarity::Parsed);
        }
    }
    let unknown = action.parts.iter().any(|(verb, _)| *verb == Verb::Unknown);
    assert_eq!(unknown, action.clarity != Clarity::Parsed, "doubt and unknown go together");
    let blank = classified.statements.iter().all(|s| s.kind == StatementKind::Empty);
    if let crate::action::Facts::Sql(facts) = &action.facts {
        let mut at = 0;
        for fact in facts.iter() {
            assert_eq!(fact.parts.start, at, "parts belong to one statement each");
            at = fact.parts.end;
        }
        assert_eq!(at, action.parts.len());
        assert_eq!(blank, facts.is_empty());
    }
    let _ = shape(text);
}
