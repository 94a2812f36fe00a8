//! The table of statement kinds in `ARCHITECTURE.md`: made from what `classify` says of an example of each, so that it
//! cannot say what the code does not do.

use std::{fmt::Write as _, fs, path::Path};

use portcullis::sql::{classify, fuzz};

const START: &str = "<!-- statement kinds: made by the test `table`, do not edit -->\n";
const END: &str = "<!-- end of statement kinds -->\n";

/// An example of each kind, in the table's order.
const EXAMPLES: &[&str] = &[
    "select a from t where lower(b) = 'x'",
    "select 1",
    "select f(1)",
    "select pg_read_file('x')",
    "select nextval('s')",
    "select pg_advisory_lock(1)",
    "select set_config('work_mem', '1MB', false)",
    "select set_config('role', 'x', false)",
    "select ('x'::text).pg_read_file",
    "select 'x'::s.kind",
    "select 1 === 2",
    "select 1 operator(s.+) 2",
    "select * from t tablesample s.m(1)",
    "select a into made from t",
    "values (1)",
    "table t",
    "insert into t select * from u",
    "insert into t values (1) on conflict (a) do update set b = 1 returning a",
    "update t set a = 1 from u where t.b = u.b",
    "delete from t using u where t.b = u.b",
    "merge into t using u on t.a = u.a when matched then delete when not matched then insert values (1)",
    "with gone as (delete from t returning *) select * from gone",
    "truncate t",
    "truncate t cascade",
    "copy t to stdout",
    "copy t from stdin",
    "copy (delete from t returning *) to stdout",
    "copy t to '/file'",
    "copy t from program 'x'",
    "lock table t in access share mode",
    "lock table t",
    "explain analyze delete from t",
    "prepare p as delete from t",
    "execute p(1)",
    "deallocate p",
    "declare c cursor for select a from t",
    "fetch c",
    "close c",
    "begin",
    "savepoint a",
    "commit",
    "prepare transaction 'x'",
    "set work_mem = '1MB'",
    "set search_path = s",
    "set role x",
    "set standard_conforming_strings = off",
    "reset all",
    "show work_mem",
    "discard all",
    "listen c",
    "notify c",
    "do 'begin end'",
    "call f(1)",
    "create table made (a int default f(), b int references t)",
    "create table made (like t)",
    "create table made partition of t for values in (1)",
    "create table made as select a from t",
    "create temp table made (a int)",
    "create view made as select a from t",
    "create materialized view made as select a from t",
    "refresh materialized view m",
    "create index on t (f(a))",
    "create sequence made owned by t.a",
    "create type made as enum ('a')",
    "create schema made",
    "create function made() returns int language sql as 'select 1'",
    "create function made() returns int language sql security definer as 'select 1'",
    "create function made() returns int language c as 'x', 'y'",
    "create trigger made before insert on t for each row execute function f()",
    "create rule made as on insert to t do nothing",
    "create policy made on t",
    "create extension x",
    "create role x",
    "create server x foreign data wrapper y",
    "create user mapping for public server x",
    "create foreign table made (a int) server x",
    "create publication x for all tables",
    "create subscription x connection 'y' publication z",
    "create event trigger x on ddl_command_start execute function f()",
    "create cast (text as int) with function f(text)",
    "create operator === (leftarg = int, rightarg = int, function = f)",
    "create aggregate made (int) (sfunc = f, stype = int)",
    "alter table t add column a int default f()",
    "alter table t rename to made",
    "alter table t inherit u",
    "alter table t owner to x",
    "alter table t disable row level security",
    "alter view v set (security_invoker = off)",
    "alter function f() security definer",
    "alter function f() set search_path = s",
    "alter system set work_mem = '1MB'",
    "alter role x superuser",
    "alter default privileges grant select on tables to x",
    "drop table t",
    "drop table t cascade",
    "drop trigger x on t",
    "comment on table t is 'x'",
    "grant select on t to x",
    "revoke select on t from x",
    "reassign owned by x to y",
    "security label on table t is 'x'",
    "import foreign schema x from server y into z",
    "vacuum t",
    "vacuum",
    "analyze t",
    "cluster t using i",
    "reindex table t",
    "checkpoint",
    "load 'x'",
    "create nonsense",
    "nonsense",
];

fn table() -> String {
    let mut out = String::from("| statement | judged as |\n| --- | --- |\n");
    for example in EXAMPLES {
        let action = classify(example, &fuzz::Fixed).action;
        let parts: Vec<String> = action.parts.iter().map(|(verb, target)| format!("{verb} `{target}`")).collect();
        let _ = writeln!(out, "| `{}` | {} |", example.replace('|', "\\|"), parts.join(", "));
    }
    out
}

/// `UPDATE_TABLE=1` writes the table instead.
#[test]
fn the_table_of_statement_kinds_is_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = fs::read_to_string(&path).expect("ARCHITECTURE.md");
    let (before, rest) = text.split_once(START).expect("the table's start");
    let (written, after) = rest.split_once(END).expect("the table's end");
    let now = format!("\n{}\n", table());
    if std::env::var_os("UPDATE_TABLE").is_some() {
        fs::write(&path, format!("{before}{START}{now}{END}{after}")).expect("ARCHITECTURE.md written");
        return;
    }
    let stale = written.lines().find(|line| !now.contains(*line));
    let missing = now.lines().find(|line| !written.contains(*line));
    assert!(
        written == now,
        "the table of statement kinds in ARCHITECTURE.md is stale (written: {stale:?}, now: {missing:?}); write it anew \
         with `UPDATE_TABLE=1 cargo test -p portcullis-tests --test sql table`"
    );
}
