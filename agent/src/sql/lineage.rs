//! Where the values of a statement come from: which columns of which relations each output derives from, which ones
//! decide what comes back (conditions, orders, groups), and which are stored elsewhere.
//!
//! Names are looked up as PostgreSQL does (scopes, CTEs, aliases, LATERAL). Whatever is not certain is `unknown`, so the
//! failure mode is a mask or a refusal too much. Only statements that were understood as a whole have a lineage.

mod change;
mod expression;
mod scope;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use smallvec::SmallVec;
use sqlparser::ast::{
    Cte, Distinct, Expr, GroupByExpr, LimitClause, ObjectName, OrderByExpr, OrderByKind, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, SetOperator, SetQuantifier, Statement, Value, Values,
};

use self::scope::Scope;
use super::statement::Names;

/// Steps of looking, for one statement: recursive CTEs in one another could ask for any number.
const FUEL: usize = 200_000;
/// How often a recursive CTE is read anew until nothing more comes in.
const ROUNDS: usize = 20;

/// A column of a relation that is stored, or of a view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column {
    /// Schema.
    pub schema: Arc<str>,
    /// Table or view.
    pub relation: Arc<str>,
    /// Column.
    pub name: Arc<str>,
}

/// What a value derives from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// These columns, in order, each once.
    columns: SmallVec<[Column; 1]>,
    /// And perhaps others.
    pub unknown: bool,
}

impl Sources {
    fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }

    fn of(columns: impl IntoIterator<Item = Column>) -> Self {
        let mut columns: SmallVec<[Column; 1]> = columns.into_iter().collect();
        columns.sort();
        columns.dedup();
        Self { columns, unknown: false }
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn add(&mut self, other: &Self) {
        self.unknown |= other.unknown;
        match &other.columns[..] {
            [] => {}
            all if self.columns.is_empty() => self.columns.extend(all.iter().cloned()),
            [one] => {
                if let Err(at) = self.columns.binary_search(one) {
                    self.columns.insert(at, one.clone());
                }
            }
            more => {
                self.columns.extend(more.iter().cloned());
                // Two sequences in order: this merges them.
                self.columns.sort();
                self.columns.dedup();
            }
        }
    }

    fn and(mut self, other: &Self) -> Self {
        self.add(other);
        self
    }
}

/// A column of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its name, where a name was given or it is a column's; the server makes the others up.
    pub name: Option<Arc<str>>,
    /// What it derives from.
    pub sources: Sources,
    /// It is that column, as it is.
    pub plain: bool,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Columns of the result in order; `None` where they cannot be told.
    pub outputs: Option<Vec<Output>>,
    /// What decides which rows there are, in which order, or how many. Equality with a parameter is left out.
    pub compared: Sources,
    /// What is stored, and in which column; `None` if that is new or not known.
    pub stored: Vec<(Option<Column>, Sources)>,
}

impl Default for Lineage {
    /// Of what nothing is known.
    fn default() -> Self {
        Self { outputs: None, compared: Sources::unknown(), stored: Vec::new() }
    }
}

impl Lineage {
    /// Of what returns and reads nothing.
    pub fn nothing() -> Self {
        Self { outputs: Some(Vec::new()), compared: Sources::default(), stored: Vec::new() }
    }

    /// What these outputs derive from is stored, in columns that are new.
    pub(super) fn store_new(&mut self, outputs: Option<Vec<Output>>) {
        match outputs {
            Some(outputs) => {
                let telling = |output: &Output| output.sources != Sources::default();
                self.stored.extend(outputs.into_iter().filter(telling).map(|output| (None, output.sources)));
            }
            None => self.stored.push((None, Sources::unknown())),
        }
    }
}

/// Outputs, if they can be told.
type Outputs = Option<Vec<Output>>;

/// The lineage of a SELECT, INSERT, UPDATE, DELETE or MERGE.
pub(super) fn of(statement: &Statement, names: &dyn Names) -> Lineage {
    let mut look = Look {
        names,
        scopes: Vec::new(),
        ctes: Vec::new(),
        compared: Sources::default(),
        stored: Vec::new(),
        fuel: FUEL,
    };
    let outputs = look.statement(statement);
    if look.fuel == 0 {
        return Lineage::default();
    }
    Lineage { outputs, compared: look.compared, stored: look.stored }
}

struct Look<'a> {
    names: &'a dyn Names,
    /// Innermost last.
    scopes: Vec<Scope>,
    /// In sight, innermost last.
    ctes: Vec<(String, Outputs)>,
    compared: Sources,
    stored: Vec<(Option<Column>, Sources)>,
    fuel: usize,
}

impl Look<'_> {
    /// Whether to go on.
    fn burn(&mut self) -> bool {
        self.fuel = self.fuel.saturating_sub(1);
        self.fuel > 0
    }

    fn compare(&mut self, sources: &Sources) {
        self.compared.add(sources);
    }

    fn compare_all(&mut self, outputs: Option<&[Output]>) {
        match outputs {
            Some(outputs) => outputs.iter().for_each(|output| self.compared.add(&output.sources)),
            None => self.compared.unknown = true,
        }
    }

    fn statement(&mut self, statement: &Statement) -> Outputs {
        if !self.burn() {
            return None;
        }
        match statement {
            Statement::Query(query) => self.query(query),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            Statement::Merge(merge) => self.merge(merge),
            _ => {
                self.compared.unknown = true;
                None
            }
        }
    }

    // --- queries

    fn query(&mut self, query: &Query) -> Outputs {
        if !self.burn() {
            return None;
        }
        let outer = self.ctes.len();
        if let Some(with) = &query.with {
            if with.recursive {
                // Each may name each: what is not read yet is not known.
                self.ctes.extend(with.cte_tables.iter().map(|cte| (cte.alias.name.value.clone(), None)));
            }
            for (at, cte) in with.cte_tables.iter().enumerate() {
                if with.recursive {
                    self.recursive(outer + at, cte);
                } else {
                    let outputs = self.query(&cte.query);
                    self.ctes.push((cte.alias.name.value.clone(), renamed(outputs, cte)));
                }
            }
        }
        let order = match query.order_by.as_ref().map(|order| &order.kind) {
            None => &[][..],
            Some(OrderByKind::Expressions(order)) => order,
            Some(OrderByKind::All(_)) => {
                self.compared.unknown = true;
                &[]
            }
        };
        let outputs = match &*query.body {
            SetExpr::Select(select) => self.select(select, order),
            body => {
                let outputs = self.body(body);
                for order in order {
                    let compared = of_output(&order.expr, outputs.as_deref());
                    self.compare(&compared.unwrap_or_else(Sources::unknown));
                }
                outputs
            }
        };
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
            for expr in limit.iter().chain(offset.iter().map(|offset| &offset.value)) {
                let sources = self.sources(expr);
                self.compare(&sources);
            }
        }
        if let Some(quantity) = query.fetch.as_ref().and_then(|fetch| fetch.quantity.as_ref()) {
            let sources = self.sources(quantity);
            self.compare(&sources);
        }
        self.ctes.truncate(outer);
        outputs
    }

    /// Reads a recursive CTE until nothing new comes in.
    fn recursive(&mut self, at: usize, cte: &Cte) {
        // The first arm alone tells how many columns there are.
        let mut known = match &*cte.query.body {
            SetExpr::SetOperation { left, .. } if cte.query.with.is_none() => self.body(left),
            _ => self.query(&cte.query),
        };
        known = renamed(known, cte);
        for _ in 0..ROUNDS {
            self.ctes[at].1.clone_from(&known);
            let next = renamed(self.query(&cte.query), cte);
            if next == known {
                return;
            }
            known = next;
        }
        self.ctes[at].1 = None;
    }

    fn body(&mut self, body: &SetExpr) -> Outputs {
        if !self.burn() {
            return None;
        }
        match body {
            SetExpr::Select(select) => self.select(select, &[]),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { op, set_quantifier, left, right } => {
                let (left, right) = (self.body(left), self.body(right));
                if !matches!((op, set_quantifier), (SetOperator::Union, SetQuantifier::All)) {
                    self.compare_all(left.as_deref());
                    self.compare_all(right.as_deref());
                }
                let (left, right) = (left?, right?);
                let both = |(left, right): (Output, Output)| Output {
                    name: left.name,
                    sources: left.sources.and(&right.sources),
                    plain: false,
                };
                (left.len() == right.len()).then(|| left.into_iter().zip(right).map(both).collect())
            }
            SetExpr::Values(values) => self.values(values),
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => self.statement(statement),
            SetExpr::Table(_) => None,
        }
    }

    fn values(&mut self, values: &Values) -> Outputs {
        let mut outputs: Vec<Output> = Vec::new();
        for row in &values.rows {
            for (at, value) in row.content.iter().enumerate() {
                let sources = self.sources(value);
                if outputs.len() <= at {
                    // The names that the server gives them.
                    let name = Some(format!("column{}", at + 1).into());
                    outputs.push(Output { name, ..Output::default() });
                }
                outputs[at].sources.add(&sources);
            }
        }
        Some(outputs)
    }

    fn select(&mut self, select: &Select, order: &[OrderByExpr]) -> Outputs {
        self.scopes.push(Scope::default());
        for from in &select.from {
            let joined = self.join(from);
            self.scope().extend(joined);
        }
        if let Some(condition) = &select.selection {
            self.condition(condition);
        }
        let mut windows = Sources::default();
        for window in &select.named_window {
            windows.add(&self.sources_in(window));
        }
        self.compare(&windows);
        let mut outputs = self.items(&select.projection);
        if !select.named_window.is_empty() {
            for output in outputs.iter_mut().flatten().filter(|output| !output.plain) {
                output.sources.add(&windows);
            }
        }
        if let Some(having) = &select.having {
            let sources = self.sources(having);
            self.compare(&sources);
        }
        match &select.group_by {
            GroupByExpr::Expressions(groups, _) => {
                groups.iter().for_each(|group| self.compare_with_outputs(group, outputs.as_deref()));
            }
            GroupByExpr::All(_) => self.compared.unknown = true,
        }
        match &select.distinct {
            None | Some(Distinct::All) => {}
            Some(Distinct::Distinct) => self.compare_all(outputs.as_deref()),
            Some(Distinct::On(on)) => on.iter().for_each(|expr| self.compare_with_outputs(expr, outputs.as_deref())),
        }
        order.iter().for_each(|order| self.compare_with_outputs(&order.expr, outputs.as_deref()));
        self.scopes.pop();
        outputs
    }

    /// An expression that may mean an output, by number or by name, or be one of its own.
    fn compare_with_outputs(&mut self, expr: &Expr, outputs: Option<&[Output]>) {
        let number = matches!(expr, Expr::Value(value) if matches!(value.value, Value::Number(..)));
        let mut compared = of_output(expr, outputs).unwrap_or_default();
        if number && outputs.is_none() {
            compared.unknown = true;
        }
        let mut own = self.sources(expr);
        // A name may be an output's alone, and then is no column.
        own.unknown &= !is_output(expr, outputs);
        compared.add(&own);
        self.compare(&compared);
    }

    fn items(&mut self, items: &[SelectItem]) -> Outputs {
        let mut outputs = Some(Vec::new());
        let mut push = |more: Outputs| match (&mut outputs, more) {
            (Some(outputs), Some(more)) => outputs.extend(more),
            _ => outputs = None,
        };
        for item in items {
            push(match item {
                SelectItem::UnnamedExpr(expr) => Some(vec![self.output(expr, None)]),
                SelectItem::ExprWithAlias { expr, alias } => Some(vec![self.output(expr, Some(&alias.value))]),
                SelectItem::Wildcard(_) => self.scope().wild.clone(),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    self.all_of(name)
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::Expr(_), _)
                | SelectItem::ExprWithAliases { .. } => None,
            });
        }
        outputs
    }

    fn output(&mut self, expr: &Expr, alias: Option<&str>) -> Output {
        let (plain, own) = match expr {
            Expr::Identifier(ident) => (self.is_column(&[ident]), Some(&ident.value)),
            Expr::CompoundIdentifier(idents) => {
                (self.is_column(&idents.iter().collect::<Vec<_>>()), idents.last().map(|ident| &ident.value))
            }
            _ => (false, None),
        };
        let name = alias.map_or_else(|| own.map(|own| own.as_str().into()), |alias| Some(alias.into()));
        Output { name, sources: self.sources(expr), plain }
    }
}

/// Columns as an alias names them.
fn renamed(outputs: Outputs, cte: &Cte) -> Outputs {
    let mut outputs = outputs?;
    for (output, column) in outputs.iter_mut().zip(&cte.alias.columns) {
        output.name = Some(column.name.value.as_str().into());
    }
    Some(outputs)
}

/// The output that an expression of ORDER BY or GROUP BY may mean.
fn of_output(expr: &Expr, outputs: Option<&[Output]>) -> Option<Sources> {
    let outputs = outputs?;
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => {
                let at: usize = number.parse().ok()?;
                outputs.get(at.checked_sub(1)?).map(|output| output.sources.clone())
            }
            _ => Some(Sources::default()),
        },
        Expr::Identifier(ident) => {
            let mut sources = Sources::default();
            let meant = |output: &&Output| output.name.as_deref().is_none_or(|name| name == ident.value);
            outputs.iter().filter(meant).for_each(|output| sources.add(&output.sources));
            Some(sources)
        }
        _ => None,
    }
}

fn is_output(expr: &Expr, outputs: Option<&[Output]>) -> bool {
    let Expr::Identifier(ident) = expr else { return false };
    outputs.is_some_and(|outputs| outputs.iter().any(|output| output.name.as_deref().is_none_or(|n| n == ident.value)))
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last()?.as_ident().map(|ident| ident.value.clone())
}
