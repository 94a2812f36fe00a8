//! Names that change their meaning: what was judged is what the server finds, or the command is refused.

use std::time::Duration;

use portcullis::record::EventBody;
use portcullis_tests::{Postgres, TestHouse};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::server;

/// All rights in a schema of its own, none on `public.payroll`.
const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "shop"
protocol = "postgres"
address = ["127.0.0.1:{port}"]
tls = { mode = "verify-full", ca = "{ca}" }
credential = { source = "file", user = "shop_agent", path = "{password}" }

[[rule]]
name = "its own schema"
upstream = "shop"
verbs = ["read", "write", "delete", "schema", "execute"]
targets = ["other.*", "fn:other.*", "schema:other", "schema:third", "third.*", "pg_temp.*"]
effect = "allow"

[[rule]]
name = "the closed schema"
upstream = "shop"
verbs = ["read", "schema"]
targets = ["closed.*"]
effect = "allow"

[[rule]]
name = "products"
upstream = "shop"
verbs = ["read"]
targets = ["public.products", "pg_catalog.*"]
effect = "allow"
"#;

const SEED: &str = "CREATE SCHEMA other AUTHORIZATION shop_agent; CREATE SCHEMA closed; \
    CREATE TABLE closed.payroll (salary integer); GRANT ALL ON closed.payroll TO shop_agent; \
    GRANT CREATE ON DATABASE shop TO shop_agent; SET ROLE shop_agent; \
    CREATE TABLE other.payroll (salary integer); INSERT INTO other.payroll VALUES (7);";

const SECRET: &str = "100000";

fn seeded() -> Postgres {
    let server = server();
    server.sql("shop", SEED).unwrap();
    server
}

/// Everything that came back, whether in rows or in an error.
async fn said(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(messages) => {
            let mut out = String::new();
            for message in &messages {
                if let SimpleQueryMessage::Row(row) = message {
                    for i in 0..row.len() {
                        out.push_str(row.get(i).unwrap_or("NULL"));
                        out.push(' ');
                    }
                }
            }
            out.trim_end().to_owned()
        }
        Err(error) => {
            error.as_db_error().map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message()))
        }
    }
}

/// The last command, as it was judged.
fn judged(house: &TestHouse) -> String {
    let events = house.events().unwrap();
    let command = events.iter().rev().find(|event| matches!(event.body, EventBody::Command { .. }));
    serde_json::to_string(command.unwrap()).unwrap()
}

#[tokio::test]
async fn a_name_that_was_moved_away_is_not_judged_as_if_it_were_there() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let moves = [
        ("ALTER TABLE other.payroll RENAME TO gone", "ALTER TABLE other.gone RENAME TO payroll"),
        ("ALTER TABLE payroll RENAME TO gone", "ALTER TABLE other.gone RENAME TO payroll"),
        (
            "CREATE SCHEMA third; ALTER TABLE other.payroll SET SCHEMA third",
            "ALTER TABLE third.payroll SET SCHEMA other; DROP SCHEMA third",
        ),
        ("ALTER SCHEMA other RENAME TO third", "ALTER SCHEMA third RENAME TO other"),
        ("DROP TABLE other.payroll", "CREATE TABLE other.payroll AS SELECT 7 AS salary"),
    ];
    for (away, back) in moves {
        let read = "SELECT salary FROM payroll";
        let computed = "SELECT salary + 0 FROM payroll";
        for script in [
            vec![away, read, computed],
            vec!["BEGIN", away, read, "ROLLBACK", "BEGIN", away, computed, "COMMIT", read],
            vec!["BEGIN", "SAVEPOINT s", away, "ROLLBACK TO s", read, "ROLLBACK", read, away, "COPY payroll TO STDOUT"],
            vec!["PREPARE p AS SELECT salary FROM payroll", away, "EXECUTE p", read],
            vec!["BEGIN", "DECLARE c CURSOR WITH HOLD FOR SELECT salary FROM payroll", "COMMIT", away, "FETCH c", read],
        ] {
            let client = house.client().await.unwrap();
            // Long enough that the path is no reason to read the catalogue anew.
            assert_eq!(said(&client, "SET search_path = other, public").await, "");
            assert_eq!(said(&client, read).await, "7", "before {away}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            for sql in &script {
                let said = said(&client, sql).await;
                assert!(!said.contains(SECRET), "{script:?}: {sql} gave {said}");
            }
            drop(client);
            let client = house.client().await.unwrap();
            let put_back = said(&client, back).await;
            assert!(
                put_back.is_empty() || put_back.starts_with("42P0") || put_back.starts_with("3F000"),
                "{back}: {put_back}"
            );
        }
        for text in [format!("{away}; {read}"), format!("{away}; {computed}"), format!("BEGIN; {away}; COMMIT; {read}")]
        {
            let client = house.client().await.unwrap();
            said(&client, "SET search_path = other, public").await;
            let answer = said(&client, &text).await;
            assert!(answer.starts_with("42501"), "{text} gave {answer}");
        }
    }
    let log = server.log();
    assert!(log.contains("ALTER TABLE other.payroll RENAME TO gone"), "the attacks took place");
}

#[tokio::test]
async fn a_pipeline_is_judged_by_what_it_does_itself() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SET search_path = other, public").await.unwrap();
    let read = client.prepare("SELECT salary FROM payroll").await.unwrap();
    let away = client.prepare("ALTER TABLE other.payroll RENAME TO gone").await.unwrap();
    assert_eq!(client.query_one(&read, &[]).await.unwrap().get::<_, i32>(0), 7);
    let (_, rows) = tokio::join!(client.execute(&away, &[]), client.query(&read, &[]));
    let salaries: Vec<i32> = rows.map_or_else(|_| Vec::new(), |rows| rows.iter().map(|row| row.get(0)).collect());
    assert!(!salaries.contains(&100_000), "{salaries:?}");
    let error = client.query(&read, &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
}

#[tokio::test]
async fn another_connection_sees_the_move_too() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let (one, other) = (house.client().await.unwrap(), house.client().await.unwrap());
    for client in [&one, &other] {
        client.simple_query("SET search_path = other, public").await.unwrap();
        assert_eq!(said(client, "SELECT salary FROM payroll").await, "7");
    }
    let prepared = other.prepare("SELECT salary FROM payroll").await.unwrap();
    one.simple_query("BEGIN; ALTER TABLE other.payroll RENAME TO gone").await.unwrap();
    assert!(said(&other, "SELECT salary FROM payroll").await.starts_with("42501"), "it may be either");
    one.simple_query("COMMIT").await.unwrap();
    assert!(said(&other, "SELECT salary FROM payroll").await.starts_with("42501"), "it is the denied one");
    assert_eq!(other.query(&prepared, &[]).await.unwrap_err().code().unwrap().code(), "42501");
    one.simple_query("ALTER TABLE other.gone RENAME TO payroll").await.unwrap();
    assert_eq!(said(&other, "SELECT salary FROM payroll").await, "7");
}

#[tokio::test]
async fn a_table_that_was_not_judged_is_hidden() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SET search_path = other, public").await.unwrap();
    // Somebody else, whom nobody governs, moves the table between judgement and execution: its lock is waited for.
    let moving = server.sql("shop", "SELECT 1").map(|_| {
        let (dir, port) = (server.socket_dir().to_owned(), server.port.to_string());
        std::thread::spawn(move || {
            let script = "BEGIN; ALTER TABLE other.payroll RENAME TO gone; SELECT pg_sleep(1); COMMIT";
            std::process::Command::new("psql")
                .args(["-Xq", "-h"])
                .arg(dir)
                .args(["-p", &port, "-U", "postgres", "-d", "shop", "-c", script])
                .output()
        })
    });
    while server
        .sql(
            "shop",
            "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'other.payroll'::regclass",
        )
        .unwrap()
        == "0"
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = said(&client, "SELECT salary FROM payroll").await;
    assert!(!answer.contains(SECRET) && answer.contains("NULL"), "{answer}");
    moving.unwrap().join().unwrap().unwrap();
}

#[tokio::test]
async fn a_schema_that_may_not_be_used_is_not_searched() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SET search_path = closed, public").await.unwrap();
    let answer = said(&client, "SELECT salary FROM payroll").await;
    assert!(answer.starts_with("42501") && judged(&house).contains("public.payroll"), "{answer}");
    let answer = said(&client, "CREATE TABLE mine (a int)").await;
    assert!(answer.starts_with("42501") && judged(&house).contains("public.mine"), "{answer}");
}

#[tokio::test]
async fn the_path_after_a_transaction_is_the_servers() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    for (script, path, answer) in [
        ("BEGIN; SET LOCAL search_path = other; SET search_path = public; COMMIT", "public", "42501"),
        ("BEGIN; SET search_path = other; SET LOCAL search_path = public; COMMIT", "other", "7"),
        ("BEGIN; SET search_path = public; SET LOCAL search_path = other; COMMIT", "public", "42501"),
        ("BEGIN; SET LOCAL search_path = other; COMMIT", "public", "42501"),
        ("BEGIN; SET search_path = other; ROLLBACK", "public", "42501"),
        ("SET search_path = other; BEGIN; SET search_path = public; ROLLBACK", "other", "7"),
        ("SET search_path = other; RESET search_path; SET search_path TO DEFAULT", "\"$user\", public", "42501"),
    ] {
        let client = house.client().await.unwrap();
        client.simple_query("SET search_path = public").await.unwrap();
        for sql in script.split("; ") {
            client.simple_query(sql).await.unwrap();
        }
        assert_eq!(said(&client, "SHOW search_path").await, path, "{script}");
        let said = said(&client, "SELECT salary FROM payroll").await;
        assert!(said.starts_with(answer), "{script}: {said}");
    }
}

#[tokio::test]
async fn what_a_transaction_makes_it_can_use_by_name() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for sql in [
        "SET search_path = other, public",
        "BEGIN",
        "CREATE TABLE made (a int PRIMARY KEY)",
        "CREATE INDEX made_a ON made (a)",
        "INSERT INTO made VALUES (1)",
        "ALTER TABLE made ADD COLUMN b int",
        "ALTER TABLE made RENAME TO renamed",
        "UPDATE renamed SET b = 2 WHERE a = 1",
        "COMMIT",
    ] {
        assert_eq!(said(&client, sql).await, "", "{sql}");
    }
    assert_eq!(said(&client, "SELECT a, b FROM renamed").await, "1 2");
    // Temporary tables come before all others, also long after they were made.
    assert_eq!(said(&client, "CREATE TEMP TABLE scratch AS SELECT 3 AS a").await, "");
    assert_eq!(said(&client, "SELECT a FROM scratch").await, "3");
    assert_eq!(said(&client, "CREATE TEMP TABLE products AS SELECT 4 AS a").await, "");
    assert!(said(&client, "SELECT a FROM products").await.starts_with("42501"), "either");
    assert_eq!(said(&client, "SELECT a FROM pg_temp.products").await, "4");
}

#[tokio::test]
async fn a_new_function_does_not_pass_for_a_builtin() {
    let server = seeded();
    let policy = POLICY.replace("\"fn:other.*\", ", "").replace("\"schema\", \"execute\"]", "\"schema\"]")
        + "\n[[rule]]\nname = \"functions\"\nupstream = \"shop\"\nverbs = [\"schema\"]\ntargets = [\"fn:other.*\"]\neffect = \"allow\"\n";
    let house = TestHouse::new(&server, &policy).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SET search_path = other, public").await.unwrap();
    assert_eq!(said(&client, "SELECT lower('X')").await, "x");
    let make = "CREATE FUNCTION other.lower(varchar) RETURNS text LANGUAGE sql \
        AS 'SELECT string_agg(salary::text, '','') FROM public.payroll'";
    let call = "SELECT lower('X'::varchar)";
    for script in [format!("{make}; {call}"), format!("BEGIN; {make}; {call}")] {
        let answer = said(&client, &script).await;
        assert!(answer.starts_with("42501"), "{script}: {answer}");
        said(&client, "ROLLBACK").await;
    }
    assert_eq!(said(&client, make).await, "");
    let answer = said(&client, call).await;
    assert!(answer.starts_with("42501") && judged(&house).contains("fn:other.lower"), "{answer}");
}

#[tokio::test]
async fn a_pool_that_resets_its_connections_reads_nothing_anew() {
    let server = seeded();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SELECT id FROM products WHERE id = 1").await.unwrap();
    let readings = || server.log().matches("has_schema_privilege").count();
    let before = readings();
    assert!(before > 0);
    for _ in 0..20 {
        client.simple_query("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;").await.unwrap();
        client.query_one("SELECT id FROM products WHERE id = 1", &[]).await.unwrap();
    }
    assert_eq!(readings(), before);
}

/// A text that came before, and a statement that was prepared, mean what their names mean now.
#[tokio::test]
async fn what_was_read_once_is_read_anew_when_names_change() {
    let server = server();
    let house = TestHouse::new(&server, crate::POLICY).unwrap();
    let client = house.client().await.unwrap();
    let text = "SELECT count(*) FROM products";
    let prepared = client.prepare(text).await.unwrap();
    for _ in 0..4 {
        client.simple_query(text).await.unwrap();
        client.query(&prepared, &[]).await.unwrap();
    }
    client.simple_query("CREATE TEMP TABLE products (id int)").await.unwrap();
    client.simple_query(text).await.unwrap();
    client.query(&prepared, &[]).await.unwrap();
    let targets: Vec<String> = house
        .events()
        .unwrap()
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Command { command, action, .. } if **command == *text => {
                Some(action.iter().map(|(_, target)| target.as_str()).collect::<Vec<_>>().join(" "))
            }
            _ => None,
        })
        .collect();
    assert_eq!(targets.len(), 10, "{targets:?}");
    assert!(targets[..8].iter().all(|target| target == "public.products"), "{targets:?}");
    assert!(targets[8..].iter().all(|target| target.contains("pg_temp") || target.contains('?')), "{targets:?}");
}
