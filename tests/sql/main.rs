//! Our classification against PostgreSQL's own grammar (`pg_query`).
//!
//! For every statement of the corpora, of the attack list and of mutations of both: where the oracle parses and we say
//! `Parsed`, every relation, changed relation, function and statement kind that the oracle sees must be among our parts
//! or facts. Saying less than `Parsed` is always safe, and counted.
//!
//! Beside corpora of our own there is PostgreSQL's regression SQL, which `cargo xtask setup` fetches.

mod attacks;
mod kinds;
mod oracle;
mod table;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use portcullis::{
    action::{Clarity, Verb},
    sql::{StatementKind, classify, fuzz},
};

use crate::oracle::{Figures, compare};

const PSQL: &str = include_str!("corpus/psql.sql");
const PG_DUMP: &str = include_str!("corpus/pgdump.sql");
const PG_RESTORE: &str = include_str!("corpus/pgrestore.sql");
const PGBENCH: &str = include_str!("corpus/pgbench.sql");
const DRIVERS: &str = include_str!("corpus/drivers.sql");
const GENERAL: &str = include_str!("corpus/general.sql");

fn commands(corpus: &str) -> Vec<&str> {
    corpus.split("\n-- ~~\n").map(str::trim).filter(|c| !c.is_empty()).collect()
}

#[test]
fn what_clients_send_by_themselves_is_read_and_harmless() {
    for (name, corpus) in [("psql", PSQL), ("pg_dump", PG_DUMP), ("drivers", DRIVERS)] {
        let mut failed = Vec::new();
        for command in commands(corpus) {
            let action = classify(command, &fuzz::Fixed).action;
            let harmless = action.parts.iter().all(|(verb, target)| {
                *verb == Verb::Session
                    || (*verb == Verb::Read && {
                        let t = target.as_str();
                        name == "pg_dump" || t.starts_with("pg_catalog.") || t.starts_with("information_schema.")
                    })
            });
            if action.clarity != Clarity::Parsed || !harmless {
                failed.push(format!("{:?}\n{command}", action.parts));
            }
        }
        assert!(failed.is_empty(), "{name}: {} commands\n{}", failed.len(), failed.join("\n\n"));
    }
}

#[test]
fn a_restore_is_schema_and_data() {
    let mut failed = Vec::new();
    for command in commands(PG_RESTORE).into_iter().chain(commands(PGBENCH)) {
        let classified = classify(command, &fuzz::Fixed);
        if classified.action.clarity != Clarity::Parsed {
            failed.push(format!("{:?}\n{command}", classified.action.parts));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn never_weaker_than_the_grammar() {
    let mut figures = Figures::default();
    let attacks = attacks::all();
    let mut all: Vec<&str> =
        [PSQL, PG_DUMP, PG_RESTORE, PGBENCH, DRIVERS, GENERAL].iter().flat_map(|c| commands(c)).collect();
    all.extend(attacks.iter().map(|a| a.command.as_str()));
    for command in &all {
        compare(command, &mut figures);
    }
    figures.print("corpora");
    assert!(figures.weaker.is_empty(), "{}", figures.weaker.join("\n\n"));
    let mut mutated = Figures::default();
    for command in &all {
        for mutant in mutations(command) {
            compare(&mutant, &mut mutated);
            fuzz::classification(&mutant);
        }
    }
    mutated.print("mutations");
    assert!(mutated.weaker.is_empty(), "{}", mutated.weaker.iter().take(20).cloned().collect::<Vec<_>>().join("\n\n"));
}

/// Where `cargo xtask setup` puts PostgreSQL's own SQL.
fn outside() -> PathBuf {
    let tools = std::env::var_os("PORTCULLIS_TOOLS").map(PathBuf::from);
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    tools.unwrap_or_else(here).join("postgresql-sql")
}

/// Every `*.sql` below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let listed = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`, which fetches it", folder.display()));
    for entry in listed {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "sql") {
            found.push(path);
        }
    }
}

#[test]
fn never_weaker_on_a_corpus_from_outside() {
    let mut paths = Vec::new();
    files(&outside(), &mut paths);
    paths.sort();
    assert!(paths.len() > 200, "{} files are too few: run `cargo xtask setup`", paths.len());
    let mut figures = Figures::default();
    let mut heads: BTreeMap<String, usize> = BTreeMap::new();
    for path in paths {
        // Some are in other encodings.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for statement in oracle::split(&text) {
            fuzz::classification(&statement);
            if compare(&statement, &mut figures) == Some(Clarity::Opaque) {
                let head: Vec<&str> = statement.split_whitespace().take(2).collect();
                *heads.entry(head.join(" ").to_lowercase()).or_default() += 1;
            }
        }
    }
    figures.print("outside corpus");
    let mut heads: Vec<_> = heads.into_iter().collect();
    heads.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    println!("opaque by head: {:?}", &heads[..heads.len().min(25)]);
    assert!(
        figures.weaker.is_empty(),
        "{} weaker\n{}",
        figures.weaker.len(),
        figures.weaker.iter().take(60).cloned().collect::<Vec<_>>().join("\n\n")
    );
    assert!(figures.opaque_share() <= 0.03, "more than 3 % opaque");
    assert!(figures.compared > 30_000, "too few statements");
}

/// The same command written otherwise, and near misses of it.
fn mutations(command: &str) -> Vec<String> {
    let mut out = vec![
        format!("-- comment\n{command}"),
        format!("/* /* nested */ ; */ {command}"),
        format!("{command};"),
        format!(";{command}; select 1"),
        format!("select 1; {command}"),
        format!("select 'a'\n  'b;'; {command}"),
        format!("select E'\\'; ' ; {command}"),
        format!("select '\\'; {command}"),
        format!("select $a$;$$;$a$; {command}"),
        format!("select U&'\\0027'; {command}"),
        format!("explain {command}"),
        format!("explain (analyze, costs off) {command}"),
        format!("with x as ({command}) select 1"),
        format!("with x as (select 1) {command}"),
        format!("prepare p as {command}"),
        format!("declare c cursor for {command}"),
        format!("copy ({command}) to stdout"),
        format!("create table made as {command}"),
        format!("create view made as {command}"),
        format!("select * from ({command}) s"),
        format!("select exists ({command})"),
        format!("insert into kept {command}"),
        format!("({command})"),
        format!("({command}) union all table secret"),
        command.to_uppercase(),
        command.replace(' ', "/**/"),
        command.replace(' ', "\n--x\n"),
        command.replace(" FROM ", " FROM ONLY ").replace(" from ", " from only "),
        command.replace(" as ", " ").replace(" AS ", " "),
        command.replace(" where ", " having "),
        command.replace("select ", "select all "),
        command.replace('(', "((").replace(')', "))"),
        command.replace(',', ",lateral "),
        command.replace(',', " cross join "),
        command.replace(',', " natural join "),
        command.replace(" from ", " into made from "),
        command.replace(" from ", " from secret, "),
        command.replace(" from ", " from secret tablesample system(1), "),
        command.replace(" from ", " from leak(1) l, "),
        command.replace("select ", "select leak(1), "),
        command.replace("select ", "select \"LEAK\"(1), "),
        command.replace("select ", "select (select leak(x) from secret), "),
    ];
    // Single words dropped or doubled: most are errors to the server, the rest find odd corners.
    let words: Vec<&str> = command.split(' ').collect();
    if words.len() < 60 {
        for i in 0..words.len() {
            let mut dropped = words.clone();
            dropped.remove(i);
            out.push(dropped.join(" "));
            let mut swapped = words.clone();
            if i + 1 < words.len() {
                swapped.swap(i, i + 1);
                out.push(swapped.join(" "));
            }
            for insert in [
                "only",
                "as",
                "lateral",
                "from",
                "secret",
                ",",
                "union table secret",
                "returning *",
                "order by leak(1)",
            ] {
                let mut inserted = words.clone();
                inserted.insert(i, insert);
                out.push(inserted.join(" "));
            }
        }
    }
    out
}

#[test]
fn statements_are_cut_where_the_server_cuts_them() {
    let text = "select 1; ; select ';' /* ; */; -- ;\nselect $$;$$";
    let infos = classify(text, &fuzz::Fixed).statements;
    let cut: Vec<&str> = infos.iter().map(|s| &text[s.span.clone()]).collect();
    assert_eq!(cut, ["select 1", "select ';'", "select $$;$$"]);
    assert!(infos.iter().all(|s| s.kind == StatementKind::Query));
}
