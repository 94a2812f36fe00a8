//! What stands in FROM, and how a name finds its column in it.

use std::sync::Arc;

use sqlparser::ast::{
    Expr, Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, TableAlias, TableFactor, TableWithJoins,
};

use super::{Column, Look, Output, Outputs, Sources};
use crate::sql::build::Name;

/// Columns that every table has, and that tell nothing of its values (`ddl.sgml`, System Columns).
const SYSTEM: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// One level of FROM.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) items: Vec<Item>,
    /// What `*` stands for.
    pub(super) wild: Outputs,
    begun: bool,
}

/// One name in FROM.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// What it is called; nothing, where an alias is needed and none given.
    called: Option<String>,
    columns: Columns,
}

#[derive(Clone, Debug)]
enum Columns {
    /// Of a table or view.
    Stored { schema: Arc<str>, relation: Arc<str>, names: Arc<[Arc<str>]> },
    /// Of a query.
    Made(Vec<Output>),
    /// Any name may be one, and all derive from the same.
    Any(Sources),
}

/// What a name may mean in one place.
enum Found {
    /// This.
    Surely(Sources),
    /// This, if it is there.
    Perhaps(Sources),
    No,
}

impl Item {
    pub(super) fn any(called: &str, sources: Sources) -> Self {
        Self { called: Some(called.to_owned()), columns: Columns::Any(sources) }
    }

    pub(super) fn called(mut self, name: &str) -> Self {
        self.called = Some(name.to_owned());
        self
    }

    /// Names of the columns of a relation.
    pub(super) fn column_names(&self) -> Option<Arc<[Arc<str>]>> {
        match &self.columns {
            Columns::Stored { names, .. } => Some(Arc::clone(names)),
            _ => None,
        }
    }

    fn find(&self, column: &str) -> Found {
        match &self.columns {
            Columns::Stored { schema, relation, names } => match names.iter().find(|name| ***name == *column) {
                Some(name) => Found::Surely(of_column(schema, relation, name)),
                None if SYSTEM.contains(&column) => Found::Surely(Sources::default()),
                None => Found::No,
            },
            Columns::Made(outputs) => {
                let mut sources = Sources::default();
                let mut named = outputs.iter().filter(|output| output.name.as_deref() == Some(column)).peekable();
                let surely = named.peek().is_some();
                named.for_each(|output| sources.add(&output.sources));
                if surely {
                    return Found::Surely(sources);
                }
                // The server has given these their names.
                let mut unnamed = outputs.iter().filter(|output| output.name.is_none()).peekable();
                if unnamed.peek().is_none() {
                    return Found::No;
                }
                unnamed.for_each(|output| sources.add(&output.sources));
                Found::Perhaps(sources)
            }
            Columns::Any(sources) => Found::Perhaps(sources.clone()),
        }
    }

    /// All of its columns, as `*` has them.
    fn outputs(&self) -> Outputs {
        match &self.columns {
            Columns::Stored { schema, relation, names } => Some(
                names
                    .iter()
                    .map(|name| Output {
                        name: Some(Arc::clone(name)),
                        sources: of_column(schema, relation, name),
                        plain: true,
                    })
                    .collect(),
            ),
            Columns::Made(outputs) => Some(outputs.clone()),
            Columns::Any(_) => None,
        }
    }

    /// Whatever a row of it holds.
    fn row(&self) -> Sources {
        match &self.columns {
            Columns::Any(sources) => sources.clone(),
            Columns::Stored { schema, relation, names } => {
                Sources::of(names.iter().map(|name| column_of(schema, relation, name)))
            }
            Columns::Made(outputs) => {
                let mut sources = Sources::of(outputs.iter().flat_map(|output| output.sources.columns()).cloned());
                sources.unknown = outputs.iter().any(|output| output.sources.unknown);
                sources
            }
        }
    }

    /// With the names of an alias.
    fn under(mut self, alias: Option<&TableAlias>) -> Self {
        let Some(alias) = alias else { return self };
        self.called = Some(alias.name.value.clone());
        if !alias.columns.is_empty()
            && let Some(mut outputs) = self.outputs()
        {
            for (output, column) in outputs.iter_mut().zip(&alias.columns) {
                output.name = Some(column.name.value.as_str().into());
            }
            self.columns = Columns::Made(outputs);
        }
        self
    }
}

impl Scope {
    pub(super) fn push(&mut self, item: Item) {
        let wild = item.outputs();
        self.extend(Self { items: vec![item], wild, begun: true });
    }

    /// Adds what stands beside.
    pub(super) fn extend(&mut self, more: Self) {
        self.wild = match (self.begun, self.wild.take(), more.wild) {
            (false, _, more) => more,
            (true, Some(mut all), Some(more)) => {
                all.extend(more);
                Some(all)
            }
            (true, ..) => None,
        };
        self.begun = true;
        self.items.extend(more.items);
    }

    fn find(&self, column: &str) -> Found {
        let mut sources = Sources::default();
        let (mut surely, mut perhaps) = (false, false);
        for item in &self.items {
            match item.find(column) {
                Found::Surely(found) => {
                    surely = true;
                    sources.add(&found);
                }
                Found::Perhaps(found) => {
                    perhaps = true;
                    sources.add(&found);
                }
                Found::No => {}
            }
        }
        match (surely, perhaps) {
            (true, _) => Found::Surely(sources),
            (_, true) => Found::Perhaps(sources),
            _ => Found::No,
        }
    }

    fn called(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.called.as_deref() == Some(name))
    }
}

impl Look<'_> {
    /// The innermost scope.
    pub(super) fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    /// A relation that is stored, whatever CTEs are in sight.
    pub(super) fn relation(&self, name: &Name) -> Item {
        let schema = self.names.relation_schema(name.schema.as_deref(), &name.name);
        let names = schema.as_deref().and_then(|schema| self.names.columns(schema, &name.name));
        let columns = match (schema, names) {
            (Some(schema), Some(names)) => Columns::Stored { schema, relation: name.name.as_str().into(), names },
            _ => Columns::Any(Sources::unknown()),
        };
        Item { called: Some(name.name.clone()), columns }
    }

    /// A column of a relation by its name.
    pub(super) fn column(&self, name: &Name, column: &str) -> Option<Column> {
        let schema = self.names.relation_schema(name.schema.as_deref(), &name.name)?;
        Some(Column { schema, relation: name.name.as_str().into(), name: column.into() })
    }

    /// A list of joins. What stands to the left is in sight for what is LATERAL.
    pub(super) fn join(&mut self, from: &TableWithJoins) -> Scope {
        let mut all = self.factor(&from.relation);
        for join in &from.joins {
            // What is joined sees what stands before it.
            let before = self.scope().items.len();
            self.scope().items.extend(all.items.iter().cloned());
            let right = self.factor(&join.relation);
            self.scope().items.truncate(before);
            let constraint = match &join.join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::Left(constraint)
                | JoinOperator::LeftOuter(constraint)
                | JoinOperator::Right(constraint)
                | JoinOperator::RightOuter(constraint)
                | JoinOperator::FullOuter(constraint)
                | JoinOperator::CrossJoin(constraint) => constraint,
                _ => {
                    self.compared.unknown = true;
                    all.extend(right);
                    all.wild = None;
                    continue;
                }
            };
            all = self.joined(all, right, constraint);
        }
        all
    }

    fn joined(&mut self, mut left: Scope, right: Scope, constraint: &JoinConstraint) -> Scope {
        let shared = match constraint {
            JoinConstraint::None => Some(Vec::new()),
            JoinConstraint::On(condition) => {
                self.scopes.push(Scope { items: [&left.items[..], &right.items].concat(), wild: None, begun: true });
                self.condition(condition);
                self.scopes.pop();
                Some(Vec::new())
            }
            JoinConstraint::Using(columns) => columns.iter().map(super::last).collect(),
            JoinConstraint::Natural => match (&left.wild, &right.wild) {
                (Some(left), Some(right)) => Some(common(left, right)),
                _ => None,
            },
        };
        let Some(shared) = shared else {
            self.compared.unknown = true;
            left.extend(right);
            left.wild = None;
            return left;
        };
        for column in &shared {
            for side in [&left, &right] {
                match side.find(column) {
                    Found::Surely(sources) | Found::Perhaps(sources) => self.compared.add(&sources),
                    Found::No => self.compared.unknown = true,
                }
            }
        }
        let wild = match (left.wild.take(), right.wild) {
            (Some(l), Some(r)) if shared.is_empty() => Some([l, r].concat()),
            (Some(l), Some(r)) => Some(merged(&shared, l, r)),
            _ => None,
        };
        left.items.extend(right.items);
        Scope { items: left.items, wild, begun: true }
    }

    pub(super) fn factor(&mut self, factor: &TableFactor) -> Scope {
        let item = match factor {
            TableFactor::Table { name, alias, args: None, sample, .. } => {
                if let Some(sample) = sample {
                    let sources = self.sources_in(sample);
                    self.compare(&sources);
                }
                self.named(name).under(alias.as_ref())
            }
            TableFactor::Table { name, alias, args: Some(args), .. } => self.call(name, &args.args, alias.as_ref()),
            TableFactor::Function { name, args, alias, .. } => self.call(name, args, alias.as_ref()),
            TableFactor::Derived { lateral, subquery, alias, .. } => {
                let outputs = if *lateral {
                    self.query(subquery)
                } else {
                    // What stands beside it is not in sight.
                    let beside = std::mem::take(self.scope());
                    let outputs = self.query(subquery);
                    *self.scope() = beside;
                    outputs
                };
                let columns = outputs.map_or_else(|| Columns::Any(Sources::unknown()), Columns::Made);
                Item { called: None, columns }.under(alias.as_ref())
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                let joined = self.join(table_with_joins);
                if alias.is_none() {
                    return joined;
                }
                let columns = joined.wild.map_or_else(|| Columns::Any(Sources::unknown()), Columns::Made);
                Item { called: None, columns }.under(alias.as_ref())
            }
            TableFactor::UNNEST { alias, array_exprs, .. } => {
                let mut sources = Sources::default();
                array_exprs.iter().for_each(|expr| sources.add(&self.sources(expr)));
                self.compare(&sources);
                Item { called: alias.as_ref().map(|alias| alias.name.value.clone()), columns: Columns::Any(sources) }
            }
            _ => Item { called: None, columns: Columns::Any(Sources::unknown()) },
        };
        let mut scope = Scope::default();
        scope.push(item);
        scope
    }

    /// A table, a view, or a CTE.
    fn named(&self, name: &ObjectName) -> Item {
        let Some(name) = Name::of(name) else {
            return Item { called: None, columns: Columns::Any(Sources::unknown()) };
        };
        let cte = self.ctes.iter().rev().find(|(cte, _)| name.schema.is_none() && *cte == name.name);
        match cte {
            Some((_, Some(outputs))) => Item { called: Some(name.name), columns: Columns::Made(outputs.clone()) },
            Some((_, None)) => Item::any(&name.name, Sources::unknown()),
            None => self.relation(&name),
        }
    }

    fn call(&mut self, name: &ObjectName, args: &[sqlparser::ast::FunctionArg], alias: Option<&TableAlias>) -> Item {
        let mut sources = Sources::default();
        args.iter().for_each(|arg| sources.add(&self.sources_in(arg)));
        sources.unknown |= args.iter().any(super::expression::is_wild);
        // How many rows there are follows from them.
        self.compare(&sources);
        if self.carries_away(name) {
            self.store(None, sources.clone());
        }
        sources.unknown |= !self.is_pure(name);
        let called = alias.map(|alias| alias.name.value.clone()).or_else(|| super::last(name));
        Item { called, columns: Columns::Any(sources) }
    }

    // --- names

    /// What a name derives from.
    pub(super) fn name(&self, idents: &[&Ident]) -> Sources {
        match idents {
            [column] => self.bare(&column.value),
            [.., relation, column] => {
                for scope in self.scopes.iter().rev() {
                    let Some(item) = scope.called(&relation.value) else { continue };
                    return match item.find(&column.value) {
                        Found::Surely(sources) | Found::Perhaps(sources) => sources,
                        // A function of the row, in PostgreSQL's other notation.
                        Found::No => item.row().and(&Sources::unknown()),
                    };
                }
                // A field of a column of a composite type, perhaps.
                self.bare(&relation.value).and(&Sources::unknown())
            }
            [] => Sources::unknown(),
        }
    }

    fn bare(&self, name: &str) -> Sources {
        let mut perhaps: Option<Sources> = None;
        for scope in self.scopes.iter().rev() {
            match scope.find(name) {
                Found::Surely(sources) => return sources.and(&perhaps.unwrap_or_default()),
                Found::Perhaps(sources) => perhaps.get_or_insert_default().add(&sources),
                Found::No => {}
            }
            // A whole row, unless there is a column of this name further out.
            if let Some(item) = scope.called(name) {
                perhaps.get_or_insert_default().add(&item.row());
            }
        }
        perhaps.unwrap_or_else(Sources::unknown)
    }

    /// Whether a name surely is one column as it is stored, and no more.
    pub(super) fn is_column(&self, idents: &[&Ident]) -> bool {
        let Some(scope) = self.scopes.last() else { return false };
        match idents {
            [column] => {
                let mut having = scope.items.iter().filter(|item| !matches!(item.find(&column.value), Found::No));
                having.next().is_some_and(|item| item.is_plain(&column.value)) && having.next().is_none()
            }
            [relation, column] => scope.called(&relation.value).is_some_and(|item| item.is_plain(&column.value)),
            _ => false,
        }
    }

    /// What `name.*` stands for.
    pub(super) fn all_of(&self, name: &ObjectName) -> Outputs {
        let last = super::last(name)?;
        self.scopes.iter().rev().find_map(|scope| scope.called(&last))?.outputs()
    }

    /// The whole row of `name.*`, as a value.
    pub(super) fn row_of(&self, name: &ObjectName) -> Sources {
        let last = name.0.last().and_then(ObjectNamePart::as_ident);
        let item = last.and_then(|last| self.scopes.iter().rev().find_map(|scope| scope.called(&last.value)));
        item.map_or_else(Sources::unknown, Item::row)
    }

    /// Everything in sight.
    pub(super) fn everything(&self) -> Sources {
        let mut sources = Sources::default();
        let items = self.scopes.iter().flat_map(|scope| &scope.items);
        items.for_each(|item| sources.add(&item.row()));
        sources
    }
}

impl Item {
    /// Whether it has one column of this name, and that is stored as it is.
    fn is_plain(&self, column: &str) -> bool {
        match &self.columns {
            Columns::Stored { names, .. } => names.iter().any(|name| **name == *column),
            Columns::Made(outputs) => {
                let mut named = outputs.iter().filter(|output| output.name.as_deref() == Some(column));
                named.next().is_some_and(|output| output.plain) && named.next().is_none()
            }
            Columns::Any(_) => false,
        }
    }
}

fn of_column(schema: &Arc<str>, relation: &Arc<str>, name: &Arc<str>) -> Sources {
    Sources::of([column_of(schema, relation, name)])
}

fn column_of(schema: &Arc<str>, relation: &Arc<str>, name: &Arc<str>) -> Column {
    Column { schema: Arc::clone(schema), relation: Arc::clone(relation), name: Arc::clone(name) }
}

/// Names that both sides have.
fn common(left: &[Output], right: &[Output]) -> Vec<String> {
    let has = |name: &str| right.iter().any(|output| output.name.as_deref() == Some(name));
    left.iter().filter_map(|output| output.name.as_deref()).filter(|name| has(name)).map(str::to_owned).collect()
}

/// What `*` stands for after JOIN USING: the shared columns once and first.
fn merged(shared: &[String], left: Vec<Output>, right: Vec<Output>) -> Vec<Output> {
    let is_shared = |output: &Output| output.name.as_deref().is_some_and(|name| shared.iter().any(|s| s == name));
    let mut all: Vec<Output> = shared
        .iter()
        .map(|name| {
            let mut sources = Sources::default();
            let same = |output: &&Output| output.name.as_deref() == Some(name);
            left.iter().chain(&right).filter(same).for_each(|output| sources.add(&output.sources));
            Output { name: Some(name.as_str().into()), sources, plain: false }
        })
        .collect();
    all.extend(left.into_iter().chain(right).filter(|output| !is_shared(output)));
    all
}

/// Whether an expression is one name.
pub(super) fn as_name(expr: &Expr) -> Option<Vec<&Ident>> {
    match expr {
        Expr::Identifier(ident) => Some(vec![ident]),
        Expr::CompoundIdentifier(idents) => Some(idents.iter().collect()),
        Expr::Nested(inner) => as_name(inner),
        _ => None,
    }
}
