//! Ways to see a masked column, against two real servers that differ in nothing but its values.
//!
//! What a client sees must be the same of both: then nothing of the values is in it, in whatever form. Where inference is
//! allowed, no piece of a value may be in it, straight, reversed, as base64 or in hexadecimal.

use std::{collections::BTreeSet, fmt::Write as _};

use portcullis_tests::{Postgres, TestHouse};
use tokio::io::AsyncWriteExt;

use crate::wild::{frame, logged_in, until_ready};

const ESCAPES: &str = include_str!("escapes.txt");

/// Everything is allowed but calling what is not PostgreSQL's own, so that nothing but the masks stands in the way.
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
name = "all"
upstream = "shop"
verbs = ["read", "write", "delete", "schema", "infer"]
targets = ["**"]
effect = "allow"

[[rule]]
name = "effects"
upstream = "shop"
verbs = ["execute", "admin"]
targets = ["fn:pg_catalog.pg_notify", "fn:pg_catalog.set_config", "fn:pg_catalog.current_setting"]
effect = "allow"

[[mask]]
columns = ["vault.email", "vault.pin", "vault.doc", "vault.blob", "vault.tags", "vault_keys.email", "parted.secret", "parent.hidden"]
with = "redact"
MASKS
"#;

const STRICT: &str = "inference = \"deny\"\nunresolved = \"deny\"";
const LAX: &str = "inference = \"allow\"\nunresolved = \"mask\"";

/// The values that are masked, of two worlds.
const SECRETS: [(&str, i32); 2] = [("Wq8vT3zLkP0r", 918_273_645), ("Xn4uR6yMjH1sAndMore", 1_357_924)];

fn world(which: usize) -> Postgres {
    let server = crate::server();
    let (text, number) = SECRETS[which];
    let setup = format!(
        r#"
        CREATE TABLE vault (id int PRIMARY KEY CHECK (id > 0), owner text, email text, pin int, doc jsonb, blob bytea,
            tags text[]);
        INSERT INTO vault VALUES (7, 'somebody', '{text}', {number}, '{{"k": "{text}"}}', '{text}', '{{{text}}}');
        CREATE TABLE notes (id int, note text);
        INSERT INTO notes VALUES (7, 'a note'), (8, 'another');
        CREATE TABLE vault_keys (id int, email text UNIQUE);
        INSERT INTO vault_keys VALUES (1, '{text}'), (2, 'other');
        CREATE TABLE parted (id int, secret text) PARTITION BY RANGE (id);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (100);
        INSERT INTO parted VALUES (7, '{text}');
        CREATE TABLE parent (id int, hidden text);
        CREATE TABLE child () INHERITS (parent);
        INSERT INTO child VALUES (7, '{text}');
        CREATE FUNCTION called() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT email FROM public.vault';
        CREATE VIEW vault_plain AS SELECT id, email AS mail FROM vault;
        CREATE VIEW vault_made AS SELECT id, upper(email) AS m FROM vault;
        CREATE VIEW vault_rows AS SELECT id, row_to_json(v) AS r FROM vault v;
        CREATE VIEW vault_twice AS SELECT id, mail || '' AS mail2 FROM vault_plain;
        CREATE MATERIALIZED VIEW vault_kept AS SELECT id, email AS kept FROM vault;
        CREATE VIEW vault_union AS SELECT owner AS any_text FROM vault UNION ALL SELECT email FROM vault;
        CREATE VIEW vault_called AS SELECT called() AS c;
        CREATE SCHEMA other;
        GRANT USAGE, CREATE ON SCHEMA public, other TO shop_agent;
        ANALYZE;
        "#
    );
    server.sql("shop", &setup).unwrap();
    let mine = "SELECT format('ALTER %s public.%I OWNER TO shop_agent', CASE relkind WHEN 'v' THEN 'VIEW' \
        WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END, relname) FROM pg_class WHERE relnamespace = \
        'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p')";
    for statement in server.sql("shop", mine).unwrap().lines() {
        server.sql("shop", statement).unwrap();
    }
    server
}

struct Escape {
    name: &'static str,
    /// An answer needs that inference is forbidden.
    infers: bool,
    statements: Vec<&'static str>,
}

fn escapes() -> Vec<Escape> {
    let blocks = ESCAPES.split("\n== ").flat_map(|block| {
        let mut infers = block.ends_with("\n!");
        block
            .split("\n! == ")
            .enumerate()
            .map(move |(at, block)| (std::mem::replace(&mut infers, true) || at > 0, block))
            .collect::<Vec<_>>()
    });
    let mut all = Vec::new();
    for (at, (infers, block)) in blocks.enumerate() {
        if at == 0 {
            continue;
        }
        let (name, statements) = block.split_once('\n').unwrap();
        all.push(Escape { name, infers, statements: statements.split("\n;;\n").map(str::trim).collect() });
    }
    all
}

/// What a client sees of an escape: frames without what differs between any two servers.
async fn seen(house: &TestHouse, escape: &Escape) -> Vec<(u8, Vec<u8>)> {
    let mut io = logged_in(house).await;
    let mut all = Vec::new();
    for statement in &escape.statements {
        io.write_all(&frame(b'Q', format!("{statement}\0").as_bytes())).await.unwrap();
        let frames = tokio::time::timeout(std::time::Duration::from_secs(60), until_ready(&mut io)).await;
        for (tag, mut body) in frames.unwrap_or_else(|_| panic!("{}: no answer", escape.name)) {
            if tag == b'T' {
                without_oids(&mut body);
            }
            all.push((tag, body));
        }
    }
    all
}

/// Object ids of tables are the server's own.
fn without_oids(description: &mut [u8]) {
    let mut at = 2;
    while at < description.len() {
        at += description[at..].iter().position(|byte| *byte == 0).unwrap() + 1;
        description[at..at + 4].fill(0);
        at += 18;
    }
}

/// Pieces of a value, in the forms that somebody may give it.
fn pieces(of: (&str, i32)) -> BTreeSet<String> {
    let mut pieces = BTreeSet::new();
    let number = of.1.to_string();
    for (text, length) in [(of.0, 4), (&*number, 6), (&*format!("{:x}", of.1), 6)] {
        let reversed: String = text.chars().rev().collect();
        for text in [text, &reversed] {
            let hex = text.bytes().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            let windows = |text: &str, length: usize| {
                (0..(text.len() + 1).saturating_sub(length))
                    .map(|at| text[at..at + length].to_owned())
                    .collect::<Vec<_>>()
            };
            pieces.extend(windows(text, length));
            pieces.extend(windows(&text.to_uppercase(), length));
            pieces.extend(windows(&text.to_lowercase(), length));
            pieces.extend(windows(&hex, length * 2));
            for start in 0..3 {
                let encoded = data_encoding::BASE64.encode(&text.as_bytes()[start..]);
                pieces.extend(windows(encoded.trim_end_matches('='), 6));
            }
        }
    }
    pieces
}

fn shown(frames: &[(u8, Vec<u8>)]) -> String {
    frames.iter().map(|(tag, body)| format!("  {} {}\n", char::from(*tag), body.escape_ascii())).collect()
}

#[tokio::test]
async fn what_a_client_sees_does_not_depend_on_masked_values() {
    let servers = [world(0), world(1)];
    let mut failed = Vec::new();
    let mut answered = 0;
    let all = escapes();
    assert!(all.len() > 200 && all.iter().filter(|escape| escape.infers).count() > 40, "{}", all.len());
    // Lax first: what is refused by the strict one changes nothing.
    for (policy, strict) in [(STRICT, true), (LAX, false)] {
        let policy = POLICY.replace("MASKS", policy);
        let houses = [TestHouse::new(&servers[0], &policy).unwrap(), TestHouse::new(&servers[1], &policy).unwrap()];
        for escape in all.iter().filter(|escape| strict || !escape.infers) {
            let [one, two] = [seen(&houses[0], escape).await, seen(&houses[1], escape).await];
            answered += usize::from(one.iter().any(|(tag, _)| *tag == b'D' || *tag == b'd'));
            if strict && one != two {
                failed.push(format!("{}: it differs\n{}\n{}", escape.name, shown(&one), shown(&two)));
            }
            let text = shown(&one).replace("\\x", "");
            // The command itself may be quoted in an error.
            let told = |piece: &&String| text.contains(&**piece) && !escape.statements.concat().contains(&**piece);
            if let Some(piece) = pieces(SECRETS[0]).iter().find(told) {
                failed.push(format!("{}: `{piece}` (strict: {strict}) in\n{}", escape.name, shown(&one)));
            }
        }
    }
    println!("escapes {}, answered with rows {answered}, leaked {}", all.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // Refusing everything would be no mask.
    assert!(answered > 150, "{answered}");
}

#[tokio::test]
async fn what_is_not_masked_is_seen() {
    let server = world(0);
    let house = TestHouse::new(&server, &POLICY.replace("MASKS", STRICT)).unwrap();
    let client = house.client().await.unwrap();
    for (sql, wanted) in [
        ("SELECT count(*) FROM vault", "1"),
        ("SELECT upper(owner) FROM vault", "SOMEBODY"),
        ("SELECT owner || '!' FROM (SELECT * FROM vault) s", "somebody!"),
        ("SELECT max(id) FROM vault_made", "7"),
        ("SELECT o || id FROM (SELECT owner AS o, email, id FROM vault) s", "somebody7"),
        ("WITH c AS (SELECT * FROM vault) SELECT c.owner || n.note FROM c JOIN notes n USING (id)", "somebodya note"),
        ("SELECT string_agg(note, ',' ORDER BY id) FROM notes", "a note,another"),
        ("SELECT id + 1 FROM parted_1", "8"),
        ("SELECT (SELECT count(*) FROM notes) + 1 FROM vault", "3"),
        ("SELECT s.total FROM (SELECT sum(id) AS total FROM vault GROUP BY owner) s", "7"),
    ] {
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let value = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        assert_eq!(value, Some(Some(wanted.to_owned())), "{sql}");
    }
    // Equality with a parameter is the way to look somebody up.
    let rows = client.query("SELECT id, upper(owner) FROM vault WHERE email = $1", &[&SECRETS[0].0]).await.unwrap();
    assert_eq!((rows.len(), rows[0].get::<_, i32>(0), rows[0].get::<_, &str>(1)), (1, 7, "SOMEBODY"));
    let error = client.query("SELECT id FROM vault WHERE email > $1", &[&"W"]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("inference:shop"), "{error:?}");
    let error = client.simple_query("INSERT INTO notes SELECT id, email FROM vault").await.unwrap_err();
    let message = error.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("it would store public.vault.email where it is not masked"), "{message}");
}
