//! SQL: lexing, parsing and classification shared by the SQL protocols.
//!
//! [`classify`] turns the text of one command into an [`Action`] with every (verb, target) it holds, wherever it stands.
//! It never fails: text that cannot be understood, or that two readings of it could disagree on, is opaque, and only a
//! rule that names `unknown` lets that pass. The failure mode is therefore a refusal too much.
//!
//! How: [`lexer`] reads tokens exactly as PostgreSQL does and splits statements; [`bridge`] hands those tokens (never
//! the text) to the parser for SELECT, INSERT, UPDATE, DELETE and MERGE, and [`walk`] turns the tree into parts;
//! [`utility`] and [`ddl`] recognise every other statement on the tokens themselves. PostgreSQL's own grammar is the
//! oracle in the tests.

mod bridge;
mod build;
mod change;
mod condition;
mod cursor;
mod ddl;
pub mod fuzz;
mod lexer;
mod lineage;
mod reshape;
mod scan;
mod setting;
mod shape;
mod statement;
mod utility;
mod walk;
mod words;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use self::{
    build::Builder,
    lexer::{LexError, Lexeme, Token},
};
use crate::action::{Action, Clarity, Facts, Params, ProtocolId, SqlFacts, Target, Verb};

pub use change::{Change, ChangeKind, change};
pub use lineage::{Column, Lineage, Output, Sources};
pub use reshape::Reshape;
pub use setting::{SettingRule, setting_rule};
pub use shape::shape;
pub use statement::{
    Classified, CopyDirection, CopyFormat, CopyInfo, CopySource, Discard, Mentions, Names, StatementInfo, StatementKind,
};

/// Whether PostgreSQL itself has a type of this name, as the server folds it.
pub fn is_builtin_type(name: &str) -> bool {
    words::builtin_type(name)
}

/// What a command is that is not understood.
const OPAQUE: &str = "opaque";
/// What a command is that would take too much to read: longer than 1 MiB or 131,072 tokens, more than 1000 statements,
/// nested deeper than 200 levels (brackets and comments: 500), more than 8192 operators and keywords in a statement, more
/// work for the parser than its size allows, or more than 1000 parts. All bounds are counted, none is a time: what is
/// refused once is always refused.
const TOO_COMPLEX: &str = "too complex";

/// Most statements in one command.
const MAX_STATEMENTS: usize = 1000;

/// Understands the text of one command. Total: what cannot be understood is opaque.
pub fn classify(text: &str, names: &dyn Names) -> Classified {
    let mut tokens = match lexer::lex(text) {
        Ok(tokens) => tokens,
        Err(LexError::TooLong | LexError::TooDeep) => return opaque(text, TOO_COMPLEX),
        Err(_) => return opaque(text, OPAQUE),
    };
    // The bodies of SQL-standard functions hold semicolons that end nothing.
    if tokens.windows(2).any(|w| w[0].is("begin") && w[1].is("atomic")) {
        return opaque(text, OPAQUE);
    }
    let statements = split(&tokens);
    let count = statements.iter().filter(|statement| !statement.tokens.is_empty()).count();
    if count > MAX_STATEMENTS {
        return opaque(text, TOO_COMPLEX);
    }
    let mut action = Action {
        protocol: ProtocolId::Postgres,
        parts: smallvec::SmallVec::new(),
        clarity: Clarity::Parsed,
        facts: Facts::None,
    };
    let mut facts: Vec<SqlFacts> = Vec::with_capacity(count);
    let mut infos = Vec::with_capacity(statements.len());
    let mut understood = 0usize;
    for Split { span, tokens: of } in statements {
        let tokens = &mut tokens[of];
        if tokens.is_empty() {
            if count == 0 {
                infos.push(StatementInfo {
                    kind: StatementKind::Empty,
                    span,
                    mentions: Mentions::default(),
                    reshape: Reshape::default(),
                    lineage: Lineage::nothing(),
                });
            }
            continue;
        }
        let mut build = Builder::new(names);
        with_stack(tokens, || statement_into(tokens, &mut build));
        // A constant is nothing to a rule, yet it must meet one: no parts would mean that nothing is done.
        if build.parts.is_empty() {
            build.plain(Verb::Session, "sql:constant");
        }
        let lineage = build.whole_lineage();
        let Builder { parts, facts: mut fact, clarity, mut mentions, kind, .. } = build;
        if clarity != Clarity::Opaque {
            understood += 1;
        }
        if clarity != Clarity::Parsed {
            action.clarity = Clarity::Partial;
        }
        let reshape = Reshape::of(&fact.verb, &parts);
        mentions.conditions = tokens.iter().any(|token| ["check", "using", "where"].iter().any(|word| token.is(word)));
        // Of what comes by itself they are not seen: PREPARE leaves them to EXECUTE.
        if tokens.iter().any(|token| matches!(token.lexeme, Lexeme::Param(_))) {
            fact.params = Params::Unknown;
        }
        mentions.identifiers = tokens.iter_mut().filter_map(identifier).collect();
        mentions.identifiers.sort_unstable();
        mentions.identifiers.dedup();
        fact.parts = action.parts.len()..action.parts.len() + parts.len();
        fact.statements = count;
        fact.text = text[span.clone()].to_owned();
        action.parts.extend(parts);
        facts.push(fact);
        infos.push(StatementInfo { kind, span, mentions, reshape, lineage });
    }
    if understood == 0 && count > 0 {
        action.clarity = Clarity::Opaque;
    }
    action.facts = Facts::Sql(Arc::from(facts));
    Classified { action, statements: infos }
}

/// Takes the name out of a token that is one.
fn identifier(token: &mut Token) -> Option<String> {
    match &mut token.lexeme {
        Lexeme::Word(w) if words::reserved(w) => None,
        Lexeme::Word(w) => Some(std::mem::take(w)),
        // As the policy's patterns are: lower case.
        Lexeme::Quoted(q) => Some(q.to_lowercase()),
        _ => None,
    }
}

fn opaque(text: &str, why: &str) -> Classified {
    let mut reshape = Reshape::default();
    reshape.lose();
    Classified {
        action: Action::opaque(ProtocolId::Postgres, Target::new(format!("sql:{why}"))),
        statements: vec![StatementInfo {
            kind: StatementKind::Opaque,
            span: 0..text.len(),
            mentions: Mentions::default(),
            reshape,
            lineage: Lineage::default(),
        }],
    }
}

/// A statement between semicolons.
struct Split {
    /// Where it stands in the text, without the blanks around it.
    span: Range<usize>,
    /// Which tokens are its.
    tokens: Range<usize>,
}

fn split(tokens: &[Token]) -> Vec<Split> {
    let mut begin = 0;
    tokens
        .split(|t| t.is_punct(b';'))
        .map(|statement| {
            let of = begin..begin + statement.len();
            begin = of.end + 1;
            let span = match (statement.first(), statement.last()) {
                (Some(first), Some(last)) => first.span.start..last.span.end,
                _ => 0..0,
            };
            Split { span, tokens: of }
        })
        .collect()
}

/// Bytes of stack that one level of a syntax tree may take, in an unoptimised build.
const STACK_PER_LEVEL: usize = 2048;

/// Runs with enough stack for the deepest tree that these tokens can make; only odd statements need more than there is.
fn with_stack(tokens: &[Token], run: impl FnOnce()) {
    let need = 256 * 1024 + bridge::chain_length(tokens).min(bridge::MAX_CHAIN) * STACK_PER_LEVEL;
    stacker::maybe_grow(need, need * 2, run);
}

/// Judges one whole statement.
fn statement_into(tokens: &[Token], build: &mut Builder<'_>) {
    if let Some((name, value, local)) = whole_set_config(tokens, build) {
        build.facts.verb = "set".to_owned();
        build.facts.functions.push("pg_catalog.set_config".to_owned());
        build.setting(&name, Some(std::slice::from_ref(&value)));
        build.kind = StatementKind::Set { name, value: Some(vec![value]), local, returns_rows: true };
        return;
    }
    if let Some(name) = guarded_set_config(tokens, build) {
        build.facts.verb = "set".to_owned();
        build.facts.functions.push("pg_catalog.set_config".to_owned());
        build.part(Verb::Session, build::named("setting", &name));
        build.relation(Verb::Read, &build::Name { schema: None, name: "pg_settings".to_owned(), bare: true });
        build.kind = StatementKind::Query;
        return;
    }
    classify_into(tokens, build);
}

/// Judges a statement, whole or inside another. The caller sets the kind of an outer one afterwards.
fn classify_into(tokens: &[Token], build: &mut Builder<'_>) {
    if is_data(tokens) {
        match bridge::parse(tokens) {
            Ok(statement) => walk::walk(&statement, tokens, build),
            Err(bridge::Refused::NotUnderstood) => refuse(build, OPAQUE),
            Err(bridge::Refused::TooComplex) => refuse(build, TOO_COMPLEX),
        }
    } else if utility::recognise(tokens, build).is_none() {
        match utility::administrative_head(tokens) {
            Some(head) => {
                // Whatever it goes on to say, it is no less than this.
                build.plain(Verb::Admin, &format!("sql:{head}"));
                build.unknown(OPAQUE);
                build.kind = StatementKind::Opaque;
            }
            None => refuse(build, OPAQUE),
        }
    }
}

/// Whether a statement starts as SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE or MERGE do.
fn is_data(tokens: &[Token]) -> bool {
    let heads = ["select", "insert", "update", "delete", "merge", "with", "values", "table"];
    tokens.first().is_some_and(|t| t.is_punct(b'(') || t.word().is_some_and(|w| heads.contains(&w)))
}

fn refuse(build: &mut Builder<'_>, why: &str) {
    build.clarity = Clarity::Opaque;
    build.kind = StatementKind::Opaque;
    build.unknown(why);
}

/// `SELECT [pg_catalog.]set_config('name', 'value', true|false)` and nothing else: a SET that returns a row.
fn whole_set_config(tokens: &[Token], build: &Builder<'_>) -> Option<(String, String, bool)> {
    let mut c = cursor::Cursor::new(tokens);
    c.eat(&["select"]).then_some(())?;
    let function = c.name()?;
    if function.name != "set_config"
        || build.names.function_schema(function.schema.as_deref(), "set_config").as_deref() != Some("pg_catalog")
    {
        return None;
    }
    let mut args = cursor::Cursor::new(c.group()?);
    let name = args.text()?.to_ascii_lowercase();
    args.eat_punct(b',').then_some(())?;
    let value = args.text()?.to_owned();
    args.eat_punct(b',').then_some(())?;
    let local = if args.eat(&["true"]) {
        true
    } else if args.eat(&["false"]) {
        false
    } else {
        return None;
    };
    (args.done() && c.done()).then_some((name, value, local))
}

/// What pg_dump says to set a setting only where the server has it:
/// `SELECT set_config(name, '...', false) FROM pg_settings WHERE name = '...'`. Only for settings that are free.
fn guarded_set_config(tokens: &[Token], build: &Builder<'_>) -> Option<String> {
    let mut c = cursor::Cursor::new(tokens);
    let mut arguments = {
        c.eat(&["select", "set_config"]).then_some(())?;
        cursor::Cursor::new(c.group()?)
    };
    let constant = arguments.eat(&["name"])
        && arguments.eat_punct(b',')
        && arguments.text().is_some()
        && arguments.eat_punct(b',')
        && (arguments.eat(&["false"]) || arguments.eat(&["true"]))
        && arguments.done();
    let from = constant && c.eat(&["from", "pg_settings", "where", "name"]) && c.eat_op("=");
    let name = from.then(|| c.text()).flatten()?.to_ascii_lowercase();
    let builtin = build.names.function_schema(None, "set_config").as_deref() == Some("pg_catalog")
        && build.names.relation_schema(None, "pg_settings").as_deref() == Some("pg_catalog");
    (c.done() && builtin && setting_rule(&name) == SettingRule::Free).then_some(name)
}
