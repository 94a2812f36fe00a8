//! Being told to stop, for a subcommand that must put something away first.
//!
//! The signals wait, in every thread that is started after, until they are asked for; a program that is started gets
//! none of that. What does not ask is not interrupted.

use std::{cell::Cell, io};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, raise},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// What a terminal, a service manager or a lost connection sends.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Holds signals back as long as it lives.
pub(super) struct Interrupts {
    waiting: SignalFd,
    before: SigSet,
    came: Cell<Option<Signal>>,
}

impl Interrupts {
    /// To be called while the process has one thread.
    ///
    /// # Errors
    /// The process has no room for a descriptor.
    pub(super) fn hold() -> io::Result<Self> {
        let all: SigSet = SIGNALS.into_iter().collect();
        let waiting = SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let before = SigSet::thread_get_mask()?;
        all.thread_block()?;
        Ok(Self { waiting, before, came: Cell::default() })
    }

    /// Whether one has come.
    pub(super) fn came(&self) -> bool {
        if self.came.get().is_none() {
            let read = self.waiting.read_signal();
            let number = read.ok().flatten().and_then(|info| i32::try_from(info.ssi_signo).ok());
            self.came.set(number.and_then(|number| Signal::try_from(number).ok()));
        }
        self.came.get().is_some()
    }

    /// Lets the signal that came do what it would have done: as a rule, this does not return.
    pub(super) fn obey(self) {
        let came = self.came.get();
        drop(self);
        if let Some(signal) = came {
            let _: Result<(), Errno> = raise(signal);
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // It was there when this began.
        let _ = self.before.thread_set_mask();
    }
}
