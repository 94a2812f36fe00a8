//! Group commit: one thread puts the log on disk for everyone who waits.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, PoisonError},
    time::Instant,
};

use super::{
    RecordError,
    error::io_error,
    format::{HEAD_FILE, Head, SLOT},
    keys::Signer,
    writer::{Durable, SYNC_WITHIN, Shared},
};

/// A multiple of the size of a page on every processor that we build for, in bytes.
const PAGE: usize = 64 << 10;

/// Most that is prepared for what is written until the next sync, in bytes.
const AHEAD: usize = 4 << 20;

/// What is known to be on disk, in a file of two slots that are written in turn: one of them is always whole.
pub(super) struct HeadFile {
    file: File,
    latest: Head,
}

impl HeadFile {
    pub(super) fn open(dir: &Path, key: &Signer, fresh: bool) -> Result<Self, RecordError> {
        let path = dir.join(HEAD_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        if fresh {
            // A log whose segments are all pruned always has a tail: without any, this is the first start.
            let existed = path.exists();
            let file = options.create(true).truncate(false).open(&path).map_err(io_error("open", &path))?;
            if !existed || file.metadata().map_err(io_error("read", &path))?.len() < 2 * SLOT as u64 {
                let mut head = Self { file, latest: Head::default() };
                head.write(Head::default(), key).map_err(io_error("write", &path))?;
                head.write(Head::default(), key).map_err(io_error("write", &path))?;
                head.file.sync_all().map_err(io_error("sync", &path))?;
                File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))?;
                return Ok(head);
            }
        }
        let file = options.open(&path).map_err(io_error("open", &path))?;
        let slots = [0, 1].map(|slot| {
            let mut bytes = [0; SLOT];
            file.read_exact_at(&mut bytes, slot * SLOT as u64).ok().and_then(|()| Head::decode(&bytes, key.public()))
        });
        let latest = slots.into_iter().flatten().max_by_key(|head| head.counter).ok_or(RecordError::Damaged {
            file: HEAD_FILE.into(),
            offset: 0,
            what: "neither copy is as signed",
        })?;
        let mut head = Self { file, latest };
        // A slot that the host's death tore is whole again.
        head.write(latest, key).map_err(io_error("write", &path))?;
        head.write(latest, key).map_err(io_error("write", &path))?;
        Ok(head)
    }

    pub(super) fn latest(&self) -> Head {
        self.latest
    }

    /// Writes the next slot. Not synced: a head that lags is still true, and the log's own sync is what is promised.
    fn write(&mut self, head: Head, key: &Signer) -> std::io::Result<()> {
        let head = Head { counter: self.latest.counter + 1, ..head };
        self.file.write_all_at(&head.encode(key), (head.counter % 2) * SLOT as u64)?;
        self.latest = head;
        Ok(())
    }
}

/// The syncing thread.
pub(super) fn run(shared: &Shared, mut head: HeadFile) {
    let mut synced_to = Synced::default();
    loop {
        let Some(work) = next(shared) else {
            if let Some(why) = &shared.lock().failed {
                shared.durable.send_modify(|durable| durable.failed = Some(why.clone()));
            }
            if let Err(error) = head.file.sync_all() {
                tracing::warn!(%error, "the record's head could not be synced");
            }
            return;
        };
        match commit(shared, &work, &mut synced_to, &mut head) {
            Ok(()) => {
                shared.durable.send_modify(|durable| durable.seq = work.head.seq);
                if work.rotated {
                    shared.wake_upkeep.notify_one();
                }
            }
            Err(error) => {
                // After a failed sync the kernel may have dropped the pages: trying again would lie.
                let why: Arc<str> = error.to_string().into();
                tracing::error!(%error, "the record cannot be synced; nothing more is recorded");
                shared.lock().failed = Some(why.clone());
                shared.durable.send_modify(|durable: &mut Durable| durable.failed = Some(why));
                return;
            }
        }
    }
}

/// How far the thread is.
#[derive(Default)]
struct Synced {
    segment: u64,
    /// Up to here it is on disk.
    offset: usize,
}

struct Work {
    active: super::tail::TailMap,
    retired: Vec<super::tail::TailMap>,
    head: Head,
    rotated: bool,
}

/// Waits until something is to be synced; `None` when the log is closed and all is on disk.
fn next(shared: &Shared) -> Option<Work> {
    let mut state = shared.lock();
    loop {
        if state.failed.is_some() {
            return None;
        }
        let durable = shared.durable.borrow().seq;
        let wait = match state.dirty {
            None if state.closing => return None,
            None => None,
            Some(since) => {
                let due = state.closing || state.requested > durable || !state.retired.is_empty();
                let left = SYNC_WITHIN.saturating_sub(since.elapsed());
                if due || left.is_zero() {
                    break;
                }
                Some(left)
            }
        };
        state = match wait {
            None => shared.wake_sync.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => shared.wake_sync.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
        };
    }
    state.dirty = None;
    let retired = std::mem::take(&mut state.retired);
    let active = &state.active;
    Some(Work {
        active: active.writer.shared(),
        rotated: !retired.is_empty(),
        retired,
        head: Head {
            counter: 0,
            segment: active.number,
            offset: active.offset as u64,
            seq: active.seq,
            hash: active.hash,
        },
    })
}

fn commit(shared: &Shared, work: &Work, synced_to: &mut Synced, head: &mut HeadFile) -> Result<(), RecordError> {
    let dir = &shared.settings.dir;
    let end = work.head.offset as usize;
    // What is written to no more is unmapped before it is synced: of a page that is mapped, the kernel stops every processor
    // to see it clean.
    for full in &work.retired {
        full.release(0, full.len());
        full.flush(0, full.len()).map_err(io_error("sync", dir))?;
    }
    if synced_to.segment != work.head.segment {
        // A new segment: its name must be on disk too.
        File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))?;
        *synced_to = Synced { segment: work.head.segment, ..Synced::default() };
    }
    let (from, full) = (synced_to.offset - synced_to.offset % PAGE, end - end % PAGE);
    if full > from {
        work.active.release(from, full - from);
    }
    let begun = Instant::now();
    work.active.flush(synced_to.offset, end - synced_to.offset).map_err(io_error("sync", dir))?;
    if begun.elapsed().as_secs() >= 5 {
        tracing::warn!(seconds = begun.elapsed().as_secs(), "the disk that holds the record is very slow");
    }
    // Who appends holds the lock for as long as a page takes to come.
    if full > from {
        work.active.prepare(end.next_multiple_of(PAGE), (full - from).min(AHEAD));
    }
    synced_to.offset = end;
    head.write(work.head, &shared.key).map_err(io_error("write", &dir.join(HEAD_FILE)))?;
    if !work.retired.is_empty() {
        head.file.sync_data().map_err(io_error("sync", &dir.join(HEAD_FILE)))?;
    }
    Ok(())
}
