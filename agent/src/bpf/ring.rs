//! What programs tell through a ring buffer, as it is read.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, RawFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::sys;

/// Something that is told.
pub trait Told: Sized {
    /// From the bytes of an entry; `None` where they make no sense. Only our own programs write there.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// The reading end.
pub struct Ring<T> {
    ring: RingBuf<MapData>,
    what: PhantomData<fn() -> T>,
}

/// The same, for waiting until there is something to read.
pub struct Watched<T>(AsyncFd<Ring<T>>);

impl<T: Told> Ring<T> {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, what: PhantomData }
    }

    /// Registers it with the tokio runtime that this is called in.
    pub fn watch(self) -> io::Result<Watched<T>> {
        sys::watch(self).map(Watched)
    }

    /// The next one, if there is one now.
    pub fn read(&mut self) -> Option<T> {
        loop {
            let item = self.ring.next()?;
            if let Some(told) = T::read(&item) {
                return Some(told);
            }
        }
    }
}

impl<T: Told> Watched<T> {
    /// Waits for the next ones, up to so many. May be none. Cancelled, it has read none.
    pub async fn read(&mut self, most: usize) -> io::Result<Vec<T>> {
        let mut ready = self.0.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let read: Vec<T> = std::iter::from_fn(|| ring.read()).take(most).collect();
        // Those that are left would wake nobody: the kernel tells only of the first after all were read.
        if read.len() < most {
            ready.clear_ready();
        }
        Ok(read)
    }
}

impl<T> AsRawFd for Ring<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
