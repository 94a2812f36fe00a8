use std::{
    future::Future,
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixStream as StdStream},
    },
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio_util::sync::CancellationToken;

use super::{
    client::{ClientError, ask_all},
    peer::{Barred, Fence},
    proto::{Code, Failure, Request},
    server::{Caller, ControlError, Desk, Replies, Server},
};

/// Says who asked. `approve` checks again; `follow` streams until the client goes away.
#[derive(Default)]
struct Echo {
    barred: AtomicUsize,
    streams_ended: AtomicUsize,
}

impl Desk for Echo {
    fn answer<'a>(
        &'a self,
        caller: &'a Caller,
        request: Request,
        replies: &'a mut Replies<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            match request {
                Request::Status {} => replies.item(&caller.person.uid).await,
                Request::Held { .. } => {
                    for n in 0..3 {
                        replies.item(&n).await?;
                    }
                    Ok(())
                }
                Request::Approve { id, .. } => {
                    caller.check_again()?;
                    replies.item(&id).await
                }
                Request::Follow {} => {
                    replies.item("first").await?;
                    replies.closed().await;
                    self.streams_ended.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
                _ => Err(Failure::new(Code::Failed, "not here").help("elsewhere")),
            }
        })
    }

    fn barred(&self, _: u32, _: u32, _: &Barred) {
        self.barred.fetch_add(1, Ordering::SeqCst);
    }
}

/// Puts every process in one cgroup after another: `cgroups[n]` at the n-th question, then the last for ever.
struct Places {
    cgroups: Vec<Option<&'static str>>,
    asked: AtomicUsize,
}

impl Fence for Places {
    fn is_governed(&self, cgroup: &str) -> bool {
        crate::config::cgroup::is_within(cgroup, "/portcullis.slice/bot")
    }

    fn cgroup_of(&self, _: u32) -> io::Result<String> {
        let n = self.asked.fetch_add(1, Ordering::SeqCst).min(self.cgroups.len() - 1);
        self.cgroups[n].map(str::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct House {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    desk: Arc<Echo>,
    stop: CancellationToken,
}

fn house(cgroups: &[Option<&'static str>]) -> House {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let server = Server::bind(&socket, "no-such-group-here", 4096).unwrap();
    let desk = Arc::new(Echo::default());
    let fence = Arc::new(Places { cgroups: cgroups.to_vec(), asked: AtomicUsize::new(0) });
    let stop = CancellationToken::new();
    tokio::spawn(server.run(desk.clone(), fence, stop.clone()));
    House { _folder: folder, socket, desk, stop }
}

const OUTSIDE: Option<&str> = Some("/user.slice/alice");
const INSIDE: Option<&str> = Some("/portcullis.slice/bot/s1");

/// Runs blocking client code beside the server.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn ask<T: serde::de::DeserializeOwned + Send + 'static>(
    house: &House,
    request: Request,
) -> Result<Vec<T>, ClientError> {
    let socket = house.socket.clone();
    aside(move || ask_all(&socket, &request)).await
}

/// Sends bytes as they are and reads all that comes back.
async fn raw(house: &House, bytes: Vec<u8>) -> String {
    let socket = house.socket.clone();
    aside(move || {
        let mut stream = StdStream::connect(socket).unwrap();
        // The server may have refused and closed before it took all of it.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut out = String::new();
        let _ = stream.read_to_string(&mut out);
        out
    })
    .await
}

fn denied<T: std::fmt::Debug>(answer: Result<Vec<T>, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused(Failure { code: Code::Denied, message, .. })) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_says_who_asks() {
    let house = house(&[OUTSIDE]);
    let uid: Vec<u32> = ask(&house, Request::Status {}).await.unwrap();
    assert_eq!(uid, [nix::unistd::getuid().as_raw()]);
    let items: Vec<u32> = ask(&house, Request::Held { watch: false }).await.unwrap();
    assert_eq!(items, [0, 1, 2]);
    let failed = ask::<u32>(&house, Request::Grants {}).await;
    let Err(ClientError::Refused(failure)) = failed else { panic!("{failed:?}") };
    assert_eq!((failure.message.as_str(), failure.help.as_deref()), ("not here", Some("elsewhere")));
    assert_eq!(house.desk.barred.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_closed_to_strangers() {
    let house = house(&[OUTSIDE]);
    let mode = std::fs::metadata(&house.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = Server::bind(&house.socket, "x", 4096);
    assert!(matches!(second, Err(ControlError::Taken(_))), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_daemons_socket_is_replaced_and_an_own_one_removed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let server = Server::bind(&socket, "x", 4096).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let fence = Arc::new(Places { cgroups: vec![OUTSIDE], asked: AtomicUsize::new(0) });
    server.run(Arc::new(Echo::default()), fence, stop).await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_governed_peer_is_refused_whatever_its_uid() {
    let house = house(&[INSIDE]);
    assert!(denied(ask::<u32>(&house, Request::Status {}).await).contains("governed session"));
    assert_eq!(house.desk.barred.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_becomes_governed_before_its_decision_is_refused() {
    // At accept, after the request, and before the decision.
    let late = house(&[OUTSIDE, OUTSIDE, INSIDE]);
    assert!(
        denied(ask::<u32>(&late, Request::Approve { id: "h".into(), grant_seconds: None, reason: None }).await)
            .contains("governed session")
    );
    let after_request = house(&[OUTSIDE, INSIDE]);
    denied(ask::<u32>(&after_request, Request::Status {}).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_unknown_whereabouts_is_refused() {
    for place in [None, Some("/../outside"), Some(""), Some("/x (deleted)")] {
        let house = house(&[place]);
        denied(ask::<u32>(&house, Request::Status {}).await);
        assert_eq!(house.desk.barred.load(Ordering::SeqCst), 1, "{place:?}");
    }
}

/// The agent's best try: have somebody outside connect, and write the request itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_written_by_another_process_than_the_one_that_connected_is_refused() {
    let house = house(&[OUTSIDE]);
    let socket = house.socket.clone();
    let answer = aside(move || {
        let stream = StdStream::connect(socket).unwrap();
        let inherited: std::os::fd::OwnedFd = stream.try_clone().unwrap().into();
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", r#"echo '{"v":2,"request":"status"}'"#])
            .stdout(inherited)
            .status()
            .unwrap();
        assert!(status.success());
        let mut out = String::new();
        (&stream).read_to_string(&mut out).unwrap();
        out
    })
    .await;
    assert!(answer.contains("not written by the process that connected"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_exited_is_refused() {
    let house = house(&[OUTSIDE]);
    let socket = house.socket.clone();
    // The child connects and leaves; the descriptor lives on in its own child, which writes.
    let answer = aside(move || {
        let script = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
r, w = os.pipe()
if os.fork():
    os._exit(0)
os.close(w)
os.read(r, 1)  # ends when the connector has exited
try:
    s.sendall(b'{"v":2,"request":"status"}\n')
except OSError: pass
sys.stdout.write(s.recv(4096).decode())
"#;
        std::process::Command::new("python3").args(["-c", script]).arg(socket).output()
    })
    .await;
    let output = answer.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"denied\"") && !text.contains("item"), "{text} {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_refused() {
    let house = house(&[OUTSIDE]);
    let long = format!("{{\"v\":2,\"request\":\"approve\",\"id\":\"{}\"}}\n", "x".repeat(5000));
    for (bytes, says) in [
        (b"\n".to_vec(), "not understood"),
        (b"{}\n".to_vec(), "not understood"),
        (b"null\n".to_vec(), "not understood"),
        (b"{\"v\":2,\"request\":\"status\"".to_vec(), "no end of line"),
        (b"{\"v\":2,\"request\":\"no-such\"}\n".to_vec(), "not understood"),
        (b"{\"v\":2,\"request\":\"approve\",\"id\":\"a\",\"uid\":0}\n".to_vec(), "unknown field `uid`"),
        (b"{\"v\":1,\"request\":\"status\"}\n".to_vec(), "version 1"),
        (b"{\"v\":2,\"request\":\"status\"}\n{\"v\":2,\"request\":\"status\"}\n".to_vec(), "one request"),
        (b"\xff\xfe\n".to_vec(), "not understood"),
        (long.into_bytes(), "longer than"),
        (vec![b'['; 4000].into_iter().chain([b'\n']).collect(), "not understood"),
    ] {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let answer = raw(&house, bytes).await;
        assert!(answer.contains("\"usage\"") && answer.contains(says), "{shown}: {answer}");
    }
    // And the daemon still serves.
    assert_eq!(ask::<u32>(&house, Request::Status {}).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_come_in_pieces_but_not_with_descriptors() {
    let house = house(&[OUTSIDE]);
    let socket = house.socket.clone();
    let (pieces, with_fd) = aside(move || {
        let mut stream = StdStream::connect(&socket).unwrap();
        for byte in b"{\"v\":2,\"request\":\"status\"}\n" {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut pieces = String::new();
        stream.read_to_string(&mut pieces).unwrap();

        let mut stream = StdStream::connect(&socket).unwrap();
        let fds = [stream.as_raw_fd()];
        let line = [io::IoSlice::new(b"{\"v\":2,\"request\":\"status\"}\n")];
        sendmsg::<()>(stream.as_raw_fd(), &line, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None).unwrap();
        let mut with_fd = String::new();
        stream.read_to_string(&mut with_fd).unwrap();
        (pieces, with_fd)
    })
    .await;
    assert!(pieces.contains("item") && pieces.contains("done"), "{pieces}");
    assert!(with_fd.contains("carries descriptors"), "{with_fd}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_do_not_keep_others_waiting() {
    let house = house(&[OUTSIDE]);
    let silent: Vec<_> = (0..20).map(|_| StdStream::connect(&house.socket).unwrap()).collect();
    assert_eq!(ask::<u32>(&house, Request::Status {}).await.unwrap().len(), 1);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_reader_leaves() {
    let house = house(&[OUTSIDE]);
    let socket = house.socket.clone();
    aside(move || {
        let mut answer = super::client::ask(&socket, &Request::Follow {}).unwrap();
        assert_eq!(answer.next().unwrap().unwrap().get(), "\"first\"");
    })
    .await;
    while house.desk.streams_ended.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_from_a_refusal() {
    let house = house(&[OUTSIDE]);
    let nowhere = house.socket.with_file_name("none.sock");
    let answer = aside(move || ask_all::<u32>(&nowhere, &Request::Status {})).await;
    assert!(matches!(answer, Err(ClientError::Unreachable { .. })), "{answer:?}");
    house.stop.cancel();
}
