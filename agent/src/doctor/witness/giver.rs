//! A process outside of the session that gives sockets away, to whoever connects, and to sessions that have a socket of it
//! as their standard error: unix(7), `SCM_RIGHTS`.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socket},
};

use super::{super::attempts::GIVE, places::unix_addresses};

pub(super) struct Giver {
    gifts: Arc<Gifts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// UDP, and connected TCP. With them goes TCP that is not connected, a new one each time.
struct Gifts(UdpSocket, TcpStream);

impl Giver {
    pub(super) fn start(folder: &Path, port: u16) -> io::Result<Self> {
        let path = folder.join("giver");
        let mut listeners = Vec::new();
        for address in unix_addresses(&path)? {
            let listener = UnixListener::bind_addr(&address)?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        let (udp, connection) = (UdpSocket::bind("0.0.0.0:0")?, TcpStream::connect(("127.0.0.1", port))?);
        let gifts = Arc::new(Gifts(udp, connection));
        let giving = Arc::clone(&gifts);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let mut fds: Vec<PollFd<'_>> =
                    listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
                let _ = poll(&mut fds, PollTimeout::from(20_u8));
                for listener in &listeners {
                    while let Ok((stream, _)) = listener.accept() {
                        // Whoever does not take them goes without.
                        let _ = giving.give(&stream);
                    }
                }
            }
        });
        Ok(Self { gifts, stop, thread: Some(thread) })
    }

    /// A standard error for a session: what is said there goes to ours, and who asks there for sockets gets them.
    pub(super) fn standard_error(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        let gifts = Arc::clone(&self.gifts);
        // Ends with the last process that has the other end.
        thread::spawn(move || {
            let mut said = [0; 1024];
            while let Ok(n @ 1..) = (&ours).read(&mut said) {
                for piece in said[..n].split_inclusive(|byte| *byte == GIVE) {
                    let (text, asks) = piece.strip_suffix(&[GIVE]).map_or((piece, false), |text| (text, true));
                    let _ = io::stderr().write_all(text);
                    if asks {
                        let _ = gifts.give(&ours);
                    }
                }
            }
        });
        Ok(theirs.into())
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Gifts {
    fn give(&self, stream: &UnixStream) -> nix::Result<usize> {
        let tcp = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let sockets = [self.0.as_raw_fd(), self.1.as_raw_fd(), tcp.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&sockets)];
        sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None)
    }
}
