//! CREATE, ALTER, DROP and COMMENT.
//!
//! What an ordinary owner does to tables, views, indexes, sequences, types and functions is `schema`; what changes
//! rights, the server or code that others run is `admin`. Calls inside a definition count as calls.

use super::{
    build::{Builder, Name, named},
    classify_into,
    cursor::Cursor,
    is_data,
    lexer::{Lexeme, Token},
    scan::scan,
    setting::{SettingRule, setting_rule},
    statement::StatementKind,
    utility,
};
use crate::action::{Target, Verb};

/// Recognises a statement after its head word. `None`: it does not go on as its head promises.
pub(super) fn recognise(head: &str, mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    match head {
        "create" => create(c, build),
        "alter" => alter(c, build),
        "drop" => drop_(c, build),
        _ => {
            c.eat(&["on"]).then_some(())?;
            let kind = object_kind(&mut c)?;
            build.facts.verb = "comment".to_owned();
            match kind.as_str() {
                "table" | "view" | "materialized view" | "index" | "sequence" | "foreign table" | "type" | "domain" => {
                    let name = c.name()?;
                    build.relation(Verb::Schema, &name);
                }
                "column" => {
                    // The last segment is the column.
                    let at = c.rest().iter().rposition(|t| t.is_punct(b'.'))?;
                    let name = Cursor::new(&c.rest()[..at]).name()?;
                    build.relation(Verb::Schema, &name);
                }
                _ => build.plain(Verb::Schema, "sql:comment"),
            }
            Some(())
        }
    }
}

/// Object kinds of more than one word.
const LONG_KINDS: &[&[&str]] = &[
    &["materialized", "view"],
    &["foreign", "table"],
    &["foreign", "data", "wrapper"],
    &["event", "trigger"],
    &["user", "mapping"],
    &["text", "search", "configuration"],
    &["text", "search", "dictionary"],
    &["text", "search", "parser"],
    &["text", "search", "template"],
    &["access", "method"],
    &["default", "privileges"],
    &["operator", "class"],
    &["operator", "family"],
    &["large", "object"],
    &["constraint", "trigger"],
    &["default", "conversion"],
];

fn object_kind(c: &mut Cursor<'_>) -> Option<String> {
    for kind in LONG_KINDS {
        if c.eat(kind) {
            return Some(kind.join(" "));
        }
    }
    Some(c.next()?.word()?.to_owned())
}

/// Kinds whose making, changing or dropping is more than a change of shape.
fn administrative(kind: &str) -> bool {
    !matches!(
        kind,
        "table"
            | "view"
            | "materialized view"
            | "index"
            | "sequence"
            | "schema"
            | "type"
            | "domain"
            | "function"
            | "procedure"
            | "routine"
            | "aggregate"
            | "trigger"
            | "constraint trigger"
            | "statistics"
            | "collation"
            | "text search configuration"
            | "text search dictionary"
    )
}

fn admin(build: &mut Builder<'_>, head: &str, kind: &str) -> Option<()> {
    build.plain(Verb::Admin, &format!("sql:{head} {kind}"));
    Some(())
}

fn function_target(build: &Builder<'_>, name: &Name, creation: bool) -> Target {
    let schema = match (&name.schema, creation) {
        (None, true) => build.names.creation_schema(),
        (schema, _) => build.names.function_schema(schema.as_deref(), &name.name),
    };
    Target::function(schema.as_deref().or(name.schema.as_deref()), &name.name)
}

/// Whether a function may set this while it runs: what its owner could write into its body as well.
fn harmless_for_function(setting: &Token) -> bool {
    setting.identifier().is_some_and(|name| matches!(setting_rule(name), SettingRule::Free | SettingRule::SearchPath))
}

fn create(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    c.eat(&["or", "replace"]);
    c.eat_any(&["global", "local"]);
    let temporary = c.eat(&["temp"]) || c.eat(&["temporary"]);
    c.eat_any(&["unlogged", "recursive", "unique", "trusted", "procedural"]);
    let kind = object_kind(&mut c)?;
    build.facts.verb = format!("create {kind}");
    if administrative(&kind) {
        return admin(build, "create", &kind);
    }
    match kind.as_str() {
        "table" | "view" | "materialized view" => {
            c.eat(&["if", "not", "exists"]);
            let name = c.name()?;
            build.creation(&name, temporary);
            defining_query(c, build, &kind)
        }
        "index" => {
            c.eat(&["concurrently"]);
            c.eat(&["if", "not", "exists"]);
            if !c.peek()?.is("on") {
                c.identifier()?;
            }
            c.eat(&["on"]).then_some(())?;
            c.eat(&["only"]);
            let table = c.name()?;
            build.relation(Verb::Schema, &table);
            if c.eat(&["using"]) {
                c.identifier()?;
            }
            scan(c.rest(), build);
            Some(())
        }
        "sequence" => {
            c.eat(&["if", "not", "exists"]);
            let name = c.name()?;
            build.creation(&name, temporary);
            scan(c.rest(), build);
            Some(())
        }
        "schema" => {
            c.eat(&["if", "not", "exists"]);
            let name = c.identifier().map(str::to_owned);
            let owner = c.eat(&["authorization"]).then(|| c.identifier().map(str::to_owned));
            let name = name.or(owner.clone().flatten())?;
            build.part(Verb::Schema, named("schema", &name));
            if owner.is_some() {
                build.plain(Verb::Admin, "sql:create schema authorization");
            }
            c.done().then_some(())
        }
        "type" | "domain" => {
            let name = c.name()?;
            build.creation(&name, false);
            // A base type names C functions; only a superuser can, and it changes what values do.
            // A range type may name functions too.
            let calls = |t: &Token| t.is("subtype_diff") || t.is("canonical");
            if kind == "type" && (c.peek().is_some_and(|t| t.is_punct(b'(')) || c.rest().iter().any(calls)) {
                admin(build, "create", "type")?;
            }
            // Labels hold no code.
            if c.eat(&["as", "enum"]) {
                c.group()?;
                return c.done().then_some(());
            }
            scan(c.rest(), build);
            Some(())
        }
        "function" | "procedure" => {
            let name = c.name()?;
            let target = function_target(build, &name, true);
            build.part(Verb::Schema, target);
            let arguments = c.group()?;
            let words: Vec<&str> = c.rest().iter().filter_map(Token::word).collect();
            if words.contains(&"definer") {
                admin(build, "create", "security definer")?;
            }
            // What only a superuser may promise of a function.
            if words.contains(&"leakproof") || words.contains(&"support") {
                admin(build, "create", &kind)?;
            }
            if !c.rest().windows(2).filter(|w| w[0].is("set")).all(|w| harmless_for_function(&w[1])) {
                admin(build, "create", "function with settings")?;
            }
            // Languages that reach past SQL, however quoted; a column may have the name of the clause.
            let reviewed = |w: &[Token]| match &w[1].lexeme {
                Lexeme::Word(l) | Lexeme::Quoted(l) | Lexeme::Text(l) => {
                    l.eq_ignore_ascii_case("sql") || l.eq_ignore_ascii_case("plpgsql")
                }
                _ => false,
            };
            if !c.rest().windows(2).filter(|w| w[0].is("language")).all(reviewed) {
                admin(build, "create", "function in another language")?;
            }
            if words.contains(&"begin") || words.contains(&"return") {
                build.unknown("function body");
            }
            scan(arguments, build);
            Some(())
        }
        "aggregate" => {
            let name = c.name()?;
            let target = function_target(build, &name, true);
            build.part(Verb::Schema, target);
            // Who may call the aggregate runs these.
            for (i, token) in c.rest().iter().enumerate() {
                let mut function = c.skip(i + 1);
                let named = token.identifier().is_some_and(|w| w.contains("func") && !w.ends_with("_modify"));
                if named && function.eat_op("=") {
                    build.call(&function.name()?);
                }
            }
            Some(())
        }
        "trigger" | "constraint trigger" => {
            c.identifier()?;
            let at = c.find("on")?;
            c = c.skip(at + 1);
            let table = c.name()?;
            build.relation(Verb::Schema, &table);
            // From now on each change of the table by anyone runs the function.
            let at = c.find("execute")?;
            let mut e = c.skip(at + 1);
            (e.eat(&["function"]) || e.eat(&["procedure"])).then_some(())?;
            let function = e.name()?;
            let target = function_target(build, &function, false);
            build.calls.insert(function.name);
            build.part(Verb::Execute, target);
            scan(&c.rest()[..at], build);
            Some(())
        }
        _ => {
            build.plain(Verb::Schema, &format!("sql:create {kind}"));
            scan(c.rest(), build);
            Some(())
        }
    }
}

/// The rest of CREATE TABLE or VIEW: columns, or the query after AS.
fn defining_query(c: Cursor<'_>, build: &mut Builder<'_>, kind: &str) -> Option<()> {
    let verb = build.facts.verb.clone();
    match c.find("as") {
        Some(at) => {
            let definition = c.skip(at + 1);
            scan(&c.rest()[..at], build);
            // WITH [NO] DATA, WITH CHECK OPTION.
            let query = strip_tail(definition.rest());
            let executes = kind == "table" && query.first().is_some_and(|t| t.is("execute"));
            if !is_data(query) && !executes {
                return None;
            }
            if executes {
                // What was prepared is judged where it runs by name, which this does not show.
                build.unknown("execute");
            }
            classify_into(query, build);
        }
        None if kind == "table" => scan(c.rest(), build),
        None => return None,
    }
    if !build.changes() {
        build.facts.verb = verb;
    }
    build.kind = StatementKind::Utility;
    Some(())
}

fn strip_tail(tokens: &[Token]) -> &[Token] {
    let tails: [&[&str]; 5] = [
        &["with", "data"],
        &["with", "no", "data"],
        &["with", "check", "option"],
        &["with", "local", "check", "option"],
        &["with", "cascaded", "check", "option"],
    ];
    for tail in tails {
        if let Some(at) = tokens.len().checked_sub(tail.len())
            && tokens[at..].iter().zip(tail).all(|(t, w)| t.is(w))
        {
            return &tokens[..at];
        }
    }
    tokens
}

fn alter(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let kind = object_kind(&mut c)?;
    build.facts.verb = format!("alter {kind}");
    if administrative(&kind) {
        if kind == "foreign table" {
            c.eat(&["if", "exists"]);
            c.eat(&["only"]);
            build.relation(Verb::Admin, &c.name()?);
        }
        return admin(build, "alter", &kind);
    }
    let words: Vec<&str> = c.rest().iter().filter_map(Token::word).collect();
    let pair = |a: &str, b: &str| words.windows(2).any(|w| w == [a, b]);
    let rights = pair("owner", "to")
        || words.contains(&"disable")
        || words.contains(&"enable")
        || words.contains(&"force")
        || words.contains(&"security")
        || words.contains(&"leakproof");
    let verb = if rights { Verb::Admin } else { Verb::Schema };
    match kind.as_str() {
        "table" | "view" | "materialized view" | "index" | "sequence" | "type" | "domain" => {
            if c.eat(&["all", "in", "tablespace"]) {
                return admin(build, "alter", &kind);
            }
            c.eat(&["if", "exists"]);
            c.eat(&["only"]);
            let name = c.name()?;
            c.eat_op("*");
            build.relation(verb, &name);
            if let Some(new) = renamed(c, &name) {
                // It takes a place that policy may speak of.
                let schema = build.names.relation_schema(new.schema.as_deref(), &name.name);
                build.part(Verb::Schema, Target::relation(schema.as_deref(), &new.name));
            }
            let mut options = c;
            let options =
                kind == "view" && (options.eat(&["set"]) || options.eat(&["reset"])) && options.group().is_some();
            if options {
                // Whose rights the view's query runs with, and what it may be asked.
                build.relation(Verb::Admin, &name);
            }
            actions(c, build)?;
            if c.rest().last().is_some_and(|t| t.is("cascade")) {
                build.part(Verb::Schema, Target::new("?.?"));
            }
            scan(c.rest(), build);
            Some(())
        }
        "schema" => {
            build.part(verb, named("schema", c.identifier()?));
            if c.eat(&["rename", "to"]) {
                build.part(Verb::Schema, named("schema", c.identifier()?));
            }
            Some(())
        }
        "function" | "procedure" | "routine" | "aggregate" => {
            let name = c.name()?;
            let target = function_target(build, &name, false);
            let mut rest = c;
            rest.group();
            if let Some(new) = renamed(rest, &name) {
                let schema = build.names.function_schema(new.schema.as_deref(), &name.name);
                build.part(Verb::Schema, Target::function(schema.as_deref(), &new.name));
            }
            // ALTER FUNCTION ... SET changes what its body means.
            let settings = rest.find("set").or(rest.find("reset")).is_some();
            build.part(if settings { Verb::Admin } else { verb }, target);
            Some(())
        }
        _ => {
            build.plain(verb, &format!("sql:alter {kind}"));
            Some(())
        }
    }
}

/// The other relations that the actions of ALTER TABLE are about.
fn actions(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    loop {
        let mut action = c;
        if action.eat(&["attach", "partition"])
            || action.eat(&["detach", "partition"])
            || action.eat(&["inherit"])
            || action.eat(&["no", "inherit"])
        {
            build.relation(Verb::Schema, &action.name()?);
        }
        let Some(at) = c.find_punct(b',') else { return Some(()) };
        c = c.skip(at + 1);
    }
}

/// The name after RENAME TO or SET SCHEMA, for what was named before it. `schema` is that of the new place.
fn renamed(mut c: Cursor<'_>, old: &Name) -> Option<Name> {
    if c.eat(&["rename", "to"]) {
        let name = c.identifier()?.to_owned();
        return Some(Name { schema: old.schema.clone(), name, bare: false });
    }
    c.eat(&["set", "schema"]).then_some(())?;
    Some(Name { schema: Some(c.identifier()?.to_owned()), name: old.name.clone(), bare: false })
}

fn drop_(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let kind = object_kind(&mut c)?;
    build.facts.verb = format!("drop {kind}");
    match kind.as_str() {
        "table" | "view" | "materialized view" | "index" | "sequence" | "type" | "domain" | "foreign table" => {
            c.eat(&["concurrently"]);
            c.eat(&["if", "exists"]);
            loop {
                let name = c.name()?;
                build.relation(Verb::Schema, &name);
                if !c.eat_punct(b',') {
                    break;
                }
            }
        }
        "schema" => {
            c.eat(&["if", "exists"]);
            loop {
                build.part(Verb::Schema, named("schema", c.identifier()?));
                if !c.eat_punct(b',') {
                    break;
                }
            }
        }
        "function" | "procedure" | "routine" | "aggregate" => {
            c.eat(&["if", "exists"]);
            loop {
                let name = c.name()?;
                let target = function_target(build, &name, false);
                build.part(Verb::Schema, target);
                c.group();
                if !c.eat_punct(b',') {
                    break;
                }
            }
        }
        "trigger" | "policy" | "rule" => {
            c.eat(&["if", "exists"]);
            c.identifier()?;
            c.eat(&["on"]).then_some(())?;
            // Without its policy or trigger a table is less protected.
            build.relation(Verb::Admin, &c.name()?);
        }
        _ if administrative(&kind) => return admin(build, "drop", &kind),
        _ => {
            build.plain(Verb::Schema, &format!("sql:drop {kind}"));
            return Some(());
        }
    }
    utility::cascade(&mut c, build, Verb::Schema);
    c.done().then_some(())
}
