use std::fmt::Write as _;

use super::{fuzz::Fixed, *};

fn parts(sql: &str) -> String {
    let c = classify(sql, &Fixed);
    let mut out: Vec<String> = c.action.parts.iter().map(|(v, t)| format!("{v} {t}")).collect();
    out.sort();
    let mut text = format!("{:?}:", c.action.clarity);
    for part in out {
        let _ = write!(text, " {part},");
    }
    text.trim_end_matches(',').to_owned()
}

fn fact(sql: &str) -> SqlFacts {
    match classify(sql, &Fixed).action.facts {
        Facts::Sql(facts) => facts.first().cloned().unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

fn kind(sql: &str) -> StatementKind {
    classify(sql, &Fixed).statements.remove(0).kind
}

fn mentions(sql: &str) -> Mentions {
    classify(sql, &Fixed).statements.remove(0).mentions
}

#[test]
fn parts_are_all_there() {
    for (sql, expected) in [
        ("select a from orders", "Parsed: read public.orders"),
        ("select 1", "Parsed: session sql:constant"),
        ("", "Parsed:"),
        (" ; -- x", "Parsed:"),
        ("update orders set a = 1 where b = 2", "Parsed: write public.orders"),
        (
            "with d as (delete from a returning *) insert into b select * from d, c",
            "Parsed: delete public.a, read public.a, read public.c, write public.b",
        ),
        (
            "begin; update a set b = 1; commit",
            "Parsed: session sql:transaction, write public.a, session sql:transaction",
        ),
    ] {
        let mut words: Vec<String> = parts(sql).split(", ").map(|p| p.replace("Parsed: ", "")).collect();
        let mut wanted: Vec<String> = expected.split(", ").map(|p| p.replace("Parsed: ", "")).collect();
        words.sort();
        wanted.sort();
        assert_eq!(words, wanted, "{sql}");
    }
}

#[test]
fn a_where_that_is_always_true_is_none() {
    for bounded in [
        "delete from t where id = 1",
        "delete from t where a = 1 and true",
        "delete from t where not (a = 1 or b = 2)",
        "delete from t where id = $1",
        "delete from t where id in (1, 2)",
        "delete from t where exists (select 1 from u where u.id = t.id)",
        "with x as (delete from t where id = 1) select 1",
    ] {
        assert!(fact(bounded).has_where, "{bounded}");
    }
    for open in [
        "delete from t",
        "delete from t where true",
        "delete from t where 1=1",
        "delete from t where 'a' = 'a'",
        "delete from t where not false",
        "delete from t where not (false and a = 1)",
        "delete from t where a = 1 or true",
        "delete from t where ((1)) < ((2))",
        "delete from t where $1",
        "delete from t where $1 = $1",
        "delete from t where a = a",
        "delete from t where (a) = a",
        "delete from t where a is null or a is not null",
        "delete from t where a = 1 or a <> 1",
        "delete from t where a in (a)",
        "delete from t where true::bool",
        "delete from t where exists (select 1)",
        "delete from t where now() is not null",
        "with x as (delete from t), y as (delete from u where id = 1) select 1",
    ] {
        assert!(!fact(open).has_where, "{open}");
    }
}

#[test]
fn too_deep_too_long_too_many_is_opaque_and_quick() {
    let deep = 10_000;
    let nested = [
        format!("select {}1{}", "(".repeat(deep), ")".repeat(deep)),
        format!("select {}1{}", "(select ".repeat(deep), ")".repeat(deep)),
        format!("select {}1", "- ".repeat(deep)),
        format!("select {} true", "not ".repeat(deep)),
        format!("select 1{}", "+1".repeat(deep)),
        format!("select 1{}", " or true".repeat(deep)),
        format!("select 1{}", " union select 1".repeat(deep)),
        format!("select a{}", "[1]".repeat(deep)),
        format!("select 1{}", "::int".repeat(deep)),
        format!("select {}1{}", "case when true then ".repeat(deep), " end".repeat(deep)),
        format!("{}select 1{}", "with a as (".repeat(deep), ") select 1".repeat(deep)),
        format!("select * from {}t{}", "(".repeat(deep), ")".repeat(deep)),
        format!("{}select 1", "explain ".repeat(deep)),
        format!("{}select 1", "prepare p as ".repeat(deep)),
        format!("select {}1{}", "/*".repeat(deep), "*/".repeat(deep)),
        "select 1;".repeat(deep),
        " ".repeat(lexer::MAX_TEXT + 1),
    ];
    for sql in nested {
        let c = classify(&sql, &Fixed);
        assert_ne!(c.action.clarity, Clarity::Parsed, "{}...", &sql[..40]);
        assert!(c.action.parts.iter().any(|(v, _)| *v == Verb::Unknown));
        // What cannot nest is no statement.
        if !sql.starts_with("explain") && !sql.starts_with("prepare") {
            assert!(too_complex(&sql), "{}... {:?}", &sql[..40], c.action.parts);
        }
        fuzz::classification(&sql);
    }
}

fn too_complex(sql: &str) -> bool {
    let parts = classify(sql, &Fixed).action.parts;
    parts.iter().any(|(verb, target)| *verb == Verb::Unknown && target.as_str() == "sql:too complex")
}

#[test]
fn the_limits_are_where_they_are_said_to_be() {
    let statements = |n: usize| "select 1;".repeat(n);
    assert!(!too_complex(&statements(MAX_STATEMENTS)) && too_complex(&statements(MAX_STATEMENTS + 1)));
    let length = |n: usize| format!("select '{}'", "x".repeat(n - 9));
    assert!(!too_complex(&length(lexer::MAX_TEXT)) && too_complex(&length(lexer::MAX_TEXT + 1)));
    let comments = |n: usize| format!("{}{} select 1", "/*".repeat(n), "*/".repeat(n));
    assert!(!too_complex(&comments(lexer::MAX_DEPTH)) && too_complex(&comments(lexer::MAX_DEPTH + 1)));
    let brackets = |n: usize| format!("create table t (a int default {}1{})", "(".repeat(n), ")".repeat(n));
    assert!(!too_complex(&brackets(lexer::MAX_DEPTH - 1)) && too_complex(&brackets(lexer::MAX_DEPTH)));
    let chain = |n: usize| format!("select 1{}", "+1".repeat(n));
    assert!(!too_complex(&chain(bridge::MAX_CHAIN - 1)) && too_complex(&chain(bridge::MAX_CHAIN)));
    let tables = |n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("t{i}")).collect();
        format!("truncate {}", names.join(","))
    };
    assert!(!too_complex(&tables(1000)) && too_complex(&tables(1001)));
    assert!(!too_complex("select 'unterminated") && !too_complex("nonsense"));
}

/// Texts as long as are read, of every kind that could take more than its length: each comes to an end.
#[test]
fn a_mebibyte_of_anything_is_read_or_refused() {
    let fill = |start: &str, piece: &str, end: &str| {
        let room = lexer::MAX_TEXT - start.len() - end.len();
        format!("{start}{}{end}", piece.repeat(room / piece.len()))
    };
    for sql in [
        fill("select ", "a,", "a"),
        fill("select a from t where a in (", "1,", "1)"),
        fill("insert into t values ", "(1,'x'),", "(1,'x')"),
        fill("insert into t values ('", "x", "')"),
        fill("insert into t values (E'", "\\x41", "')"),
        fill("insert into t values (U&'", "\\0041", "')"),
        fill("select ", "'a'\n", ""),
        fill("select $a$", "$b$", "$a$"),
        fill("select ", "--\n", "1"),
        fill("select ", "/**/", "1"),
        fill("select ", "/* ", ""),
        fill("select ", "a.", "a"),
        fill("create table t (", "a int,", "b int)"),
        fill("create table t (a int default ", "a.", "a)"),
        fill("create table t (a int) inherits (", "a,", "b)"),
        fill("create table t (a int check (", "f(1)+", "1))"),
        fill("create index i on t (", "f(a),", "b)"),
        fill("alter table t ", "add a int,", "add b int"),
        fill("alter table t ", "inherit p,", "inherit p"),
        fill("create function f() returns int as '", "x", "' language sql"),
        fill("create function f() returns int ", "language sql ", ""),
        fill("copy t (", "a,", "b) from stdin"),
        fill("copy t from stdin (", "header,", "header)"),
        fill("drop table ", "a,", "b"),
        fill("set search_path = ", "a,", "b"),
        fill("execute p(", "1,", "1)"),
        fill("", "select 1;", ""),
        fill("", ";", ""),
        fill("", "(", ""),
        fill("", "\"", ""),
        fill("", "'", ""),
        fill("", "$", ""),
        fill("", "$a$", ""),
        fill("", "\\", ""),
        fill("", "<", ""),
        fill("", "\u{e9}", ""),
        fill("", "with ", ""),
        fill("", "explain ", ""),
        fill("", "select ", ""),
    ] {
        assert!(sql.len() <= lexer::MAX_TEXT && sql.len() > lexer::MAX_TEXT - 20);
        fuzz::classification(&sql);
    }
}

#[test]
fn chains_below_the_limit_do_not_overflow_a_small_stack() {
    let run = || {
        for sql in [
            format!("select 1 where {} true", "a = 1 or ".repeat(1500)),
            format!("select 1{}", "+1".repeat(4000)),
            format!("select 1{}", " union select 1".repeat(2000)),
            format!("select a{}", "::int".repeat(3000)),
        ] {
            fuzz::classification(&sql);
        }
    };
    std::thread::Builder::new().stack_size(256 * 1024).spawn(run).expect("a thread").join().expect("no overflow");
}

#[test]
fn many_parts_are_cut_off_and_say_so() {
    let names: Vec<String> = (0..100_000).map(|i| format!("t{i}")).collect();
    for sql in [
        format!("drop table {}", names.join(",")),
        format!("select 1 from {}", names.join(",")),
        format!("select {} from {}", names[..60_000].join(","), names[..60_000].join(",")),
        format!("truncate {}", names.join(",")),
        format!("create table a (b int references {})", names.join(" references ")),
    ] {
        let action = classify(&sql, &Fixed).action;
        assert!(action.parts.len() <= 1001);
        assert!(action.parts.iter().any(|(v, _)| *v == Verb::Unknown), "{}", &sql[..30]);
        fuzz::classification(&sql);
    }
}

/// The parser tries a parenthesis in FROM first as a query, then as a join: twice the work per level without a bound.
#[test]
fn backtracking_is_bounded() {
    for (open, close) in [
        ("(select 1 from (", ") a join b on true)"),
        ("((table a) x join ", " on true)"),
        ("((values (1)) x join ", " on true)"),
        ("((select) x join ", " on true)"),
        ("((", ") join b on true)"),
    ] {
        let sql = format!("select * from {}t{}", open.repeat(40), close.repeat(40));
        fuzz::classification(&sql);
    }
}

#[test]
fn kinds_tell_the_protocol_what_changes() {
    use StatementKind as K;
    let name = || "p".to_owned();
    assert_eq!(kind("select 1"), K::Query);
    assert_eq!(kind("insert into a values (1)"), K::Change);
    assert_eq!(kind("with x as (delete from a returning 1) select * from x"), K::Change);
    assert_eq!(kind("commit and chain"), K::Commit { chain: true });
    assert_eq!(kind("end work"), K::Commit { chain: false });
    assert_eq!(kind("rollback to savepoint P"), K::RollbackTo { name: name() });
    assert_eq!(kind("prepare p as select 1"), K::Prepare { name: name(), inner: 13..21 });
    assert_eq!(kind("explain analyze execute p(1)"), K::ExecutePrepared { name: name() });
    assert_eq!(kind("deallocate all"), K::Deallocate { name: None });
    assert_eq!(
        kind("declare p no scroll cursor with hold for select 1"),
        K::DeclareCursor { name: name(), inner: 41..49 }
    );
    assert_eq!(kind("fetch forward 10 from p"), K::Fetch { cursor: name() });
    assert_eq!(kind("fetch p"), K::Fetch { cursor: name() });
    assert_eq!(kind("move backward all in p"), K::Move { cursor: name() });
    assert_eq!(kind("explain select 1"), K::Query);
    let set = |name: &str, value: &[&str], local, returns_rows| K::Set {
        name: name.to_owned(),
        value: Some(value.iter().map(|v| (*v).to_owned()).collect()),
        local,
        returns_rows,
    };
    assert_eq!(kind("set local search_path to a, \"B\""), set("search_path", &["a", "B"], true, false));
    assert_eq!(kind("select pg_catalog.set_config('search_path', '', false)"), set("search_path", &[""], false, true));
    assert_eq!(kind("set time zone 'UTC'"), set("timezone", &["UTC"], false, false));
    let K::Copy(copy) = kind("copy a.b (c, \"D\") from stdin with (format csv, header)") else { panic!("a copy") };
    assert_eq!(copy.direction, CopyDirection::In);
    assert_eq!(copy.format, CopyFormat::Csv);
    let columns = vec!["c".to_owned(), "D".to_owned()];
    assert_eq!(copy.source, CopySource::Table { schema: Some("a".into()), name: "b".into(), columns });
    let lists = "copy t to stdout (format csv, force_quote (header, \"null\", b), force_null (c), delimiter ';')";
    let K::Copy(copy) = kind(lists) else { panic!("a copy") };
    let names: Vec<&str> = copy.options.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["format", "force_quote", "force_null", "delimiter"], "columns are no options");
    for unclear in
        ["header 00", "header -0", "header +0", "header 'maybe'", "header (a)", "null 'x' 'y'", "format csv,"]
    {
        assert_eq!(kind(&format!("copy t to stdout ({unclear})")), K::Opaque, "{unclear}");
    }
}

#[test]
fn what_would_take_too_much_to_read_is_opaque() {
    let opaque = |text: &str| classify(text, &Fixed).action.clarity == crate::action::Clarity::Opaque;
    assert!(!opaque(&format!("select a{}", ",a".repeat(10_000))));
    assert!(opaque(&format!("select a{}", ",a".repeat(super::lexer::MAX_TOKENS / 2))));
    assert!(!opaque(&format!("select '{}'", "x".repeat(super::lexer::MAX_TEXT - 9))));
    assert!(opaque(&format!("select '{}'", "x".repeat(super::lexer::MAX_TEXT))));
}

#[test]
fn mentions_err_towards_more() {
    assert!(!mentions("select * from t").nested_wildcard);
    assert!(!mentions("select count(*) from t").nested_wildcard);
    assert!(!mentions("table t").nested_wildcard);
    assert!(!mentions("delete from t returning *").nested_wildcard);
    for nested in [
        "select a from (select * from t) s",
        "select * from t union select * from u",
        "table t union table u",
        "with x as (select * from t) select a from x",
        "select f(t.*) from t",
        "with x as (delete from t returning *) select 1",
        "select (select t.* from t)",
    ] {
        assert!(mentions(nested).nested_wildcard, "{nested}");
    }
    for whole in ["select t from t", "select row_to_json(a) from t a", "select a::text from t as a"] {
        assert!(mentions(whole).whole_row, "{whole}");
    }
    assert!(!mentions("select a, t.b from t").whole_row);
    for renames in [
        "select * from t as a(x)",
        "with c(x) as (select email from t) select x from c",
        "select * from a natural join b",
    ] {
        assert!(mentions(renames).renames_columns, "{renames}");
    }
    let m = mentions("select \"Email\", B from s.T where c = 'd'");
    assert_eq!(m.identifiers.iter().map(String::as_str).collect::<Vec<_>>(), ["b", "c", "email", "s", "t"]);
    assert_eq!(m.relations, [(Some("s".to_owned()), "t".to_owned())]);
}

#[test]
fn shapes_differ_unless_only_values_do() {
    let same = |a: &str, b: &str| assert_eq!(shape(a), shape(b));
    let differ = |a: &str, b: &str| assert_ne!(shape(a), shape(b), "{a}\n{b}");
    same("select * from t where a = 1", "SELECT  * FROM t -- x\nWHERE a = 2");
    same("insert into t (a, b) values ('x', 1)", "insert into t (a, b) values ($$y$$, 2)");
    differ("select * from t where a = 1", "select * from t where b = 1");
    differ("select * from t where a = 1", "select * from \"T\" where a = 1");
    differ("select 1", "select 1; select 1");
    differ("select a ? b", "select a '?' b");
    differ("do 'a'", "do 'b'");
    differ("select query_to_xml('a')", "select query_to_xml('b')");
    differ("select \"now\"('a')", "select \"now\"('b')");
    differ("select wipe('a')", "select wipe('b')");
    differ("set work_mem = '1'", "set work_mem = '2'");
    differ("copy t to program 'a'", "copy t to program 'b'");
    differ("select * from t where a in (1)", "select * from t where a in (1, 2)");
    differ("select 'unterminated", "select 'other");
}

/// Where the path puts another schema before `pg_catalog`, the server's own signs and types may be others'.
#[test]
fn what_another_schema_may_shadow_is_not_the_servers_own() {
    struct Shadowed;
    impl Names for Shadowed {
        fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
            Fixed.relation_schema(schema, name)
        }
        fn function_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
            Fixed.function_schema(schema, name)
        }
        fn creation_schema(&self) -> Option<Arc<str>> {
            None
        }
        fn columns(&self, _: &str, _: &str) -> Option<Arc<[Arc<str>]>> {
            None
        }
        fn type_schema(&self, schema: Option<&str>, _: &str) -> Option<Arc<str>> {
            schema.map(Arc::from)
        }
        fn operator_schema(&self, _: &str) -> Option<Arc<str>> {
            None
        }
    }
    let parts = |sql: &str, names: &dyn Names| {
        let action = classify(sql, names).action;
        action.parts.iter().map(|(v, t)| format!("{v} {t}")).collect::<Vec<_>>()
    };
    for (sql, part) in [
        ("select 1 + 1", "execute op:?.\"+\""),
        ("select a * 2 from t", "execute op:?.\"*\""),
        ("select a from t where a in (1)", "execute op:?.\"=\""),
        ("select a from t where a between 1 and 2", "execute op:?.\"=\""),
        ("select case a when 1 then 2 end from t", "execute op:?.\"=\""),
        ("select * from t natural join u", "execute op:?.\"=\""),
        ("create table made (a int check (a > 1))", "execute op:?.\">\""),
        ("select '1'::text", "execute type:?.text"),
        ("select date '2020-01-01'", "execute type:?.date"),
        ("create table made (a text default '1'::json)", "execute type:?.json"),
        ("prepare p (json) as select $1", "execute type:?.json"),
    ] {
        assert!(parts(sql, &Shadowed).iter().any(|p| p == part), "{sql}: {:?}", parts(sql, &Shadowed));
        assert!(!parts(sql, &Fixed).iter().any(|p| p.starts_with("execute")), "{sql}: {:?}", parts(sql, &Fixed));
    }
    // Columns are no operator, and the grammar's types are nobody's.
    for sql in ["select * from t", "select t.*, count(*) from t", "select '1'::int, cast(a as varchar(3)) from t"] {
        assert!(!parts(sql, &Shadowed).iter().any(|p| p.starts_with("execute")), "{sql}: {:?}", parts(sql, &Shadowed));
    }
}

#[test]
fn unresolved_names_say_so() {
    struct Nothing;
    impl Names for Nothing {
        fn relation_schema(&self, _: Option<&str>, _: &str) -> Option<Arc<str>> {
            None
        }
        fn function_schema(&self, _: Option<&str>, _: &str) -> Option<Arc<str>> {
            None
        }
        fn creation_schema(&self) -> Option<Arc<str>> {
            None
        }
        fn columns(&self, _: &str, _: &str) -> Option<Arc<[Arc<str>]>> {
            None
        }
    }
    let action = classify("select lower(a), pg_read_file('x') from t", &Nothing).action;
    let parts: Vec<String> = action.parts.iter().map(|(v, t)| format!("{v} {t}")).collect();
    assert!(parts.contains(&"read ?.t".to_owned()), "{parts:?}");
    assert!(parts.contains(&"execute fn:?.lower".to_owned()), "{parts:?}");
    assert!(parts.contains(&"admin fn:?.pg_read_file".to_owned()), "{parts:?}");
}

#[test]
fn another_products_names_of_files_are_not_understood() {
    for sql in ["delete from @u using t", "select * from @a/b", "select 1 from @x where true"] {
        assert!(parts(sql).contains("unknown"), "{sql}: {}", parts(sql));
    }
    assert!(!parts("select @ -5 from t").contains("unknown"), "{}", parts("select @ -5 from t"));
}
