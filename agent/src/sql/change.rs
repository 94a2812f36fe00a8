//! What a change of rows is about, for a dry run of it. Read again from its text: only what waits for a person is asked.

use sqlparser::ast::{FromTable, SetExpr, Statement, TableFactor, TableObject};

use super::{
    bridge,
    build::Name,
    lexer::{self, Lexeme},
};

/// Which rows a change leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// INSERT: rows that were not there.
    Insert,
    /// UPDATE: rows that were others.
    Update,
    /// DELETE: none.
    Delete,
    /// MERGE: any of these.
    Merge,
}

/// One INSERT, UPDATE, DELETE or MERGE, perhaps behind a WITH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub kind: ChangeKind,
    /// Schema of its table as written, folded.
    pub schema: Option<String>,
    /// Folded name of its table.
    pub table: String,
    /// What its table is called in it.
    pub called: String,
    /// It returns rows by itself.
    pub returns: bool,
    /// It may take defaults of columns: it inserts, here or in a WITH, or says DEFAULT.
    pub defaults: bool,
}

/// What a single statement changes; `None` if it is no change at the top, or of what is no plain table.
pub fn change(text: &str) -> Option<Change> {
    let tokens = lexer::lex(text).ok()?;
    let tokens = match &tokens[..] {
        [statement @ .., last] if last.is_punct(b';') => statement,
        all => all,
    };
    let defaults = tokens.iter().any(|token| match &token.lexeme {
        Lexeme::Word(word) => matches!(&**word, "insert" | "merge" | "default"),
        _ => false,
    });
    let mut parsed = None;
    super::with_stack(tokens, || parsed = bridge::parse(tokens).ok().and_then(|statement| of(&statement, defaults)));
    parsed
}

fn of(statement: &Statement, defaults: bool) -> Option<Change> {
    let (kind, table, alias, returns) = match statement {
        Statement::Query(query) => match &*query.body {
            SetExpr::Insert(inner) | SetExpr::Update(inner) | SetExpr::Delete(inner) | SetExpr::Merge(inner) => {
                return of(inner, defaults);
            }
            _ => return None,
        },
        Statement::Insert(insert) => {
            let TableObject::TableName(table) = &insert.table else { return None };
            let alias = insert.table_alias.as_ref().map(|alias| &alias.alias);
            (ChangeKind::Insert, table, alias, insert.returning.is_some())
        }
        Statement::Update(update) => {
            let TableFactor::Table { name, alias, .. } = &update.table.relation else { return None };
            (ChangeKind::Update, name, alias.as_ref().map(|alias| &alias.name), update.returning.is_some())
        }
        Statement::Delete(delete) => {
            let (FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables)) = &delete.from;
            let [table] = &tables[..] else { return None };
            let TableFactor::Table { name, alias, .. } = &table.relation else { return None };
            (ChangeKind::Delete, name, alias.as_ref().map(|alias| &alias.name), delete.returning.is_some())
        }
        Statement::Merge(merge) => {
            let TableFactor::Table { name, alias, .. } = &merge.table else { return None };
            (ChangeKind::Merge, name, alias.as_ref().map(|alias| &alias.name), merge.output.is_some())
        }
        _ => return None,
    };
    let Name { schema, name, .. } = Name::of(table)?;
    let called = alias.map_or_else(|| name.clone(), |alias| alias.value.clone());
    Some(Change { kind, schema, table: name, called, returns, defaults })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let Some(change) = change(text) else { return "none".into() };
        let Change { kind, schema, table, called, returns, defaults } = change;
        let flags = [(returns, " returns"), (defaults, " defaults")];
        let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
        format!("{kind:?} {}{table} as {called}{flags}", schema.map_or(String::new(), |schema| schema + "."))
    }

    #[test]
    fn changes_are_found_at_the_top_of_a_statement_only() {
        let cases = [
            ("UPDATE T SET a = 1", "Update t as t"),
            ("update only s.\"T\" as x set a = default where b = 2;", "Update s.T as x defaults"),
            ("DELETE FROM t USING u WHERE t.a = u.a RETURNING *", "Delete t as t returns"),
            ("DELETE FROM s.t x", "Delete s.t as x"),
            ("INSERT INTO t VALUES (1)", "Insert t as t defaults"),
            (
                "INSERT INTO t AS x (a) SELECT b FROM u ON CONFLICT DO NOTHING RETURNING a",
                "Insert t as x returns defaults",
            ),
            ("WITH c AS (SELECT 1) UPDATE t SET a = 1 FROM c", "Update t as t"),
            ("WITH c AS (INSERT INTO u VALUES (1) RETURNING a) DELETE FROM t", "Delete t as t defaults"),
            ("MERGE INTO t AS x USING u ON x.a = u.a WHEN MATCHED THEN DELETE", "Merge t as x defaults"),
            ("WITH c AS (DELETE FROM t RETURNING *) SELECT * FROM c", "none"),
            ("SELECT 1", "none"),
            ("TRUNCATE t", "none"),
            ("UPDATE t SET a = 1; DELETE FROM t", "none"),
            ("UPDATE t SET", "none"),
        ];
        for (text, expected) in cases {
            assert_eq!(told(text), expected, "{text}");
        }
    }
}
