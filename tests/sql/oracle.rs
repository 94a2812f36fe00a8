//! What PostgreSQL's grammar says of a statement, and whether we say at least as much.

use std::collections::BTreeSet;

use pg_query::NodeRef;
use portcullis::{
    action::{Clarity, Facts, Verb},
    sql::{StatementKind, classify, fuzz},
};

/// What a run compared.
#[derive(Default)]
pub struct Figures {
    compared: usize,
    parsed: usize,
    partial: usize,
    opaque: usize,
    refused_by_grammar: usize,
    /// Statements that we understand as less than the grammar does.
    pub weaker: Vec<String>,
}

impl Figures {
    pub fn print(&self, what: &str) {
        println!(
            "{what}: compared {}, parsed {}, partial {}, opaque {} ({:.1} %), not SQL {}, weaker {}",
            self.compared,
            self.parsed,
            self.partial,
            self.opaque,
            100.0 * self.opaque as f64 / self.compared.max(1) as f64,
            self.refused_by_grammar,
            self.weaker.len()
        );
    }
}

/// Splits as the server's scanner does.
pub fn split(text: &str) -> Vec<String> {
    // psql's own commands and COPY data are no SQL; lines with them go.
    let mut kept = String::new();
    let mut data = false;
    for line in text.lines() {
        if data {
            data = line != "\\.";
            continue;
        }
        let lower = line.to_lowercase();
        if lower.starts_with("copy ") && lower.contains("from stdin") {
            data = true;
            continue;
        }
        if !line.starts_with('\\') {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept.split(";\n").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
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
    for (node, _, _, _) in theirs.protobuf.nodes() {
        if let Some(verb) = needs(&node)
            && !ours.action.parts.iter().any(|(v, _)| verb.contains(v))
        {
            wrong.push(format!("one of {verb:?} for {}", name_of(&node)));
        }
    }
    if !wrong.is_empty() {
        figures.weaker.push(format!("{}\n{:?}\n{command}", wrong.join("; "), ours.action.parts));
    }
    Some(Clarity::Parsed)
}

/// Verbs of which a statement of this kind must have one.
fn needs(node: &NodeRef<'_>) -> Option<&'static [Verb]> {
    use Verb::{Admin, Delete, Execute, Read, Schema, Session, Write};
    Some(match node {
        NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) => &[Write],
        NodeRef::DeleteStmt(_) | NodeRef::TruncateStmt(_) => &[Delete],
        NodeRef::MergeStmt(_) => &[Write, Delete, Read],
        NodeRef::CreateStmt(_)
        | NodeRef::ViewStmt(_)
        | NodeRef::IndexStmt(_)
        | NodeRef::CreateTableAsStmt(_)
        | NodeRef::DropStmt(_)
        | NodeRef::AlterTableStmt(_)
        | NodeRef::RenameStmt(_)
        | NodeRef::CreateFunctionStmt(_)
        | NodeRef::CreateSeqStmt(_)
        | NodeRef::CreateEnumStmt(_)
        | NodeRef::CreateDomainStmt(_)
        | NodeRef::CommentStmt(_)
        | NodeRef::RefreshMatViewStmt(_)
        | NodeRef::IntoClause(_) => &[Schema, Admin],
        NodeRef::GrantStmt(_)
        | NodeRef::GrantRoleStmt(_)
        | NodeRef::CreateRoleStmt(_)
        | NodeRef::AlterRoleStmt(_)
        | NodeRef::DropRoleStmt(_)
        | NodeRef::AlterSystemStmt(_)
        | NodeRef::AlterOwnerStmt(_)
        | NodeRef::CreateExtensionStmt(_)
        | NodeRef::CreatedbStmt(_)
        | NodeRef::DropdbStmt(_)
        | NodeRef::LoadStmt(_)
        | NodeRef::CheckPointStmt(_)
        | NodeRef::CreatePolicyStmt(_)
        | NodeRef::AlterDefaultPrivilegesStmt(_)
        | NodeRef::ReassignOwnedStmt(_)
        | NodeRef::DropOwnedStmt(_) => &[Admin],
        NodeRef::DoStmt(_) | NodeRef::CallStmt(_) => &[Execute],
        NodeRef::TransactionStmt(_) | NodeRef::VariableSetStmt(_) => &[Session, Admin],
        NodeRef::NotifyStmt(_) => &[Write],
        NodeRef::LockStmt(_) => &[Read, Write],
        NodeRef::CopyStmt(_) => &[Read, Write, Delete, Session, Admin, Execute, Schema],
        _ => return None,
    })
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
