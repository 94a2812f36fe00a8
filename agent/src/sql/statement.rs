//! What the protocol needs to know about each statement beyond what policy judges.

use std::{ops::Range, sync::Arc};

use super::{lineage::Lineage, reshape::Reshape};
use crate::action::Action;

/// How a connection resolves names at the moment a command is judged. The protocol tracks `search_path` and what
/// exists; a resolver that is not certain answers `None`, and the part's target then renders as `?.name`.
pub trait Names {
    /// The schema in which the server would find a relation; `schema` is what the statement wrote, already folded.
    fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>>;
    /// The schema in which the server would find a function: `pg_catalog` for built-ins that nothing shadows.
    fn function_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>>;
    /// Where an unqualified CREATE puts its object.
    fn creation_schema(&self) -> Option<Arc<str>>;
    /// The names of a relation's columns in order. Without them, no value can be told to come from elsewhere.
    fn columns(&self, schema: &str, name: &str) -> Option<Arc<[Arc<str>]>>;
    /// The schema in which the server would find a type; `schema` is what the statement wrote. Types that are not the
    /// server's own stay unresolved unless the statement says where they are.
    fn type_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        match schema {
            Some(schema) => Some(schema.into()),
            None => super::words::builtin_type(name).then(|| "pg_catalog".into()),
        }
    }
    /// Whether a type is nothing but labels: to convert to it runs no code but the server's own.
    fn is_enumeration(&self, _schema: &str, _name: &str) -> bool {
        false
    }
    /// The schema of an operator that the server has itself, written without a schema; `None` where another's might
    /// come first.
    fn operator_schema(&self, _operator: &str) -> Option<Arc<str>> {
        Some("pg_catalog".into())
    }
    /// Whether `x.name` may be a call: the server reads what is no column of `x` as a function of it. Functions of
    /// `pg_catalog` are not asked for.
    fn attribute_calls(&self, _name: &str) -> bool {
        false
    }
}

/// A command, understood as far as it can be.
#[derive(Debug, Clone)]
pub struct Classified {
    /// What policy judges.
    pub action: Action,
    /// One entry per statement, in order. Of a command that is opaque as a whole there is one, of kind
    /// [`StatementKind::Opaque`].
    pub statements: Vec<StatementInfo>,
}

/// One statement of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementInfo {
    /// What the protocol must follow.
    pub kind: StatementKind,
    /// Where it stands in the command's text, without its semicolon.
    pub span: Range<usize>,
    /// Which names it uses and how, for mask planning.
    pub mentions: Mentions,
    /// Which names mean something else from here on.
    pub reshape: Reshape,
    /// Where its values come from.
    pub lineage: Lineage,
}

/// What a statement means to the protocol: what it changes in the session, and how its rows come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementKind {
    /// Nothing but blanks and comments.
    Empty,
    /// Returns rows: SELECT, VALUES, TABLE, and EXPLAIN of anything.
    Query,
    /// INSERT, UPDATE, DELETE or MERGE, at the top or in a CTE. Returns rows if it has RETURNING.
    Change,
    /// BEGIN or START TRANSACTION.
    Begin,
    /// COMMIT or END.
    Commit {
        /// AND CHAIN: a new transaction starts at once.
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN: a new transaction starts at once.
        chain: bool,
    },
    /// SAVEPOINT name.
    Savepoint {
        /// Folded name.
        name: String,
    },
    /// RELEASE [SAVEPOINT] name.
    Release {
        /// Folded name.
        name: String,
    },
    /// ROLLBACK TO [SAVEPOINT] name. Settings and the like return to what they were.
    RollbackTo {
        /// Folded name.
        name: String,
    },
    /// SET, or a call of `set_config` with literal arguments as a whole statement.
    Set {
        /// Lower-case setting name.
        name: String,
        /// The values, decoded, in order; `None` for DEFAULT or where a value is no literal.
        value: Option<Vec<String>>,
        /// SET LOCAL: ends with the transaction.
        local: bool,
        /// Whether it is a `SELECT set_config(...)` that returns a row.
        returns_rows: bool,
    },
    /// RESET name, or RESET ALL if `None`.
    Reset {
        /// Lower-case setting name.
        name: Option<String>,
    },
    /// SHOW name or SHOW ALL.
    Show,
    /// DISCARD.
    Discard {
        /// What is discarded.
        what: Discard,
    },
    /// PREPARE name AS statement. The action's parts are the inner statement's.
    Prepare {
        /// Folded name.
        name: String,
        /// Where the inner statement stands in the command's text.
        inner: Range<usize>,
    },
    /// EXECUTE name. The parts of what was prepared are not in the action: the protocol adds them.
    ExecutePrepared {
        /// Folded name.
        name: String,
    },
    /// DEALLOCATE name, or ALL if `None`.
    Deallocate {
        /// Folded name.
        name: Option<String>,
    },
    /// COPY to or from the client. COPY with a file or a program is `Utility`, with an `admin` part.
    Copy(CopyInfo),
    /// DECLARE name CURSOR FOR query.
    DeclareCursor {
        /// Folded name.
        name: String,
        /// Where the query stands in the command's text.
        inner: Range<usize>,
    },
    /// FETCH from a cursor: returns rows of the cursor's query.
    Fetch {
        /// Folded name.
        cursor: String,
    },
    /// MOVE in a cursor: returns none.
    Move {
        /// Folded name.
        cursor: String,
    },
    /// CLOSE name, or ALL if `None`.
    CloseCursor {
        /// Folded name.
        cursor: Option<String>,
    },
    /// Anything else whose parts are known. Returns no rows of tables, but may change what names mean.
    Utility,
    /// Not understood.
    Opaque,
}

/// The object of DISCARD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything, like a new connection.
    All,
    /// Cached plans.
    Plans,
    /// Cached sequence values.
    Sequences,
    /// Temporary tables.
    Temporary,
}

/// Which way COPY moves rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyDirection {
    /// FROM STDIN: into the database.
    In,
    /// TO STDOUT: out of it.
    Out,
}

/// How COPY lays rows out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyFormat {
    /// Tab-separated unless `delimiter` says otherwise.
    #[default]
    Text,
    /// Comma-separated.
    Csv,
    /// PGCOPY.
    Binary,
}

/// What COPY copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A table, with the columns named, or all if empty.
    Table {
        /// Schema as written, folded.
        schema: Option<String>,
        /// Folded name.
        name: String,
        /// Folded column names in order.
        columns: Vec<String>,
    },
    /// A query: where it stands in the command's text, without its parentheses.
    Query(Range<usize>),
}

/// A COPY with the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyInfo {
    /// Which way.
    pub direction: CopyDirection,
    /// What.
    pub source: CopySource,
    /// In which layout.
    pub format: CopyFormat,
    /// Options as written, lower-case name and decoded value (empty for a flag): `delimiter`, `null`, `header`,
    /// `quote`, `escape`, `encoding`, `force_quote`, ...
    pub options: Vec<(String, String)>,
}

/// Names that a statement uses, so that masks can be planned or refused without knowing the statement.
///
/// All of it errs towards more: every identifier anywhere is in, whatever it turns out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions {
    /// Every identifier as the server folds it: columns, aliases, relations, functions, types. In order, each once.
    pub identifiers: Vec<String>,
    /// `*` or `t.*` anywhere but as an item of the outermost select list, and in `count(*)`.
    pub nested_wildcard: bool,
    /// A relation's name or alias used as a value: `row_to_json(t)`, `SELECT t FROM t`.
    pub whole_row: bool,
    /// Columns are given new names: `FROM t AS a(x, y)`, `WITH c(x) AS`, `TABLE` in a set operation, `NATURAL JOIN`.
    pub renames_columns: bool,
    /// CHECK, USING or WHERE stands in it: conditions on rows that are there, in a definition.
    pub conditions: bool,
    /// Relations named, folded, as written: (schema, name). CTEs are not among them.
    pub relations: Vec<(Option<String>, String)>,
}
