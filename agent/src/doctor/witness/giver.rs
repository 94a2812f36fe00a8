//! A process outside of the session that gives sockets away, to whoever connects: unix(7), `SCM_RIGHTS`.

use std::{
    fs, io,
    net::{TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
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
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use super::unix_addresses;

pub(super) struct Giver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

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
        let (udp, tcp) = (UdpSocket::bind("0.0.0.0:0")?, TcpStream::connect(("127.0.0.1", port))?);
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
                        let _ = give(&stream, [udp.as_raw_fd(), tcp.as_raw_fd()]);
                    }
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
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

fn give(stream: &UnixStream, sockets: [i32; 2]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(&sockets)];
    sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None)
}
