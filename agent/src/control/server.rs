//! The daemon's end of the control socket.
//!
//! Each connection is its own task with its own deadlines, so a client that stalls delays nobody. There is a cap on
//! connections in all and on those of one user, so a user cannot keep the others out.

use std::{
    collections::HashMap,
    future::Future,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use serde::Serialize;
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    peer::{Barred, Fence, PATIENCE, Peer, Person},
    proto::{Code, Done, Envelope, Failure, Reply, Request, VERSION},
};

/// Connections at once, of all users.
const MAX_CONNECTIONS: usize = 512;
/// Connections at once of one user other than root.
const MAX_PER_USER: usize = 64;

/// Answers requests.
pub trait Desk: Send + Sync + 'static {
    /// Answers one request: items into `replies`, then `Ok` or the failure.
    fn answer<'a>(
        &'a self,
        caller: &'a Caller,
        request: Request,
        replies: &'a mut Replies<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

    /// Told of each peer that was refused for what it is.
    fn barred(&self, pid: u32, uid: u32, why: &Barred);
}

/// Who asks: the kernel's word on the process, and the user database's on the person.
pub struct Caller {
    /// The process.
    pub peer: Peer,
    /// The person.
    pub person: Person,
    fence: Arc<dyn Fence>,
}

impl Caller {
    /// Checks once more that the caller lives and is not governed. Call it right before a decision takes effect.
    pub fn check_again(&self) -> Result<(), Failure> {
        self.peer.check(&*self.fence).map_err(|barred| refusal(&barred))
    }
}

/// The way back to one client.
pub struct Replies<'a> {
    stream: &'a mut UnixStream,
}

impl Replies<'_> {
    /// Sends one item. A client that is gone or does not read is an error, so that the answer ends.
    pub async fn item(&mut self, item: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
        let raw = serde_json::value::to_raw_value(item)
            .map_err(|error| Failure::new(Code::Failed, format!("cannot encode the answer: {error}")))?;
        self.line(&Reply::Item(raw)).await.map_err(|_| Failure::new(Code::Failed, "the client went away"))
    }

    /// Waits until the client closes its end. Cancel safe. For streams that have nothing to say for long.
    pub async fn closed(&self) {
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            let mut byte = [0; 64];
            match self.stream.try_read(&mut byte) {
                // The end, or bytes that nobody asked for.
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    async fn line(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        timeout(PATIENCE, self.stream.write_all(&line)).await?
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    max_request: usize,
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("another daemon listens on {}", .0.display())]
    #[diagnostic(help("stop it, or give this one its own `runtime_dir` and `state_dir`"))]
    Taken(PathBuf),
    /// The system refused.
    #[error("cannot listen on {}", path.display())]
    #[diagnostic(help("the daemon needs root, and a `runtime_dir` it can write"))]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Server {
    /// Makes the socket with mode 0660, owned by `group` where that exists. A dead daemon's socket is replaced.
    pub fn bind(path: &Path, group: &str, max_request: usize) -> Result<Self, ControlError> {
        let wrong = |source| ControlError::Io { path: path.to_owned(), source };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ControlError::Taken(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
            _ => {}
        }
        // Bound in a private folder and moved into place with its final mode, so that it is at no time open to others.
        let private = Self::bound_at(path);
        let folder = private.parent().unwrap_or(path);
        let _ = std::fs::remove_dir_all(folder);
        std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(wrong)?;
        let bound = (|| {
            let listener = std::os::unix::net::UnixListener::bind(&private)?;
            listener.set_nonblocking(true)?;
            let owner = nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw());
            if let Some(gid) = owner {
                chown(&private, None, Some(gid))?;
            }
            std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o660))?;
            // Inherited by what accept() returns: unix(7).
            setsockopt(&listener, sockopt::PassCred, &true)?;
            std::fs::rename(&private, path)?;
            Ok(listener)
        })();
        let _ = std::fs::remove_dir_all(folder);
        Ok(Self { listener: bound.map_err(wrong)?, path: path.to_owned(), max_request })
    }

    /// The name that [`Server::bind`] binds before it moves the socket to `path`: what the kernel says of its connections.
    pub fn bound_at(path: &Path) -> PathBuf {
        path.with_extension("sock.new").join("s")
    }

    /// Serves until `stop`.
    pub async fn run(self, desk: Arc<dyn Desk>, fence: Arc<dyn Fence>, stop: CancellationToken) {
        let seats = Arc::new(Seats::default());
        let listener = match UnixListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the control socket cannot be served"),
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others must close first.
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (desk, fence, seats, stop) = (desk.clone(), fence.clone(), seats.clone(), stop.clone());
            let max_request = self.max_request;
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = converse(stream, desk, fence, seats, max_request) => {}
                }
            });
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(
    mut stream: UnixStream,
    desk: Arc<dyn Desk>,
    fence: Arc<dyn Fence>,
    seats: Arc<Seats>,
    max_request: usize,
) {
    let answer = answer(&mut stream, &*desk, fence, seats, max_request).await;
    let reply = match answer {
        Ok(()) => Reply::Done(Done {}),
        Err(failure) => Reply::Error(failure),
    };
    // A client that went away is not told, and that is all right.
    let _ = Replies { stream: &mut stream }.line(&reply).await;
}

async fn answer(
    stream: &mut UnixStream,
    desk: &dyn Desk,
    fence: Arc<dyn Fence>,
    seats: Arc<Seats>,
    max_request: usize,
) -> Result<(), Failure> {
    let peer = Peer::of(stream).map_err(|barred| refusal(&barred))?;
    let _seat = seats.take(peer.uid)?;
    if let Err(barred) = peer.check(&*fence) {
        desk.barred(peer.pid, peer.uid, &barred);
        return Err(refusal(&barred));
    }
    let line = timeout(PATIENCE, read_line(stream, &peer, max_request))
        .await
        .map_err(|_| Failure::new(Code::Usage, "the request did not come in time"))??;
    let request = parse(&line)?;
    let (uid, gid) = (peer.uid, peer.gid);
    let person = tokio::task::spawn_blocking(move || Person::look_up(uid, gid))
        .await
        .map_err(|_| Failure::new(Code::Failed, "the user database could not be asked"))?;
    let caller = Caller { peer, person, fence };
    caller.check_again()?;
    desk.answer(&caller, request, &mut Replies { stream }).await
}

/// Reads up to a newline, and makes sure that every byte was written by the process that connected.
async fn read_line(stream: &UnixStream, peer: &Peer, max: usize) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    loop {
        stream.readable().await.map_err(|_| Failure::new(Code::Usage, "the connection broke"))?;
        let mut chunk = [0; 4096];
        let received = stream.try_io(Interest::READABLE, || receive(stream, &mut chunk));
        let (length, writer) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Failure::new(Code::Usage, format!("the request could not be read: {error}"))),
        };
        if length == 0 {
            return Err(Failure::new(Code::Usage, "the request has no end of line"));
        }
        let same = writer.is_some_and(|w| u32::try_from(w.pid()) == Ok(peer.pid) && w.uid() == peer.uid);
        if !same {
            return Err(Failure::new(Code::Denied, "the request was not written by the process that connected"));
        }
        if line.len() + length > max {
            return Err(Failure::new(Code::Usage, format!("the request is longer than {max} bytes")));
        }
        line.extend_from_slice(&chunk[..length]);
        if let Some(end) = memchr::memchr(b'\n', &line) {
            if end + 1 != line.len() {
                return Err(Failure::new(Code::Usage, "a connection carries one request"));
            }
            line.truncate(end);
            return Ok(line);
        }
    }
}

/// One recvmsg(2): how many bytes, and who wrote them. The kernel does not join bytes of different writers.
fn receive(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Option<UnixCredentials>)> {
    let mut parts = [io::IoSliceMut::new(chunk)];
    // Room for credentials alone: descriptors that a peer sends along do not fit, and the kernel closes them.
    let mut space = nix::cmsg_space!(UnixCredentials);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it carries descriptors"));
    }
    let writer = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials),
        _ => None,
    });
    Ok((message.bytes, writer))
}

fn parse(line: &[u8]) -> Result<Request, Failure> {
    let wrong = |error: serde_json::Error| Failure::new(Code::Usage, format!("the request is not understood: {error}"));
    let envelope: Envelope = serde_json::from_slice(line).map_err(wrong)?;
    if envelope.v != VERSION {
        let message = format!("the client speaks version {} of the control protocol, the daemon {VERSION}", envelope.v);
        return Err(Failure::new(Code::Usage, message).help("use the `portcullis` program that the daemon runs"));
    }
    serde_json::from_value(envelope.request).map_err(wrong)
}

fn refusal(barred: &Barred) -> Failure {
    Failure::new(Code::Denied, barred.to_string())
        .help("ask from a shell outside of any session; reviewers are people, not the agent")
}

/// Who sits where.
#[derive(Debug, Default)]
struct Seats {
    taken: Mutex<HashMap<u32, usize>>,
}

/// A connection's place; given back on drop.
struct Seat {
    seats: Arc<Seats>,
    uid: u32,
}

impl Seats {
    fn take(self: &Arc<Self>, uid: u32) -> Result<Seat, Failure> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or(0);
        // Root keeps a way in whatever the others do.
        if uid != 0 && (all >= MAX_CONNECTIONS || own >= MAX_PER_USER) {
            return Err(Failure::new(Code::Failed, "too many connections to the control socket")
                .help("close a `follow` or `held --watch` that is no longer needed"));
        }
        *taken.entry(uid).or_insert(0) += 1;
        Ok(Seat { seats: self.clone(), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}
