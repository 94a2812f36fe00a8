//! Bad input: the connection gets an error or is closed, others do not notice.

use bytes::{BufMut, BytesMut};
use portcullis::wire::Limits;
use portcullis_tests::TestHouse;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{POLICY, server};

pub fn startup() -> BytesMut {
    let mut body = BytesMut::new();
    body.put_i32(196_608);
    body.put_slice(b"user\0x\0database\0shop\0\0");
    let mut out = BytesMut::new();
    out.put_i32(i32::try_from(body.len() + 4).unwrap());
    out.put_slice(&body);
    out
}

pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&i32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out
}

pub async fn logged_in(house: &TestHouse) -> DuplexStream {
    let mut io = house.connect();
    io.write_all(&startup()).await.unwrap();
    until_ready(&mut io).await;
    io
}

/// Reads frames up to ReadyForQuery; returns what came before.
pub async fn until_ready(io: &mut DuplexStream) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    loop {
        let tag = io.read_u8().await.unwrap();
        let length = io.read_i32().await.unwrap();
        let mut body = vec![0; usize::try_from(length - 4).unwrap()];
        io.read_exact(&mut body).await.unwrap();
        if tag == b'Z' {
            return frames;
        }
        frames.push((tag, body));
    }
}

pub async fn everything(io: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn broken_frames_end_only_their_connection() {
    let server = server();
    let house = TestHouse::with_limits(&server, POLICY, Limits { command: 1 << 20, ..Limits::default() }).unwrap();
    let bystander = house.client().await.unwrap();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("negative length", vec![b'Q', 0xff, 0xff, 0xff, 0xff]),
        ("length below 4", vec![b'Q', 0, 0, 0, 3]),
        ("2 GiB", vec![b'Q', 0x7f, 0xff, 0xff, 0xff]),
        ("over the cap", vec![b'Q', 0, 0x20, 0, 0]),
        ("unknown tag", frame(b'z', b"x")),
        ("password after login", frame(b'p', b"x\0")),
        ("no NUL", frame(b'Q', b"SELECT 1")),
        ("NUL inside", frame(b'Q', b"SELECT 1\0; DROP TABLE orders\0")),
        ("parse with too many types", frame(b'P', b"\0SELECT 1\0\x7f\xff")),
        ("bind with negative count", frame(b'B', b"\0\0\xff\xff")),
        ("execute cut short", frame(b'E', b"\0\0\0")),
        ("sync with a body", frame(b'S', b"x")),
        ("describe of nothing", frame(b'D', b"Xname\0")),
    ];
    for (name, bytes) in attacks {
        let mut io = logged_in(&house).await;
        io.write_all(&bytes).await.unwrap();
        let answer = everything(&mut io).await;
        assert!(answer.contains("FATAL") && answer.contains("08P01"), "{name}: {answer:?}");
        bystander.simple_query("SELECT 1").await.unwrap();
    }
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
}

#[tokio::test]
async fn text_that_is_not_utf8_is_refused_and_the_session_goes_on() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut io = logged_in(&house).await;
    io.write_all(&frame(b'Q', b"SELECT '\xff\xfe'\0")).await.unwrap();
    let frames = until_ready(&mut io).await;
    assert!(String::from_utf8_lossy(&frames[0].1).contains("42501"), "{frames:?}");
    io.write_all(&frame(b'Q', b"SELECT 1\0")).await.unwrap();
    assert!(until_ready(&mut io).await.iter().any(|(tag, _)| *tag == b'D'));
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    for sql in [
        format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("SELECT {}1", "- ".repeat(10_000)),
        format!("SELECT {}1", "NOT ".repeat(10_000)),
        format!("{}SELECT 1", "/*".repeat(10_000)),
        format!("SELECT 1{}", "+1".repeat(10_000)),
    ] {
        // Refused by us, or by the server's own stack limit: never passed unread, never a crash.
        let _ = client.simple_query(&sql).await;
        client.simple_query("SELECT 1").await.unwrap();
    }
}

#[tokio::test]
async fn every_split_of_a_stream_is_read_alike() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut stream = frame(b'Q', b"SELECT 41+1\0");
    stream.extend(frame(b'P', b"s\0SELECT $1::text\0\0\0"));
    stream.extend(frame(b'B', b"\0s\0\0\0\0\x01\0\0\0\x02hi\0\0"));
    stream.extend(frame(b'E', b"\0\0\0\0\0"));
    stream.extend(frame(b'S', b""));
    for at in 0..stream.len() {
        let mut io = logged_in(&house).await;
        io.write_all(&stream[..at]).await.unwrap();
        tokio::task::yield_now().await;
        io.write_all(&stream[at..]).await.unwrap();
        let first = until_ready(&mut io).await;
        assert!(first.iter().any(|(tag, body)| *tag == b'D' && body.ends_with(b"42")), "split at {at}");
        let second = until_ready(&mut io).await;
        assert!(second.iter().any(|(tag, body)| *tag == b'D' && body.ends_with(b"hi")), "split at {at}");
    }
}

#[tokio::test]
async fn packets_before_a_login_are_bounded() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    for bytes in [
        vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        vec![0, 0, 0, 3, 0, 3, 0, 0],
        [&[0, 0, 0, 8, 4, 210, 22, 47][..], b"plaintext behind SSLRequest"].concat(),
        vec![0, 0, 0, 9, 0, 2, 0, 0, 0],
    ] {
        let mut io = house.connect();
        io.write_all(&bytes).await.unwrap();
        assert!(everything(&mut io).await.contains("FATAL"), "{bytes:?}");
    }
}
