//! Whether a WHERE clause bounds what it is on: `WHERE true`, `1 = 1`, `a = a`, `x OR true` do not.
//!
//! No proof of truth is tried: a condition bounds if it depends on a column other than trivially. A condition that needs
//! values to be seen through (`length(a) >= 0`) counts as bounding.

use std::ops::ControlFlow;

use sqlparser::ast::{BinaryOperator, Expr, Query, SetExpr, UnaryOperator, Visit, Visitor};

/// Whether the condition leaves some rows out, as far as its form tells.
pub(super) fn bounds(condition: &Expr) -> bool {
    bounded(condition, Truth::Wanted, 0)
}

/// Whether every branch of the query's own body has a bounding WHERE.
pub(super) fn query_bounds(query: &Query) -> bool {
    let mut stack = vec![&*query.body];
    while let Some(body) = stack.pop() {
        match body {
            SetExpr::Select(select) => {
                if !select.selection.as_ref().is_some_and(bounds) {
                    return false;
                }
            }
            SetExpr::SetOperation { left, right, .. } => {
                stack.push(left);
                stack.push(right);
            }
            SetExpr::Query(inner) => stack.push(&inner.body),
            _ => return false,
        }
    }
    true
}

/// Which value of an expression keeps a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    Wanted,
    Unwanted,
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::Wanted => Self::Unwanted,
            Self::Unwanted => Self::Wanted,
        }
    }
}

/// Beyond this nesting a condition is not looked into and counts as not bounding.
const MAX_NESTING: usize = 64;

fn bounded(expr: &Expr, truth: Truth, nesting: usize) -> bool {
    if nesting > MAX_NESTING {
        // Long chains of AND and OR are flat to a reader; look only whether a column is used at all.
        return uses_column(expr);
    }
    let deeper = |e: &Expr, t: Truth| bounded(e, t, nesting + 1);
    match expr {
        Expr::Nested(inner) => deeper(inner, truth),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => deeper(expr, truth.not()),
        Expr::IsTrue(inner) | Expr::IsNotFalse(inner) => deeper(inner, truth),
        Expr::IsFalse(inner) | Expr::IsNotTrue(inner) => deeper(inner, truth.not()),
        Expr::Cast { expr, .. } => deeper(expr, truth),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => match truth {
            Truth::Wanted => deeper(left, truth) || deeper(right, truth),
            Truth::Unwanted => deeper(left, truth) && deeper(right, truth),
        },
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => match truth {
            Truth::Wanted => deeper(left, truth) && deeper(right, truth) && !complementary(left, right),
            Truth::Unwanted => deeper(left, truth) || deeper(right, truth),
        },
        Expr::BinaryOp { left, right, .. } if plain(left) == plain(right) => false,
        Expr::IsNotDistinctFrom(left, right) if plain(left) == plain(right) => false,
        Expr::Between { expr, low, high, .. } if plain(expr) == plain(low) && plain(expr) == plain(high) => false,
        Expr::InList { expr, list, .. } if list.iter().any(|e| plain(e) == plain(expr)) => false,
        Expr::Exists { subquery, .. } => query_bounds(subquery),
        other => uses_column(other),
    }
}

/// `a IS NULL OR a IS NOT NULL`, `x OR NOT x`, `a = 1 OR a <> 1`.
fn complementary(left: &Expr, right: &Expr) -> bool {
    match (plain(left), plain(right)) {
        (Expr::IsNull(a), Expr::IsNotNull(b)) | (Expr::IsNotNull(a), Expr::IsNull(b)) => plain(a) == plain(b),
        (Expr::UnaryOp { op: UnaryOperator::Not, expr }, other)
        | (other, Expr::UnaryOp { op: UnaryOperator::Not, expr }) => plain(expr) == other,
        (Expr::BinaryOp { left: a, op: o, right: b }, Expr::BinaryOp { left: c, op: p, right: d }) => {
            use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
            plain(a) == plain(c)
                && plain(b) == plain(d)
                && matches!(
                    (o, p),
                    (Eq, NotEq)
                        | (NotEq, Eq)
                        | (Lt, GtEq)
                        | (GtEq, Lt)
                        | (Gt, LtEq)
                        | (LtEq, Gt)
                        | (LtEq, GtEq)
                        | (GtEq, LtEq)
                )
        }
        _ => false,
    }
}

fn plain(mut expr: &Expr) -> &Expr {
    while let Expr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

fn uses_column(expr: &Expr) -> bool {
    struct Columns;
    impl Visitor for Columns {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Identifier(_) | Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    expr.visit(&mut Columns).is_break()
}
