//! Collects the parts of one statement.

use std::collections::HashSet;

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart};

use super::{
    lineage::Lineage,
    setting::{SettingRule, setting_rule},
    statement::{Mentions, Names, StatementKind},
    words::{self, Builtin},
};
use crate::action::{Clarity, Part, SqlFacts, Target, Verb, push_identifier};

/// A name as a statement writes it, folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) schema: Option<String>,
    pub(super) name: String,
    /// Unquoted and unqualified, so that the grammar may give it a meaning of its own.
    pub(super) bare: bool,
}

impl Name {
    /// From the parser's name; `None` for anything but one to three plain identifiers. Of `database.schema.name` the
    /// server accepts only its own database, so the first may go.
    pub(super) fn of(name: &ObjectName) -> Option<Self> {
        let idents: Vec<&Ident> = name
            .0
            .iter()
            .map(|part| match part {
                ObjectNamePart::Identifier(ident) => Some(ident),
                ObjectNamePart::Function(_) => None,
            })
            .collect::<Option<_>>()?;
        Self::of_idents(&idents)
    }

    /// As [`Name::of`].
    pub(super) fn of_idents(idents: &[&Ident]) -> Option<Self> {
        let (schema, last) = match idents {
            [last] => (None, last),
            [schema, last] | [_, schema, last] => (Some(schema.value.clone()), last),
            _ => return None,
        };
        Some(Self { bare: schema.is_none() && last.quote_style.is_none(), schema, name: last.value.clone() })
    }
}

/// Most parts of one statement: bounds the work of telling them apart, here and in policy.
const MAX_PARTS: usize = 1000;

/// What is known of one statement so far.
pub(super) struct Builder<'a> {
    pub(super) names: &'a dyn Names,
    pub(super) parts: Vec<Part>,
    pub(super) facts: SqlFacts,
    pub(super) clarity: Clarity,
    pub(super) mentions: Mentions,
    pub(super) kind: StatementKind,
    /// Names of calls that are accounted for, to check against the tokens.
    pub(super) calls: HashSet<String>,
    /// Of the query or change that it is or holds.
    pub(super) lineage: Option<Lineage>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(names: &'a dyn Names) -> Self {
        Self {
            names,
            parts: Vec::new(),
            facts: SqlFacts::default(),
            clarity: Clarity::Parsed,
            mentions: Mentions::default(),
            kind: StatementKind::Utility,
            calls: HashSet::new(),
            lineage: None,
        }
    }

    /// The lineage of the statement, once it was read. What was not understood as a whole has none.
    pub(super) fn whole_lineage(&mut self) -> Lineage {
        let Some(mut lineage) = self.lineage.take() else {
            // What it reads, if anything, it reads whole: nothing is searched for.
            return Lineage { outputs: None, ..Lineage::nothing() };
        };
        if self.clarity != Clarity::Parsed {
            return Lineage::default();
        }
        let verb = &self.facts.verb;
        if self.kind == StatementKind::Utility {
            // What a view reads is known when the catalogue is read again.
            let outputs = lineage.outputs.replace(Vec::new());
            if !verb.contains("view") && !verb.starts_with("explain") {
                lineage.store_new(outputs);
            }
        }
        lineage
    }

    /// Adds a part once.
    pub(super) fn part(&mut self, verb: Verb, target: Target) {
        if self.parts.len() >= MAX_PARTS {
            // One more, to say so; after it nothing is added.
            if self.parts.len() == MAX_PARTS {
                self.clarity = Clarity::Partial;
                self.parts.push((Verb::Unknown, Target::new(format!("sql:{}", super::TOO_COMPLEX))));
            }
            return;
        }
        if !self.parts.iter().any(|(v, t)| *v == verb && *t == target) {
            self.parts.push((verb, target));
        }
    }

    /// Adds a part on a made-up target such as `sql:grant`.
    pub(super) fn plain(&mut self, verb: Verb, target: &str) {
        self.part(verb, Target::new(target));
    }

    /// Marks something inside the statement as not understood.
    pub(super) fn unknown(&mut self, what: &str) {
        if self.clarity == Clarity::Parsed {
            self.clarity = Clarity::Partial;
        }
        self.part(Verb::Unknown, Target::new(format!("sql:{what}")));
    }

    /// Adds a part on a relation that exists.
    pub(super) fn relation(&mut self, verb: Verb, name: &Name) {
        if self.parts.len() > MAX_PARTS {
            return;
        }
        let schema = self.names.relation_schema(name.schema.as_deref(), &name.name);
        let target = Target::relation(schema.as_deref(), &name.name);
        let mention = (name.schema.clone(), name.name.clone());
        if !self.mentions.relations.contains(&mention) {
            self.mentions.relations.push(mention);
        }
        if !self.facts.tables.contains(&target) {
            self.facts.tables.push(target.clone());
        }
        self.part(verb, target);
    }

    /// Adds a part on a relation that the statement makes.
    pub(super) fn creation(&mut self, name: &Name, temporary: bool) {
        let schema = match (&name.schema, temporary) {
            (Some(schema), _) => Some(schema.as_str().into()),
            (None, true) => Some("pg_temp".into()),
            (None, false) => self.names.creation_schema(),
        };
        let target = Target::relation(schema.as_deref(), &name.name);
        self.facts.tables.push(target.clone());
        self.part(Verb::Schema, target);
    }

    /// Whether what was judged so far is a change: its facts are the statement's, whatever it stands in.
    pub(super) fn changes(&self) -> bool {
        matches!(self.facts.verb.as_str(), "insert" | "update" | "delete" | "merge")
    }

    /// Adds what calling a function amounts to.
    pub(super) fn call(&mut self, name: &Name) {
        self.calls.insert(name.name.clone());
        if name.bare && words::grammar_call(&name.name) {
            self.facts.functions.push(format!("pg_catalog.{}", name.name));
            return;
        }
        let schema = self.names.function_schema(name.schema.as_deref(), &name.name);
        let target = Target::function(schema.as_deref(), &name.name);
        self.facts.functions.push(target.as_str().trim_start_matches("fn:").to_owned());
        match (schema.as_deref(), words::builtin(&name.name)) {
            (Some("pg_catalog"), Builtin::Safe) => {}
            (_, Builtin::Admin) => self.part(Verb::Admin, target),
            _ => self.part(Verb::Execute, target),
        }
    }

    /// Adds what converting to a type amounts to: reading a value of another's type runs another's code (its input
    /// function, its casts, the checks of a domain).
    pub(super) fn conversion(&mut self, name: &Name) {
        let schema = self.names.type_schema(name.schema.as_deref(), &name.name);
        if schema.as_deref() == Some("pg_catalog") && words::builtin_type(&name.name) {
            return;
        }
        if schema.as_deref().is_some_and(|schema| self.names.is_enumeration(schema, &name.name)) {
            return;
        }
        let mut target = "type:".to_owned();
        match schema {
            Some(schema) => push_identifier(&mut target, &schema),
            None => target.push('?'),
        }
        target.push('.');
        push_identifier(&mut target, &name.name);
        self.part(Verb::Execute, Target::new(target));
    }

    /// Adds what an operator amounts to: another's runs another's function.
    pub(super) fn operator(&mut self, op: &str) {
        if words::syntax_operator(op)
            || (words::builtin_operator(op) && self.names.operator_schema(op).as_deref() == Some("pg_catalog"))
        {
            return;
        }
        let mut target = "op:?.".to_owned();
        push_identifier(&mut target, op);
        self.part(Verb::Execute, Target::new(target));
    }

    /// Adds what `x.name` amounts to where `x` has no column of that name: a call of a function with `x` as its argument.
    pub(super) fn attribute(&mut self, name: &str) {
        if words::attribute_call(name) {
            let verb = if words::builtin(name) == Builtin::Admin { Verb::Admin } else { Verb::Execute };
            self.part(verb, Target::function(Some("pg_catalog"), name));
        }
        if self.names.attribute_calls(name) {
            let schema = self.names.function_schema(None, name);
            self.part(Verb::Execute, Target::function(schema.as_deref(), name));
        }
    }

    /// Adds a change of a setting to literal values (`None`: its default).
    pub(super) fn setting(&mut self, name: &str, values: Option<&[String]>) {
        let allowed = match (setting_rule(name), values) {
            (SettingRule::Free | SettingRule::SearchPath, _) => true,
            (rule @ SettingRule::Pinned(_), Some([value])) => rule.permits(value),
            (SettingRule::Pinned(_), _) | (SettingRule::Refused, _) => false,
        };
        let verb = if allowed { Verb::Session } else { Verb::Admin };
        self.part(verb, named("setting", name));
    }
}

/// `prefix:name`, quoted as identifiers are. Dots of a setting's own name stay.
pub(super) fn named(prefix: &str, name: &str) -> Target {
    let mut out = format!("{prefix}:");
    push_identifier(&mut out, name);
    Target::new(out)
}
