//! What callgrind counts: the same transaction again and again, through a house in this process, on one thread.

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, BytesMut};
use portcullis_tests::{Postgres, TestHouse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POLICY: &str = include_str!("policy.toml");

/// Runs `count` transactions of pgbench's select, prepared.
pub fn prepared(count: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Postgres::start_with(&["log_statement=none"])?;
        server.sql(
            "shop",
            "CREATE TABLE pgbench_accounts AS SELECT i AS aid, 0 AS abalance FROM generate_series(1, 10) AS i",
        )?;
        server.sql("shop", "GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent; ")?;
        let house = TestHouse::new(&server, &POLICY.replace("{slice}", "portcullis.slice"))?;
        let mut io = house.connect();
        let mut start = BytesMut::new();
        start.put_slice(b"\0\x03\0\0user\0whoever\0database\0shop\0\0");
        io.write_u32(start.len() as u32 + 4).await?;
        io.write_all(&start).await?;
        let mut input = BytesMut::new();
        ready(&mut io, &mut input).await?;
        let mut out = BytesMut::new();
        frame(&mut out, b'P', b"P0\0SELECT abalance FROM pgbench_accounts WHERE aid = $1;\0\0\0");
        frame(&mut out, b'S', b"");
        io.write_all(&out).await?;
        ready(&mut io, &mut input).await?;
        out.clear();
        frame(&mut out, b'B', b"\0P0\0\0\0\0\x01\0\0\0\x01\x37\0\x01\0\0");
        frame(&mut out, b'D', b"P\0");
        frame(&mut out, b'E', b"\0\0\0\0\0");
        frame(&mut out, b'S', b"");
        for _ in 0..count {
            io.write_all(&out).await?;
            ready(&mut io, &mut input).await?;
        }
        ensure!(house.events()?.len() > 2 * count as usize);
        Ok(())
    })
}

fn frame(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    out.put_u32(body.len() as u32 + 4);
    out.put_slice(body);
}

async fn ready(io: &mut tokio::io::DuplexStream, input: &mut BytesMut) -> Result<()> {
    loop {
        while input.len() >= 5 {
            let length = (&input[1..5]).get_u32() as usize + 1;
            if input.len() < length {
                break;
            }
            let frame = input.split_to(length);
            ensure!(frame[0] != b'E', "{}", String::from_utf8_lossy(&frame));
            if frame[0] == b'Z' {
                return Ok(());
            }
        }
        ensure!(io.read_buf(input).await.context("no answer")? > 0, "closed");
    }
}
