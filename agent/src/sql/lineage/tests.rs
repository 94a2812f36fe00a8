use super::*;
use crate::sql::{classify, fuzz::Fixed};

/// Columns of a result as `NAME<-SOURCES`, then what is compared and stored. Every table of `public` has columns a, b, c.
fn read(text: &str) -> String {
    let mut classified = classify(text, &Fixed);
    let lineage = classified.statements.swap_remove(0).lineage;
    let sources = |sources: &Sources| {
        let mut all: Vec<String> = sources.columns().iter().map(|c| format!("{}.{}", c.relation, c.name)).collect();
        all.extend(sources.unknown.then(|| "?".to_owned()));
        all.join("+")
    };
    let output = |output: &Output| {
        let plain = if output.plain { "=" } else { "" };
        format!("{}<-{plain}{}", output.name.as_deref().unwrap_or("_"), sources(&output.sources))
    };
    let outputs = match &lineage.outputs {
        Some(outputs) => outputs.iter().map(output).collect::<Vec<_>>().join(" "),
        None => "?".to_owned(),
    };
    let store = |(column, from): &(Option<Column>, Sources)| {
        format!("{}:{}", column.as_ref().map_or("_", |column| &*column.name), sources(from))
    };
    let stored = lineage.stored.iter().map(store).collect::<Vec<_>>().join(" ");
    format!("{outputs} | {} | {stored}", sources(&lineage.compared))
}

#[test]
fn values_are_traced_to_columns() {
    for (text, wanted) in [
        ("select a, b as x, lower(c) from t", "a<-=t.a x<-=t.b _<-t.c |  | "),
        ("select * from t, u", "a<-=t.a b<-=t.b c<-=t.c a<-=u.a b<-=u.b c<-=u.c |  | "),
        ("select t.* from t, u", "a<-=t.a b<-=t.b c<-=t.c |  | "),
        ("select x + y from t as s(x, y)", "_<-t.a+t.b |  | "),
        ("select t from t", "t<-t.a+t.b+t.c |  | "),
        ("select row_to_json(s.*) from t s", "_<-t.a+t.b+t.c |  | "),
        ("select (s).b from t s", "_<-t.a+t.b+t.c |  | "),
        ("select count(*) from t", "_<- |  | "),
        ("select b from t where a = $1 and c > 1", "b<-=t.b | t.c | "),
        ("select b from t where a = $1 or c = $2", "b<-=t.b | t.a+t.c | "),
        ("select b from t where lower(a) = $1", "b<-=t.b | t.a | "),
        ("select b from t where a = 'x'", "b<-=t.b | t.a | "),
        ("select b from t where $1::text = t.a", "b<-=t.b |  | "),
        (
            "select x from (select a as x from t order by b limit 1) s",
            "x<-t.a | t.b | ".replace("x<-", "x<-=").as_str(),
        ),
        ("select lower from (select lower(a) from t) s", "lower<-t.a |  | "),
        ("with x as (select a from t), y(z) as (select a || 'q' from x) select z from y", "z<-t.a |  | "),
        (
            "with recursive r(n, v) as (select 1, a from t union all select n + 1, b from r join u using (a)) select v from r",
            "v<-t.a+u.b | u.a+? | ",
        ),
        (
            "with recursive r(n, v, w) as (select 1, a, b from t union all select n + 1, w, v from r) select v from r",
            "v<-t.a+t.b |  | ",
        ),
        ("select a from t union all select b from u", "a<-t.a+u.b |  | "),
        ("select a from t except select b from u", "a<-t.a+u.b | t.a+u.b | "),
        ("select distinct a from t", "a<-=t.a | t.a | "),
        ("select a as k, count(*) from t group by k order by 2, b", "k<-=t.a _<- | t.a+t.b | "),
        ("select b from t group by 1 having max(c) > 1", "b<-=t.b | t.b+t.c | "),
        ("select * from t join u using (a)", "a<-t.a+u.a b<-=t.b c<-=t.c b<-=u.b c<-=u.c | t.a+u.a | "),
        ("select * from t natural join u", "a<-t.a+u.a b<-t.b+u.b c<-t.c+u.c | t.a+t.b+t.c+u.a+u.b+u.c | "),
        ("select t.a from t join u on t.b = u.c", "a<-=t.a | t.b+u.c | "),
        ("select (select b from u where u.a = t.a) from t", "_<-t.a+u.a+u.b |  | "),
        ("select 1 from t where exists (select 1 from u where u.b = t.c)", "_<- | t.c+u.b | "),
        ("select l.x from t, lateral (select t.a as x) l", "x<-t.a |  | "),
        ("select x from t, unnest(b) x", "x<-t.b | t.b | "),
        ("select f(a) from t", "_<-t.a+? |  | "),
        ("select e from t", "e<-? |  | "),
        ("select case when a > 1 then b end from t", "_<-t.a+t.b | t.a | "),
        ("select rank() over (order by a) from t", "_<-t.a | t.a | "),
        ("select * from nowhere.t", "? |  | "),
        ("values (1), ((select a from t))", "column1<-t.a |  | "),
        ("insert into u (c) select a from t", " |  | c:t.a"),
        ("insert into u values (1, (select b from t))", " |  | b:t.b"),
        (
            "insert into u (a) values (1) on conflict (a) do update set b = excluded.a, c = u.b where u.c > 1 returning c",
            "c<-=u.c | u.c | c:u.b",
        ),
        ("update u set b = t.a from t where t.c = u.c returning t.b", "b<-=t.b | t.c+u.c | b:t.a"),
        (
            "delete from u using t where u.a = t.a returning *",
            "a<-=u.a b<-=u.b c<-=u.c a<-=t.a b<-=t.b c<-=t.c | t.a+u.a | ",
        ),
        (
            "merge into u using t on u.a = t.a when matched then update set b = t.b when not matched then insert values (t.c)",
            " | t.a+u.a | b:t.b a:t.c",
        ),
        ("create table n as select a from t", " |  | _:t.a"),
        ("select a into n from t", " |  | _:t.a"),
        ("create view n as select a from t", " |  | "),
        ("explain select a from t where b = 1", "_<- | t.b | "),
        ("with d as (delete from u returning b) select b from d", "b<-=u.b |  | "),
        ("copy (select a from t where b > 1) to stdout", "a<-=t.a | t.b | "),
    ] {
        assert_eq!(read(text), wanted, "{text}");
    }
}

/// What the fuzzer checks is there to be checked.
#[test]
fn queries_that_hand_on_values_keep_where_they_come_from() {
    for (before, after) in crate::sql::fuzz::HANDS_ON {
        let text = read(&format!("{before}select a as x, lower(b) as y, 1 as z from t where c = 'x'{after}"));
        assert!(!text.contains('?') && text.contains("t.a") && text.contains("t.b"), "{before}: {text}");
        assert!(text.contains("| t.c"), "{before}: {text}");
    }
    for text in ["select a, b from t where c = 'x'", "update t set b = 1 where c = 2", "delete from t as x using u"] {
        crate::sql::fuzz::lineage(text);
    }
}

#[test]
fn what_is_not_understood_has_no_lineage() {
    for text in ["select a from t tablesample system (1)", "select a from t where unknown syntax", "vacuum t; select 1"]
    {
        let lineage = classify(text, &Fixed).statements.swap_remove(0).lineage;
        assert!(lineage.outputs.is_none(), "{text}: {lineage:?}");
    }
}

#[test]
fn recursion_in_recursion_ends() {
    let mut text = "select a from t".to_owned();
    for n in 0..12 {
        text = format!("with recursive r{n}(v) as ({text} union all select v || 'x' from r{n}) select v from r{n}");
    }
    let _ = read(&text);
}
