//! The memory-mapped end of the log: the only unsafe code of the record.
//!
//! A store into a shared mapping is in the kernel's page cache once the instruction retired, so it survives the death
//! of the process; only a crash of the host needs [`TailMap::flush`]. The file's blocks are allocated before it is
//! mapped, so a full disk is found then and not as SIGBUS. Shortening the file under a running daemon does raise SIGBUS:
//! that takes root or our own uid, and stops the daemon, which refuses everything.
#![expect(unsafe_code, reason = "stores into a shared memory mapping")]

use std::{
    fs::File,
    io, ptr,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

/// A mapping that can be synced from another thread than the one that writes.
#[derive(Clone, Debug)]
pub(super) struct TailMap(Arc<MmapRaw>);

/// The only writer of a mapping.
#[derive(Debug)]
pub(super) struct TailWriter {
    map: TailMap,
}

impl TailWriter {
    /// Maps the first `length` bytes of a file, which must be allocated.
    pub(super) fn map(file: &File, length: usize) -> io::Result<Self> {
        if file.metadata()?.len() < length as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its mapping"));
        }
        let map = MmapOptions::new().len(length).map_raw(file)?;
        // The daemon locks its memory because of secrets, of which there are none here. Where that fails, it only stays.
        let _ = map.unlock();
        Ok(Self { map: TailMap(Arc::new(map)) })
    }

    /// Bytes that are mapped.
    pub(super) fn len(&self) -> usize {
        self.map.0.len()
    }

    /// The mapping, for syncing.
    pub(super) fn shared(&self) -> TailMap {
        self.map.clone()
    }

    /// Copies bytes to an offset. Panics where they do not fit: callers check that first.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: the range was checked to lie in the mapping, which lives as long as `self`; `bytes` cannot overlap it,
        // because no reference into the mapping is ever made; `&mut self` is the only writer.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.0.as_mut_ptr().add(offset), bytes.len()) }
    }

    /// Sets a range to zero. Panics where it does not fit.
    pub(super) fn clear(&mut self, offset: usize, length: usize) {
        self.check(offset, length);
        // SAFETY: as in `put`.
        unsafe { ptr::write_bytes(self.map.0.as_mut_ptr().add(offset), 0, length) }
    }

    /// Writes a length after everything that was put before: whoever sees it sees those bytes.
    pub(super) fn publish(&mut self, offset: usize, length: u32) {
        let bytes = length.to_le_bytes();
        self.check(offset, bytes.len());
        fence(Ordering::Release);
        // SAFETY: as in `put`; a volatile write of four bytes without alignment is allowed through `[u8; 4]`.
        unsafe { self.map.0.as_mut_ptr().add(offset).cast::<[u8; 4]>().write_volatile(bytes) }
    }

    fn check(&self, offset: usize, length: usize) {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.len()), "{offset}+{length} is outside of the tail");
    }
}

impl TailMap {
    /// Bytes that are mapped.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Waits until a range is on disk (msync with MS_SYNC, which also commits the allocation).
    pub(super) fn flush(&self, offset: usize, length: usize) -> io::Result<()> {
        self.0.flush_range(offset, length)
    }

    /// Has memory at hand for what is about to be written to a range, as far as it is mapped.
    pub(super) fn prepare(&self, offset: usize, length: usize) {
        let length = length.min(self.len().saturating_sub(offset));
        // Without it [Linux < 5.14], the first store into each page waits for its memory.
        let _ = self.0.advise_range(Advice::PopulateWrite, offset, length);
    }

    /// Gives back the memory of a range, written to disk or not; a store into it brings it back.
    pub(super) fn release(&self, offset: usize, length: usize) {
        if offset.checked_add(length).is_some_and(|end| end <= self.len()) {
            // SAFETY: of a shared mapping of a file this drops nothing but entries of the page table (madvise(2)): what was
            // stored stays in the page cache, and is there at the next access.
            let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, length) };
        }
    }
}
