//! Which server settings a session may change.
//!
//! Known-harmless settings are listed; everything else is refused, since an unknown name may be an extension's and may
//! do anything. The names are those of PostgreSQL 10 to 18 that an ordinary role may set.

/// What a session may do with a setting, by SET, startup parameter, `options` or `set_config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingRule {
    /// Any value.
    Free,
    /// Only these values, compared without case. Any other would change how text is read.
    Pinned(&'static [&'static str]),
    /// Not at all: it would change who acts, what is logged, or how the server protects itself.
    Refused,
    /// Any value, but it changes what names mean: the resolver must follow it.
    SearchPath,
}

impl SettingRule {
    /// Whether the rule lets the setting take this value.
    pub fn permits(self, value: &str) -> bool {
        match self {
            Self::Free | Self::SearchPath => true,
            Self::Pinned(values) => values.iter().any(|v| v.eq_ignore_ascii_case(value.trim())),
            Self::Refused => false,
        }
    }
}

const UTF8: &[&str] = &["utf8", "utf-8", "unicode", "utf_8"];
const ON: &[&str] = &["on", "true", "yes", "1", "t", "y"];

/// Settings that an agent may change at will: they touch only its own session's plans, formats and patience.
const FREE: &[&str] = &[
    "application_name",
    "array_nulls",
    "backend_flush_after",
    "bytea_output",
    "client_connection_check_interval",
    "client_min_messages",
    "constraint_exclusion",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "cursor_tuple_fraction",
    "datestyle",
    "deadlock_timeout",
    "debug_pretty_print",
    "default_statistics_target",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "effective_cache_size",
    "effective_io_concurrency",
    "enable_async_append",
    "enable_bitmapscan",
    "enable_gathermerge",
    "enable_group_by_reordering",
    "enable_hashagg",
    "enable_hashjoin",
    "enable_incremental_sort",
    "enable_indexonlyscan",
    "enable_indexscan",
    "enable_material",
    "enable_memoize",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_parallel_append",
    "enable_parallel_hash",
    "enable_partition_pruning",
    "enable_partitionwise_aggregate",
    "enable_partitionwise_join",
    "enable_presorted_aggregate",
    "enable_seqscan",
    "enable_sort",
    "enable_tidscan",
    "extra_float_digits",
    "from_collapse_limit",
    "geqo",
    "geqo_effort",
    "geqo_generations",
    "geqo_pool_size",
    "geqo_seed",
    "geqo_selection_bias",
    "geqo_threshold",
    "gin_fuzzy_search_limit",
    "gin_pending_list_limit",
    "hash_mem_multiplier",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "jit_above_cost",
    "jit_inline_above_cost",
    "jit_optimize_above_cost",
    "join_collapse_limit",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "logical_decoding_work_mem",
    "maintenance_io_concurrency",
    "maintenance_work_mem",
    "max_parallel_maintenance_workers",
    "max_parallel_workers",
    "max_parallel_workers_per_gather",
    "min_parallel_index_scan_size",
    "min_parallel_table_scan_size",
    "parallel_leader_participation",
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "recursive_worktable_factor",
    // Off makes a query that row security would filter fail instead: stricter, and pg_dump sets it.
    "row_security",
    // Only ever forbids; pg_dump sets it so that a hostile view runs nothing.
    "restrict_nonsystem_relation_kind",
    "seq_page_cost",
    "statement_timeout",
    "synchronize_seqscans",
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_user_timeout",
    "temp_buffers",
    "timezone",
    "timezone_abbreviations",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
    "transaction_timeout",
    "vacuum_cost_delay",
    "work_mem",
    "xmlbinary",
    "xmloption",
    // pg_dump and pg_restore set these before DDL; they decide storage, not meaning.
    "check_function_bodies",
    "default_table_access_method",
    "default_tablespace",
    "default_toast_compression",
];

/// What may be done with a setting. Names compare without case, as the server does.
pub fn setting_rule(name: &str) -> SettingRule {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "search_path" => SettingRule::SearchPath,
        "client_encoding" => SettingRule::Pinned(UTF8),
        "standard_conforming_strings" | "escape_string_warning" => SettingRule::Pinned(ON),
        "backslash_quote" => SettingRule::Pinned(&["safe_encoding", "off", "false", "no", "0"]),
        "transform_null_equals" => SettingRule::Pinned(&["off", "false", "no", "0"]),
        // Replicated commits can be weakened by it, so only the values that wait stay open.
        "synchronous_commit" => SettingRule::Pinned(&["on", "local", "remote_write", "remote_apply"]),
        free if FREE.contains(&free) => SettingRule::Free,
        _ => SettingRule::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_reading_or_identity_is_not_free() {
        for name in ["role", "session_authorization", "session_replication_role", "log_statement", "my.setting", ""] {
            assert_eq!(setting_rule(name), SettingRule::Refused, "{name}");
        }
        assert!(setting_rule("Client_Encoding").permits("UTF8"));
        assert!(!setting_rule("client_encoding").permits("SJIS"));
        assert!(!setting_rule("standard_conforming_strings").permits("off"));
        assert!(!setting_rule("backslash_quote").permits("on"));
        assert_eq!(setting_rule("SEARCH_PATH"), SettingRule::SearchPath);
        assert_eq!(setting_rule("TimeZone"), SettingRule::Free);
    }
}
