//! Messages with descriptors over a SOCK_SEQPACKET socket, each whole or not at all: unix(7).
#![expect(unsafe_code, reason = "a descriptor that the kernel just made for a message comes as a number")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};

/// Longest message, in bytes. One that is longer breaks the conversation.
pub(super) const LONGEST: usize = 64 << 10;
/// Most descriptors with a message.
pub(super) const MOST: usize = 4;

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// It is too long, or nobody is there to read it.
    pub(super) fn send(&self, message: &impl Serialize, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > LONGEST || with.len() > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
        }
        let numbers: Vec<RawFd> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(&text)];
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// Waits for a message; `None` at the end.
    ///
    /// # Errors
    /// It is longer than it may be, brings too many descriptors, or is none of those that are understood. Nothing more
    /// should be read then.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = cmsg_space!([RawFd; MOST]);
        let mut brought = Vec::new();
        let (length, flags) = {
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = loop {
                match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                    Err(Errno::EINTR) => {}
                    received => break received?,
                }
            };
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel made these descriptors for this message, and nothing else owns them.
                    brought.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
                }
            }
            (message.bytes, message.flags)
        };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than it may be"));
        }
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&text[..length])?, brought)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
