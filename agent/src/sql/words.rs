//! PostgreSQL's keywords and the reviewed functions, from the lists beside this file.

use std::sync::LazyLock;

/// How the grammar treats a keyword (`pg_get_keywords()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Category {
    /// Never an identifier.
    Reserved,
    /// May name a function or type, nothing else.
    TypeOrFunction,
    /// May name anything but a function or type.
    Column,
    /// May name anything.
    Unreserved,
}

/// Words and what they mean, in buckets by length and first byte: almost every word that is looked up is in none, and that
/// takes one look.
pub(super) struct Table<V> {
    /// By bucket, then by the word.
    words: Vec<(&'static str, V)>,
    /// Where each bucket ends.
    ends: Vec<usize>,
}

/// Lengths that are told apart; what is longer shares a bucket.
const LENGTHS: usize = 64;
/// First bytes that are told apart: letters by their place in the alphabet.
const FIRSTS: usize = 32;

impl<V> Table<V> {
    pub(super) fn new(words: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        let mut words: Vec<(&'static str, V)> = words.into_iter().collect();
        words.sort_by_key(|(word, _)| (bucket(word), *word));
        let ends = (0..LENGTHS * FIRSTS).map(|n| words.partition_point(|(word, _)| bucket(word) <= n)).collect();
        Self { words, ends }
    }

    pub(super) fn get(&self, word: &str) -> Option<&V> {
        let at = bucket(word);
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mine = &self.words[begin..self.ends[at]];
        mine.binary_search_by(|(known, _)| (*known).cmp(word)).ok().map(|found| &mine[found].1)
    }
}

fn bucket(word: &str) -> usize {
    let first = word.as_bytes().first().map_or(0, |first| usize::from(*first) % FIRSTS);
    word.len().min(LENGTHS - 1) * FIRSTS + first
}

/// A list of words, one on each line.
fn listed(list: &'static str) -> Table<()> {
    Table::new(list.lines().map(|word| (word, ())))
}

/// Made by `keywords.sql`.
static KEYWORDS: LazyLock<Table<Category>> = LazyLock::new(|| {
    Table::new(include_str!("keywords.txt").lines().filter_map(|line| {
        let (word, code) = line.split_once(' ')?;
        let category = match code {
            "R" => Category::Reserved,
            "T" => Category::TypeOrFunction,
            "C" => Category::Column,
            _ => Category::Unreserved,
        };
        Some((word, category))
    }))
});

/// Made by `functions.sql`.
static SAFE: LazyLock<Table<()>> = LazyLock::new(|| listed(include_str!("functions.txt")));

/// Types of `pg_catalog` but arrays and rows of tables; made by `types.sql`.
static TYPES: LazyLock<Table<()>> = LazyLock::new(|| listed(include_str!("types.txt")));

/// Operators of `pg_catalog`; made by `operators.sql`.
static OPERATORS: LazyLock<Table<()>> = LazyLock::new(|| listed(include_str!("operators.txt")));

/// Functions of `pg_catalog` that take one argument and are not reviewed; made by `attributes.sql`.
static ATTRIBUTES: LazyLock<Table<()>> = LazyLock::new(|| listed(include_str!("attributes.txt")));

/// Whether `pg_catalog` has a type of this name. Casting to one runs none but the server's own code.
pub(super) fn builtin_type(name: &str) -> bool {
    TYPES.get(name).is_some()
}

/// Whether `pg_catalog` has an operator of this name, or the grammar gives the sign a meaning.
pub(super) fn builtin_operator(op: &str) -> bool {
    // The scanner reads `!=` as `<>`.
    op == "!=" || OPERATORS.get(op).is_some() || syntax_operator(op)
}

/// Whether the sign is the grammar's own and names no operator.
pub(super) fn syntax_operator(op: &str) -> bool {
    matches!(op, "::" | ":=" | "=>" | ":")
}

/// Whether `x.name` would call a function of `pg_catalog` that is not reviewed, where `x` has no such column.
pub(super) fn attribute_call(name: &str) -> bool {
    ATTRIBUTES.get(name).is_some()
}

/// The category of an unquoted word, `None` if it is no keyword.
pub(super) fn category(word: &str) -> Option<Category> {
    KEYWORDS.get(word).copied()
}

/// All keywords.
pub(super) fn keywords() -> impl Iterator<Item = &'static str> {
    KEYWORDS.words.iter().map(|(word, _)| *word)
}

/// Whether the unquoted word can never be an identifier.
pub(super) fn reserved(word: &str) -> bool {
    category(word) == Some(Category::Reserved)
}

/// Keywords that may name a function and yet stand before a parenthesis as syntax.
const BEFORE_PARENTHESIS: &[&str] = &[
    "by",
    "conflict",
    "cube",
    "escape",
    "exclude",
    "filter",
    "group",
    "groups",
    "identity",
    "ilike",
    "include",
    "inherits",
    "insert",
    "is",
    "join",
    "key",
    "like",
    "materialized",
    "next",
    "operator",
    "options",
    "over",
    "overlaps",
    "partition",
    "range",
    "recursive",
    "reset",
    "rollup",
    "rows",
    "set",
    "sets",
    "update",
    "varying",
    "within",
    "zone",
];

/// Whether an unquoted word before a parenthesis is syntax and never a call.
pub(super) fn opens_syntax(word: &str) -> bool {
    matches!(category(word), Some(Category::Reserved | Category::Column)) || BEFORE_PARENTHESIS.contains(&word)
}

/// Whether an unquoted word before a text is syntax and never the type of a constant.
pub(super) fn before_text(word: &str) -> bool {
    match category(word) {
        None => false,
        Some(Category::Reserved | Category::Column) => true,
        Some(Category::TypeOrFunction) => {
            matches!(word, "ilike" | "is" | "isnull" | "like" | "notnull" | "overlaps" | "similar")
        }
        Some(Category::Unreserved) => matches!(word, "double" | "escape" | "varying" | "zone" | "language" | "path"),
    }
}

/// Calls that the grammar itself defines: they name no function that anyone could replace.
const GRAMMAR_CALLS: &[&str] = &[
    "coalesce",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "exists",
    "extract",
    "greatest",
    "grouping",
    "least",
    "localtime",
    "localtimestamp",
    "normalize",
    "nullif",
    "overlay",
    "position",
    "row",
    "session_user",
    "substring",
    "treat",
    "trim",
    "user",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
];

/// Whether an unquoted, unqualified call is part of the grammar.
pub(super) fn grammar_call(word: &str) -> bool {
    GRAMMAR_CALLS.contains(&word)
}

/// What calling a function of `pg_catalog` amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    /// Reviewed: no effect beyond its result.
    Safe,
    /// Reaches files, the network, other sessions, or runs text as SQL.
    Admin,
    /// Has an effect, or is not known.
    Other,
}

/// Names that reach out of the session, by prefix (ends in `*`) or whole. dblink lives in any schema.
const ADMIN: &[&str] = &[
    "binary_upgrade_*",
    "brin_*",
    "cursor_to_xml*",
    "database_to_xml*",
    "dblink*",
    "gin_clean_pending_list",
    "http*",
    "lo_*",
    "loread",
    "lowrite",
    "pg_backup_*",
    "pg_cancel_backend",
    "pg_config",
    "pg_copy_*",
    "pg_create_*",
    "pg_current_logfile",
    "pg_drop_*",
    "pg_execute_server_program",
    "pg_extension_config_dump",
    "pg_file_*",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_import_system_collations",
    "pg_log_backend_memory_contexts",
    "pg_logical_*",
    "pg_ls_*",
    "pg_promote",
    "pg_read_*",
    "pg_reload_conf",
    "pg_replication_*",
    "pg_rotate_*",
    "pg_show_all_file_settings",
    "pg_signal_*",
    "pg_sleep*",
    "pg_start_backup",
    "pg_stat_file",
    "pg_stat_get_activity",
    "pg_stat_get_backend_*",
    "pg_stat_reset*",
    "pg_stop_*",
    "pg_switch_*",
    "pg_terminate_backend",
    "pg_wal_*",
    "pg_write_*",
    "query_to_xml*",
    "schema_to_xml*",
    "set_config",
    "table_to_xml*",
    "ts_rewrite",
    "ts_stat",
    "xpath_table",
];

/// Whether the name is of a function that reaches out of the session, whatever its schema.
pub(super) fn admin_function(name: &str) -> bool {
    ADMIN.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    })
}

/// Judges a function of `pg_catalog` by its name.
pub(super) fn builtin(name: &str) -> Builtin {
    // A safe name may share a prefix with dangerous ones (`brin_minmax_...` are internal), so safety is looked up first
    // only where no dangerous pattern matches.
    if admin_function(name) {
        Builtin::Admin
    } else if SAFE.get(name).is_some() {
        Builtin::Safe
    } else {
        Builtin::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_what_they_must() {
        for list in [&SAFE, &TYPES, &OPERATORS, &ATTRIBUTES] {
            assert!(list.words.windows(2).all(|w| w[0].0 != w[1].0));
            assert!(list.words.iter().all(|(word, ())| list.get(word).is_some()));
            assert!(list.get("").is_none() && list.get(&"a".repeat(9999)).is_none());
        }
        assert!(["text", "int4", "jsonb", "regclass", "point"].into_iter().all(builtin_type));
        assert!(!builtin_type("citext") && !builtin_type("pg_class") && !builtin_type("_text"));
        assert!(["=", "->>", "::", "@>"].into_iter().all(builtin_operator));
        assert!(!builtin_operator("===") && !builtin_operator("<=>"));
        assert!(attribute_call("pg_read_file") && attribute_call("lo_import") && attribute_call("pg_sleep"));
        assert!(!attribute_call("id") && !attribute_call("lower"));
        assert!(keywords().all(|word| category(word).is_some()) && keywords().count() > 400);
        for name in
            ["lower", "count", "now", "row_number", "pg_get_viewdef", "format_type", "random", "pg_advisory_unlock_all"]
        {
            assert_eq!(builtin(name), Builtin::Safe, "{name}");
        }
        for name in ["pg_read_file", "query_to_xml", "table_to_xmlschema", "lo_import", "pg_sleep", "set_config"] {
            assert_eq!(builtin(name), Builtin::Admin, "{name}");
        }
        for name in ["nextval", "setval", "pg_advisory_lock", "pg_notify", "nosuch"] {
            assert_eq!(builtin(name), Builtin::Other, "{name}");
        }
        assert!(reserved("only") && !reserved("set") && !reserved("email"));
        assert!(GRAMMAR_CALLS.iter().all(|w| category(w).is_some()));
    }
}
