//! What an expression derives from, and what a condition compares.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Query, Value, Visit, Visitor,
};

use super::{Look, Sources, scope::as_name};
use crate::sql::{
    build::Name,
    words::{self, Builtin},
};

/// Functions that have an effect, and yet tell nothing of any table.
const TELLS_NOTHING: [&str; 6] = ["currval", "lastval", "nextval", "pg_notify", "set_config", "setval"];

/// Functions that return a row for each part of a value: how many there are tells of it. `pg_proc.proretset`, those that
/// take values.
const ROWS: [&str; 24] = [
    "generate_series",
    "generate_subscripts",
    "json_array_elements",
    "json_array_elements_text",
    "json_each",
    "json_each_text",
    "json_object_keys",
    "json_populate_recordset",
    "json_to_recordset",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "jsonb_each",
    "jsonb_each_text",
    "jsonb_object_keys",
    "jsonb_path_query",
    "jsonb_path_query_tz",
    "jsonb_populate_recordset",
    "jsonb_to_recordset",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
    "ts_parse",
    "ts_token_type",
    "unnest",
];

/// Reads what stands in an expression; queries in it are read in scopes of their own.
struct Values<'v, 'a> {
    look: &'v mut Look<'a>,
    found: Sources,
    /// How deep in queries it is.
    depth: usize,
}

impl Visitor for Values<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            let outer = std::mem::take(&mut self.look.compared);
            let outputs = self.look.query(query);
            // Which rows there are tells as much as what is in them: `EXISTS`, `IN`, a sub-select's NULL.
            self.found.add(&std::mem::replace(&mut self.look.compared, outer));
            match outputs {
                Some(outputs) => outputs.iter().for_each(|output| self.found.add(&output.sources)),
                None => self.found.unknown = true,
            }
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        if !self.look.burn() {
            self.found.unknown = true;
            return ControlFlow::Break(());
        }
        match expr {
            Expr::Identifier(ident) => self.found.add(&self.look.name(&[ident])),
            Expr::CompoundIdentifier(idents) => {
                self.found.add(&self.look.name(&idents.iter().collect::<Vec<_>>()));
            }
            Expr::QualifiedWildcard(name, _) => self.found.add(&self.look.row_of(name)),
            Expr::Wildcard(_) => self.found.add(&self.look.everything()),
            // A branch that is taken, or fails, tells what decided.
            Expr::Case { operand, conditions, .. } => {
                for expr in
                    operand.iter().map(|operand| &**operand).chain(conditions.iter().map(|when| &when.condition))
                {
                    let sources = self.look.sources(expr);
                    self.look.compare(&sources);
                }
            }
            Expr::BinaryOp { op: BinaryOperator::Divide | BinaryOperator::Modulo, right, .. } => {
                let sources = self.look.sources(right);
                self.look.compare(&sources);
            }
            Expr::Function(function) => {
                self.found.unknown |= !self.look.is_pure(&function.name);
                if let FunctionArguments::List(list) = &function.args {
                    list.args.iter().for_each(|arg| self.wild(&function.name, arg));
                    if super::last(&function.name).is_some_and(|name| ROWS.contains(&&*name)) {
                        let sources = self.look.sources_in(list);
                        self.look.compare(&sources);
                    }
                }
                if self.look.carries_away(&function.name) {
                    let sources = self.look.sources_in(&function.args);
                    self.look.store(None, sources);
                }
                // Rows come in the order in which a window saw them.
                if let Some(over) = &function.over {
                    let sources = self.look.sources_in(over);
                    self.look.compare(&sources);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Values<'_, '_> {
    /// `f(t.*)` and `count(*)`, which are no expressions to the parser.
    fn wild(&mut self, function: &ObjectName, arg: &FunctionArg) {
        match argument(arg) {
            FunctionArgExpr::QualifiedWildcard(name) => self.found.add(&self.look.row_of(name)),
            FunctionArgExpr::Wildcard if super::last(function).as_deref() == Some("count") => {}
            FunctionArgExpr::Wildcard | FunctionArgExpr::WildcardWithOptions(_) => {
                self.found.add(&self.look.everything());
            }
            FunctionArgExpr::Expr(_) => {}
        }
    }
}

impl Look<'_> {
    /// What an expression derives from.
    pub(super) fn sources(&mut self, expr: &Expr) -> Sources {
        self.sources_in(expr)
    }

    /// The same of anything that holds expressions.
    pub(super) fn sources_in(&mut self, tree: &impl Visit) -> Sources {
        let mut values = Values { look: self, found: Sources::default(), depth: 0 };
        let _ = tree.visit(&mut values);
        values.found
    }

    /// Notes what a condition compares. Equality with a parameter is no way to search: each value takes a call of its own.
    pub(super) fn condition(&mut self, condition: &Expr) {
        match condition {
            Expr::Nested(inner) => self.condition(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                self.condition(left);
                self.condition(right);
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right }
                if as_name(left).is_some() && is_parameter(right) || is_parameter(left) && as_name(right).is_some() => {
            }
            other => {
                let sources = self.sources(other);
                self.compare(&sources);
            }
        }
    }

    /// Whether a function of PostgreSQL's own puts its arguments where they can be seen later: a notification, a setting, a
    /// large object, another server.
    pub(super) fn carries_away(&self, name: &ObjectName) -> bool {
        let Some(name) = Name::of(name) else { return false };
        let own = || self.names.function_schema(name.schema.as_deref(), &name.name).as_deref() == Some("pg_catalog");
        !(name.bare && (words::grammar_call(&name.name) || name.name == "array"))
            // `setseed` shows in what `random` returns.
            && (words::admin_function(&name.name)
                || (words::builtin(&name.name) == Builtin::Other || name.name == "setseed") && own())
    }

    /// Whether a function tells nothing but what follows from its arguments.
    pub(super) fn is_pure(&self, name: &ObjectName) -> bool {
        let Some(name) = Name::of(name) else { return false };
        if name.bare && (words::grammar_call(&name.name) || name.name == "array") {
            return true;
        }
        let schema = self.names.function_schema(name.schema.as_deref(), &name.name);
        schema.as_deref() == Some("pg_catalog")
            && (words::builtin(&name.name) == Builtin::Safe || TELLS_NOTHING.contains(&&*name.name))
    }
}

/// Whether an argument is `*` or `t.*`.
pub(super) fn is_wild(arg: &FunctionArg) -> bool {
    !matches!(argument(arg), FunctionArgExpr::Expr(_))
}

fn argument(arg: &FunctionArg) -> &FunctionArgExpr {
    match arg {
        FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg) => arg,
    }
}

fn is_parameter(expr: &Expr) -> bool {
    match expr {
        Expr::Value(value) => matches!(value.value, Value::Placeholder(_)),
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => is_parameter(inner),
        _ => false,
    }
}
