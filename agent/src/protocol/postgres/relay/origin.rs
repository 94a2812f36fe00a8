//! What the lineage of a command means under the masks in force: which computed columns are hidden, what it would let be
//! inferred, and what may not be done at all.

use std::sync::Arc;

use super::Relay;
use crate::{
    action::{Action, Target, Unresolved, Verb, push_identifier},
    protocol::postgres::prepared::{Computed, ComputedColumn, Prepared},
    sql::{Column, CopySource, Names, StatementInfo, StatementKind},
};

/// Why a command is refused whatever the rules say: the name of the rule, and the reason.
pub(super) type Barred = (&'static str, String);

impl Relay {
    /// Which columns of a command's result that are no table's are hidden, and whether it may reach a masked one at all.
    pub(super) fn computed(&self, statements: &[StatementInfo], action: &Action) -> (Computed, bool) {
        let masks = &self.masker.masks;
        let may = self.may_touch(statements, action);
        if self.masks_nothing_of(action) {
            return (Computed::Shown, may);
        }
        let [StatementInfo { kind, lineage, .. }] = statements else { return (Computed::coarse(may), may) };
        let (Some(outputs), true) = (&lineage.outputs, returns_its_outputs(kind)) else {
            return (Computed::coarse(may), may);
        };
        let catalog = self.names.catalog();
        let hidden = catalog.column_masks(masks);
        let column = |output: &crate::sql::Output| ComputedColumn {
            name: output.name.clone(),
            hidden: output.sources.unknown && may || hidden.among(&output.sources, catalog).next().is_some(),
        };
        (Computed::Each(outputs.iter().map(column).collect()), may)
    }

    /// The same of a prepared statement.
    pub(super) fn computed_prepared(&self, statement: &Prepared) -> (Computed, bool) {
        let masks = &self.masker.masks;
        let anew = || self.computed(&statement.statements, &statement.action);
        if self.registry.named(&statement.statements).next().is_some() {
            // What the names stand for may change.
            return anew();
        }
        statement.computed.get(|(under, _)| Arc::ptr_eq(under, masks), || (Arc::clone(masks), anew())).1
    }

    /// Whether a command may reach a masked column: it names a relation that has one, or something that might be one, or
    /// what is not ours to read.
    pub(super) fn may_touch(&self, statements: &[StatementInfo], action: &Action) -> bool {
        let masks = &self.masker.masks;
        if self.masks_nothing_of(action) {
            return false;
        }
        let opaque = |info: &StatementInfo| {
            let m = &info.mentions;
            matches!(info.kind, StatementKind::Opaque)
                || m.nested_wildcard
                || m.whole_row
                || m.renames_columns
                || m.identifiers.iter().any(|name| masks.may_name_column(name))
        };
        let catalog = self.names.catalog();
        let named = || self.registry.named(statements).flat_map(|prepared| prepared.statements.iter());
        action.parts.iter().any(|(verb, _)| matches!(verb, Verb::Execute | Verb::Unknown))
            || statements.iter().chain(named()).any(opaque)
            || catalog.column_masks(masks).touched_by(action)
            || self.names_unknown(statements.iter().chain(named()))
    }

    /// Whether no column is masked, or a command reads nothing but PostgreSQL's own tables, and of those none that keeps values
    /// of others'. Calls that could read more are parts of their own.
    fn masks_nothing_of(&self, action: &Action) -> bool {
        let masks = &self.masker.masks;
        if !masks.has_columns() {
            return true;
        }
        let own = |(verb, target): &(Verb, Target)| match verb {
            Verb::Session => true,
            Verb::Read => target.as_str().starts_with("pg_catalog."),
            _ => false,
        };
        let catalog = self.names.catalog();
        action.parts.iter().all(own) && !catalog.column_masks(masks).touched_by(action)
    }

    /// Whether any of these names a relation that the catalogue does not know for certain: a view that was made just now, say.
    fn names_unknown<'s>(&self, mut statements: impl Iterator<Item = &'s StatementInfo>) -> bool {
        let names = self.names.names();
        let unknown = |(schema, name): &(Option<String>, String)| {
            let schema = names.relation_schema(schema.as_deref(), name);
            schema.and_then(|schema| names.columns(&schema, name)).is_none()
        };
        statements.any(|statement| statement.mentions.relations.iter().any(unknown))
    }

    /// The action of a command with what it runs by name, and with what it would let be inferred from masked columns.
    pub(super) fn whole_action(&self, action: &Action, statements: &[StatementInfo]) -> Action {
        let mut whole = self.registry.complete(action, statements);
        let masks = &self.masker.masks;
        if self.masks_nothing_of(&whole) {
            return whole;
        }
        let catalog = self.names.catalog();
        let hidden = catalog.column_masks(masks);
        let mut add = |target: Target| {
            let part = (Verb::Infer, target);
            if !whole.parts.contains(&part) {
                whole.parts.push(part);
            }
        };
        for statement in statements {
            let compared = &statement.lineage.compared;
            hidden.among(compared, catalog).for_each(|column| add(target_of(column)));
            if compared.unknown && self.may_touch(statements, action) {
                add(Target::new("?.?.?"));
            }
        }
        let redefines = |info: &StatementInfo| {
            let names = &info.mentions.identifiers;
            info.mentions.conditions || names.iter().any(|n| REDEFINES.contains(&&**n) || masks.may_name_column(n))
        };
        if statements.iter().any(redefines) {
            let changed: Vec<Target> = whole
                .parts
                .iter()
                .filter(|(verb, _)| *verb == Verb::Schema)
                .map(|(_, target)| target.clone())
                .collect();
            let touched = changed.into_iter().filter(|target| hidden.is_touched(target));
            whole.parts.extend(touched.map(|target| (Verb::Infer, target)));
        }
        whole
    }

    /// What masks forbid: to store what is hidden where it is not, and to return what nobody can trace.
    pub(super) fn barred_by_masks(&self, statements: &[StatementInfo], action: &Action) -> Option<Barred> {
        let masks = &self.masker.masks;
        if self.masks_nothing_of(action) {
            return None;
        }
        let catalog = self.names.catalog();
        let hidden = catalog.column_masks(masks);
        for statement in statements {
            for (column, sources) in &statement.lineage.stored {
                if column.as_ref().is_some_and(|column| hidden.rule_of(column, catalog).is_some()) {
                    continue;
                }
                if let Some(from) = hidden.among(sources, catalog).next() {
                    let text = format!("it would store {} where it is not masked", target_of(from));
                    return Some(("masks", text));
                }
                // What functions do is for rules on functions; a relation that is not known may be a view of anything.
                if sources.unknown && self.names_unknown(std::iter::once(statement)) {
                    let text =
                        "where the values come from that it would store cannot be told, and columns are masked here";
                    return Some(("masks", text.to_owned()));
                }
            }
        }
        if masks.unresolved() == Unresolved::Mask || !self.may_touch(statements, action) {
            return None;
        }
        for statement in statements.iter().filter(|statement| returns_its_outputs(&statement.kind)) {
            let unknown = match &statement.lineage.outputs {
                Some(outputs) => outputs.iter().position(|output| output.sources.unknown),
                None => Some(0),
            };
            if let Some(at) = unknown {
                let text = format!(
                    "where column {} of its result comes from cannot be told, and columns are masked here",
                    at + 1
                );
                return Some(("masks", text));
            }
        }
        None
    }
}

/// Words of definitions that take columns out of their masks, or make others of them: ALTER TABLE ... RENAME, TYPE, SET
/// SCHEMA, ATTACH, DETACH, INHERIT, GENERATED, SET EXPRESSION, EXCLUDE.
const REDEFINES: [&str; 9] =
    ["attach", "detach", "exclude", "expression", "generated", "inherit", "rename", "schema", "type"];

/// Whether the outputs of its lineage are what it returns.
fn returns_its_outputs(kind: &StatementKind) -> bool {
    match kind {
        StatementKind::Query | StatementKind::Change => true,
        StatementKind::Copy(copy) => matches!(copy.source, CopySource::Query(_)),
        _ => false,
    }
}

fn target_of(column: &Column) -> Target {
    let mut text = String::new();
    for (at, part) in [&column.schema, &column.relation, &column.name].into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        push_identifier(&mut text, part);
    }
    Target::new(text)
}
