//! The command line's end of the control socket: blocking, one request per connection.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::proto::{Failure, Reply, Request, VERSION};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("the daemon does not answer on {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer's end.
    #[error("the daemon closed the connection before it had answered")]
    Broken(#[source] Option<io::Error>),
    /// What came is not an answer.
    #[error("the daemon's answer is not understood")]
    Garbled(#[source] serde_json::Error),
    /// The daemon refused.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// An answer as it comes: an iterator over its items.
#[derive(Debug)]
pub struct Answer {
    reader: BufReader<UnixStream>,
    over: bool,
}

/// Asks, and returns the answer to be read item by item.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ClientError> {
    let unreachable = |source| ClientError::Unreachable { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    let mut line = serde_json::to_value(request).map_err(ClientError::Garbled)?;
    if let Some(object) = line.as_object_mut() {
        object.insert("v".into(), VERSION.into());
    }
    // A refusal may come before the request was taken, and is then still there to be read.
    let sent = stream.write_all(format!("{line}\n").as_bytes());
    let mut answer = Answer { reader: BufReader::new(stream), over: false };
    if let Err(error) = sent {
        return Err(match answer.next() {
            Some(Err(refused @ ClientError::Refused(_))) => refused,
            _ => ClientError::Broken(Some(error)),
        });
    }
    Ok(answer)
}

/// Asks, and reads all items.
pub fn ask_all<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<Vec<T>, ClientError> {
    ask(socket, request)?.map(|item| serde_json::from_str(item?.get()).map_err(ClientError::Garbled)).collect()
}

/// Asks for exactly one item, and waits only so long for each part of the answer.
pub fn ask_one_within<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    patience: Duration,
) -> Result<T, ClientError> {
    let answer = ask(socket, request)?;
    // A daemon that hangs takes requests all the same: the kernel queues them.
    answer.reader.get_ref().set_read_timeout(Some(patience)).map_err(|error| ClientError::Broken(Some(error)))?;
    let items: Result<Vec<T>, _> =
        answer.map(|item| serde_json::from_str(item?.get()).map_err(ClientError::Garbled)).collect();
    match items {
        Err(ClientError::Broken(Some(source))) if source.kind() == io::ErrorKind::WouldBlock => {
            Err(ClientError::Unreachable { path: socket.to_owned(), source: io::ErrorKind::TimedOut.into() })
        }
        items => items?.pop().ok_or(ClientError::Broken(None)),
    }
}

/// Asks for exactly one item.
pub fn ask_one<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, ClientError> {
    ask_all(socket, request)?.pop().ok_or(ClientError::Broken(None))
}

impl Iterator for Answer {
    type Item = Result<Box<serde_json::value::RawValue>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut line = String::new();
        let reply = match self.reader.read_line(&mut line) {
            Ok(0) => Err(ClientError::Broken(None)),
            Ok(_) => serde_json::from_str(&line).map_err(ClientError::Garbled),
            Err(error) => Err(ClientError::Broken(Some(error))),
        };
        match reply {
            Ok(Reply::Item(item)) => Some(Ok(item)),
            Ok(Reply::Done(_)) => {
                self.over = true;
                None
            }
            Ok(Reply::Error(failure)) => {
                self.over = true;
                Some(Err(failure.into()))
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }
}
