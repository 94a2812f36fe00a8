//! What a fuzzer runs: the properties that hold for any text.

use std::sync::Arc;

use super::{ChangeKind, Classified, Lineage, Names, Sources, StatementInfo, StatementKind, change, classify, shape};
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

/// Queries that hand on all that they are given: as it is, or as one value.
pub(super) const HANDS_ON: [(&str, &str); 5] = [
    ("SELECT * FROM (", "\n) handed"),
    ("WITH handed AS MATERIALIZED (", "\n) TABLE handed"),
    ("SELECT handed.* FROM u LEFT JOIN (", "\n) handed ON true"),
    ("(", "\n) UNION ALL (TABLE nothing)"),
    ("WITH RECURSIVE beside AS (SELECT 1) SELECT (SELECT handed.* FROM beside) FROM (", "\n) handed"),
];

/// Hands a query's values on in others, and checks that none of their lineage is lost; returns the rows of a change, and
/// checks that it remains the change that it was.
pub fn lineage(text: &str) {
    let classified = classify(text, &Fixed);
    let [statement] = &classified.statements[..] else { return };
    if classified.action.clarity != Clarity::Parsed {
        return;
    }
    let text = &text[statement.span.clone()];
    // A name of ours would mean another relation in what is handed on.
    let lower = text.to_ascii_lowercase();
    if ["beside", "handed", "nothing"].iter().any(|name| lower.contains(name)) {
        return;
    }
    match statement.kind {
        StatementKind::Query => HANDS_ON.iter().for_each(|(before, after)| {
            let outer = classify(&format!("{before}{text}{after}"), &Fixed);
            if let [StatementInfo { lineage: outer, .. }] = &outer.statements[..] {
                keeps(&statement.lineage, outer, text);
            }
        }),
        StatementKind::Change => returning(&classified, text),
        _ => {}
    }
}

/// Where the outer lineage is certain, it has what the inner one has.
fn keeps(inner: &Lineage, outer: &Lineage, text: &str) {
    let has = |outer: &Sources, inner: &Sources| {
        outer.unknown || !inner.unknown && inner.columns().iter().all(|column| outer.columns().contains(column))
    };
    assert!(has(&outer.compared, &inner.compared), "comparisons are lost: {text}");
    let (Some(inner), Some(outer)) = (&inner.outputs, &outer.outputs) else { return };
    match &outer[..] {
        [one] => assert!(inner.iter().all(|inner| has(&one.sources, &inner.sources)), "values are lost: {text}"),
        // Of an inner query without columns of its own, nothing is told.
        _ if inner.is_empty() => {}
        each => {
            assert_eq!(each.len(), inner.len(), "columns are lost: {text}");
            for (outer, inner) in each.iter().zip(inner) {
                assert!(has(&outer.sources, &inner.sources), "values are lost: {text}");
            }
        }
    }
}

fn returning(classified: &Classified, text: &str) {
    let Some(found) = change(text) else { return };
    if found.returns || found.kind == ChangeKind::Merge {
        return;
    }
    let again = format!("{text} RETURNING \"{}\".\"a\"", found.called.replace('"', "\"\""));
    let again = classify(&again, &Fixed);
    assert_eq!(again.statements.len(), 1, "it is one statement: {text}");
    for part in &classified.action.parts {
        assert!(
            again.action.parts.contains(part) || again.action.clarity != Clarity::Parsed,
            "{part:?} is lost: {text}"
        );
    }
    for part in &again.action.parts {
        let is_new = !classified.action.parts.contains(part);
        assert!(!is_new || matches!(part.0, Verb::Read | Verb::Unknown), "{part:?} is new: {text}");
    }
}
