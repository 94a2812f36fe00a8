//! Which columns of a database a policy's masks hide: those that it names, those of the tables that hold the same rows
//! (parents, children, partitions), those of views that derive from them, and what PostgreSQL itself keeps of their
//! values for its planner.
//!
//! A view's columns are traced through its definition. Where that cannot be told, and it reads anything that is hidden or
//! calls what is not PostgreSQL's own, all of its columns are hidden.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    catalog::{Catalog, Relation, View},
    mask::Rule,
};
use crate::{
    action::{Action, Target, Verb},
    mask::MaskSet,
    sql::{self, Column, Names, Output, Sources},
};

/// Columns that hold values of others: pg_statistic.h, pg_statistic_ext_data.h, monitoring.sgml.
const STATISTICS: [(&str, &str); 8] = [
    ("pg_statistic", "stavalues1"),
    ("pg_statistic", "stavalues2"),
    ("pg_statistic", "stavalues3"),
    ("pg_statistic", "stavalues4"),
    ("pg_statistic", "stavalues5"),
    ("pg_statistic_ext_data", "stxdmcv"),
    ("pg_statistic_ext_data", "stxdexpr"),
    ("pg_stat_activity", "query"),
];

/// What is hidden under one set of masks.
#[derive(Debug, Default)]
pub struct ColumnMasks {
    columns: HashMap<(u32, i16), Rule>,
    relations: HashSet<u32>,
    /// The same, as policies name them.
    targets: HashSet<Target>,
}

impl ColumnMasks {
    /// Of a catalogue, under these masks.
    pub fn new(catalog: &Catalog, masks: &MaskSet) -> Self {
        let mut found = Self::default();
        if !masks.has_columns() {
            return found;
        }
        for relation in catalog.relations() {
            for attribute in &relation.attributes {
                let mask = masks.column(&relation.schema, &relation.name, &attribute.name).map(Rule::Column);
                let keeps =
                    &*relation.schema == "pg_catalog" && STATISTICS.contains(&(&*relation.name, &*attribute.name));
                if let Some(rule) = mask.or_else(|| keeps.then(|| Rule::Hide("column:statistics".into()))) {
                    found.hide(relation.oid, attribute.number, &rule);
                }
            }
        }
        let views: Vec<_> = catalog.views.iter().map(|(oid, view)| Traced::new(catalog, *oid, view)).collect();
        // Views over views, children of children: until nothing is added.
        loop {
            let before = found.columns.len();
            for (child, parent) in &catalog.children {
                found.spread(catalog, *child, *parent);
                found.spread(catalog, *parent, *child);
            }
            views.iter().flatten().for_each(|view| found.trace(catalog, view));
            if found.columns.len() == before {
                let relations = found.relations.iter().filter_map(|oid| catalog.by_oid(*oid));
                found.targets = relations.map(|r| Target::relation(Some(&r.schema), &r.name)).collect();
                return found;
            }
        }
    }

    /// What happens to a column's values, if they are hidden.
    pub fn get(&self, relation: u32, column: i16) -> Option<&Rule> {
        self.columns.get(&(relation, column))
    }

    /// Whether a relation has columns that are hidden.
    pub fn touches(&self, relation: u32) -> bool {
        self.relations.contains(&relation)
    }

    /// Whether any part of an action is about a relation with hidden columns.
    pub fn touched_by(&self, action: &Action) -> bool {
        action.parts.iter().any(|(_, target)| self.is_touched(target))
    }

    /// The same of one target.
    pub fn is_touched(&self, target: &Target) -> bool {
        self.targets.contains(target)
    }

    /// The columns that are hidden among those that a value derives from.
    pub fn among<'a>(&'a self, sources: &'a Sources, catalog: &'a Catalog) -> impl Iterator<Item = &'a Column> {
        sources.columns().iter().filter(|column| self.rule_of(column, catalog).is_some())
    }

    /// The same of one column by its name.
    pub fn rule_of(&self, column: &Column, catalog: &Catalog) -> Option<&Rule> {
        let relation = catalog.relation(&column.schema, &column.relation)?;
        let attribute = relation.attributes.iter().find(|attribute| attribute.name == column.name)?;
        self.get(relation.oid, attribute.number)
    }

    fn hide(&mut self, relation: u32, column: i16, rule: &Rule) {
        self.relations.insert(relation);
        self.columns.entry((relation, column)).or_insert_with(|| rule.clone());
    }

    /// Columns of one table in another that holds some of its rows. They have the same names (ddl.sgml, Inheritance).
    fn spread(&mut self, catalog: &Catalog, from: u32, to: u32) {
        let (Some(from), Some(to)) = (catalog.by_oid(from), catalog.by_oid(to)) else { return };
        for attribute in &from.attributes {
            let Some(rule) = self.get(from.oid, attribute.number).cloned() else { continue };
            if let Some(same) = to.attributes.iter().find(|other| other.name == attribute.name) {
                self.hide(to.oid, same.number, &rule);
            }
        }
    }

    fn trace(&mut self, catalog: &Catalog, view: &Traced<'_>) {
        let Some(outputs) = &view.outputs else {
            if view.calls || view.reads.iter().any(|relation| self.touches(*relation)) {
                self.hide_all(view.relation, "column:unresolved");
            }
            return;
        };
        for (attribute, output) in view.relation.attributes.iter().zip(outputs) {
            let mut hidden = self.among(&output.sources, catalog).peekable();
            let rule = match hidden.peek() {
                Some(column) if output.plain => self.rule_of(column, catalog).cloned(),
                Some(_) => Some(Rule::Hide("column:computed".into())),
                None => output.sources.unknown.then(|| Rule::Hide("column:unresolved".into())),
            };
            drop(hidden);
            if let Some(rule) = rule {
                self.hide(view.relation.oid, attribute.number, &rule);
            }
        }
    }

    fn hide_all(&mut self, relation: &Relation, label: &str) {
        let rule = Rule::Hide(label.into());
        relation.attributes.iter().for_each(|attribute| self.hide(relation.oid, attribute.number, &rule));
    }
}

/// A view whose definition was read.
struct Traced<'a> {
    relation: &'a Relation,
    outputs: Option<Vec<Output>>,
    reads: &'a [u32],
    /// It calls what is not PostgreSQL's own, or nobody knows what.
    calls: bool,
}

impl<'a> Traced<'a> {
    fn new(catalog: &'a Catalog, oid: u32, view: &'a View) -> Option<Self> {
        let relation = catalog.by_oid(oid)?;
        let mut read = sql::classify(view.definition.trim_end_matches(';'), &Definition(catalog));
        let calls = read.action.parts.iter().any(|(verb, _)| !matches!(verb, Verb::Read | Verb::Session));
        let outputs = match &mut read.statements[..] {
            [statement] => statement.lineage.outputs.take(),
            _ => None,
        };
        let outputs = outputs.filter(|outputs| outputs.len() == relation.attributes.len());
        Some(Self { relation, outputs, reads: &view.reads, calls })
    }
}

/// Names as a view's definition has them.
pub(super) struct Definition<'a>(pub(super) &'a Catalog);

impl Names for Definition<'_> {
    fn relation_schema(&self, schema: Option<&str>, _name: &str) -> Option<Arc<str>> {
        Some(schema.unwrap_or("pg_catalog").into())
    }

    fn function_schema(&self, schema: Option<&str>, _name: &str) -> Option<Arc<str>> {
        Some(schema.unwrap_or("pg_catalog").into())
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        None
    }

    fn columns(&self, schema: &str, name: &str) -> Option<Arc<[Arc<str>]>> {
        self.0.relation(schema, name).map(|relation| Arc::clone(&relation.names))
    }
}
