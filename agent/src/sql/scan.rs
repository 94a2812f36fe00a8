//! What tokens alone tell of expressions: calls, sub-selects, operators, conversions and related relations.
//!
//! Definitions (defaults, checks, indexes) are not parsed; everything in them that could run code is looked for.

use super::{
    build::{Builder, Name},
    cursor::{Cursor, name_start, nameable},
    lexer::{Lexeme, Token},
    utility::relations,
    words::{self, Builtin, Category},
};
use crate::action::Verb;

/// Words after which a name with parentheses is a relation with columns, not a call.
const BEFORE_RELATION: &[&str] = &["references", "inherits", "on", "of", "table", "into", "partition"];

/// Finds calls and sub-selects in what a definition holds.
pub(super) fn scan(tokens: &[Token], build: &mut Builder<'_>) {
    if tokens.iter().any(|t| t.is("select")) {
        build.unknown("sub-select in a definition");
    }
    operators(tokens, build);
    constants(tokens, build);
    for (i, token) in tokens.iter().enumerate() {
        let Some(last) = token.identifier() else { continue };
        // OPERATOR(schema.sign): in pg_catalog it was judged by its sign.
        if token.is("operator") && tokens.get(i + 1).is_some_and(|t| t.is_punct(b'(')) {
            if tokens.get(i + 2).is_none_or(|t| t.identifier() != Some("pg_catalog")) {
                build.unknown("operator");
            }
            continue;
        }
        // The last segment of a name stands for all of it.
        let goes_on = tokens.get(i + 1).is_some_and(|t| t.is_punct(b'.'));
        if goes_on {
            continue;
        }
        let called = tokens.get(i + 1).is_some_and(|t| t.is_punct(b'('));
        let start = name_start(tokens, i);
        let before = start.checked_sub(1).and_then(|b| tokens.get(b));
        related(tokens, start, i, build);
        converted(tokens, start, i, build);
        if start < i && !called {
            build.attribute(last);
        }
        if before.is_some_and(|b| b.is("references")) {
            if let Some(name) = Cursor::new(&tokens[start..]).name() {
                build.relation(Verb::Schema, &name);
            }
            continue;
        }
        if !called || before.is_some_and(|b| b.word().is_some_and(|w| BEFORE_RELATION.contains(&w))) {
            continue;
        }
        let bare = start == i && token.word().is_some();
        let method = before.is_some_and(|b| b.is("using")) && start >= 2 && tokens[start - 2].is("exclude");
        let strategy = before.is_some_and(|b| b.is("by")) && matches!(last, "range" | "list" | "hash");
        if (bare && (opens_syntax(last, before) || matches!(last, "timestamptz" | "bpchar" | "varbit")))
            || method
            || strategy
            || !nameable(token)
        {
            continue;
        }
        let schema = (start < i).then(|| tokens[i - 2].identifier().map(str::to_owned)).flatten();
        let name = Name { schema, name: last.to_owned(), bare };
        // A default that draws from a sequence does so when rows come, by those who may add them.
        let sequence = matches!(last, "nextval" | "currval" | "lastval");
        let builtin = build.names.function_schema(name.schema.as_deref(), &name.name).as_deref() == Some("pg_catalog");
        if sequence && builtin && words::builtin(last) != Builtin::Admin {
            build.calls.insert(name.name);
        } else {
            build.call(&name);
        }
    }
}

/// Whether an unquoted word before a parenthesis is syntax, given what stands before it: where an expression starts, a
/// keyword that may name a function does.
fn opens_syntax(word: &str, before: Option<&Token>) -> bool {
    let expression = before.is_some_and(|b| match &b.lexeme {
        Lexeme::Punct(p) => matches!(p, b'(' | b',' | b'['),
        Lexeme::Op(_) => true,
        Lexeme::Word(w) => {
            ["default", "using", "when", "then", "else", "and", "or", "not", "case", "between", "in", "like"]
                .contains(&w.as_str())
        }
        _ => false,
    });
    let function =
        words::category(word) == Some(Category::Unreserved) || words::category(word) == Some(Category::TypeOrFunction);
    words::opens_syntax(word) && !(expression && function)
}

/// The relation that a definition's name at `start..=i` is, beside the one defined: a parent, a model, an owner.
fn related(tokens: &[Token], start: usize, i: usize, build: &mut Builder<'_>) {
    let word = |n: usize| start.checked_sub(n).and_then(|at| tokens[at].word()).unwrap_or("");
    let name = |end: usize| Cursor::new(&tokens[start..end]).name();
    match (word(2), word(1)) {
        ("partition", "of") => name(i + 1).into_iter().for_each(|name| build.relation(Verb::Schema, &name)),
        // The last segment is the column.
        ("owned", "by") if start < i => name(i - 1).into_iter().for_each(|name| build.relation(Verb::Schema, &name)),
        _ if tokens[i].is("inherits") => {
            let mut after = Cursor::new(&tokens[i + 1..]);
            let mut parents = Cursor::new(after.group().unwrap_or(&[]));
            relations(&mut parents).into_iter().flatten().for_each(|name| build.relation(Verb::Schema, &name));
        }
        (_, "like") if start >= 2 && (tokens[start - 2].is_punct(b'(') || tokens[start - 2].is_punct(b',')) => {
            name(i + 1).into_iter().for_each(|name| build.relation(Verb::Read, &name));
        }
        _ => {}
    }
}

/// What the name at `start..=i` converts to in an expression of a definition: `x::name`, `CAST(x AS name)`.
fn converted(tokens: &[Token], start: usize, i: usize, build: &mut Builder<'_>) {
    let Some(before) = start.checked_sub(1).map(|at| &tokens[at]) else { return };
    let named = start < i || tokens[i].word().is_none_or(|w| words::category(w).is_none());
    if named
        && (before.is_op("::") || before.is("as"))
        && let Some(name) = Cursor::new(&tokens[start..=i]).name()
    {
        build.conversion(&name);
    }
}

/// Words that the server turns into operators, which it finds by the path like any other.
const COMPARING: &[&str] =
    &["between", "case", "distinct", "ilike", "in", "like", "natural", "nullif", "similar", "using"];

/// Judges every operator; a `*` that stands for columns is none.
pub(super) fn operators(tokens: &[Token], build: &mut Builder<'_>) {
    for (i, token) in tokens.iter().enumerate() {
        if token.word().is_some_and(|w| COMPARING.contains(&w)) {
            build.operator("=");
        }
        let Lexeme::Op(op) = &token.lexeme else { continue };
        let columns = op == "*"
            && i.checked_sub(1).is_none_or(|b| match &tokens[b].lexeme {
                Lexeme::Punct(p) => matches!(p, b'(' | b',' | b'.'),
                Lexeme::Word(w) => matches!(w.as_str(), "select" | "all" | "distinct" | "returning"),
                _ => false,
            });
        if !columns {
            build.operator(op);
        }
    }
}

/// `name 'text'` is a constant of the type `name`; the parser may take the text for a label.
pub(super) fn constants(tokens: &[Token], build: &mut Builder<'_>) {
    for (i, pair) in tokens.windows(2).enumerate() {
        if !matches!(pair[1].lexeme, Lexeme::Text(_)) || pair[0].identifier().is_none() {
            continue;
        }
        let start = name_start(tokens, i);
        let syntax = start == i && pair[0].word().is_some_and(words::before_text);
        if !syntax && let Some(name) = Cursor::new(&tokens[start..=i]).name() {
            build.conversion(&name);
        }
    }
}
