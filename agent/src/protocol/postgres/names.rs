//! How a connection resolves names: the catalogue and the `search_path` as far as they are known for certain.
//!
//! `search_path` is followed through SET, RESET, DISCARD, `set_config`, and the end of transactions. Where it cannot be
//! followed (a failed change), it is unknown, and while a change is not answered for, more than one path may be in force.
//! What statements have made, moved or removed since the catalogue was read ([`super::flux`]) may be there or not.
//! Names that do not resolve alike in all of these cases do not resolve: policy then sees `?.name`.

use std::sync::Arc;

use smallvec::SmallVec;

use super::catalog::Catalog;
use crate::sql::{Discard, Names, Reshape, StatementInfo, StatementKind};

/// The path as last known.
type Path = Option<Arc<[Arc<str>]>>;

/// Names of one connection.
#[derive(Clone, Debug)]
pub struct NameState {
    catalog: Arc<Catalog>,
    /// What the catalogue may not show.
    flux: Arc<Reshape>,
    /// Temporary relations that this connection may have made: no reading shows them under their name.
    temporary: Reshape,
    initial: Path,
    current: Path,
    /// What it may still be, because changes are not answered for.
    unsettled: Vec<Path>,
    /// What it will be when the present transaction, which changed it, ends.
    ends: Option<Ends>,
    epoch: u64,
    /// The path changed since the catalogue was read: a schema searched from now on may have new names.
    recheck: bool,
}

/// The path after a transaction. SET LOCAL ends with it, SET only where it is undone (guc.c, `AtEOXact_GUC`).
#[derive(Clone, Debug)]
struct Ends {
    undone: Path,
    committed: Path,
}

/// How long a change of the path lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    Session,
    Transaction,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Its changes stay.
    Committed,
    /// Its changes are gone.
    RolledBack,
}

impl NameState {
    /// At login. `requested` is the `search_path` of the startup packet.
    pub fn new(catalog: Arc<Catalog>, requested: Option<&str>) -> Self {
        let initial = match requested {
            None => Some(catalog.search_path.as_slice().into()),
            Some(list) => parse_list(list).map(|names| expand(&names, &catalog)),
        };
        let current = initial.clone();
        let (flux, temporary) = Default::default();
        Self { catalog, flux, temporary, current, unsettled: Vec::new(), initial, ends: None, epoch: 0, recheck: false }
    }

    /// Changes whenever a name may mean something else than before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The catalogue in use.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The path, if it is known for certain.
    pub fn settled_path(&self) -> Option<&Arc<[Arc<str>]>> {
        self.current.as_ref().filter(|_| self.unsettled.is_empty())
    }

    /// Puts a catalogue in use, with what it may not show.
    pub fn observe(&mut self, catalog: &Arc<Catalog>, flux: &Arc<Reshape>) {
        if !Arc::ptr_eq(&self.catalog, catalog) || !Arc::ptr_eq(&self.flux, flux) {
            self.catalog = Arc::clone(catalog);
            self.flux = Arc::clone(flux);
            self.epoch += 1;
        }
    }

    /// Whether a relation of the catalogue may have another name by now.
    pub fn is_in_flux(&self, schema: &str, name: &str) -> bool {
        self.flux.touches_relation(schema, name) || self.temporary.touches_relation(schema, name)
    }

    /// The catalogue was read again for the sake of a new path.
    pub fn rechecked(&mut self) {
        self.recheck = false;
    }

    /// Whether the catalogue should be read again before names are resolved.
    pub fn needs_recheck(&self) -> bool {
        self.recheck
    }

    /// Whether a statement may change the path.
    pub fn affects_path(statement: &StatementInfo) -> bool {
        match &statement.kind {
            StatementKind::Set { name, .. } => name == "search_path",
            StatementKind::Reset { name } => name.as_deref().is_none_or(|name| name == "search_path"),
            StatementKind::Discard { what } => *what == Discard::All,
            StatementKind::Rollback { .. } | StatementKind::RollbackTo { .. } | StatementKind::Commit { .. } => true,
            _ => false,
        }
    }

    /// Follows a command that goes upstream. Until its answer is there, names resolve only where every path that may be in
    /// force finds the same: the command may fail, and what comes behind it in the pipeline runs all the same.
    pub fn follow(&mut self, statements: &[StatementInfo]) {
        for statement in statements {
            if !statement.reshape.is_empty() && self.temporary.merge(&statement.reshape.split().0) {
                self.epoch += 1;
            }
            match &statement.kind {
                StatementKind::Set { name, value, local, .. } if name == "search_path" => {
                    let path = match value {
                        Some(names) => Some(expand(&split_set_config(names), &self.catalog)),
                        None => self.initial.clone(),
                    };
                    self.change(path, if *local { Lasts::Transaction } else { Lasts::Session });
                }
                // Another role has other schemas of its own, and may use others.
                StatementKind::Set { name, .. } if matches!(name.as_str(), "role" | "session_authorization") => {
                    self.lose();
                }
                StatementKind::Reset { name } if name.as_deref().is_none_or(|name| name == "search_path") => {
                    self.change(self.initial.clone(), Lasts::Session);
                }
                StatementKind::Reset { name: Some(name) } if name == "role" || name == "session_authorization" => {
                    self.lose();
                }
                StatementKind::Discard { what: Discard::All } => self.change(self.initial.clone(), Lasts::Session),
                StatementKind::RollbackTo { .. } if self.ends.is_some() => self.lose(),
                // What the transaction changed may be undone.
                StatementKind::Rollback { .. } | StatementKind::Commit { .. } => {
                    if let Some(Ends { undone, committed }) = self.ends.clone() {
                        self.may_be(undone);
                        self.may_be(committed);
                    }
                }
                _ => {}
            }
        }
    }

    /// A command goes upstream that may set the path to what nobody can tell from here.
    pub fn lose(&mut self) {
        self.change(None, Lasts::Session);
    }

    /// The upstream has thrown away what was temporary.
    pub fn discarded(&mut self) {
        self.temporary = Reshape::default();
        self.epoch += 1;
    }

    fn change(&mut self, path: Path, lasts: Lasts) {
        let before = self.current.clone();
        let ends = self.ends.get_or_insert_with(|| Ends { undone: before.clone(), committed: before.clone() });
        if lasts == Lasts::Session {
            ends.committed.clone_from(&path);
        }
        if path == before && path.is_some() {
            return;
        }
        self.current = path;
        self.may_be(before);
        self.epoch += 1;
        self.recheck = true;
    }

    fn may_be(&mut self, path: Path) {
        if path != self.current && !self.unsettled.contains(&path) {
            self.unsettled.push(path);
            self.epoch += 1;
        }
    }

    /// Everything that was sent is answered.
    pub fn settled(&mut self) {
        if !self.unsettled.is_empty() {
            self.unsettled.clear();
            self.epoch += 1;
        }
    }

    /// A statement failed: whatever was changed since the transaction began is uncertain.
    pub fn failed(&mut self) {
        if let Some(ends) = &mut self.ends {
            ends.committed = None;
        }
        if self.ends.is_some() || !self.unsettled.is_empty() {
            self.current = None;
            self.epoch += 1;
        }
    }

    /// The server is idle again.
    pub fn transaction_ended(&mut self, end: TransactionEnd) {
        let Some(ends) = self.ends.take() else { return };
        let path = match end {
            TransactionEnd::Committed => ends.committed,
            TransactionEnd::RolledBack => ends.undone,
        };
        if self.current != path {
            self.current = path;
            self.epoch += 1;
        }
    }

    /// The names while a command of several statements runs, which may change the path and, by `reshape`, what is there.
    pub fn amid<'a>(&'a self, statements: &[StatementInfo], reshape: &Reshape) -> PathNames<'a> {
        let mut after = self.clone();
        after.follow(statements);
        let mut flux = Reshape::clone(&self.flux);
        flux.merge(&after.temporary);
        flux.merge(reshape);
        PathNames { catalog: &self.catalog, flux: Arc::new(flux), paths: after.paths() }
    }

    /// The names now.
    pub fn names(&self) -> PathNames<'_> {
        let mut flux = Arc::clone(&self.flux);
        if !self.temporary.is_empty() {
            Arc::make_mut(&mut flux).merge(&self.temporary);
        }
        PathNames { catalog: &self.catalog, flux, paths: self.paths() }
    }

    /// Every path that may be in force.
    fn paths(&self) -> SmallVec<[Path; 1]> {
        std::iter::once(&self.current).chain(&self.unsettled).cloned().collect()
    }
}

/// A resolver at one moment. What it says holds under each of the paths, whatever of the changes under way took place.
#[derive(Debug)]
pub struct PathNames<'a> {
    catalog: &'a Catalog,
    flux: Arc<Reshape>,
    paths: SmallVec<[Path; 1]>,
}

impl PathNames<'_> {
    /// What every path finds; `None` where they differ, or one is not known.
    fn agreed(&self, find: impl Fn(&[Arc<str>]) -> Option<Arc<str>>) -> Option<Arc<str>> {
        let mut all = self.paths.iter().map(|path| find(path.as_deref()?));
        let first = all.next()??;
        all.all(|other| other.as_ref() == Some(&first)).then_some(first)
    }

    fn relation_in(&self, schema: &str, name: &str) -> There {
        let known = self.catalog.is_usable(schema) && self.catalog.relation(schema, name).is_some();
        There::of(known, self.flux.touches_relation(schema, name))
    }

    /// Whether the server's own types and operators come first under every path that may be in force. A temporary
    /// table's row type may still shadow a type: converting to it runs none but the types of its columns.
    fn own_first(&self) -> bool {
        self.paths.iter().all(|path| {
            path.as_deref()
                .is_some_and(|path| path.iter().position(|schema| &**schema == "pg_catalog").is_none_or(|at| at == 0))
        })
    }

    fn type_in(&self, schema: &str, name: &str) -> There {
        let known = self.catalog.is_usable(schema) && self.catalog.has_type(schema, name);
        There::of(known, self.flux.touches_relation(schema, name))
    }

    fn function_in(&self, schema: &str, name: &str) -> There {
        let known = self.catalog.is_usable(schema) && self.catalog.has_function(schema, name);
        There::of(known, self.flux.touches_function(schema, name))
    }
}

/// Whether a name is in a schema.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Yes,
    No,
    Maybe,
}

impl There {
    fn of(known: bool, touched: bool) -> Self {
        match (touched, known) {
            (true, _) => Self::Maybe,
            (false, true) => Self::Yes,
            (false, false) => Self::No,
        }
    }
}

/// The first schema in which a name is, if that can only be one. What can only be in one place is there, or the upstream
/// does not find it.
fn first<'a>(schemas: impl Iterator<Item = &'a str>, there: impl Fn(&str) -> There) -> Option<Arc<str>> {
    let mut found = None;
    for schema in schemas {
        let is = there(schema);
        if is == There::No {
            continue;
        }
        if found.is_some() {
            return None;
        }
        found = Some(schema);
        if is == There::Yes {
            break;
        }
    }
    found.map(Arc::from)
}

/// Schemas that are searched before the path unless it names them.
fn searched<'a>(before: &'a [&'a str], path: &'a [Arc<str>]) -> impl Iterator<Item = &'a str> {
    let unnamed = before.iter().copied().filter(|schema| !path.iter().any(|named| **named == **schema));
    unnamed.chain(path.iter().map(|schema| &**schema))
}

impl Names for PathNames<'_> {
    fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        if let Some(schema) = schema {
            return Some(schema.into());
        }
        self.agreed(|path| first(searched(&["pg_temp", "pg_catalog"], path), |schema| self.relation_in(schema, name)))
    }

    fn function_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        if let Some(schema) = schema {
            return Some(schema.into());
        }
        // Overloads of all schemas of the path compete by their argument types, so one outside of pg_catalog counts
        // whatever its place. Functions are not looked for in pg_temp.
        self.agreed(|path| {
            let others =
                path.iter().map(|schema| &**schema).filter(|schema| !matches!(*schema, "pg_catalog" | "pg_temp"));
            first(others.chain(["pg_catalog"]), |schema| self.function_in(schema, name))
        })
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        let there = |schema: &str| There::of(self.catalog.is_usable(schema), self.flux.touches_schema(schema));
        self.agreed(|path| first(path.iter().map(|schema| &**schema), there))
    }

    fn columns(&self, schema: &str, name: &str) -> Option<Arc<[Arc<str>]>> {
        let relation = self.catalog.relation(schema, name).filter(|_| !self.flux.touches_relation(schema, name))?;
        Some(Arc::clone(&relation.names))
    }

    fn type_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        match schema {
            Some(schema) => Some(schema.into()),
            None if crate::sql::is_builtin_type(name) => self.own_first().then(|| "pg_catalog".into()),
            None => self.agreed(|path| first(searched(&["pg_temp"], path), |schema| self.type_in(schema, name))),
        }
    }

    fn is_enumeration(&self, schema: &str, name: &str) -> bool {
        self.catalog.is_enumeration(schema, name) && !self.flux.touches_relation(schema, name)
    }

    fn operator_schema(&self, operator: &str) -> Option<Arc<str>> {
        // Operators of all schemas of the path compete by the types of what they are given.
        let mut schemas = self.paths.iter().filter_map(|path| path.as_deref()).flatten();
        let made = schemas.any(|schema| self.catalog.has_operator(schema, operator));
        (self.own_first() && !made).then(|| "pg_catalog".into())
    }

    fn attribute_calls(&self, name: &str) -> bool {
        // An unknown path decides nothing here: its relations do not resolve either.
        let schemas = self.paths.iter().filter_map(|path| path.as_deref()).flatten();
        schemas.filter(|schema| &***schema != "pg_catalog").any(|schema| self.function_in(schema, name) != There::No)
    }
}

/// `set_config` gives the whole list as one text, SET gives its items.
fn split_set_config(names: &[String]) -> Vec<String> {
    match names {
        [one] => parse_list(one).unwrap_or_else(|| vec![one.clone()]),
        many => many.to_vec(),
    }
}

fn expand(names: &[String], catalog: &Catalog) -> Arc<[Arc<str>]> {
    names
        .iter()
        .map(|name| if name == "$user" { Arc::clone(&catalog.current_user) } else { name.as_str().into() })
        .collect()
}

/// A comma-separated list of identifiers, as `SplitIdentifierString` reads it: unquoted ones fold to lower case.
pub(super) fn parse_list(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    if rest.is_empty() {
        return Some(names);
    }
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next()? {
                    (_, '"') if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        chars.next();
                        text.push('"');
                    }
                    (at, '"') => break at + 1,
                    (_, c) => text.push(c),
                }
            };
            name = text;
            rest = quoted[end..].trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let word = rest[..end].trim();
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c == '"') {
                return None;
            }
            name = word.to_ascii_lowercase();
            rest = &rest[end..];
        }
        names.push(name);
        if rest.is_empty() {
            return Some(names);
        }
        rest = rest.strip_prefix(',')?.trim_start();
        if rest.is_empty() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_list;

    #[test]
    fn lists_are_read_as_the_server_reads_them() {
        let list = |s| parse_list(s).map(|v| v.join("|"));
        assert_eq!(list("\"$user\", public").as_deref(), Some("$user|public"));
        assert_eq!(list("").as_deref(), Some(""));
        assert_eq!(list("Pub,\"A\"\"b\" ,c").as_deref(), Some("pub|A\"b|c"));
        assert_eq!(list("a b"), None);
        assert_eq!(list("a,"), None);
        assert_eq!(list("\"a"), None);
    }
}
