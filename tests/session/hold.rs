//! Holds: in flight, same socket, same transaction.

use portcullis::record::EventBody;
use portcullis_tests::{TestHouse, reviewer};
use tokio::io::AsyncWriteExt;

use crate::{POLICY, server};

#[tokio::test]
async fn an_approved_command_runs_in_its_transaction() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("BEGIN").await.unwrap();
    let deleting = tokio::spawn(async move {
        let done = client.execute("DELETE FROM orders WHERE id = $1", &[&1i32]).await;
        (client, done)
    });
    let view = house.held().await;
    assert_eq!(&*view.rule, "deletes wait");
    assert!(view.command.contains("DELETE FROM orders"), "{}", view.command);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
    house.house.holds.approve(&view.id, &reviewer("dora"), Some("fine".into()), None).unwrap();
    let (client, done) = deleting.await.unwrap();
    assert_eq!(done.unwrap(), 1);
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000", "not committed yet");
    client.simple_query("COMMIT").await.unwrap();
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "4999");
    let recorded = house.events().unwrap().into_iter().find_map(|e| match e.body.clone() {
        EventBody::Command { hash, decision, hold: Some(_), .. } => Some((hash, decision)),
        _ => None,
    });
    let (hash, decision) = recorded.unwrap();
    assert_eq!(hash, view.hash, "what ran is what was approved");
    assert_eq!(decision.reviewers, ["dora"]);
}

#[tokio::test]
async fn a_denied_command_does_not_run() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let deleting = tokio::spawn(async move {
        let done = client.simple_query("DELETE FROM orders").await;
        (client, done)
    });
    let view = house.held().await;
    house.house.holds.deny(&view.id, &reviewer("dora"), Some("too many".into())).unwrap();
    let (client, done) = deleting.await.unwrap();
    let error = done.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    assert!(error.as_db_error().unwrap().message().contains("too many"));
    client.simple_query("SELECT 1").await.unwrap();
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
}

#[tokio::test]
async fn a_client_that_leaves_withdraws_its_command() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut io = crate::wild::logged_in(&house).await;
    io.write_all(&crate::wild::frame(b'Q', b"DELETE FROM orders\0")).await.unwrap();
    let view = house.held().await;
    drop(io);
    loop {
        let now = house.house.holds.view(&view.id);
        if now.is_none_or(|v| v.state.as_str() == "withdrawn") {
            break;
        }
        tokio::task::yield_now().await;
    }
    // Approved afterwards, the very same bytes may be sent once.
    house.house.holds.approve(&view.id, &reviewer("dora"), None, None).unwrap();
    let client = house.client().await.unwrap();
    client.simple_query("DELETE FROM orders").await.unwrap();
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "0");
    assert_eq!(commands(&house, "DELETE FROM orders"), ["deny", "hold"]);
}

/// The effects on record of a command, in order.
fn commands(house: &TestHouse, text: &str) -> Vec<String> {
    let effect = |body: &EventBody| match body {
        EventBody::Command { command, decision, .. } if &**command == text => Some(decision.effect.to_string()),
        _ => None,
    };
    house.events().unwrap().iter().filter_map(|event| effect(&event.body)).collect()
}

#[tokio::test]
async fn a_cancel_request_withdraws_a_held_command() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let token = client.cancel_token();
    let deleting = tokio::spawn(async move {
        let done = client.simple_query("DELETE FROM orders").await;
        (client, done)
    });
    house.held().await;
    token.cancel_query_raw(house.connect(), tokio_postgres::NoTls).await.unwrap();
    let (client, done) = deleting.await.unwrap();
    assert_eq!(done.unwrap_err().code().unwrap().code(), "57014");
    client.simple_query("SELECT 1").await.unwrap();
    assert_eq!(commands(&house, "DELETE FROM orders"), ["deny"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_command_is_cancelled_upstream() {
    let server = server();
    let policy = format!(
        "{POLICY}\n[[rule]]\nname = \"sleep\"\nupstream = \"shop\"\nverbs = [\"admin\", \"execute\"]\ntargets = [\"fn:pg_catalog.pg_sleep\"]\neffect = \"allow\"\n"
    );
    let house = TestHouse::new(&server, &policy).unwrap();
    let client = house.client().await.unwrap();
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.simple_query("SELECT pg_sleep(600)").await });
    while server.sql("shop", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid() AND state = 'active'").unwrap() == "0" {
        assert!(!sleeping.is_finished());
    }
    token.cancel_query_raw(house.connect(), tokio_postgres::NoTls).await.unwrap();
    assert_eq!(sleeping.await.unwrap().unwrap_err().code().unwrap().code(), "57014");
}

#[tokio::test]
async fn a_portal_cannot_be_fetched_around_its_hold() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut client = house.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("DELETE FROM orders RETURNING id", &[]).await.unwrap();
    drop(portal);
    transaction.rollback().await.unwrap();
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
}
