//! How a connection resolves names: the catalogue and the `search_path` as far as they are known for certain.
//!
//! `search_path` is followed through SET, RESET, DISCARD, `set_config`, and the end of transactions. Where it cannot be
//! followed (a failed change), it is unknown, and while a change is not answered for, more than one path may be in force.
//! Names that do not resolve alike under all of them do not resolve: policy then sees `?.name`.

use std::sync::Arc;

use smallvec::SmallVec;

use super::catalog::Catalog;
use crate::sql::{Discard, Names, StatementInfo, StatementKind};

/// The path as last known.
type Path = Option<Arc<[Arc<str>]>>;

/// Names of one connection.
#[derive(Clone, Debug)]
pub struct NameState {
    catalog: Arc<Catalog>,
    initial: Path,
    current: Path,
    /// What it may still be, because changes are not answered for.
    unsettled: Vec<Path>,
    /// What it was before the present transaction changed it.
    before: Option<Path>,
    /// The change ends with the transaction, whatever its end.
    local: bool,
    epoch: u64,
    /// The path changed since the catalogue was read: a schema searched from now on may have new names.
    recheck: bool,
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
        Self { catalog, current, unsettled: Vec::new(), initial, before: None, local: false, epoch: 0, recheck: false }
    }

    /// Changes whenever a name may mean something else than before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The catalogue in use.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Puts a newer catalogue in use.
    pub fn renew(&mut self, catalog: Arc<Catalog>) {
        self.recheck = false;
        if !Arc::ptr_eq(&self.catalog, &catalog) {
            self.catalog = catalog;
            self.epoch += 1;
        }
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
            match &statement.kind {
                StatementKind::Set { name, value, local, .. } if name == "search_path" => {
                    self.change(value.as_ref().map(|names| expand(&split_set_config(names), &self.catalog)));
                    self.local |= *local;
                }
                StatementKind::Reset { name } if name.as_deref().is_none_or(|name| name == "search_path") => {
                    self.change(self.initial.clone());
                }
                StatementKind::Discard { what: Discard::All } => self.change(self.initial.clone()),
                StatementKind::RollbackTo { .. } if self.before.is_some() => self.change(None),
                // What the transaction changed may be undone.
                StatementKind::Rollback { .. } | StatementKind::Commit { .. } => {
                    if let Some(before) = self.before.clone() {
                        self.may_be(before);
                    }
                }
                _ => {}
            }
        }
    }

    /// A command goes upstream that may set the path to what nobody can tell from here.
    pub fn lose(&mut self) {
        self.change(None);
    }

    fn change(&mut self, path: Path) {
        let before = std::mem::replace(&mut self.current, path);
        self.may_be(before.clone());
        self.before.get_or_insert(before);
        self.epoch += 1;
        self.recheck = true;
    }

    fn may_be(&mut self, path: Path) {
        if !self.unsettled.contains(&path) {
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
        if self.before.is_some() || !self.unsettled.is_empty() {
            self.current = None;
            self.epoch += 1;
        }
    }

    /// The server is idle again.
    pub fn transaction_ended(&mut self, end: TransactionEnd) {
        if let Some(before) = self.before.take() {
            if end == TransactionEnd::RolledBack || self.local {
                self.current = before;
                self.epoch += 1;
            }
            self.local = false;
        }
    }

    /// The names while a command of several statements runs that may change the path.
    pub fn amid<'a>(&'a self, statements: &[StatementInfo]) -> PathNames<'a> {
        let mut after = self.clone();
        after.follow(statements);
        PathNames { catalog: &self.catalog, paths: after.paths() }
    }

    /// The names now.
    pub fn names(&self) -> PathNames<'_> {
        PathNames { catalog: &self.catalog, paths: self.paths() }
    }

    /// Every path that may be in force.
    fn paths(&self) -> SmallVec<[Path; 1]> {
        std::iter::once(&self.current).chain(&self.unsettled).cloned().collect()
    }
}

/// A resolver at one moment. What it says holds under each of the paths.
#[derive(Debug)]
pub struct PathNames<'a> {
    catalog: &'a Catalog,
    paths: SmallVec<[Path; 1]>,
}

impl PathNames<'_> {
    /// What every path finds; `None` where they differ, or one is not known.
    fn agreed(&self, find: impl Fn(&[Arc<str>]) -> Option<Arc<str>>) -> Option<Arc<str>> {
        let mut all = self.paths.iter().map(|path| find(path.as_deref()?));
        let first = all.next()??;
        all.all(|other| other.as_ref() == Some(&first)).then_some(first)
    }
}

impl Names for PathNames<'_> {
    fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        if let Some(schema) = schema {
            return Some(schema.into());
        }
        let in_catalog = self.catalog.relation("pg_catalog", name).is_some();
        self.agreed(|path| {
            // pg_catalog comes first unless the path says otherwise.
            if in_catalog && !path.iter().any(|s| &**s == "pg_catalog") {
                return Some("pg_catalog".into());
            }
            path.iter().find(|schema| self.catalog.relation(schema, name).is_some()).cloned()
        })
    }

    fn function_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        if let Some(schema) = schema {
            return Some(schema.into());
        }
        // Overloads of all schemas of the path compete by their argument types, so one outside of pg_catalog counts
        // whatever its place.
        self.agreed(|path| {
            path.iter()
                .find(|schema| &***schema != "pg_catalog" && self.catalog.has_function(schema, name))
                .cloned()
                .or_else(|| self.catalog.has_function("pg_catalog", name).then(|| "pg_catalog".into()))
        })
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        self.agreed(|path| path.first().cloned())
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
fn parse_list(list: &str) -> Option<Vec<String>> {
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
