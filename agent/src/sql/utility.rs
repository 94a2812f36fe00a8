//! Statements other than SELECT, INSERT, UPDATE, DELETE and MERGE, recognised on tokens by PostgreSQL's grammar.
//!
//! Each recogniser takes a statement to its last token or reports it as not understood. A head that is not listed is
//! opaque. Expressions inside definitions are not evaluated now; calls in them still count.
//!
//! Long because it holds one recogniser for each statement kind that the parser does not read.

use super::{
    build::{Builder, Name, named},
    classify_into,
    cursor::Cursor,
    ddl, is_data,
    lexer::{Lexeme, Token},
    lineage::Output,
    statement::{CopyDirection, CopyFormat, CopyInfo, CopySource, Discard, StatementKind},
    words,
};
use crate::action::{Target, Verb};

/// Recognises a statement. `None`: it is none that is known, or does not go on as its head promises.
pub(super) fn recognise(tokens: &[Token], build: &mut Builder<'_>) -> Option<()> {
    let mut c = Cursor::new(tokens);
    let head = c.next()?.word()?;
    build.facts.verb = head.to_owned();
    match head {
        "begin" => begin(c, build),
        "start" => {
            c.eat(&["transaction"]).then_some(())?;
            begin(c, build)
        }
        "commit" | "end" => commit(c, build),
        "rollback" | "abort" => rollback(c, build),
        "savepoint" => {
            let name = c.identifier()?.to_owned();
            session(build, c, "sql:transaction", StatementKind::Savepoint { name })
        }
        "release" => {
            c.eat(&["savepoint"]);
            let name = c.identifier()?.to_owned();
            session(build, c, "sql:transaction", StatementKind::Release { name })
        }
        "set" => set(c, build),
        "reset" => reset(c, build),
        "show" => {
            let what: Vec<&str> = c.rest().iter().filter_map(Token::identifier).collect();
            build.part(Verb::Session, named("setting", &what.join(".")));
            build.kind = StatementKind::Show;
            let known = c.rest().iter().all(|t| t.identifier().is_some() || t.is_punct(b'.'));
            (known && !what.is_empty()).then_some(())
        }
        "discard" => {
            let what = match c.next()?.word()? {
                "all" => Discard::All,
                "plans" => Discard::Plans,
                "sequences" => Discard::Sequences,
                "temp" | "temporary" => Discard::Temporary,
                _ => return None,
            };
            session(build, c, "sql:discard", StatementKind::Discard { what })
        }
        "prepare" => prepare(c, build),
        "execute" => execute(c, build),
        "deallocate" => {
            c.eat(&["prepare"]);
            let name = if c.eat(&["all"]) { None } else { Some(c.identifier()?.to_owned()) };
            session(build, c, "sql:prepared", StatementKind::Deallocate { name })
        }
        "declare" => declare(c, build),
        "fetch" | "move" => fetch(c, build, head),
        "close" => {
            let cursor = if c.eat(&["all"]) { None } else { Some(c.identifier()?.to_owned()) };
            session(build, c, "sql:cursor", StatementKind::CloseCursor { cursor })
        }
        "listen" | "unlisten" => {
            let target = match c.identifier() {
                Some(channel) => named("channel", channel),
                None if head == "unlisten" && c.eat_op("*") => Target::new("channel:*"),
                None => return None,
            };
            build.part(Verb::Session, target);
            c.done().then_some(())
        }
        "notify" => {
            build.part(Verb::Write, named("channel", c.identifier()?));
            if c.eat_punct(b',') {
                c.text()?;
            }
            c.done().then_some(())
        }
        "lock" => lock(c, build),
        "truncate" => truncate(c, build),
        "copy" => copy(c, build),
        "explain" => explain(c, build),
        "call" => call(c, build),
        "do" => {
            build.part(Verb::Execute, Target::function(None, "do"));
            build.unknown("do");
            Some(())
        }
        "vacuum" | "analyze" | "analyse" | "cluster" | "reindex" => maintain(c, build, head),
        "refresh" => {
            c.eat(&["materialized", "view"]).then_some(())?;
            build.facts.verb = "refresh materialized view".to_owned();
            c.eat(&["concurrently"]);
            let name = c.name()?;
            build.relation(Verb::Schema, &name);
            if !c.eat(&["with", "no", "data"]) {
                c.eat(&["with", "data"]);
            }
            c.done().then_some(())
        }
        "grant" | "revoke" | "reassign" | "checkpoint" | "load" | "security" | "import" => {
            build.plain(Verb::Admin, &format!("sql:{head}"));
            Some(())
        }
        "create" | "alter" | "drop" | "comment" => ddl::recognise(head, c, build),
        _ => None,
    }
}

/// The head of a statement that changes shape, rights or the server whatever follows it, also where the rest is not
/// understood.
pub(super) fn administrative_head(tokens: &[Token]) -> Option<&str> {
    let heads = [
        "alter", "analyse", "analyze", "cluster", "comment", "create", "drop", "refresh", "reindex", "security",
        "vacuum",
    ];
    tokens.first().and_then(Token::word).filter(|head| heads.contains(head))
}

fn session(build: &mut Builder<'_>, c: Cursor<'_>, target: &str, kind: StatementKind) -> Option<()> {
    build.plain(Verb::Session, target);
    build.kind = kind;
    c.done().then_some(())
}

fn begin(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    c.eat_any(&["work", "transaction"]);
    modes(&mut c);
    session(build, c, "sql:transaction", StatementKind::Begin)
}

/// Transaction modes, which may be separated by commas.
fn modes(c: &mut Cursor<'_>) {
    loop {
        let words = ["isolation", "level", "serializable", "repeatable", "read", "committed", "uncommitted", "only"];
        let more = c.eat_any(&words) || c.eat_any(&["write", "not", "deferrable"]) || c.eat_punct(b',');
        if !more {
            return;
        }
    }
}

fn chain(c: &mut Cursor<'_>) -> bool {
    c.eat_any(&["work", "transaction"]);
    let chain = c.eat(&["and", "chain"]);
    if !chain {
        c.eat(&["and", "no", "chain"]);
    }
    chain
}

fn commit(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    if c.eat(&["prepared"]) {
        build.plain(Verb::Admin, "sql:two-phase");
        c.text()?;
        return c.done().then_some(());
    }
    let chain = chain(&mut c);
    session(build, c, "sql:transaction", StatementKind::Commit { chain })
}

fn rollback(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    if c.eat(&["prepared"]) {
        build.plain(Verb::Admin, "sql:two-phase");
        c.text()?;
        return c.done().then_some(());
    }
    c.eat_any(&["work", "transaction"]);
    if c.eat(&["to"]) {
        c.eat(&["savepoint"]);
        let name = c.identifier()?.to_owned();
        return session(build, c, "sql:transaction", StatementKind::RollbackTo { name });
    }
    let chain = chain(&mut c);
    session(build, c, "sql:transaction", StatementKind::Rollback { chain })
}

fn set(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    if c.eat(&["constraints"]) {
        build.plain(Verb::Session, "sql:constraints");
        return Some(());
    }
    if c.eat(&["transaction"]) {
        // SET TRANSACTION SNAPSHOT reads another session's snapshot: harmless, and pg_dump -j does it.
        if c.eat(&["snapshot"]) {
            c.text()?;
        }
        modes(&mut c);
        build.plain(Verb::Session, "sql:transaction");
        return c.done().then_some(());
    }
    if c.eat(&["session", "characteristics", "as", "transaction"]) {
        modes(&mut c);
        build.plain(Verb::Session, "sql:transaction");
        return c.done().then_some(());
    }
    let mut local = false;
    if !c.rest().get(..2).is_some_and(|t| t[0].is("session") && t[1].is("authorization")) {
        local = c.eat(&["local"]);
        if !local {
            c.eat(&["session"]);
        }
    }
    if c.eat(&["role"]) || c.eat(&["session", "authorization"]) || c.eat(&["authorization"]) {
        build.part(Verb::Admin, named("setting", "role"));
        let value = None;
        build.kind = StatementKind::Set { name: "role".to_owned(), value, local, returns_rows: false };
        return Some(());
    }
    let name = if c.eat(&["time", "zone"]) {
        "timezone".to_owned()
    } else if c.eat(&["names"]) {
        "client_encoding".to_owned()
    } else if c.eat(&["schema"]) {
        "search_path".to_owned()
    } else if c.eat(&["xml", "option"]) {
        "xmloption".to_owned()
    } else {
        let mut name = c.next()?.identifier()?.to_ascii_lowercase();
        while c.eat_punct(b'.') {
            name.push('.');
            name.push_str(&c.next()?.identifier()?.to_ascii_lowercase());
        }
        (c.eat_op("=") || c.eat(&["to"])).then_some(())?;
        name
    };
    let value = if c.eat(&["default"]) || (name == "timezone" && c.eat(&["local"])) {
        None
    } else {
        let mut values = Vec::new();
        loop {
            let negative = c.eat_op("-");
            if !negative {
                c.eat_op("+");
            }
            let value = match &c.next()?.lexeme {
                Lexeme::Number(n) if negative => format!("-{n}"),
                Lexeme::Number(v) | Lexeme::Text(v) | Lexeme::Word(v) | Lexeme::Quoted(v) if !negative => v.clone(),
                _ => return None,
            };
            values.push(value);
            if !c.eat_punct(b',') {
                break;
            }
        }
        // SET TIME ZONE INTERVAL '1' HOUR TO MINUTE and the like.
        if name == "timezone" && !c.done() {
            let known = c.rest().iter().all(|t| {
                matches!(t.lexeme, Lexeme::Text(_) | Lexeme::Number(_) | Lexeme::Punct(b'(' | b')'))
                    || t.word().is_some_and(|w| ["hour", "minute", "second", "to"].contains(&w))
            });
            known.then_some(())?;
            c = Cursor::new(&[]);
        }
        Some(values)
    };
    build.setting(&name, value.as_deref());
    build.kind = StatementKind::Set { name, value, local, returns_rows: false };
    c.done().then_some(())
}

fn reset(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    if c.eat(&["all"]) {
        return session(build, c, "setting:*", StatementKind::Reset { name: None });
    }
    let name = if c.eat(&["time", "zone"]) {
        "timezone".to_owned()
    } else if c.eat(&["session", "authorization"]) {
        "session_authorization".to_owned()
    } else if c.eat(&["transaction", "isolation", "level"]) {
        "transaction_isolation".to_owned()
    } else {
        let mut name = c.next()?.identifier()?.to_ascii_lowercase();
        while c.eat_punct(b'.') {
            name.push('.');
            name.push_str(&c.next()?.identifier()?.to_ascii_lowercase());
        }
        name
    };
    build.setting(&name, None);
    build.kind = StatementKind::Reset { name: Some(name) };
    c.done().then_some(())
}

/// Judges a query or change inside another statement; the outer kind is the caller's to set.
fn inner(tokens: &[Token], build: &mut Builder<'_>) -> Option<std::ops::Range<usize>> {
    // Anything else cannot stand there, and statements in statements must not nest without end.
    is_data(tokens).then_some(())?;
    let span = tokens.first()?.span.start..tokens.last()?.span.end;
    classify_into(tokens, build);
    Some(span)
}

fn prepare(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    if c.eat(&["transaction"]) {
        build.plain(Verb::Admin, "sql:two-phase");
        c.text()?;
        return c.done().then_some(());
    }
    let name = c.identifier()?.to_owned();
    if let Some(types) = c.group() {
        // What is bound is converted to these. Types of the grammar's own are keywords.
        let mut declared = Cursor::new(types);
        loop {
            let keyword = declared.peek().and_then(Token::word).is_some_and(words::before_text);
            let mut name = declared;
            if !keyword {
                build.conversion(&name.name()?);
            }
            let Some(at) = declared.find_punct(b',') else { break };
            declared = declared.skip(at + 1);
        }
    }
    c.eat(&["as"]).then_some(())?;
    let inner = inner(c.rest(), build)?;
    build.plain(Verb::Session, "sql:prepared");
    build.kind = StatementKind::Prepare { name, inner };
    Some(())
}

fn execute(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let name = c.identifier()?.to_owned();
    if let Some(arguments) = c.group() {
        expressions(arguments, build);
    }
    build.facts.verb = "execute".to_owned();
    session(build, c, "sql:prepared", StatementKind::ExecutePrepared { name })
}

/// Judges a list of expressions as the items of a SELECT.
pub(super) fn expressions(tokens: &[Token], build: &mut Builder<'_>) {
    let span = tokens.first().map_or(0..0, |t| t.span.clone());
    let mut select = vec![Token { lexeme: Lexeme::Word("select".to_owned()), span }];
    select.extend_from_slice(tokens);
    classify_into(&select, build);
}

fn declare(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let name = c.identifier()?.to_owned();
    c.eat_any(&["binary", "asensitive", "insensitive", "no", "scroll"]);
    c.eat(&["cursor"]).then_some(())?;
    if !c.eat(&["with", "hold"]) {
        c.eat(&["without", "hold"]);
    }
    c.eat(&["for"]).then_some(())?;
    let inner = inner(c.rest(), build)?;
    build.plain(Verb::Session, "sql:cursor");
    build.kind = StatementKind::DeclareCursor { name, inner };
    Some(())
}

fn fetch(c: Cursor<'_>, build: &mut Builder<'_>, head: &str) -> Option<()> {
    let (last, direction) = c.rest().split_last()?;
    let cursor = last.identifier()?.to_owned();
    let words = ["next", "prior", "first", "last", "absolute", "relative", "all", "forward", "backward", "from", "in"];
    let known = direction.iter().all(|t| match &t.lexeme {
        Lexeme::Word(w) => words.contains(&w.as_str()),
        Lexeme::Number(_) => true,
        Lexeme::Op(op) => op == "-" || op == "+",
        _ => false,
    });
    known.then_some(())?;
    build.plain(Verb::Session, "sql:cursor");
    build.kind = if head == "fetch" { StatementKind::Fetch { cursor } } else { StatementKind::Move { cursor } };
    Some(())
}

fn lock(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    c.eat(&["table"]);
    let relations = relations(&mut c)?;
    let mut verb = Verb::Write;
    if c.eat(&["in"]) {
        let at = c.find("mode")?;
        let mode: Vec<&str> = c.rest()[..at].iter().map(|t| t.word().unwrap_or("")).collect();
        if mode == ["access", "share"] {
            verb = Verb::Read;
        }
        c = c.skip(at + 1);
    }
    c.eat(&["nowait"]);
    for name in &relations {
        build.relation(verb, name);
    }
    c.done().then_some(())
}

/// `[ONLY] name [*]`, separated by commas.
pub(super) fn relations(c: &mut Cursor<'_>) -> Option<Vec<Name>> {
    let mut out = Vec::new();
    loop {
        if c.eat(&["only"])
            && let Some(inside) = c.group()
        {
            let mut inside = Cursor::new(inside);
            out.push(inside.name()?);
            inside.done().then_some(())?;
        } else {
            out.push(c.name()?);
            c.eat_op("*");
        }
        if !c.eat_punct(b',') {
            return Some(out);
        }
    }
}

/// What CASCADE may reach: relations that the statement does not name.
pub(super) fn cascade(c: &mut Cursor<'_>, build: &mut Builder<'_>, verb: Verb) {
    if c.eat(&["cascade"]) {
        build.part(verb, Target::new("?.?"));
    } else {
        c.eat(&["restrict"]);
    }
}

fn truncate(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    c.eat(&["table"]);
    for name in relations(&mut c)? {
        build.relation(Verb::Delete, &name);
    }
    if !c.eat(&["restart", "identity"]) {
        c.eat(&["continue", "identity"]);
    }
    cascade(&mut c, build, Verb::Delete);
    c.done().then_some(())
}

fn copy(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let mut options = Vec::new();
    let mut format = CopyFormat::Text;
    let source = if c.peek()?.is_punct(b'(') {
        CopySource::Query(inner(c.group()?, build)?)
    } else {
        if c.rest().get(1).is_some_and(|t| t.identifier().is_some()) && c.eat(&["binary"]) {
            format = CopyFormat::Binary;
        }
        let name = c.name()?;
        let columns = match c.group() {
            None => Vec::new(),
            Some(list) => columns(list)?,
        };
        CopySource::Table { schema: name.schema, name: name.name, columns }
    };
    let direction = if c.eat(&["from"]) {
        CopyDirection::In
    } else if c.eat(&["to"]) {
        CopyDirection::Out
    } else {
        return None;
    };
    if let CopySource::Table { schema, name, .. } = &source {
        let verb = if direction == CopyDirection::In { Verb::Write } else { Verb::Read };
        build.relation(verb, &Name { schema: schema.clone(), name: name.clone(), bare: false });
    } else if direction == CopyDirection::In {
        return None;
    }
    // A change stays one for rules that ask for the verb, whatever its rows are copied to.
    if !matches!(source, CopySource::Query(_)) || !build.changes() {
        build.facts.verb = "copy".to_owned();
    }
    let client = c.eat(&["stdin"]) || c.eat(&["stdout"]);
    if !client {
        let target = if c.eat(&["program"]) { "sql:copy program" } else { "sql:copy file" };
        c.text()?;
        build.plain(Verb::Admin, target);
    }
    if let Some(at) = c.find("where") {
        expressions(&c.rest()[at + 1..], build);
        c = Cursor::new(&c.rest()[..at]);
    }
    copy_options(&mut c, &mut format, &mut options)?;
    build.kind = if client {
        StatementKind::Copy(CopyInfo { direction, source, format, options })
    } else {
        StatementKind::Utility
    };
    c.done().then_some(())
}

fn columns(list: &[Token]) -> Option<Vec<String>> {
    let mut c = Cursor::new(list);
    let mut out = Vec::new();
    loop {
        out.push(c.identifier()?.to_owned());
        if c.done() {
            return Some(out);
        }
        c.eat_punct(b',').then_some(())?;
    }
}

fn copy_options(c: &mut Cursor<'_>, format: &mut CopyFormat, options: &mut Vec<(String, String)>) -> Option<()> {
    c.eat(&["with"]);
    if let Some(list) = c.group() {
        let mut o = Cursor::new(list);
        loop {
            let name = o.next()?.identifier()?.to_owned();
            let value = match o.peek().map(|t| &t.lexeme) {
                None | Some(Lexeme::Punct(b',')) => String::new(),
                // A list of columns: what stands in it is no option.
                Some(Lexeme::Punct(b'(')) => {
                    o.group()?;
                    "(".to_owned()
                }
                Some(Lexeme::Word(v) | Lexeme::Quoted(v) | Lexeme::Text(v) | Lexeme::Number(v)) => {
                    o.next();
                    v.clone()
                }
                Some(Lexeme::Op(op)) if op == "*" => {
                    o.next();
                    "*".to_owned()
                }
                // No option takes a signed number but a header, and `-0` is none.
                Some(_) => return None,
            };
            match name.as_str() {
                "format" => {
                    *format = match value.as_str() {
                        "text" => CopyFormat::Text,
                        "csv" => CopyFormat::Csv,
                        "binary" => CopyFormat::Binary,
                        _ => return None,
                    };
                }
                // Whether the first line is one decides whether it is masked, so that every spelling must be known: the
                // server takes `00` for 0.
                "header" => {
                    let value = value.to_ascii_lowercase();
                    ["", "true", "on", "1", "match", "false", "off", "0"].contains(&value.as_str()).then_some(())?;
                }
                _ => {}
            }
            options.push((name, value));
            if o.done() {
                break;
            }
            o.eat_punct(b',').then_some(())?;
        }
        return Some(());
    }
    while !c.done() {
        match c.next()?.word()? {
            "binary" => *format = CopyFormat::Binary,
            "csv" => *format = CopyFormat::Csv,
            flag @ ("header" | "freeze") => options.push((flag.to_owned(), String::new())),
            valued @ ("delimiter" | "delimiters" | "null" | "quote" | "escape" | "encoding") => {
                c.eat(&["as"]);
                options.push((valued.trim_end_matches("delimiters").to_owned(), c.text()?.to_owned()));
                if valued == "delimiters"
                    && let Some(last) = options.last_mut()
                {
                    "delimiter".clone_into(&mut last.0);
                }
            }
            "using" => {}
            "force" => {
                (c.eat(&["quote"]) || c.eat(&["not", "null"]) || c.eat(&["null"])).then_some(())?;
                if !c.eat_op("*") {
                    c.identifier()?;
                    while c.eat_punct(b',') {
                        c.identifier()?;
                    }
                }
                options.push(("force".to_owned(), String::new()));
            }
            _ => return None,
        }
    }
    Some(())
}

fn explain(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    // `EXPLAIN (SELECT ...)` explains a query in parentheses; anything else there is options.
    let options = c.peek()?.is_punct(b'(')
        && c.rest().get(1).is_some_and(|t| {
            !t.is_punct(b'(') && !t.word().is_some_and(|w| ["select", "with", "values", "table"].contains(&w))
        });
    if options {
        c.group()?;
    } else {
        c.eat(&["analyze"]);
        c.eat(&["analyse"]);
        c.eat(&["verbose"]);
    }
    let head = c.peek()?.word().unwrap_or("");
    let explainable = [
        "select", "insert", "update", "delete", "merge", "values", "table", "with", "", "declare", "create", "refresh",
        "execute",
    ];
    explainable.contains(&head).then_some(())?;
    classify_into(c.rest(), build);
    // What EXPLAIN EXECUTE explains, the protocol knows by the prepared statement's name.
    if !matches!(build.kind, StatementKind::ExecutePrepared { .. }) {
        build.kind = StatementKind::Query;
    }
    build.mentions.nested_wildcard = true;
    if let Some(lineage) = &mut build.lineage {
        // A plan tells what the statement says, and how many rows there are; no value is in it.
        lineage.outputs = Some(vec![Output::default()]);
        lineage.stored.clear();
    }
    Some(())
}

fn call(mut c: Cursor<'_>, build: &mut Builder<'_>) -> Option<()> {
    let name = c.name()?;
    let arguments = c.group()?;
    if !arguments.is_empty() {
        expressions(arguments, build);
    }
    let schema = build.names.function_schema(name.schema.as_deref(), &name.name);
    let target = Target::function(schema.as_deref(), &name.name);
    build.facts.verb = "call".to_owned();
    build.part(Verb::Execute, target);
    build.kind = StatementKind::Utility;
    c.done().then_some(())
}

fn maintain(mut c: Cursor<'_>, build: &mut Builder<'_>, head: &str) -> Option<()> {
    let mut full = false;
    if head != "reindex"
        && let Some(options) = c.group()
    {
        full = options.iter().any(|t| t.is("full"));
    }
    if head == "reindex" {
        c.group();
        let kind = c.next()?.word()?;
        c.eat(&["concurrently"]);
        if matches!(kind, "table" | "index") {
            build.relation(Verb::Schema, &c.name()?);
        } else {
            build.plain(Verb::Admin, "sql:reindex");
            c.identifier();
        }
        return c.done().then_some(());
    }
    while let Some(word) = c.peek().and_then(Token::word) {
        match word {
            "full" => full = true,
            "freeze" | "verbose" | "analyze" | "analyse" => {}
            _ => break,
        }
        c.next();
    }
    if c.done() || full || head == "cluster" {
        build.plain(Verb::Admin, &format!("sql:{head}"));
    }
    if head == "cluster" {
        return Some(());
    }
    while !c.done() {
        let name = c.name()?;
        c.eat_op("*");
        c.group();
        build.relation(Verb::Schema, &name);
        if !c.eat_punct(b',') {
            break;
        }
    }
    c.done().then_some(())
}
