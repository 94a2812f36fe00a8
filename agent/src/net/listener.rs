//! Accepting connections, bounded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::dial::tune;

/// How long to wait when the process or the host has no descriptor or buffer left. Accepting again at once would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// One connection's place among those that may be open. Keep it as long as the connection lives.
#[must_use]
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Accepts until `stop`, or until the listening socket fails for good. `accept` must not block: it takes the stream
/// and its [`Place`], and starts a task. A connection beyond `limit` is closed at once; a peer then knows that it is
/// refused, which a full backlog would not tell it.
pub async fn serve(
    listener: TcpListener,
    limit: usize,
    stop: CancellationToken,
    mut accept: impl FnMut(TcpStream, SocketAddr, Place),
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(limit));
    let mut refused: u64 = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => match after(&e) {
                After::Again => continue,
                After::Pause => {
                    tracing::error!(error = %e, "no connection can be accepted for now");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(PAUSE) => continue,
                    }
                }
                After::Fail => return Err(e),
            },
        };
        let Ok(permit) = places.clone().try_acquire_owned() else {
            refused += 1;
            // Powers of two, so that a flood does not become a flood of lines.
            if refused.is_power_of_two() {
                tracing::warn!(limit, refused, "connection refused: as many are open as may be");
            }
            continue;
        };
        // A peer that is gone already is noticed by whoever reads.
        if let Err(e) = tune(&stream) {
            tracing::debug!(error = %e, "socket options of an accepted connection");
        }
        accept(stream, peer, Place { _permit: permit });
    }
}

enum After {
    Again,
    Pause,
    Fail,
}

/// accept(2): what is pending on the new connection is reported as an error of accept itself.
fn after(e: &io::Error) -> After {
    match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => After::Pause,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => After::Fail,
        _ => After::Again,
    }
}
