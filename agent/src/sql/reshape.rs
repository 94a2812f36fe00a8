//! Which names a statement may give another meaning.

use std::collections::BTreeSet;

use crate::action::{Part, Target, Verb};

/// Most names that are told apart; beyond it, any may have changed.
const MAX_NAMES: usize = 1000;

/// Names that may mean something else once a statement has run, or have run and been undone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reshape {
    anything: bool,
    /// Relations `schema.name`, functions `fn:schema.name`, schemas `schema:name`.
    names: BTreeSet<Target>,
}

impl Reshape {
    /// What a statement may change, by its head and its parts. A call in a query is taken to keep names as they are:
    /// who allows a function allows what it does.
    pub(super) fn of(head: &str, parts: &[Part]) -> Self {
        let mut reshape = Self::default();
        for (verb, target) in parts {
            let text = target.as_str();
            match verb {
                // A range type brings functions whose names it does not say.
                Verb::Schema if head == "create type" => reshape.anything = true,
                Verb::Schema | Verb::Admin => match text.split_once(':') {
                    Some(("sql", what)) => reshape.anything |= !keeps_names(what),
                    Some(("setting", _)) => {}
                    Some(("fn", name)) if *verb == Verb::Schema && !name.starts_with("?.") => reshape.add(target),
                    Some(("schema", _)) => reshape.add(target),
                    None if !text.starts_with("?.") => reshape.add(target),
                    _ => reshape.anything = true,
                },
                Verb::Execute => reshape.anything |= head == "call",
                Verb::Unknown => reshape.anything = true,
                Verb::Connect | Verb::Read | Verb::Write | Verb::Delete | Verb::Session | Verb::Infer => {}
            }
        }
        reshape
    }

    /// Whether no name changes.
    pub fn is_empty(&self) -> bool {
        !self.anything && self.names.is_empty()
    }

    /// Adds another's names; says whether any was new.
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = (self.anything, self.names.len());
        self.anything |= other.anything;
        for name in &other.names {
            self.add(name);
        }
        before != (self.anything, self.names.len())
    }

    /// What of it only this connection sees, and what all see.
    pub fn split(&self) -> (Self, Self) {
        let temporary = |name: &&Target| name.as_str().starts_with("pg_temp.");
        let own = self.names.iter().filter(temporary).cloned().collect();
        let common = self.names.iter().filter(|name| !temporary(name)).cloned().collect();
        (Self { anything: false, names: own }, Self { anything: self.anything, names: common })
    }

    /// Any name may have changed.
    pub fn lose(&mut self) {
        self.anything = true;
    }

    /// Whether a relation may have come to, or gone from, where the last reading has it. What is temporary shadows all
    /// else, so it counts only where a statement made it.
    pub fn touches_relation(&self, schema: &str, name: &str) -> bool {
        self.touches(schema, || Target::relation(Some(schema), name))
    }

    /// As [`Reshape::touches_relation`].
    pub fn touches_function(&self, schema: &str, name: &str) -> bool {
        self.touches(schema, || Target::function(Some(schema), name))
    }

    /// Whether a schema may have come or gone.
    pub fn touches_schema(&self, schema: &str) -> bool {
        !self.is_empty() && (self.anything || self.names.contains(&super::build::named("schema", schema)))
    }

    fn touches(&self, schema: &str, target: impl Fn() -> Target) -> bool {
        if self.is_empty() {
            return false;
        }
        let builtin = matches!(schema, "pg_temp" | "pg_catalog");
        (!builtin && self.touches_schema(schema)) || self.names.contains(&target())
    }

    fn add(&mut self, name: &Target) {
        if self.names.len() < MAX_NAMES {
            self.names.insert(name.clone());
        } else {
            self.anything = true;
        }
    }
}

/// What of the statements that have no target of their own changes no name. Rights do: a schema that may not be used
/// is not searched.
fn keeps_names(what: &str) -> bool {
    matches!(
        what,
        "comment"
            | "vacuum"
            | "analyze"
            | "analyse"
            | "cluster"
            | "reindex"
            | "checkpoint"
            | "copy file"
            | "alter system"
    )
}

#[cfg(test)]
mod tests {
    use super::{Reshape, Target};
    use crate::sql::{classify, fuzz::Fixed};

    fn reshape(sql: &str) -> Reshape {
        classify(sql, &Fixed).statements.remove(0).reshape
    }

    #[test]
    fn what_runs_every_day_changes_no_name() {
        for sql in [
            "select a from orders",
            "insert into orders values (1)",
            "begin",
            "reset all",
            "unlisten *",
            "select pg_advisory_unlock_all()",
            "close all",
            "truncate orders",
            "copy orders from stdin",
            "vacuum orders",
        ] {
            let found = reshape(sql);
            // VACUUM names its table; nothing else comes of it.
            assert!(found.is_empty() || sql.starts_with("vacuum"), "{sql}: {found:?}");
            assert!(!found.anything, "{sql}");
        }
    }

    #[test]
    fn both_names_of_a_rename_are_touched() {
        for (sql, names) in [
            ("alter table payroll rename to gone", ["public.payroll", "public.gone"]),
            ("alter table if exists only a.payroll rename to \"G one\"", ["a.payroll", "a.\"G one\""]),
            ("alter view a.payroll set schema b", ["a.payroll", "b.payroll"]),
            ("alter function a.f(int) rename to g", ["fn:a.f", "fn:a.g"]),
            ("alter schema a rename to b", ["schema:a", "schema:b"]),
            ("drop table a.x, a.y", ["a.x", "a.y"]),
            ("create temp table x as select 1", ["pg_temp.x"; 2]),
            ("select 1 as n into a.x", ["a.x"; 2]),
            ("create or replace function a.f() returns int language sql as 'select 1'", ["fn:a.f"; 2]),
            ("explain analyze create table a.x as select 1", ["a.x"; 2]),
        ] {
            let found = reshape(sql);
            assert!(!found.anything, "{sql}");
            assert_eq!(found.names, names.map(Target::new).into(), "{sql}");
        }
    }

    #[test]
    fn what_reaches_further_touches_any_name() {
        for sql in [
            "drop table a.x cascade",
            "do $$ begin end $$",
            "call a.f()",
            "alter function a.f(int) set schema b",
            "grant usage on schema a to b",
            "create extension dblink",
            "create type r as range (subtype = int)",
            "commit prepared 'x'",
            "select query_to_xml('alter table a rename to b', true, true, '')",
            "alter nonsense",
        ] {
            assert!(reshape(sql).anything, "{sql}");
        }
    }
}
