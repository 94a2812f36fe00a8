//! From the parser's tree of a SELECT, INSERT, UPDATE, DELETE or MERGE to parts.
//!
//! The derived visitor reaches every node; what is decided here is which nodes and fields are known. Anything else adds
//! `unknown`. Two checks against the tokens make up for a parser that reads a construct as another: every `name(` must
//! have been met as a call or be known syntax, and every data-changing keyword must have been met as a statement.
//!
//! Long because it holds one visitor over every kind of expression and query: split, no place would show that all are handled.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use sqlparser::ast::{
    AccessExpr, ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Delete, Expr, FromTable, Function, FunctionArg,
    FunctionArgExpr, FunctionArgumentClause, FunctionArguments, GroupByExpr, Ident, Insert, JoinConstraint,
    JoinOperator, LimitClause, Merge, MergeAction, ObjectName, OnConflictAction, OnInsert, OrderByKind, Query, Select,
    SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Statement, TableAlias, TableFactor, TableObject,
    TableWithJoins, Update, UpdateTableFromKind, Value, Visit, Visitor, WildcardAdditionalOptions,
};

use super::{
    bridge,
    build::{Builder, Name},
    condition,
    lexer::{Lexeme, Token},
    lineage,
    scan::{constants, operators},
    setting::{SettingRule, setting_rule},
    statement::StatementKind,
    words,
};
use crate::action::Verb;

/// Adds the parts of a parsed statement.
pub(super) fn walk(statement: &Statement, tokens: &[Token], build: &mut Builder<'_>) {
    let mut walk = Walk {
        build: &mut *build,
        outermost: outermost_select(statement),
        scopes: Vec::new(),
        ctes: HashMap::new(),
        accounted: HashSet::new(),
        values: Vec::new(),
        relations: HashSet::new(),
        selects: 0,
        locks: false,
        changes: Vec::new(),
    };
    let _ = statement.visit(&mut walk);
    walk.finish(statement, tokens);
    build.lineage = Some(lineage::of(statement, build.names));
}

struct Walk<'w, 'a> {
    build: &'w mut Builder<'a>,
    /// The select whose items are the statement's output.
    outermost: Option<*const Select>,
    /// Names of the CTEs in sight, innermost last.
    scopes: Vec<Vec<String>>,
    /// Queries of CTEs that come into sight once read.
    ctes: HashMap<*const Query, String>,
    /// Relation names that were given their verb already.
    accounted: HashSet<*const ObjectName>,
    /// Identifiers used as values.
    values: Vec<String>,
    /// Names and aliases of everything in FROM.
    relations: HashSet<String>,
    selects: usize,
    /// Whether any query locks rows.
    locks: bool,
    /// For each changing statement: its keyword and whether a condition bounds it.
    changes: Vec<(&'static str, bool)>,
}

fn outermost_select(statement: &Statement) -> Option<*const Select> {
    match statement {
        Statement::Query(query) => match &*query.body {
            SetExpr::Select(select) => Some(std::ptr::from_ref(&**select)),
            _ => None,
        },
        _ => None,
    }
}

impl Visitor for Walk<'_, '_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => {}
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            Statement::Merge(merge) => self.merge(merge),
            _ => self.build.unknown("statement"),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let mut scope = Vec::new();
        if let Some(with) = &query.with {
            for cte in &with.cte_tables {
                if cte.from.is_some() {
                    self.build.unknown("cte");
                }
                self.alias(Some(&cte.alias));
                if with.recursive {
                    scope.push(cte.alias.name.value.clone());
                } else {
                    self.ctes.insert(std::ptr::from_ref(&*cte.query), cte.alias.name.value.clone());
                }
            }
        }
        self.scopes.push(scope);
        self.locks |= !query.locks.is_empty();
        let limit_known = match &query.limit_clause {
            None => true,
            Some(LimitClause::LimitOffset { limit_by, .. }) => limit_by.is_empty(),
            Some(LimitClause::OffsetCommaLimit { .. }) => false,
        };
        if !limit_known
            || query.settings.is_some()
            || query.format_clause.is_some()
            || query.for_clause.is_some()
            || !query.pipe_operators.is_empty()
            || query.order_by.as_ref().is_some_and(|o| o.interpolate.is_some() || matches!(o.kind, OrderByKind::All(_)))
        {
            self.build.unknown("query");
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let mut stack = vec![&*query.body];
        while let Some(body) = stack.pop() {
            match body {
                SetExpr::SetOperation { left, right, .. } => {
                    self.build.mentions.renames_columns = true;
                    stack.push(left);
                    stack.push(right);
                }
                // The bridge writes TABLE t as a SELECT.
                SetExpr::Table(_) => self.build.unknown("table"),
                SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => {}
                SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {}
            }
        }
        self.scopes.pop();
        if let Some(name) = self.ctes.remove(&std::ptr::from_ref(query))
            && let Some(scope) = self.scopes.last_mut()
        {
            scope.push(name);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.selects += 1;
        let group_known = match &select.group_by {
            GroupByExpr::All(_) => false,
            GroupByExpr::Expressions(_, modifiers) => modifiers.is_empty(),
        };
        if !group_known
            || !select.optimizer_hints.is_empty()
            || select.select_modifiers.is_some()
            || select.top.is_some()
            || select.exclude.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.sort_by.is_empty()
            || select.qualify.is_some()
            || select.value_table_mode.is_some()
            || select.flavor != sqlparser::ast::SelectFlavor::Standard
        {
            self.build.unknown("select");
        }
        self.joins(&select.from);
        self.items(&select.projection, self.outermost == Some(std::ptr::from_ref(select)));
        if let Some(into) = &select.into {
            let target = match into.targets.as_slice() {
                [Expr::Identifier(ident)] => Name::of_idents(&[ident]),
                [Expr::CompoundIdentifier(idents)] => Name::of_idents(&idents.iter().collect::<Vec<_>>()),
                _ => None,
            };
            match target {
                Some(name) => self.build.creation(&name, into.temporary),
                None => self.build.unknown("into"),
            }
            self.build.kind = StatementKind::Utility;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if !self.accounted.contains(&std::ptr::from_ref(relation)) {
            match Name::of(relation) {
                Some(name) => self.read(&name),
                None => self.build.unknown("name"),
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                let strange = !with_hints.is_empty()
                    || version.is_some()
                    || !partitions.is_empty()
                    || json_path.is_some()
                    || sample.is_some()
                    || !index_hints.is_empty();
                if strange {
                    self.build.unknown("from");
                }
                self.alias(alias.as_ref());
                if let Some(last) = Name::of(name) {
                    self.relations.insert(last.name.clone());
                    if let Some(args) = args {
                        if args.settings.is_some() {
                            self.build.unknown("from");
                        }
                        self.accounted.insert(std::ptr::from_ref(name));
                        self.call(&last, &args.args);
                    }
                }
            }
            TableFactor::Derived { alias, sample, .. } => {
                if sample.is_some() {
                    self.build.unknown("from");
                }
                self.alias(alias.as_ref());
            }
            TableFactor::Function { name, args, alias, .. } => {
                self.alias(alias.as_ref());
                match Name::of(name) {
                    Some(name) => {
                        self.relations.insert(name.name.clone());
                        self.call(&name, args);
                    }
                    None => self.build.unknown("name"),
                }
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                self.alias(alias.as_ref());
                self.joins(std::slice::from_ref(&**table_with_joins));
            }
            _ => self.build.unknown("from"),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(ident) => self.values.push(ident.value.clone()),
            Expr::CompoundIdentifier(idents) => {
                // `schema.relation` as a value; a column's name alone tells nothing.
                if let Some(last) = idents.last() {
                    self.values.push(last.value.clone());
                    self.build.attribute(&last.value);
                }
            }
            Expr::Function(function) => self.function(function),
            Expr::Cast { kind, format, data_type, .. } => {
                self.data_type(data_type);
                if !matches!(kind, CastKind::Cast | CastKind::DoubleColon) || format.is_some() {
                    self.build.unknown("cast");
                }
            }
            Expr::BinaryOp { op, .. } => self.operator(op),
            Expr::AnyOp { compare_op, .. } | Expr::AllOp { compare_op, .. } => self.operator(compare_op),
            Expr::TypedString(typed) => {
                self.data_type(&typed.data_type);
                if typed.uses_odbc_syntax {
                    self.build.unknown("constant");
                }
            }
            Expr::CompoundFieldAccess { access_chain, .. } => self.fields(access_chain),
            Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::IsNormalized { .. }
            | Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::ILike { .. }
            | Expr::SimilarTo { .. }
            | Expr::UnaryOp { .. }
            | Expr::AtTimeZone { .. }
            | Expr::Extract { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
            | Expr::Position { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Overlay { .. }
            | Expr::Nested(_)
            | Expr::Value(_)
            | Expr::Case { .. }
            | Expr::Exists { .. }
            | Expr::Subquery(_)
            | Expr::GroupingSets(_)
            | Expr::Cube(_)
            | Expr::Rollup(_)
            | Expr::Tuple(_)
            | Expr::Array(_)
            | Expr::Interval(_) => {}
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => self.build.mentions.nested_wildcard = true,
            _ => self.build.unknown("expression"),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_ident(&mut self, ident: &Ident) -> ControlFlow<()> {
        // The parser took for a name what PostgreSQL takes for syntax: the two trees differ.
        if ident.quote_style.is_none()
            && words::reserved(&ident.value)
            && !words::grammar_call(&ident.value)
            && !matches!(ident.value.as_str(), "default" | "array")
        {
            self.build.unknown("reserved word as a name");
        }
        // Another product's name of a file, which swallows what follows it.
        if ident.quote_style.is_none() && ident.value.starts_with('@') {
            self.build.unknown("stage");
        }
        ControlFlow::Continue(())
    }
}

impl Walk<'_, '_> {
    fn read(&mut self, name: &Name) {
        self.relations.insert(name.name.clone());
        let cte = name.schema.is_none() && self.scopes.iter().any(|scope| scope.contains(&name.name));
        if !cte {
            self.build.relation(Verb::Read, name);
        }
    }

    fn alias(&mut self, alias: Option<&TableAlias>) {
        if let Some(alias) = alias {
            self.relations.insert(alias.name.value.clone());
            if !alias.columns.is_empty() {
                self.build.mentions.renames_columns = true;
            }
            // What a function of records gives is converted to these.
            alias.columns.iter().filter_map(|column| column.data_type.as_ref()).for_each(|t| self.data_type(t));
            if alias.at.is_some() {
                self.build.unknown("alias");
            }
        }
    }

    fn joins(&mut self, from: &[TableWithJoins]) {
        for join in from.iter().flat_map(|f| &f.joins) {
            let constraint = match &join.join_operator {
                JoinOperator::Join(c)
                | JoinOperator::Inner(c)
                | JoinOperator::Left(c)
                | JoinOperator::LeftOuter(c)
                | JoinOperator::Right(c)
                | JoinOperator::RightOuter(c)
                | JoinOperator::FullOuter(c)
                | JoinOperator::CrossJoin(c) => c,
                _ => {
                    self.build.unknown("join");
                    continue;
                }
            };
            if join.global {
                self.build.unknown("join");
            }
            if matches!(constraint, JoinConstraint::Natural) {
                self.build.mentions.renames_columns = true;
            }
        }
    }

    fn items(&mut self, items: &[SelectItem], output: bool) {
        for item in items {
            let options = match item {
                SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. } => continue,
                SelectItem::ExprWithAliases { .. } => {
                    self.build.unknown("select");
                    continue;
                }
                SelectItem::QualifiedWildcard(kind, options) => {
                    if matches!(kind, SelectItemQualifiedWildcardKind::Expr(_)) {
                        self.build.mentions.whole_row = true;
                    }
                    options
                }
                SelectItem::Wildcard(options) => options,
            };
            let WildcardAdditionalOptions {
                wildcard_token: _,
                opt_ilike,
                opt_exclude,
                opt_except,
                opt_replace,
                opt_rename,
                opt_alias,
            } = options;
            let strange = opt_ilike.is_some()
                || opt_exclude.is_some()
                || opt_except.is_some()
                || opt_replace.is_some()
                || opt_rename.is_some()
                || opt_alias.is_some();
            if strange {
                self.build.unknown("select");
            }
            if !output {
                self.build.mentions.nested_wildcard = true;
            }
        }
    }

    /// `(x).name`: a field, or a function of it.
    fn fields(&mut self, chain: &[AccessExpr]) {
        for access in chain {
            match access {
                AccessExpr::Dot(Expr::Identifier(field)) => self.build.attribute(&field.value),
                AccessExpr::Dot(Expr::Wildcard(_)) | AccessExpr::Subscript(_) => {}
                AccessExpr::Dot(_) => self.build.unknown("field"),
            }
        }
    }

    fn data_type(&mut self, data_type: &DataType) {
        match data_type {
            DataType::Custom(name, _) => match Name::of(name) {
                Some(name) => self.build.conversion(&name),
                None => self.build.unknown("name"),
            },
            DataType::Array(ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::Qualified(element, _)) => {
                self.data_type(element)
            }
            // Names that are looked up like any other; the rest are the grammar's.
            DataType::Text
            | DataType::Date
            | DataType::JSON
            | DataType::JSONB
            | DataType::Uuid
            | DataType::Bytea
            | DataType::Regclass
            | DataType::TsVector
            | DataType::TsQuery
            | DataType::GeometricType(_) => {
                let name = data_type.to_string().to_ascii_lowercase();
                self.build.conversion(&Name { schema: None, name, bare: true });
            }
            DataType::Array(_)
            | DataType::Struct(..)
            | DataType::Map(..)
            | DataType::Tuple(_)
            | DataType::Nested(_)
            | DataType::Union(_)
            | DataType::Nullable(_)
            | DataType::LowCardinality(_)
            | DataType::Enum(..)
            | DataType::Set(_)
            | DataType::Table(_)
            | DataType::NamedTable { .. } => self.build.unknown("type"),
            _ => {}
        }
    }

    fn operator(&mut self, op: &BinaryOperator) {
        if matches!(
            op,
            BinaryOperator::PGCustomBinaryOperator(_)
                | BinaryOperator::DuckIntegerDivide
                | BinaryOperator::MyIntegerDivide
                | BinaryOperator::Match
                | BinaryOperator::Regexp
                | BinaryOperator::Glob
                | BinaryOperator::Xor
                | BinaryOperator::Assignment
        ) {
            self.build.unknown("operator");
        }
    }

    fn function(&mut self, function: &Function) {
        let Function { name, uses_odbc_syntax, parameters, args, within_group: _, filter: _, null_treatment, over: _ } =
            function;
        if *uses_odbc_syntax || *parameters != FunctionArguments::None || null_treatment.is_some() {
            self.build.unknown("function");
        }
        let Some(name) = Name::of(name) else {
            self.build.unknown("name");
            return;
        };
        // ARRAY(SELECT ...) comes as a call; the word is reserved, so it names no function.
        if name.bare && name.name == "array" {
            if !matches!(args, FunctionArguments::Subquery(_)) {
                self.build.unknown("function");
            }
            return;
        }
        let list = match args {
            FunctionArguments::None | FunctionArguments::Subquery(_) => &[][..],
            FunctionArguments::List(list) => {
                if list.clauses.iter().any(|c| !matches!(c, FunctionArgumentClause::OrderBy(_))) {
                    self.build.unknown("function");
                }
                &list.args
            }
        };
        self.call(&name, list);
    }

    fn call(&mut self, name: &Name, args: &[FunctionArg]) {
        for arg in args {
            let arg = match arg {
                FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg) => arg,
            };
            match arg {
                FunctionArgExpr::Expr(_) => {}
                FunctionArgExpr::Wildcard if name.name == "count" => {}
                FunctionArgExpr::Wildcard | FunctionArgExpr::QualifiedWildcard(_) => {
                    self.build.mentions.nested_wildcard = true;
                }
                FunctionArgExpr::WildcardWithOptions(_) => self.build.unknown("function"),
            }
        }
        if name.name == "set_config"
            && self.build.names.function_schema(name.schema.as_deref(), &name.name).as_deref() == Some("pg_catalog")
            && let Some(setting) = harmless_setting(args)
        {
            self.build.calls.insert(name.name.clone());
            self.build.facts.functions.push("pg_catalog.set_config".to_owned());
            self.build.part(Verb::Session, super::build::named("setting", &setting));
            return;
        }
        self.build.call(name);
    }

    fn insert(&mut self, insert: &Insert) {
        let strange = insert.or.is_some()
            || insert.ignore
            || !insert.into
            || insert.overwrite
            || !insert.optimizer_hints.is_empty()
            || !insert.assignments.is_empty()
            || insert.partitioned.is_some()
            || !insert.after_columns.is_empty()
            || insert.has_table_keyword
            || insert.output.is_some()
            || insert.replace_into
            || insert.priority.is_some()
            || insert.insert_alias.is_some()
            || insert.settings.is_some()
            || insert.format_clause.is_some()
            || insert.multi_table_insert_type.is_some()
            || !insert.multi_table_into_clauses.is_empty()
            || !insert.multi_table_when_clauses.is_empty()
            || insert.multi_table_else_clause.is_some();
        let TableObject::TableName(table) = &insert.table else { return self.build.unknown("insert") };
        let Some(name) = Name::of(table) else { return self.build.unknown("name") };
        if strange {
            self.build.unknown("insert");
        }
        self.target(table, &name, Verb::Write);
        if let Some(alias) = &insert.table_alias {
            self.relations.insert(alias.alias.value.clone());
        }
        match &insert.on {
            None => {}
            Some(OnInsert::OnConflict(conflict)) => match &conflict.action {
                OnConflictAction::DoNothing => {}
                OnConflictAction::DoUpdate(_) => self.build.relation(Verb::Read, &name),
            },
            Some(_) => self.build.unknown("insert"),
        }
        self.returning(insert.returning.as_deref(), &name);
        self.changes.push(("insert", true));
    }

    fn update(&mut self, update: &Update) {
        let strange = update.or.is_some()
            || !update.optimizer_hints.is_empty()
            || !update.order_by.is_empty()
            || update.limit.is_some()
            || update.output.is_some()
            || !update.table.joins.is_empty()
            || matches!(update.from, Some(UpdateTableFromKind::BeforeSet(_)));
        if strange {
            self.build.unknown("update");
        }
        if let Some(UpdateTableFromKind::AfterSet(from)) = &update.from {
            self.joins(from);
        }
        let bounded = update.selection.as_ref().is_some_and(condition::bounds);
        self.changes.push(("update", bounded));
        self.change(&update.table.relation, Verb::Write, update.returning.as_deref());
    }

    fn delete(&mut self, delete: &Delete) {
        let strange = !delete.tables.is_empty()
            || !delete.optimizer_hints.is_empty()
            || !delete.order_by.is_empty()
            || delete.limit.is_some()
            || delete.output.is_some();
        if strange {
            self.build.unknown("delete");
        }
        if let Some(using) = &delete.using {
            self.joins(using);
        }
        let bounded = delete.selection.as_ref().is_some_and(condition::bounds);
        self.changes.push(("delete", bounded));
        match &delete.from {
            FromTable::WithFromKeyword(tables) => match tables.as_slice() {
                [table] if table.joins.is_empty() => {
                    self.change(&table.relation, Verb::Delete, delete.returning.as_deref());
                }
                _ => self.build.unknown("delete"),
            },
            FromTable::WithoutKeyword(_) => self.build.unknown("delete"),
        }
    }

    fn merge(&mut self, merge: &Merge) {
        if !merge.into || merge.output.is_some() || !merge.optimizer_hints.is_empty() {
            self.build.unknown("merge");
        }
        self.changes.push(("merge", condition::bounds(&merge.on)));
        for clause in &merge.clauses {
            let verb = match &clause.action {
                MergeAction::Insert(_) | MergeAction::Update(_) => Verb::Write,
                MergeAction::Delete { .. } => Verb::Delete,
                MergeAction::DoNothing { .. } => Verb::Read,
            };
            self.change(&merge.table, verb, None);
        }
        // The target is joined with the source, whatever is then done.
        self.change(&merge.table, Verb::Read, None);
    }

    /// Gives the target of a change its verb.
    fn change(&mut self, factor: &TableFactor, verb: Verb, returning: Option<&[SelectItem]>) {
        let TableFactor::Table { name: table, args: None, .. } = factor else { return self.build.unknown("target") };
        let Some(name) = Name::of(table) else { return self.build.unknown("name") };
        self.target(table, &name, verb);
        self.returning(returning, &name);
    }

    fn target(&mut self, table: &ObjectName, name: &Name, verb: Verb) {
        self.accounted.insert(std::ptr::from_ref(table));
        self.relations.insert(name.name.clone());
        self.build.relation(verb, name);
        self.build.kind = StatementKind::Change;
    }

    fn returning(&mut self, returning: Option<&[SelectItem]>, name: &Name) {
        if let Some(items) = returning {
            self.build.relation(Verb::Read, name);
            // Only a change at the top returns to the client; the scopes tell (its own query may hold a WITH).
            self.items(items, self.scopes.len() <= 1);
        }
    }

    fn finish(self, statement: &Statement, tokens: &[Token]) {
        let Self { build, relations, values, selects, locks, changes, .. } = self;
        if values.iter().any(|v| relations.contains(v)) {
            build.mentions.whole_row = true;
        }
        facts(statement, &changes, locks, build);
        operators(tokens, build);
        constants(tokens, build);
        let met = |keyword: &str| changes.iter().filter(|(k, _)| *k == keyword).count();
        let written = |keyword: &str| tokens.iter().filter(|t| t.is(keyword)).count();
        let tables = bridge::table_commands(tokens);
        if selects != written("select") + tables {
            build.unknown("select count");
        }
        for keyword in ["insert", "update", "delete", "merge"] {
            let syntax = tokens.iter().enumerate().filter(|(i, t)| t.is(keyword) && !excused(tokens, *i)).count();
            if syntax != met(keyword) {
                build.unknown("change count");
            }
        }
        let known = |name: &str, quoted: bool| {
            build.calls.contains(name)
                || relations.contains(name)
                || (!quoted && (words::opens_syntax(name) || TYPES.contains(&name)))
        };
        let stray = tokens.windows(2).any(|pair| match &pair[0].lexeme {
            Lexeme::Word(w) => pair[1].is_punct(b'(') && !known(w, false),
            Lexeme::Quoted(q) => pair[1].is_punct(b'(') && !known(q, true),
            _ => false,
        });
        if stray {
            build.unknown("call");
        }
    }
}

/// Types that take arguments and are no keywords.
const TYPES: &[&str] = &["bpchar", "timestamptz", "timetz", "varbit"];

/// Whether a data-changing keyword stands where it is no statement: a row lock, ON CONFLICT, a MERGE branch, a label.
fn excused(tokens: &[Token], i: usize) -> bool {
    let before = |n: usize| i.checked_sub(n).and_then(|b| tokens.get(b));
    let Some(last) = before(1) else { return false };
    last.is_punct(b'.')
        || last.is("as")
        || last.is("for")
        || last.is("then")
        || last.is("do")
        || (last.is("key") && before(2).is_some_and(|t| t.is("no")))
        // A plain column in a list or an expression: no statement starts after these.
        || last.is_punct(b',')
}

fn facts(statement: &Statement, changes: &[(&'static str, bool)], locks: bool, build: &mut Builder<'_>) {
    let bounded: Vec<bool> = changes.iter().filter(|(k, _)| *k != "insert").map(|(_, b)| *b).collect();
    let (verb, where_, limit) = match statement {
        Statement::Insert(_) => ("insert", bounded.iter().all(|b| *b), false),
        Statement::Update(_) => ("update", bounded.iter().all(|b| *b), false),
        Statement::Delete(_) => ("delete", bounded.iter().all(|b| *b), false),
        Statement::Merge(_) => ("merge", bounded.iter().all(|b| *b), false),
        Statement::Query(query) => {
            let verb = match &*query.body {
                SetExpr::Insert(_) => "insert",
                SetExpr::Update(_) => "update",
                SetExpr::Delete(_) => "delete",
                SetExpr::Merge(_) => "merge",
                // A change in a CTE is what the statement does, whatever it then selects: the strictest names it.
                _ => ["delete", "update", "merge", "insert"]
                    .into_iter()
                    .find(|k| changes.iter().any(|(c, _)| c == k))
                    .unwrap_or(if locks { "select for update" } else { "select" }),
            };
            let where_ = if changes.iter().any(|(k, _)| *k != "insert") {
                bounded.iter().all(|b| *b)
            } else {
                condition::query_bounds(query)
            };
            let limit = query.fetch.is_some()
                || matches!(&query.limit_clause, Some(LimitClause::LimitOffset { limit: Some(_), .. }));
            (verb, where_, limit)
        }
        _ => ("", false, false),
    };
    build.facts.verb = verb.to_owned();
    build.facts.has_where = where_;
    build.facts.has_limit = limit;
    if build.kind != StatementKind::Change && !build.parts.iter().any(|(v, _)| *v == Verb::Schema) {
        build.kind = StatementKind::Query;
    }
}

/// The setting's name, if it is constant and the call changes nothing beyond plans and formats. A free setting may take
/// any value, also a computed one or a parameter: asyncpg puts `jit` back that way.
fn harmless_setting(args: &[FunctionArg]) -> Option<String> {
    let constant = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            Value::Boolean(b) => Some(b.to_string()),
            _ => None,
        },
        _ => None,
    };
    let [name, value, local] = args else { return None };
    if [value, local].iter().any(|arg| !matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Expr(_)))) {
        return None;
    }
    let name = constant(name)?.to_ascii_lowercase();
    match setting_rule(&name) {
        SettingRule::Free => Some(name),
        rule @ SettingRule::Pinned(_) if constant(local).is_some() && rule.permits(&constant(value)?) => Some(name),
        _ => None,
    }
}
