//! Preparing, sealing and pruning segments, away from everyone who waits.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::PoisonError,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Event, RecordError, brief,
    error::io_error,
    format::{Kind, PRUNED_FILE, Pruned, SEAL, Seal, sealed_name, tail_name},
    keys::{Signer, write_whole},
    open::{make_spare, names},
    read::seal_of,
    segment::{SegmentReader, Step},
    writer::Shared,
};

/// How often retention by age is looked at.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// After a failure (a full disk, mostly).
const RETRY: Duration = Duration::from_secs(5);
/// zstd level. Sealing runs beside serving, and at the next usual one, 3, was a tenth of all that a busy daemon did.
const LEVEL: i32 = 1;

/// The upkeep thread.
pub(super) fn run(shared: &Shared) {
    prune_and_say(shared);
    let mut failed = false;
    loop {
        let (seal, spare) = {
            let mut state = shared.lock();
            loop {
                if state.closing || state.failed.is_some() {
                    return;
                }
                let first = state.to_seal.first().copied();
                let spare = state.spare_wanted && state.spare.is_none();
                if !failed && (first.is_some() || spare) {
                    break (first, spare);
                }
                let wait = if failed || !state.to_seal.is_empty() { RETRY } else { PRUNE_EVERY };
                failed = false;
                let (back, timeout) =
                    shared.wake_upkeep.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
                state = back;
                if timeout.timed_out() {
                    drop(state);
                    prune_and_say(shared);
                    state = shared.lock();
                }
            }
        };
        if spare {
            match make_spare(&shared.settings, "spare.next") {
                Ok(made) => {
                    let mut state = shared.lock();
                    // Unneeded where the writer has made its own meanwhile.
                    if state.spare_wanted && state.spare.is_none() {
                        state.spare = Some(made);
                        state.spare_wanted = false;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no space is set aside for the next segment of the record");
                    failed = true;
                }
            }
        }
        if let Some(number) = seal {
            match seal_segment(&shared.settings.dir, number, &shared.key) {
                Ok(()) => {
                    shared.lock().to_seal.retain(|n| *n != number);
                    prune_and_say(shared);
                }
                Err(error) => {
                    tracing::error!(%error, segment = number, "a segment of the record could not be sealed");
                    failed = true;
                }
            }
        }
    }
}

/// Compresses and signs a full segment, then removes its plain form. Reading it checks its chain once more.
fn seal_segment(dir: &Path, number: u64, key: &Signer) -> Result<(), RecordError> {
    let mut reader = SegmentReader::open(dir, number, Kind::Tail, key.public())?;
    let name = sealed_name(number);
    let path = dir.join(&name);
    let temporary = dir.join(format!("{name}.new"));
    let failed = |error| io_error("write", &path)(error);
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed)?;
    let mut out = BufWriter::new(&file);
    out.write_all(&[0; SEAL]).map_err(failed)?;
    let mut packed =
        zstd::Encoder::new(Hashing { out, hash: blake3::Hasher::new(), count: 0 }, LEVEL).map_err(failed)?;
    let mut last_us = reader.header.created_us;
    let mut previous = reader.hash;
    loop {
        match reader.step()? {
            Step::Record => {
                let length = reader.bytes.len() as u32;
                packed.write_all(&length.to_le_bytes()).map_err(failed)?;
                packed.write_all(&reader.hash).map_err(failed)?;
                packed.write_all(&reader.bytes).map_err(failed)?;
                previous = reader.hash;
            }
            Step::End => break,
            Step::Broken(what) => return Err(reader.damaged(what)),
        }
    }
    if let Some(stamp) = reader.bytes.get(brief::stamp(&reader.bytes))
        && let Ok(stamp) = str::from_utf8(stamp)
        && let Ok(at) = stamp.parse::<Timestamp>()
    {
        last_us = u64::try_from(at.as_microsecond()).unwrap_or(0);
    }
    let Hashing { out, hash, count } = packed.finish().map_err(failed)?;
    out.into_inner().map_err(|e| failed(e.into_error()))?;
    let seal = Seal {
        header: reader.header,
        count: reader.seq - reader.header.first_seq,
        plain: reader.offset,
        last: previous,
        last_us,
        packed: count,
        packed_hash: *hash.finalize().as_bytes(),
    };
    let finish = || {
        let mut file = &file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&seal.encode(key))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    finish().map_err(failed)?;
    let plain = dir.join(tail_name(number));
    fs::remove_file(&plain).map_err(io_error("remove", &plain))
}

struct Hashing<W> {
    out: W,
    hash: blake3::Hasher,
    count: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn prune_and_say(shared: &Shared) {
    if let Err(error) = prune(shared, Timestamp::now()) {
        tracing::error!(%error, "the record's retention could not be applied");
    }
}

/// Removes the oldest sealed segments that are too old or too many. The marker that says so is on disk first, and an
/// event says it too.
pub(super) fn prune(shared: &Shared, now: Timestamp) -> Result<u64, RecordError> {
    let settings = &shared.settings;
    if settings.max_age.is_none() && settings.max_bytes.is_none() {
        return Ok(0);
    }
    let dir = &settings.dir;
    let oldest = settings
        .max_age
        .and_then(|age| now.checked_sub(age).ok())
        .and_then(|at| u64::try_from(at.as_microsecond()).ok());
    let mut total = 0u64;
    let mut sealed = Vec::new();
    for name in names(dir)? {
        let Some((number, kind)) = super::format::parse_name(&name) else { continue };
        // One that is being sealed by the other thread may have gone meanwhile.
        let Ok(meta) = fs::metadata(dir.join(&name)) else { continue };
        total += meta.len();
        if kind == Kind::Sealed {
            sealed.push((number, meta.len()));
        }
    }
    sealed.sort_unstable();
    let mut doomed = Vec::new();
    for (number, size) in sealed {
        let seal = seal_of(dir, number, shared.key.public())?;
        let too_old = oldest.is_some_and(|oldest| seal.last_us < oldest);
        let too_many = settings.max_bytes.is_some_and(|max| total > max);
        if !too_old && !too_many {
            break;
        }
        total -= size;
        doomed.push(seal);
    }
    let (Some(first), Some(last)) = (doomed.first(), doomed.last()) else { return Ok(0) };
    let marker = Pruned {
        through: last.header.number,
        last: last.last,
        next_seq: last.header.first_seq + last.count,
        at_us: super::open::now_us(),
    };
    let event = Event::daemon(format!(
        "retention removes segments {} to {} of the record, events {} to {}",
        first.header.number,
        marker.through,
        first.header.first_seq,
        marker.next_seq - 1
    ));
    shared.append(event, None)?;
    write_whole(dir, PRUNED_FILE, &marker.encode(&shared.key))?;
    for seal in &doomed {
        let path = Kind::Sealed.path(dir, seal.header.number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(error)),
            _ => {}
        }
    }
    Ok(doomed.len() as u64)
}
