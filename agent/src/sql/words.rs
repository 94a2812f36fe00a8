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

/// Made by `keywords.sql`, sorted.
static KEYWORDS: LazyLock<Vec<(&'static str, Category)>> = LazyLock::new(|| {
    include_str!("keywords.txt")
        .lines()
        .filter_map(|line| {
            let (word, code) = line.split_once(' ')?;
            let category = match code {
                "R" => Category::Reserved,
                "T" => Category::TypeOrFunction,
                "C" => Category::Column,
                _ => Category::Unreserved,
            };
            Some((word, category))
        })
        .collect()
});

/// Made by `functions.sql`, sorted.
static SAFE: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("functions.txt").lines().collect());

/// Types of `pg_catalog` but arrays and rows of tables; made by `types.sql`, sorted.
static TYPES: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("types.txt").lines().collect());

/// Operators of `pg_catalog`; made by `operators.sql`, sorted.
static OPERATORS: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("operators.txt").lines().collect());

/// Functions of `pg_catalog` that take one argument and are not reviewed; made by `attributes.sql`, sorted.
static ATTRIBUTES: LazyLock<Vec<&'static str>> = LazyLock::new(|| include_str!("attributes.txt").lines().collect());

/// Whether `pg_catalog` has a type of this name. Casting to one runs none but the server's own code.
pub(super) fn builtin_type(name: &str) -> bool {
    TYPES.binary_search(&name).is_ok()
}

/// Whether `pg_catalog` has an operator of this name, or the grammar gives the sign a meaning.
pub(super) fn builtin_operator(op: &str) -> bool {
    // The scanner reads `!=` as `<>`.
    op == "!=" || OPERATORS.binary_search(&op).is_ok() || syntax_operator(op)
}

/// Whether the sign is the grammar's own and names no operator.
pub(super) fn syntax_operator(op: &str) -> bool {
    matches!(op, "::" | ":=" | "=>" | ":")
}

/// Whether `x.name` would call a function of `pg_catalog` that is not reviewed, where `x` has no such column.
pub(super) fn attribute_call(name: &str) -> bool {
    ATTRIBUTES.binary_search(&name).is_ok()
}

/// The category of an unquoted word, `None` if it is no keyword.
pub(super) fn category(word: &str) -> Option<Category> {
    KEYWORDS.binary_search_by(|(k, _)| (*k).cmp(word)).ok().map(|i| KEYWORDS[i].1)
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
    } else if SAFE.binary_search(&name).is_ok() {
        Builtin::Safe
    } else {
        Builtin::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_hold_what_they_must() {
        for list in [&SAFE, &TYPES, &OPERATORS, &ATTRIBUTES] {
            assert!(list.windows(2).all(|w| w[0] < w[1]));
        }
        assert!(["text", "int4", "jsonb", "regclass", "point"].into_iter().all(builtin_type));
        assert!(!builtin_type("citext") && !builtin_type("pg_class") && !builtin_type("_text"));
        assert!(["=", "->>", "::", "@>"].into_iter().all(builtin_operator));
        assert!(!builtin_operator("===") && !builtin_operator("<=>"));
        assert!(attribute_call("pg_read_file") && attribute_call("lo_import") && attribute_call("pg_sleep"));
        assert!(!attribute_call("id") && !attribute_call("lower"));
        assert!(KEYWORDS.windows(2).all(|w| w[0].0 < w[1].0));
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
