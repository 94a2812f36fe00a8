//! Masks follow a column through aliases, formats and COPY, and never through an expression.

use futures_util::StreamExt;
use portcullis::{mask::REDACTED, record::EventBody};
use portcullis_tests::{PASSWORD, TestHouse};
use tokio_postgres::SimpleQueryMessage;

use crate::{POLICY, server};

fn rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_masked_column_stays_masked() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let leaks = |text: &str| text.contains("customer7@") || text.contains("4111") || text.contains("DE89");
    for sql in [
        "SELECT email, card, iban, ssn FROM customers WHERE id = 7",
        "SELECT email AS x FROM customers WHERE id = 7",
        "SELECT c.* FROM public.customers c WHERE id = 7",
        "SELECT upper(email), lower(email), email || '!', substring(email from 1 for 20) FROM customers WHERE id = 7",
        "SELECT x FROM (SELECT email AS x FROM customers WHERE id = 7) s",
        "WITH c(a) AS (SELECT email FROM customers WHERE id = 7) SELECT a, a || '' FROM c",
        "SELECT row_to_json(c) FROM customers c WHERE id = 7",
        "SELECT c FROM customers c WHERE id = 7",
        "SELECT array_agg(email) FROM customers WHERE id = 7",
        "SELECT b || '' FROM customers AS t(a, n, b) WHERE a = 7",
        "SELECT email FROM customers WHERE id = 7 UNION ALL SELECT email || '' FROM customers WHERE id = 7",
        "SELECT mail FROM contacts WHERE id = 7",
        "UPDATE customers SET name = name WHERE id = 7 RETURNING email",
        "SELECT concat(card, ' ', iban) FROM customers WHERE id = 7",
    ] {
        match client.simple_query(sql).await {
            Ok(messages) => {
                let rows = rows(&messages);
                assert!(!rows.is_empty(), "{sql}: no rows");
                for value in rows.iter().flatten().flatten() {
                    assert!(!leaks(value), "{sql} leaked {value}");
                }
            }
            // A refusal leaks nothing either, but the plain ones must work.
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }
    let plain = client.simple_query("SELECT id, name, born FROM customers WHERE id = 7").await.unwrap();
    assert_eq!(rows(&plain), [[Some("7".into()), Some("Customer 7".into()), Some("1990-01-08".into())]]);
    let count = client.simple_query("SELECT count(*) FROM customers").await.unwrap();
    assert_eq!(rows(&count), [[Some("1000".to_owned())]]);
}

#[tokio::test]
async fn binary_rows_are_masked_too() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let row = client.query_one("SELECT id, email, card, born FROM customers WHERE id = $1", &[&7i32]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
    assert_eq!(row.get::<_, String>(1), "[redacted]");
    assert_eq!(row.get::<_, String>(2), "[redacted]");
    let masked = house.events().unwrap();
    let text = serde_json::to_string(&masked).unwrap();
    assert!(text.contains("column:public.customers.email"), "{text}");
    assert!(!text.contains("customer7@example.com"), "the record has more than the agent saw");
}

#[tokio::test]
async fn copy_out_is_masked_in_every_format() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for sql in [
        "COPY customers TO STDOUT",
        "COPY customers (email, id) TO STDOUT WITH (FORMAT csv, HEADER)",
        "COPY customers (id, email, card) TO STDOUT WITH (FORMAT binary)",
        "COPY (SELECT email FROM customers) TO STDOUT",
    ] {
        let mut stream = Box::pin(client.copy_out(sql).await.unwrap());
        let mut data = Vec::new();
        while let Some(piece) = stream.next().await {
            data.extend_from_slice(&piece.unwrap());
        }
        let text = String::from_utf8_lossy(&data);
        assert!(text.contains("[redacted]"), "{sql}");
        assert!(!text.contains("@example.com"), "{sql} leaked {}", &text[..200.min(text.len())]);
        assert!(!text.contains("41111111"), "{sql} leaked a card");
    }
}

/// What the server takes for a line of names is passed as it is, so no spelling may make a row pass for one.
#[tokio::test]
async fn no_row_passes_for_a_header() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let (mut masked, mut refused) = (0, 0);
    for sql in [
        "COPY customers (email, id) TO STDOUT (FORMAT csv, HEADER 00)",
        "COPY customers (email, id) TO STDOUT (FORMAT csv, HEADER -0)",
        "COPY customers (email, id) TO STDOUT (FORMAT csv, HEADER +0)",
        "COPY customers (email, id) TO STDOUT (FORMAT csv, HEADER 0)",
        "COPY customers (email, id) TO STDOUT (FORMAT csv, \"header\" 'OFF')",
        "COPY (SELECT email, 1 AS header FROM customers) TO STDOUT (FORMAT csv, FORCE_QUOTE (email, header))",
    ] {
        let mut stream = match client.copy_out(sql).await {
            Ok(stream) => Box::pin(stream),
            Err(error) => {
                assert_eq!(error.code().unwrap().code(), "42501", "{sql}: {error:?}");
                refused += 1;
                continue;
            }
        };
        let mut data = Vec::new();
        while let Some(piece) = stream.next().await {
            data.extend_from_slice(&piece.unwrap());
        }
        let text = String::from_utf8_lossy(&data);
        assert_eq!(text.lines().count(), 1000, "{sql}");
        assert!(!text.contains("@example.com"), "{sql} leaked {}", &text[..200.min(text.len())]);
        masked += 1;
    }
    assert_eq!((masked, refused), (3, 3));
}

#[tokio::test]
async fn errors_and_notices_are_masked() {
    let server = server();
    server.sql("shop", "CREATE UNIQUE INDEX ON customers (iban, id)").unwrap();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let sql = "INSERT INTO customers (id, name, email, iban) VALUES (7, 'x', 'y', 'DE89370400440532013000')";
    let error = client.simple_query(sql).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23505");
    let error = client.simple_query("SELECT 'GB82WEST12345698765432'::integer").await.unwrap_err();
    let message = error.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("[redacted]") && !message.contains("GB82"), "{message}");
}

#[tokio::test]
async fn a_credential_among_many_rows_is_found() {
    let server = server();
    // Without detectors rows pass many at a time.
    let policy = POLICY.split("[[mask]]").next().unwrap();
    let house = TestHouse::new(&server, policy).unwrap();
    let client = house.client().await.unwrap();
    let sql = format!(
        "SELECT i, CASE WHEN i % 1000 = 7 THEN 'the {PASSWORD} of it' ELSE repeat('row ', i % 50) END \
         FROM generate_series(1, 20000) AS i"
    );
    let expected = |i: usize| {
        if i % 1000 == 7 { format!("the {} of it", REDACTED) } else { "row ".repeat(i % 50) }
    };
    let got = rows(&client.simple_query(&sql).await.unwrap());
    assert_eq!(got.len(), 20_000);
    for (at, row) in got.iter().enumerate() {
        assert_eq!(row, &[Some((at + 1).to_string()), Some(expected(at + 1))]);
    }
    let ended = house.events().unwrap().into_iter().find_map(|event| match &event.body {
        EventBody::Result { rows, masked, .. } => Some((*rows, masked.count)),
        _ => None,
    });
    assert_eq!(ended, Some((20_000, 20)));
}
