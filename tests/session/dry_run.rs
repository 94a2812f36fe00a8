//! Dry runs: what a reviewer is shown of a change, and that nothing of it stays.

use portcullis::hold::{Estimate, HoldState, SampleRow};
use portcullis_tests::{Postgres, TestHouse, reviewer};
use tokio_postgres::Client;

use crate::{POLICY, server};

/// Every change waits, and is tried.
fn policy() -> String {
    let waits = "
[[rule]]
name = \"changes wait\"
verbs = [\"write\", \"delete\"]
effect = \"hold\"
reviewers = [\"group:dba\"]
dry_run = true
";
    format!("{POLICY}{waits}")
}

/// What a reviewer is told about a command, which is then denied.
async fn told(house: &TestHouse, client: Client, sql: &'static str) -> (Client, Estimate) {
    let asking = tokio::spawn(async move {
        let answer = client.simple_query(sql).await;
        (client, answer)
    });
    let estimate = decided(house).await;
    let (client, answer) = asking.await.unwrap();
    assert_eq!(answer.unwrap_err().code().unwrap().code(), "42501", "{sql}");
    (client, estimate)
}

async fn decided(house: &TestHouse) -> Estimate {
    let id = house.held().await.id;
    let estimate = loop {
        let view = house.house.holds.view(&id).unwrap();
        assert_eq!(view.state, HoldState::Requested);
        if let Some(estimate) = view.estimate {
            break estimate;
        }
        tokio::task::yield_now().await;
    };
    house.house.holds.deny(&id, &reviewer("dora"), None).unwrap();
    estimate
}

fn row(values: &[&str]) -> Option<Vec<Option<String>>> {
    Some(values.iter().map(|value| (*value != "NULL").then(|| (*value).to_owned())).collect())
}

/// Of columns named, what the rows of a sample hold.
fn only(estimate: &Estimate, names: &[&str]) -> Vec<SampleRow> {
    let sample = estimate.sample.as_ref().unwrap_or_else(|| panic!("no sample: {}", estimate.note));
    let places: Vec<usize> =
        names.iter().map(|name| sample.columns.iter().position(|column| column == name).unwrap()).collect();
    let cut =
        |row: &Option<Vec<Option<String>>>| row.as_ref().map(|row| places.iter().map(|at| row[*at].clone()).collect());
    sample.rows.iter().map(|row| SampleRow { before: cut(&row.before), after: cut(&row.after) }).collect()
}

#[tokio::test]
async fn a_reviewer_sees_the_rows_before_and_after_and_nothing_stays() {
    let server = server();
    server
        .sql(
            "shop",
            "CREATE TABLE stock (place text, item int, \"Kept\" int DEFAULT 0, email text, PRIMARY KEY (place, item));
             INSERT INTO stock VALUES ('a''b', 1, 10, 'x@example.org'), ('c', 2, 20, '4111 1111 1111 1111'), ('c', 3, 30, NULL);
             CREATE TABLE counted (item int); INSERT INTO counted VALUES (2), (3);
             GRANT ALL ON stock, counted TO shop_agent",
        )
        .unwrap();
    let masked = policy().replace("\"*.ssn\"", "\"*.ssn\", \"stock.place\"");
    let house = TestHouse::new(&server, &masked).unwrap();
    let client = house.client().await.unwrap();
    let before = server.sql("shop", "SELECT md5(string_agg(stock::text, ',' ORDER BY item)) FROM stock").unwrap();

    let sql = "UPDATE stock AS s SET \"Kept\" = \"Kept\" + 1 FROM counted c WHERE c.item = s.item; -- said";
    let (client, estimate) = told(&house, client, sql).await;
    assert_eq!((estimate.rows, estimate.counted), (Some(2), true), "{}", estimate.note);
    // The key is masked, and finds the row all the same; a card number is found wherever it is.
    assert_eq!(
        only(&estimate, &["place", "item", "Kept", "email"]),
        [
            SampleRow {
                before: row(&["[redacted]", "2", "20", "[redacted]"]),
                after: row(&["[redacted]", "2", "21", "[redacted]"])
            },
            SampleRow {
                before: row(&["[redacted]", "3", "30", "NULL"]),
                after: row(&["[redacted]", "3", "31", "NULL"])
            },
        ]
    );
    let (client, estimate) = told(&house, client, "DELETE FROM stock WHERE item = 1").await;
    assert_eq!(estimate.rows, Some(1));
    assert_eq!(only(&estimate, &["item", "Kept"]), [SampleRow { before: row(&["1", "10"]), after: None }]);
    let insert =
        "INSERT INTO stock VALUES ('c', 3, 1), ('d', 4, 2) ON CONFLICT (place, item) DO UPDATE SET \"Kept\" = 99";
    let (client, estimate) = told(&house, client, insert).await;
    assert_eq!(estimate.rows, Some(2), "{}", estimate.note);
    assert_eq!(
        only(&estimate, &["item", "Kept"]),
        [
            SampleRow { before: row(&["3", "30"]), after: row(&["3", "99"]) },
            SampleRow { before: None, after: row(&["4", "2"]) },
        ]
    );
    // Counted, but with no rows of its own to show.
    for (sql, rows) in [
        ("DELETE FROM stock WHERE item > 1 RETURNING item", 2),
        ("MERGE INTO stock USING counted c ON c.item = stock.item WHEN MATCHED THEN DELETE", 2),
        ("WITH c AS (SELECT 3 AS item) UPDATE stock SET email = '' FROM c WHERE c.item = stock.item", 1),
    ] {
        let (_, estimate) = told(&house, house.client().await.unwrap(), sql).await;
        assert_eq!((estimate.rows, estimate.counted), (Some(rows), true), "{sql}: {}", estimate.note);
        assert_eq!(estimate.sample.is_some(), sql.starts_with("WITH"), "{sql}");
    }
    assert_eq!(
        server.sql("shop", "SELECT md5(string_agg(stock::text, ',' ORDER BY item)) FROM stock").unwrap(),
        before
    );
    drop(client);
}

#[tokio::test]
async fn rows_that_cannot_be_shown_are_counted() {
    let server = server();
    server
        .sql(
            "shop",
            "CREATE TABLE blind (id int PRIMARY KEY, secret text); INSERT INTO blind VALUES (1, 'a'), (2, 'b');
             GRANT DELETE ON blind TO shop_agent; GRANT SELECT (id) ON blind TO shop_agent;
             CREATE TABLE wide (id int PRIMARY KEY, text text); GRANT ALL ON wide TO shop_agent;
             INSERT INTO wide SELECT n, repeat('x', 100000) FROM generate_series(1, 7) n",
        )
        .unwrap();
    let house = TestHouse::new(&server, &policy()).unwrap();
    for (sql, rows) in [("DELETE FROM blind WHERE id = 1", 1), ("UPDATE wide SET id = -id", 7)] {
        let (_, estimate) = told(&house, house.client().await.unwrap(), sql).await;
        assert_eq!((estimate.rows, estimate.counted, estimate.sample), (Some(rows), true, None), "{}", estimate.note);
    }
}

#[tokio::test]
async fn parameters_and_the_path_of_the_session_count() {
    let server = server();
    server
        .sql(
            "shop",
            "CREATE SCHEMA apart; CREATE TABLE apart.orders (id int PRIMARY KEY, note text);
             INSERT INTO apart.orders SELECT n, 'x' FROM generate_series(1, 7) n;
             GRANT USAGE ON SCHEMA apart TO shop_agent; GRANT ALL ON apart.orders TO shop_agent",
        )
        .unwrap();
    let house = TestHouse::new(&server, &policy()).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SET search_path = apart, public").await.unwrap();
    let deleting = tokio::spawn(async move {
        // In binary form, as drivers send them.
        let done = client.execute("DELETE FROM orders WHERE id > $1 AND note <> $2", &[&2i32, &"it's"]).await;
        (client, done)
    });
    let estimate = decided(&house).await;
    let (client, _) = deleting.await.unwrap();
    assert_eq!((estimate.rows, estimate.counted), (Some(5), true), "{}", estimate.note);
    assert_eq!(estimate.sample.unwrap().columns, ["id", "note"]);
    // Its own transaction holds the rows.
    client.simple_query("BEGIN").await.unwrap();
    let changing = tokio::spawn(async move {
        let done = client.simple_query("UPDATE orders SET note = 'y'").await;
        (client, done)
    });
    let id = house.held().await.id;
    house.house.holds.approve(&id, &reviewer("dora"), None, None).unwrap();
    let (client, done) = changing.await.unwrap();
    done.unwrap();
    let (client, estimate) = told(&house, client, "DELETE FROM orders").await;
    assert!(!estimate.counted && estimate.rows.is_some(), "{estimate:?}");
    assert!(estimate.note.contains("no dry run: it would have waited for a lock"), "{}", estimate.note);
    assert!(estimate.note.ends_with("; without what its open transaction has changed"), "{}", estimate.note);
    drop(client);
}

/// Each would leave something behind that no rollback undoes: `nag` counts in a sequence.
const OBSTACLES: &[(&str, &str, &str)] = &[
    (
        "CREATE TRIGGER nags BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION nags()",
        "UPDATE t SET b = b",
        "has the trigger nags",
    ),
    ("CREATE TRIGGER nags AFTER DELETE ON t EXECUTE FUNCTION nags()", "DELETE FROM t", "has the trigger nags"),
    (
        "CREATE TABLE u (a int REFERENCES t ON DELETE CASCADE); INSERT INTO u VALUES (1);
         CREATE TRIGGER deep AFTER DELETE ON u FOR EACH ROW EXECUTE FUNCTION nags()",
        "DELETE FROM t",
        "public.u has the trigger deep",
    ),
    (
        "CREATE TABLE u () INHERITS (t); INSERT INTO u VALUES (9, 9);
         CREATE TRIGGER below BEFORE DELETE ON u FOR EACH ROW EXECUTE FUNCTION nags()",
        "DELETE FROM t",
        "public.u has the trigger below",
    ),
    ("CREATE RULE nagging AS ON UPDATE TO t DO ALSO SELECT nag()", "UPDATE t SET b = b", "has the rule nagging"),
    (
        "ALTER TABLE t ADD c int DEFAULT nag()",
        "INSERT INTO t (a) VALUES (2)",
        "a default of public.t calls fn:public.nag",
    ),
    ("ALTER TABLE t ADD c int DEFAULT nag()", "UPDATE t SET c = DEFAULT", "a default of public.t calls fn:public.nag"),
    (
        "ALTER TABLE t ADD c int DEFAULT nextval('nagged')",
        "WITH i AS (INSERT INTO t (a) VALUES (2) RETURNING a) DELETE FROM t",
        "a default of public.t calls fn:pg_catalog.nextval",
    ),
    (
        "ALTER TABLE t ADD c int GENERATED ALWAYS AS IDENTITY",
        "INSERT INTO t (a) VALUES (2)",
        "public.t numbers its rows",
    ),
    (
        "ALTER TABLE t ADD c int GENERATED ALWAYS AS (still(b)) STORED",
        "UPDATE t SET b = 2",
        "a default of public.t calls fn:public.still",
    ),
    (
        "ALTER TABLE t ADD CHECK (nag() > 0 OR true)",
        "UPDATE t SET b = 2",
        "a constraint of public.t calls fn:public.nag",
    ),
    (
        "CREATE DOMAIN fussy AS int CHECK (nag() > 0 OR true); ALTER TABLE t ADD c fussy[]",
        "UPDATE t SET c = NULL",
        "the type public.fussy calls fn:public.nag",
    ),
    ("CREATE TYPE pair AS (a int, b int); ALTER TABLE t ADD c pair", "UPDATE t SET c = NULL", "is made of others"),
    (
        "CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE t ADD c mood;
         CREATE FUNCTION mooded(text) RETURNS mood LANGUAGE sql AS $$ SELECT 'sad'::mood FROM (SELECT nag()) n $$;
         CREATE CAST (text AS mood) WITH FUNCTION mooded(text) AS ASSIGNMENT",
        "UPDATE t SET c = concat('s', 'ad')",
        "a conversion to public.mood calls public.mooded",
    ),
    ("CREATE INDEX ON t (still(b))", "UPDATE t SET b = 2", "an index of public.t calls fn:public.still"),
    ("CREATE INDEX ON t (b) WHERE still(b) > 0", "UPDATE t SET b = 2", "an index of public.t calls fn:public.still"),
    (
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (nag() > 0 OR true)",
        "DELETE FROM t",
        "a policy of public.t calls fn:public.nag",
    ),
    (
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t WITH CHECK (nag() > 0 OR true)",
        "UPDATE t SET b = 2",
        "a policy of public.t calls fn:public.nag",
    ),
    (
        "CREATE VIEW v AS SELECT a, nag() FROM t; GRANT ALL ON v TO shop_agent",
        "DELETE FROM t WHERE a IN (SELECT a FROM v)",
        "the view public.v calls fn:public.nag",
    ),
    (
        "CREATE VIEW w AS SELECT a, nag() FROM t; CREATE VIEW v AS SELECT a FROM w; GRANT ALL ON v TO shop_agent",
        "DELETE FROM t USING v WHERE v.a = t.a",
        "the view public.w calls fn:public.nag",
    ),
    (
        "CREATE EXTENSION file_fdw; CREATE SERVER f FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE far (a int) SERVER f OPTIONS (program 'false'); GRANT ALL ON far TO shop_agent",
        "DELETE FROM t WHERE a IN (SELECT a FROM far)",
        "public.far is a foreign table",
    ),
    (
        "CREATE TABLE p (a int) PARTITION BY RANGE (still(a));
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9); INSERT INTO p VALUES (1)",
        "UPDATE p SET a = 2",
        "the partitioning of public.p calls fn:public.still",
    ),
    (
        "ALTER TABLE t ADD UNIQUE (b); INSERT INTO t VALUES (2, 2)",
        "UPDATE t SET b = 3",
        "it failed: duplicate key value violates unique constraint",
    ),
    ("SELECT 1", "UPDATE t SET b = 1 / (a - 1)", "it failed with SQLSTATE 22012"),
    ("SELECT 1", "WITH d AS (DELETE FROM t RETURNING a) SELECT a FROM d", "it is no plain INSERT"),
];

#[tokio::test]
async fn what_a_rollback_would_not_undo_is_not_tried() {
    let server = server();
    for (made, sql, why) in OBSTACLES {
        server
            .sql(
                "shop",
                &format!(
                    "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO shop_agent;
                     CREATE SEQUENCE nagged; GRANT ALL ON SEQUENCE nagged TO PUBLIC;
                     CREATE FUNCTION nag() RETURNS int LANGUAGE sql AS $$ SELECT nextval('public.nagged')::int $$;
                     CREATE FUNCTION still(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.nag(); RETURN $1; END $$;
                     CREATE FUNCTION nags() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.nag(); RETURN COALESCE(NEW, OLD); END $$;
                     CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 1);
                     {made}; GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent;
                     SELECT setval('nagged', 1, false)"
                ),
            )
            .unwrap();
        let house = TestHouse::new(&server, &policy()).unwrap();
        let (_, estimate) = told(&house, house.client().await.unwrap(), sql).await;
        assert!(!estimate.counted && estimate.sample.is_none(), "{made}\n{sql}: {estimate:?}");
        assert!(
            estimate.note.contains(&format!("no dry run: {why}")) || estimate.note.contains(why),
            "{made}\n{sql}: {}",
            estimate.note
        );
        assert_eq!(server.sql("shop", "SELECT is_called FROM nagged").unwrap(), "f", "{made}\n{sql}");
    }
}

#[tokio::test]
async fn what_calls_unknown_code_is_not_even_planned() {
    let server = server();
    server
        .sql(
            "shop",
            "CREATE SEQUENCE nagged; GRANT ALL ON SEQUENCE nagged TO PUBLIC;
             CREATE FUNCTION public.still(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE LOG '%', concat('it ', 'ran'); RETURN $1; END $$",
        )
        .unwrap();
    let calls =
        "\n[[rule]]\nname = \"calls wait\"\nverbs = [\"execute\"]\neffect = \"hold\"\nreviewers = [\"group:dba\"]\n";
    let house = TestHouse::new(&server, &format!("{}{calls}", policy())).unwrap();
    for sql in ["DELETE FROM orders WHERE id = still(1)", "DELETE FROM orders; DELETE FROM orders"] {
        let (_, estimate) = told(&house, house.client().await.unwrap(), sql).await;
        assert_eq!((estimate.rows, estimate.counted), (None, false), "{sql}");
        assert!(estimate.note.contains("estimated"), "{}", estimate.note);
    }
    assert!(!server.log().contains("it ran"), "planning ran it");
}

/// Without being asked to, nothing is tried; a server that tried would have locked the row.
#[tokio::test]
async fn only_the_planner_is_asked_unless_the_policy_says_otherwise() {
    let server: Postgres = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let (_, estimate) = told(&house, house.client().await.unwrap(), "DELETE FROM orders").await;
    assert_eq!((estimate.counted, estimate.sample), (false, None));
    assert!(estimate.rows.is_some(), "{}", estimate.note);
    assert_eq!(server.sql("shop", "SELECT max(xmax::text) FROM orders").unwrap(), "0");
}
