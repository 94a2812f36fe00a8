//! A steady stream of short connections, each of which tells how it went: what a governed client meets while the enforcer
//! dies, hangs or changes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use portcullis_tests::monotonic_ms;

const THREADS: usize = 8;
/// Between two connections of a thread.
const PAUSE: Duration = Duration::from_millis(4);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of so many connections, one is to the database.
const ONE_OF: usize = 5;

/// Connects until standard input ends: to a PostgreSQL that the policy allows, and to addresses that it does not. Prints a
/// line for each: when it began and ended, in milliseconds of the monotonic clock, and how it went.
pub fn knock(database: &str, others: &[&str]) -> Result<()> {
    let database: SocketAddr = database.parse()?;
    let others = others.iter().map(|a| a.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (stop, others) = (&stop, &others);
            scope.spawn(move || {
                let mut i = number;
                while !stop.load(Ordering::Relaxed) {
                    let began = monotonic_ms();
                    let how =
                        if i.is_multiple_of(ONE_OF) { log_in(database) } else { unlisted(others[i % others.len()]) };
                    println!("{began} {} {how}", monotonic_ms());
                    thread::sleep(PAUSE);
                    i += 1;
                }
            });
        }
        let ended = io::stdin().lock().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
        ended
    })?;
    Ok(())
}

/// Begins a session with the database, with a user and without a password that would help at the real one.
fn log_in(address: SocketAddr) -> String {
    // Length, version 3.0, names and values.
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    startup.extend(b"user\0agent\0database\0shop\0\0");
    let length = u32::try_from(startup.len()).unwrap_or(0);
    startup[..4].copy_from_slice(&length.to_be_bytes());
    match talk(address, &startup) {
        // Authentication: it is done, or a password is wanted, as only the real server would.
        Ok(answer) if answer.starts_with(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0]) => "served".into(),
        Ok(answer) if answer.first() == Some(&b'R') => "DIRECT".into(),
        Ok(answer) if answer.first() == Some(&b'E') => "told".into(),
        done => failure(done),
    }
}

fn unlisted(address: SocketAddr) -> String {
    failure(talk(address, b"governed"))
}

fn failure(done: io::Result<Vec<u8>>) -> String {
    match done {
        Ok(answer) if answer.is_empty() => "closed".into(),
        Ok(_) => "ANSWERED".into(),
        Err(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused => "refused".into(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "cut".into(),
            io::ErrorKind::WouldBlock => "silent".into(),
            _ => format!("error {}", e.raw_os_error().unwrap_or(0)),
        },
    }
}

/// Says something, and reads up to nine bytes.
fn talk(address: SocketAddr, what: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(what)?;
    let mut answer = Vec::new();
    stream.take(9).read_to_end(&mut answer)?;
    Ok(answer)
}
