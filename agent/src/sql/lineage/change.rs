//! What changes store, and where: INSERT, UPDATE, DELETE, MERGE.

use sqlparser::ast::{
    AssignmentTarget, Delete, FromTable, Insert, Merge, MergeAction, MergeInsertKind, MergeUpdateKind, ObjectName,
    OnConflictAction, OnInsert, SelectItem, TableFactor, TableObject, Update, UpdateTableFromKind,
};

use super::{
    Column, Look, Outputs, Sources, last,
    scope::{Item, Scope},
};
use crate::sql::build::Name;

impl Look<'_> {
    pub(super) fn insert(&mut self, insert: &Insert) -> Outputs {
        let TableObject::TableName(table) = &insert.table else { return self.lost() };
        let Some(name) = Name::of(table) else { return self.lost() };
        let target = self.relation(&name);
        let columns = match (&insert.columns[..], target.column_names()) {
            ([], Some(all)) => all.iter().map(|column| self.column(&name, column)).collect(),
            ([], None) => Vec::new(),
            (named, _) => named.iter().map(|column| self.column(&name, &last(column)?)).collect::<Vec<_>>(),
        };
        let source = match &insert.source {
            Some(source) => self.query(source),
            None => Some(Vec::new()),
        };
        let mut excluded = Sources::default();
        match source {
            Some(outputs) => {
                for (at, output) in outputs.into_iter().enumerate() {
                    excluded.add(&output.sources);
                    self.store(columns.get(at).cloned().flatten(), output.sources);
                }
            }
            None => {
                excluded.unknown = true;
                self.store(None, Sources::unknown());
            }
        }
        self.scopes.push(Scope::default());
        let alias = insert.table_alias.as_ref().map(|alias| alias.alias.value.clone());
        self.scope().push(target.called(alias.as_deref().unwrap_or(&name.name)));
        if let Some(OnInsert::OnConflict(conflict)) = &insert.on
            && let OnConflictAction::DoUpdate(update) = &conflict.action
        {
            self.scope().push(Item::any("excluded", excluded));
            self.assignments(&name, &update.assignments);
            if let Some(condition) = &update.selection {
                self.condition(condition);
            }
            self.scope().items.pop();
        }
        self.returning(insert.returning.as_deref())
    }

    pub(super) fn update(&mut self, update: &Update) -> Outputs {
        let TableFactor::Table { name: table, alias, .. } = &update.table.relation else { return self.lost() };
        let Some(name) = Name::of(table) else { return self.lost() };
        self.scopes.push(Scope::default());
        let called = alias.as_ref().map_or(&*name.name, |alias| &*alias.name.value);
        let target = self.relation(&name).called(called);
        self.scope().push(target);
        if let Some(UpdateTableFromKind::AfterSet(from)) = &update.from {
            for from in from {
                let joined = self.join(from);
                self.scope().extend(joined);
            }
        }
        self.assignments(&name, &update.assignments);
        if let Some(condition) = &update.selection {
            self.condition(condition);
        }
        self.returning(update.returning.as_deref())
    }

    pub(super) fn delete(&mut self, delete: &Delete) -> Outputs {
        let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = &delete.from;
        self.scopes.push(Scope::default());
        for from in tables {
            let TableFactor::Table { name: table, alias, .. } = &from.relation else { return self.lost_in_scope() };
            let Some(name) = Name::of(table) else { return self.lost_in_scope() };
            let called = alias.as_ref().map_or(&*name.name, |alias| &*alias.name.value);
            let target = self.relation(&name).called(called);
            self.scope().push(target);
        }
        for from in delete.using.iter().flatten() {
            let joined = self.join(from);
            self.scope().extend(joined);
        }
        if let Some(condition) = &delete.selection {
            self.condition(condition);
        }
        self.returning(delete.returning.as_deref())
    }

    pub(super) fn merge(&mut self, merge: &Merge) -> Outputs {
        let TableFactor::Table { name: table, alias, .. } = &merge.table else { return self.lost() };
        let Some(name) = Name::of(table) else { return self.lost() };
        self.scopes.push(Scope::default());
        let called = alias.as_ref().map_or(&*name.name, |alias| &*alias.name.value);
        let target = self.relation(&name).called(called);
        self.scope().push(target);
        let source = self.factor(&merge.source);
        self.scope().extend(source);
        self.condition(&merge.on);
        for clause in &merge.clauses {
            if let Some(predicate) = &clause.predicate {
                self.condition(predicate);
            }
            match &clause.action {
                MergeAction::Insert(insert) => match &insert.kind {
                    MergeInsertKind::Values(values) => {
                        let all = self.relation(&name).column_names();
                        let outputs = self.values(values).unwrap_or_default();
                        for (at, output) in outputs.into_iter().enumerate() {
                            let column = match &insert.columns[..] {
                                [] => all.as_ref().and_then(|all| all.get(at)).map(|column| column.to_string()),
                                named => named.get(at).and_then(last),
                            };
                            let column = column.and_then(|column| self.column(&name, &column));
                            self.store(column, output.sources);
                        }
                    }
                    MergeInsertKind::Row | MergeInsertKind::Wildcard => self.store(None, Sources::unknown()),
                },
                MergeAction::Update(update) => match &update.kind {
                    MergeUpdateKind::Set(assignments) => self.assignments(&name, assignments),
                    _ => self.store(None, Sources::unknown()),
                },
                MergeAction::Delete { .. } | MergeAction::DoNothing { .. } => {}
            }
        }
        self.scopes.pop();
        Some(Vec::new())
    }

    fn assignments(&mut self, name: &Name, assignments: &[sqlparser::ast::Assignment]) {
        for assignment in assignments {
            let sources = self.sources(&assignment.value);
            let targets = match &assignment.target {
                AssignmentTarget::ColumnName(column) => std::slice::from_ref(column),
                AssignmentTarget::Tuple(columns) => columns,
            };
            for target in targets {
                // `SET a.b = ` names a field of the column a.
                let column = first(target).and_then(|column| self.column(name, &column));
                self.store(column, sources.clone());
            }
        }
    }

    /// What RETURNING returns; closes the scope of a change.
    fn returning(&mut self, items: Option<&[SelectItem]>) -> Outputs {
        let outputs = items.map_or_else(|| Some(Vec::new()), |items| self.items(items));
        self.scopes.pop();
        outputs
    }

    pub(super) fn store(&mut self, column: Option<Column>, sources: Sources) {
        if sources.unknown || !sources.columns().is_empty() {
            self.stored.push((column, sources));
        }
    }

    fn lost_in_scope(&mut self) -> Outputs {
        self.scopes.pop();
        self.lost()
    }

    fn lost(&mut self) -> Outputs {
        self.compared.unknown = true;
        self.store(None, Sources::unknown());
        None
    }
}

fn first(name: &ObjectName) -> Option<String> {
    name.0.first()?.as_ident().map(|ident| ident.value.clone())
}
