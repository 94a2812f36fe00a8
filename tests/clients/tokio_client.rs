//! tokio-postgres as an agent would use it. Argument: the port. Prints `ok` if all is as it should be.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future, pin_mut};
use tokio_postgres::{NoTls, SimpleQueryMessage, error::SqlState};

fn masked(email: &str) -> Result<()> {
    ensure!(!email.contains("customer"), "not masked: {email}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let port = std::env::args().nth(1).context("no port")?;
    let dsn = format!("host=127.0.0.1 port={port} user=agent password=none dbname=shop");
    let (mut db, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);

    // Pipelined: all are sent before the first is answered.
    let statement = db.prepare("SELECT $1::int4 * 2").await?;
    let answers = future::try_join_all((0..100i32).map(|i| {
        let (db, statement) = (&db, &statement);
        async move { db.query_one(statement, &[&i]).await.map(|row| row.get::<_, i32>(0)) }
    }))
    .await?;
    ensure!(answers.iter().zip(0..).all(|(a, i)| *a == i * 2), "pipelined: {answers:?}");

    let row = db.query_one("SELECT email, ssn, card, name FROM customers WHERE id = $1", &[&7i32]).await?;
    masked(row.get(0))?;
    ensure!(!row.get::<_, &str>(1).contains("007") && !row.get::<_, &str>(2).contains("4111111111111111"));
    ensure!(row.get::<_, &str>(3) == "Customer 7", "what has no mask");

    // Portals, a few rows at a time.
    let transaction = db.transaction().await?;
    let portal = transaction.bind("SELECT id, email FROM customers ORDER BY id", &[]).await?;
    let mut rows = 0;
    loop {
        let some = transaction.query_portal(&portal, 64).await?;
        if some.is_empty() {
            break;
        }
        some.iter().try_for_each(|row| masked(row.get(1)))?;
        rows += some.len();
    }
    ensure!(rows == 1000, "{rows} rows of the portal");
    transaction.commit().await?;

    // A refused command fails its transaction, and only that.
    let transaction = db.transaction().await?;
    transaction.execute("UPDATE orders SET status = 'lost' WHERE id = 1", &[]).await?;
    let error = transaction.batch_execute("DROP TABLE orders").await.err().context("DROP TABLE passed")?;
    ensure!(error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{error}");
    transaction.rollback().await?;

    let sink = db.copy_in::<_, Bytes>("COPY orders FROM STDIN").await?;
    pin_mut!(sink);
    for i in 6000..7000 {
        sink.send(Bytes::from(format!("{i}\t1\t1\t1\tcopied\n"))).await?;
    }
    ensure!(sink.finish().await? == 1000, "copied in");
    let mut stream = Box::pin(db.copy_out("COPY customers (id, email) TO STDOUT").await?);
    let mut copied = Vec::new();
    while let Some(chunk) = stream.next().await {
        copied.extend_from_slice(&chunk?);
    }
    masked(std::str::from_utf8(&copied)?)?;
    ensure!(copied.iter().filter(|b| **b == b'\n').count() == 1000, "copied out");

    let answers: Vec<_> =
        db.simple_query_raw("SELECT 1; SELECT status FROM orders WHERE id = 1").await?.try_collect().await?;
    let statuses: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    ensure!(statuses == ["1", "open"], "{statuses:?}");
    println!("ok");
    Ok(())
}
