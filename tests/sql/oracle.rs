//! What PostgreSQL's grammar says of a statement, and whether we say at least as much.

use std::collections::BTreeSet;

use pg_query::{NodeEnum, NodeRef};
use portcullis::{
    action::{Clarity, Facts, Part, Verb},
    sql::{StatementKind, classify, fuzz, is_builtin_type},
};

use crate::kinds;

/// The server's own operators.
const OPERATORS: &str = include_str!("../../agent/src/sql/operators.txt");

/// What a run compared.
#[derive(Default)]
pub struct Figures {
    pub compared: usize,
    parsed: usize,
    partial: usize,
    opaque: usize,
    refused_by_grammar: usize,
    /// Statements that we understand as less than the grammar does.
    pub weaker: Vec<String>,
}

impl Figures {
    /// How much was not understood at all, from 0 to 1.
    pub fn opaque_share(&self) -> f64 {
        self.opaque as f64 / self.compared.max(1) as f64
    }

    pub fn print(&self, what: &str) {
        println!(
            "{what}: compared {}, parsed {}, partial {}, opaque {} ({:.1} %), not SQL {}, weaker {}",
            self.compared,
            self.parsed,
            self.partial,
            self.opaque,
            100.0 * self.opaque_share(),
            self.refused_by_grammar,
            self.weaker.len()
        );
    }
}

/// The statements of a file for psql, cut by the server's scanner.
pub fn split(text: &str) -> Vec<String> {
    let sql = without_psql(text);
    match pg_query::split_with_scanner(&sql) {
        Ok(statements) => statements.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        // Some file shows what the scanner refuses: cut at line ends, one such statement spoils no other.
        Err(_) => sql.split(";\n").map(str::to_owned).collect(),
    }
    .into_iter()
    .map(|statement: String| statement.trim().to_owned())
    .filter(|statement| !statement.is_empty())
    .collect()
}

/// What psql sends of a file: its own commands, which start with a backslash, and the data of COPY are not sent.
fn without_psql(text: &str) -> String {
    let mut kept = String::new();
    let mut data = false;
    for line in text.lines() {
        if data {
            data = line != "\\.";
            continue;
        }
        let lower = line.trim_start().to_lowercase();
        if lower.starts_with('\\') {
            continue;
        }
        // `\gset` and its like send what stands before them, and `\;` ends a statement without sending.
        match line.find(" \\g").or(line.find("\\;")) {
            Some(at) if line.is_char_boundary(at) => {
                kept.push_str(&line[..at]);
                kept.push_str(";\n");
                kept.push_str(line[at..].strip_prefix("\\;").unwrap_or(""));
            }
            _ => kept.push_str(line),
        }
        kept.push('\n');
        data = lower.starts_with("copy ") && lower.contains("from stdin") && lower.ends_with(';');
    }
    kept
}

/// Calls that the grammar writes for syntax of its own, so that no name stands in the text.
const SYNTAX: &[&str] = &[
    "btrim",
    "ltrim",
    "rtrim",
    "extract",
    "overlay",
    "position",
    "substring",
    "timezone",
    "like_escape",
    "similar_to_escape",
    "overlaps",
    "is_normalized",
    "normalize",
    "xmlexists",
    "system_user",
    "pg_collation_for",
    "date_part",
    "nextval",
    "similar_escape",
];

/// Compares one command; `None` if the grammar refuses it.
pub fn compare(command: &str, figures: &mut Figures) -> Option<Clarity> {
    if command.contains('\0') {
        return None;
    }
    let Ok(theirs) = pg_query::parse(command) else {
        figures.refused_by_grammar += 1;
        return None;
    };
    let ours = classify(command, &fuzz::Fixed);
    figures.compared += 1;
    match ours.action.clarity {
        Clarity::Parsed => figures.parsed += 1,
        Clarity::Partial => {
            figures.partial += 1;
            return Some(Clarity::Partial);
        }
        Clarity::Opaque => {
            figures.opaque += 1;
            return Some(Clarity::Opaque);
        }
    }
    let mut wrong = Vec::new();
    let Facts::Sql(facts) = &ours.action.facts else { return Some(Clarity::Parsed) };
    let stmts = theirs.protobuf.stmts.len();
    if stmts != facts.len() {
        wrong.push(format!("{stmts} statements, not {}", facts.len()));
    }
    let tables: BTreeSet<&str> = facts.iter().flat_map(|f| &f.tables).map(|t| last(t.as_str())).collect();
    let functions: BTreeSet<&str> = facts
        .iter()
        .flat_map(|f| &f.functions)
        .map(|f| last(f))
        .chain(ours.action.parts.iter().filter_map(|(_, t)| t.as_str().strip_prefix("fn:")).map(last))
        .collect();
    // The oracle takes a CTE in UPDATE ... FROM for a table; that a CTE hides no table is for the attack list.
    let nodes = theirs.protobuf.nodes();
    let ctes: BTreeSet<&str> = nodes
        .iter()
        .filter_map(|(node, ..)| match node {
            NodeRef::CommonTableExpr(cte) => Some(cte.ctename.as_str()),
            _ => None,
        })
        .collect();
    for table in theirs.tables() {
        let name = bare(&table);
        if ctes.contains(table.as_str()) {
            continue;
        }
        // What rights are given on is not told: all of it is `admin`.
        let admin = ours.action.parts.iter().any(|(verb, t)| *verb == Verb::Admin && t.as_str().starts_with("sql:"));
        if !admin && !tables.contains(name.as_str()) && !tables.contains(table.as_str()) {
            wrong.push(format!("relation {table}"));
        }
    }
    for table in theirs.dml_tables() {
        let name = bare(&table);
        // The oracle counts COPY TO as a change.
        let copied = theirs.protobuf.nodes().iter().any(|(n, ..)| {
            // Nor does MERGE that does nothing.
            matches!(n, NodeRef::CopyStmt(c) if !c.is_from) || matches!(n, NodeRef::MergeStmt(_))
        });
        let changed = copied
            || ours.action.parts.iter().any(|(verb, target)| {
                matches!(verb, Verb::Write | Verb::Delete | Verb::Admin | Verb::Schema) && last(target.as_str()) == name
            });
        if !changed {
            wrong.push(format!("change of {table}"));
        }
    }
    for function in theirs.call_functions() {
        let name = bare(&function);
        let seen = functions.contains(name.as_str())
            || SYNTAX.contains(&function.trim_start_matches("pg_catalog."))
            // Definitions: a safe function in a default needs no fact.
            || ours.statements.iter().any(|s| s.kind == StatementKind::Utility) && function.starts_with("pg_catalog.");
        if !seen {
            wrong.push(format!("function {function}"));
        }
    }
    for (node, ..) in theirs.protobuf.nodes() {
        if let Some(verbs) = kinds::needs(&node)
            && !ours.action.parts.iter().any(|(v, _)| verbs.contains(v))
        {
            wrong.push(format!("one of {verbs:?} for {}", name_of(&node)));
        }
        code(&node, &ours.action.parts, &mut wrong);
    }
    // Statement by statement: the parts of one say nothing of another.
    for (fact, stmt) in facts.iter().zip(&theirs.protobuf.stmts) {
        let Some(node) = stmt.stmt.as_ref().and_then(|s| s.node.as_ref()) else { continue };
        let node = node.to_ref();
        let parts = &ours.action.parts[fact.parts.clone()];
        if !kinds::top(&node).is_none_or(|verbs| parts.iter().any(|(v, _)| verbs.contains(v))) {
            wrong.push(format!("{} as {parts:?}", name_of(&node)));
        }
        if let NodeRef::SelectStmt(select) = &node
            && !select.locking_clause.is_empty()
            && fact.verb == "select"
        {
            wrong.push("a row lock".to_owned());
        }
    }
    if !wrong.is_empty() {
        figures.weaker.push(format!("{}\n{:?}\n{command}", wrong.join("; "), ours.action.parts));
    }
    Some(Clarity::Parsed)
}

/// What runs another's code without being a call: conversions to types and operators that are not the server's own.
fn code(node: &NodeRef<'_>, parts: &[Part], wrong: &mut Vec<String>) {
    let has = |prefix: &str, name: &str| {
        parts.iter().any(|(verb, target)| {
            *verb == Verb::Execute
                && target.as_str().starts_with(prefix)
                && last(target.as_str()) == name.replace('"', "\"\"")
        })
    };
    let strings = |nodes: &[pg_query::protobuf::Node]| -> Vec<String> {
        let text = |node: &pg_query::protobuf::Node| match &node.node {
            Some(NodeEnum::String(text)) => Some(text.sval.clone()),
            _ => None,
        };
        nodes.iter().filter_map(text).collect()
    };
    match node {
        NodeRef::TypeCast(cast) => {
            let names = cast.type_name.as_ref().map(|t| strings(&t.names)).unwrap_or_default();
            let own = match names.as_slice() {
                [schema, _] => schema == "pg_catalog",
                [name] => is_builtin_type(name),
                _ => false,
            };
            let name = names.last().cloned().unwrap_or_default();
            if !own && !has("type:", &name) {
                wrong.push(format!("a cast to {names:?}"));
            }
        }
        NodeRef::AExpr(expression) => {
            let names = strings(&expression.name);
            let name = names.last().cloned().unwrap_or_default();
            let own = OPERATORS.lines().any(|operator| operator == name);
            // BETWEEN and the like are kept there by their words.
            let sign = !name.is_empty() && name.bytes().all(|b| b.is_ascii_punctuation());
            if sign && !own && !has("op:", &name) {
                wrong.push(format!("the operator {names:?}"));
            }
        }
        _ => {}
    }
}

fn name_of(node: &NodeRef<'_>) -> String {
    format!("{node:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// The last segment of a canonical target.
fn last(target: &str) -> &str {
    if let Some(unquoted) = target.strip_suffix('"') {
        return unquoted.rsplit_once(".\"").map_or(unquoted, |(_, l)| l);
    }
    target.rsplit('.').next().unwrap_or(target)
}

/// The last segment of an oracle's name, quoted as a target's would be but without its quotes.
fn bare(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).replace('"', "\"\"")
}
