//! Refusals: in the right place, with the session usable and the transaction true.

use portcullis::record::EventBody;
use portcullis_tests::{PASSWORD, TestHouse};

use crate::{POLICY, server};

#[tokio::test]
async fn a_refusal_names_its_rule_and_leaves_the_session_usable() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for sql in [
        "SELECT * FROM payroll",
        "/* x */ SELECT 1; SELECT * FROM payroll",
        "WITH x AS (SELECT * FROM payroll) SELECT 1",
        "SELECT 1 WHERE EXISTS (SELECT FROM public.payroll)",
        "COPY payroll TO STDOUT",
        "TABLE payroll",
        "UPDATE customers SET name = (SELECT employee FROM payroll LIMIT 1) WHERE id = 1",
        "GRANT ALL ON customers TO PUBLIC",
        "SELECT pg_read_file('/etc/passwd')",
        "DO $$ BEGIN PERFORM 1; END $$",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "SET client_encoding = 'SQL_ASCII'",
        "SET standard_conforming_strings = off",
        "SELECT set_config('role', 'postgres', false)",
        "this is not sql",
    ] {
        let error = client.simple_query(sql).await.unwrap_err();
        assert_eq!(error.code().map(|c| c.code()), Some("42501"), "{sql}: {error:?}");
        assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1, "after {sql}");
    }
    let error = client.simple_query("SELECT * FROM payroll").await.unwrap_err();
    let message = error.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("no payroll") && message.contains("payroll is not for bots"), "{message}");
    let error = client.query("SELECT * FROM payroll WHERE id = $1", &[&1i32]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    assert_eq!(client.query_one("SELECT 2", &[]).await.unwrap().get::<_, i32>(0), 2);
    assert!(!serde_json::to_string(&house.events().unwrap()).unwrap().contains(PASSWORD));
}

#[tokio::test]
async fn a_refused_command_fails_its_transaction() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("BEGIN").await.unwrap();
    client.simple_query("UPDATE products SET price = 0 WHERE id = 1").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap_err();
    let error = client.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25P02", "the transaction is aborted, as after any error");
    client.simple_query("COMMIT").await.unwrap();
    assert_eq!(server.sql("shop", "SELECT price FROM products WHERE id = 1").unwrap(), "1.50");
}

#[tokio::test]
async fn pipelines_get_each_answer_in_its_place() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let (a, b, c) = tokio::join!(
        client.query("SELECT 1", &[]),
        client.query("SELECT * FROM payroll", &[]),
        client.query("SELECT 3", &[]),
    );
    assert_eq!(a.unwrap()[0].get::<_, i32>(0), 1);
    assert_eq!(b.unwrap_err().code().unwrap().code(), "42501");
    assert_eq!(c.unwrap()[0].get::<_, i32>(0), 3);
}

#[tokio::test]
async fn a_name_means_what_the_server_means() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    // A prepared DELETE keeps waiting for its reviewer whatever a failed PREPARE of its name says.
    client.simple_query("PREPARE p AS SELECT 1").await.unwrap();
    client.simple_query("EXECUTE p").await.unwrap();
    client.simple_query("PREPARE q AS SELECT * FROM payroll").await.unwrap_err();
    let error = client.simple_query("EXECUTE q").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    // search_path decides what an unqualified name is.
    server
        .sql(
            "shop",
            "CREATE SCHEMA other; CREATE TABLE other.payroll (id int); GRANT ALL ON SCHEMA other TO shop_agent;
                        GRANT ALL ON other.payroll TO shop_agent",
        )
        .unwrap();
    // Older than what is taken for fresh.
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    client.simple_query("SET search_path = other, public").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap();
    client.simple_query("SET search_path = public").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap_err();
    client.simple_query("BEGIN; SET LOCAL search_path = other; COMMIT; SELECT * FROM payroll").await.unwrap_err();
}

#[tokio::test]
async fn a_path_that_is_not_answered_for_gives_no_rights() {
    let server = server();
    let sql = "CREATE SCHEMA other; CREATE TABLE other.payroll (id int); GRANT ALL ON SCHEMA other TO shop_agent;
               GRANT ALL ON other.payroll TO shop_agent";
    server.sql("shop", sql).unwrap();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    // Sent behind a change that will not happen: outside of a transaction SET LOCAL does nothing, and what fails neither.
    for change in [
        "SET LOCAL search_path = other",
        "SET search_path = other; SELECT 1/0",
        "BEGIN; SET search_path = other; ROLLBACK",
        "SET search_path = other; ROLLBACK",
    ] {
        let (_, read) = tokio::join!(client.simple_query(change), client.simple_query("SELECT * FROM payroll"));
        assert_eq!(read.unwrap_err().code().unwrap().code(), "42501", "{change}");
        client.simple_query("SET search_path = public").await.unwrap();
    }
    // Several statements are followed, too: what a pool says when it takes a connection back.
    client.simple_query("SET search_path = other").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap();
    client.simple_query("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;").await.unwrap();
    client.simple_query("SELECT * FROM orders LIMIT 1").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap_err();
    client.simple_query("SET search_path = other; SET search_path = other").await.unwrap();
    client.simple_query("SELECT * FROM payroll").await.unwrap();
}

#[tokio::test]
async fn a_path_set_by_what_cannot_be_read_is_not_known() {
    let server = server();
    let allow = "\n[[rule]]\nname = \"set_config\"\nupstream = \"shop\"\nverbs = [\"admin\"]\n\
        targets = [\"fn:pg_catalog.set_config\"]\neffect = \"allow\"\n";
    let house = TestHouse::new(&server, &format!("{POLICY}{allow}")).unwrap();
    let client = house.client().await.unwrap();
    client.query("SELECT set_config('search_path', $1, false)", &[&"public"]).await.unwrap();
    let error = client.simple_query("SELECT * FROM orders LIMIT 1").await.unwrap_err();
    let message = error.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("where column 1 of its result comes from cannot be told"), "{message}");
    let policy = POLICY.replacen("with = \"redact\"", "with = \"redact\"\nunresolved = \"mask\"", 1);
    let house = TestHouse::new(&server, &format!("{policy}{allow}")).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SELECT * FROM orders LIMIT 1").await.unwrap();
    client.query("SELECT set_config('search_path', $1, false)", &[&"public"]).await.unwrap();
    client.simple_query("SELECT * FROM orders LIMIT 2").await.unwrap();
    client.simple_query("SET search_path = public").await.unwrap();
    client.simple_query("SELECT * FROM orders LIMIT 3").await.unwrap();
    let judged: Vec<String> = house
        .events()
        .unwrap()
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Command { command, action, .. } if command.contains("LIMIT") => Some(action[0].1.to_string()),
            _ => None,
        })
        .collect();
    // A rule for one table must not speak of another.
    assert_eq!(judged, ["public.orders", "?.orders", "public.orders"]);
}

#[tokio::test]
async fn every_command_is_on_record_before_its_result() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for i in 0..20i32 {
        client.query("SELECT $1::int4", &[&i]).await.unwrap();
    }
    client.simple_query("UPDATE products SET price = price WHERE id = 1").await.unwrap();
    let events = house.events().unwrap();
    let commands: Vec<u64> = events
        .iter()
        .filter_map(|e| match &e.body {
            EventBody::Command { seq, .. } => Some(*seq),
            _ => None,
        })
        .collect();
    let results = events.iter().filter(|e| matches!(e.body, EventBody::Result { .. })).count();
    assert_eq!(commands, (1..=21).collect::<Vec<u64>>());
    assert_eq!(results, 21);
}

#[tokio::test]
async fn a_policy_that_no_longer_allows_the_upstream_ends_its_connections() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("SELECT 1").await.unwrap();
    let changed = format!(
        "{POLICY}\n[[rule]]\nname = \"closed\"\nupstream = \"shop\"\nverbs = [\"connect\"]\neffect = \"deny\"\n"
    );
    house.reload(&server, &changed).unwrap();
    client.simple_query("SELECT 1").await.unwrap_err();
    let error = house.client().await.err().unwrap();
    assert!(format!("{error:?}").contains("closed"), "{error:?}");
}

/// A prepared statement is judged at each execution by the policy then in force, though nothing else changed.
#[tokio::test]
async fn a_prepared_statement_meets_the_policy_of_now() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let statement = client.prepare("SELECT id FROM orders WHERE id = $1").await.unwrap();
    let closed =
        format!("{POLICY}\n[[rule]]\nname = \"closed\"\nupstream = \"shop\"\nverbs = [\"read\"]\neffect = \"deny\"\n");
    for _ in 0..2 {
        assert_eq!(client.query(&statement, &[&7i32]).await.unwrap().len(), 1);
        house.reload(&server, &closed).unwrap();
        let error = client.query(&statement, &[&7i32]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{error:?}");
        house.reload(&server, POLICY).unwrap();
    }
}

/// What a rule says of parameters counts for each execution, whatever form they come in.
#[tokio::test]
async fn rules_see_bound_parameters() {
    let server = server();
    let policy = POLICY.replacen(
        "effect = \"allow\"",
        "when = \"sql.params.size() == 0 || sql.params[0] == '7'\"\neffect = \"allow\"",
        1,
    );
    let house = TestHouse::new(&server, &policy).unwrap();
    let client = house.client().await.unwrap();
    // Binary, of a type that the server has told.
    let statement = client.prepare("SELECT id FROM orders WHERE id = $1").await.unwrap();
    assert_eq!(client.query(&statement, &[&7i32]).await.unwrap().len(), 1);
    let error = client.query(&statement, &[&8i32]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "{error:?}");
    assert_eq!(client.query(&statement, &[&7i32]).await.unwrap().len(), 1);
    // As a text, and of a type that is not read: closed.
    let text = client.prepare("SELECT id FROM orders WHERE id::text = $1").await.unwrap();
    assert_eq!(client.query(&text, &[&"7"]).await.unwrap().len(), 1);
    client.query(&text, &[&"8"]).await.unwrap_err();
    let time = client.prepare("SELECT id FROM orders WHERE $1::timestamptz IS NOT NULL LIMIT 1").await.unwrap();
    client.query(&time, &[&std::time::SystemTime::now()]).await.unwrap_err();
    // NULL is not 7.
    client.query(&statement, &[&None::<i32>]).await.unwrap_err();
    // Without parameters there are none; by PREPARE they would not be seen.
    client.simple_query("SELECT id FROM orders WHERE id = 8").await.unwrap();
    client.simple_query("PREPARE p(int) AS SELECT id FROM orders WHERE id = $1").await.unwrap_err();
}

/// Code that no call shows: the server finds it by the name of a column, a type or an operator.
#[tokio::test]
async fn code_that_hides_behind_other_names_is_refused() {
    let server = server();
    server
        .sql(
            "shop",
            "CREATE FUNCTION peek(orders) RETURNS integer LANGUAGE sql AS 'SELECT 7'; \
             CREATE FUNCTION peek(text) RETURNS integer LANGUAGE sql AS 'SELECT 7'; \
             CREATE FUNCTION checked(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
             CREATE DOMAIN word AS text CHECK (checked(value)); \
             CREATE FUNCTION differs(integer, integer) RETURNS integer LANGUAGE sql AS 'SELECT 7'; \
             CREATE OPERATOR public.=== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = differs); \
             CREATE OPERATOR public.+ (LEFTARG = integer, RIGHTARG = integer, FUNCTION = differs)",
        )
        .unwrap();
    // They do run what they hide.
    assert_eq!(server.sql("shop", "SELECT ('x'::text).peek").unwrap(), "7");
    assert_eq!(server.sql("shop", "SET search_path = public, pg_catalog; SELECT 1 + 1").unwrap(), "7");
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for hidden in [
        "SELECT o.peek FROM orders o",
        "SELECT (o).peek FROM orders o",
        "SELECT ('x'::text).peek",
        "SELECT ('/etc/passwd'::text).pg_read_file",
        "SELECT (0.1::float8).pg_sleep",
        "SELECT 'x'::word",
        "SELECT word 'x'",
        "SELECT CAST('x' AS public.word)",
        "SELECT 1 === 2",
        "SELECT 1 OPERATOR(public.+) 1",
        // Which of two it is depends on types, which are not followed.
        "SELECT 1 + 1",
    ] {
        let refused = client.simple_query(hidden).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{hidden}");
    }
    client.simple_query("SELECT o.id, (o).id, 2 - 1, '2'::text FROM orders o LIMIT 1").await.unwrap();
    client.simple_query("SET search_path = public, pg_catalog").await.unwrap();
    for shadowed in ["SELECT 2 - 1", "SELECT '2'::text", "SELECT id FROM orders WHERE id IN (1)"] {
        let refused = client.simple_query(shadowed).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{shadowed}");
    }
    client.simple_query("SELECT id, '2'::varchar FROM orders LIMIT 1").await.unwrap();
    client.simple_query("SET search_path = pg_catalog, public").await.unwrap();
    client.simple_query("SELECT 2 - 1, '2'::text").await.unwrap();
}

/// To convert to labels runs nobody's code; to a domain, or to labels that a function converts to, it may.
#[tokio::test]
async fn enumerations_need_no_rule_and_other_types_do() {
    let server = server();
    let setup = "CREATE TYPE mood AS ENUM ('calm', 'cross'); CREATE TYPE made AS ENUM ('a'); \
        CREATE FUNCTION make(int) RETURNS made LANGUAGE sql AS $$SELECT 'a'::made$$; \
        CREATE CAST (int AS made) WITH FUNCTION make(int); \
        CREATE DOMAIN small AS int CHECK (VALUE < 10); \
        CREATE SCHEMA other; CREATE DOMAIN other.mood AS text; GRANT USAGE ON SCHEMA other TO PUBLIC";
    server.sql("shop", setup).unwrap();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for sql in
        ["SELECT 'calm'::mood", "SELECT 'calm'::public.mood", "SELECT CAST('calm' AS mood), id FROM orders LIMIT 1"]
    {
        client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    for sql in
        ["SELECT 1::made", "SELECT 'a'::made", "SELECT 1::small", "SELECT 'calm'::other.mood", "SELECT 'x'::nowhere"]
    {
        let error = client.simple_query(sql).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{sql}: {error:?}");
    }
    // By another path the name means the domain; made under way, it may mean anything.
    client.simple_query("SET search_path = other, public").await.unwrap();
    client.simple_query("SELECT 'calm'::mood").await.unwrap_err();
    client.simple_query("SET search_path = public").await.unwrap();
    client.simple_query("SELECT 'calm'::mood").await.unwrap();
}

#[tokio::test]
async fn what_is_too_complex_is_told_so() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    let message = client.simple_query(&deep).await.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(message.contains("too complex to be judged"), "{message}");
    let message = client.simple_query("SELEC 1").await.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(message.contains("not understood"), "{message}");
}

/// An operator that somebody made runs their function, also where the server has one of the same name for other types.
#[tokio::test]
async fn operators_that_somebody_made_need_a_rule() {
    let server = server();
    let setup = "CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO PUBLIC; \
        CREATE FUNCTION other.joined(text, text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT $1'; \
        CREATE OPERATOR other.+ (LEFTARG = text, RIGHTARG = text, FUNCTION = other.joined)";
    server.sql("shop", setup).unwrap();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    // Not on the path, it is not meant.
    client.simple_query("SELECT id + 1 FROM orders LIMIT 1").await.unwrap();
    client.simple_query("SET search_path = public, other").await.unwrap();
    for sql in ["SELECT 'a'::text + 'b'::text", "SELECT id + 1 FROM orders LIMIT 1"] {
        let error = client.simple_query(sql).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{sql}: {error:?}");
    }
    client.simple_query("SELECT id - 1 FROM orders LIMIT 1").await.unwrap();
}
