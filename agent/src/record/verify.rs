//! Whether a log is what was written.

use std::{fs, io, path::Path};

use serde::Serialize;

use super::{
    RecordError,
    error::io_error,
    format::{HEAD_FILE, HEADER, Hash, Head, Kind, SEAL, SLOT, genesis, parse_name, sealed_name, tail_name},
    keys::{PUBLIC, PublicKey},
    open::{is_live, names},
    read::{exists, open_any, pruned_marker, segment_numbers},
    segment::{SegmentReader, Step},
};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Segments that were read.
    pub segments: u64,
    /// Events that are as they were written.
    pub events: u64,
    /// Sequence number of the first event that there is.
    pub first_sequence: u64,
    /// Sequence number of the last event that there is.
    pub last_sequence: u64,
    /// The last segment that retention removed.
    pub pruned_through: Option<u64>,
    /// The key that signed the log, hex. Compare it with the one you trust.
    pub public_key: String,
    /// The first thing that is wrong; `None`: nothing is.
    pub problem: Option<Problem>,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File name within the folder.
    pub file: String,
    /// Where: the first byte of the record or structure that is not as written. In a sealed segment whose signature
    /// and packed bytes are whole, an offset in its uncompressed form.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// How far [`verify_with`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The segment that is read, counted from 0.
    pub segment: u64,
    /// How many there are.
    pub of: u64,
}

/// Reads a whole log and checks every byte of it. Errors are only those of reading; damage is in the report.
pub fn verify(dir: &Path) -> Result<VerifyReport, RecordError> {
    verify_with(dir, None, &mut |_| {})
}

/// As [`verify`], against a key from elsewhere, telling how far it is before each segment.
pub fn verify_with(
    dir: &Path,
    trusted: Option<PublicKey>,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, RecordError> {
    loop {
        let before = begins(dir);
        let mut report = VerifyReport::default();
        match walk(dir, trusted, progress, &mut report) {
            Ok(()) => {}
            Err(RecordError::Damaged { file, offset, what }) => report.problem = Some(problem(&file, offset, what)),
            Err(RecordError::Key(what)) => report.problem = Some(problem(PUBLIC, 0, what)),
            Err(error) if !is_live(dir) => return Err(error),
            Err(error) => report.problem = Some(problem(".", 0, &error.to_string())),
        }
        // A daemon that pruned its log meanwhile took segments away from under us: look again at what is left. The
        // start only moves on, so this ends.
        if report.problem.is_none() || begins(dir) == before {
            return Ok(report);
        }
    }
}

/// Where a log begins: the marker of retention and the first segment, as far as they can be read.
fn begins(dir: &Path) -> (Option<u64>, Option<u64>) {
    let marker = PublicKey::read(dir).and_then(|key| pruned_marker(dir, key)).ok().flatten();
    let first = segment_numbers(dir).ok().and_then(|numbers| numbers.first().copied());
    (marker.map(|p| p.through), first)
}

fn problem(file: &str, offset: u64, what: &str) -> Problem {
    Problem { file: file.into(), offset, what: what.into() }
}

fn damaged<T>(file: &str, offset: u64, what: &'static str) -> Result<T, RecordError> {
    Err(RecordError::Damaged { file: file.into(), offset, what })
}

fn walk(
    dir: &Path,
    trusted: Option<PublicKey>,
    progress: &mut dyn FnMut(Progress),
    report: &mut VerifyReport,
) -> Result<(), RecordError> {
    if !dir.join(PUBLIC).exists() && dir.exists() {
        return damaged(PUBLIC, 0, "the public key is missing");
    }
    let key = PublicKey::read(dir)?;
    report.public_key = data_encoding::HEXLOWER.encode(&key.0);
    if trusted.is_some_and(|trusted| trusted != key) {
        return damaged(PUBLIC, 0, "it is not the trusted key");
    }
    // Read first: what it names is in the log already.
    let head = heads(dir, key)?;
    let pruned = pruned_marker(dir, key)?;
    report.pruned_through = pruned.map(|p| p.through);
    let numbers = segment_numbers(dir)?;
    let start = pruned.map_or(1, |p| p.through + 1);
    let Some(&first) = numbers.first() else {
        // A log that was made and never begun has a head at 0; anything else lost its segments.
        return if head.seq == 0 { Ok(()) } else { damaged(&sealed_name(start), 0, "the segment is missing") };
    };
    if first > start {
        return damaged(&sealed_name(start), 0, "the segment is missing");
    }
    // Segments that retention was about to remove still chain up to its marker; the first of them is signed.
    let mut previous: Option<Hash> = match pruned {
        None => Some(genesis(key)),
        Some(p) if first == start => Some(p.last),
        Some(_) => None,
    };
    let mut seq = pruned.filter(|_| first == start).map_or(1, |p| p.next_seq);
    let mut head_seen = head.seq == 0 || head.seq < seq && first == start;
    let mut number = first;
    let mut first_of_all = true;
    let end = loop {
        progress(Progress { segment: number - first, of: numbers.len() as u64 });
        let mut reader = open_any(dir, number, key)?;
        if first_of_all && previous.is_none() {
            if reader.seal.is_none() {
                return damaged(&tail_name(number), 0, "it should have been removed, and is not signed");
            }
            seq = reader.header.first_seq;
            head_seen |= head.seq < seq;
        } else if previous.is_some_and(|hash| hash != reader.header.previous) || reader.header.first_seq != seq {
            return damaged(reader.file(), 0, "it does not follow the segment before it");
        }
        if first_of_all {
            report.first_sequence = seq;
            first_of_all = false;
        }
        if let Some(seal) = reader.seal {
            packed_bytes(dir, number, seal.packed_hash)?;
        }
        head_seen |= records(&mut reader, &head, report)?;
        // Looked at after its records were read: if there is a next one, this one has no writer.
        let more = exists(dir, number + 1);
        ending(dir, &mut reader, more, &head, report, &mut head_seen)?;
        report.segments += 1;
        if let Some(p) = pruned.filter(|p| p.through == number)
            && (reader.hash != p.last || reader.seq != p.next_seq)
        {
            return damaged(reader.file(), 0, "it is not the segment that retention removed");
        }
        previous = Some(reader.hash);
        seq = reader.seq;
        if !more {
            break reader.offset;
        }
        number += 1;
    };
    report.last_sequence = seq - 1;
    if seq <= head.seq || !head_seen {
        // Either the segment ends early, or those after it are gone.
        let (file, offset) = if head.segment > number { (head.segment, 0) } else { (number, end) };
        return damaged(&tail_name(file), offset, "events that were on disk are missing from the end");
    }
    if let Some(beyond) = segment_numbers(dir)?.into_iter().find(|n| *n > number && !exists(dir, *n - 1)) {
        return damaged(&sealed_name(beyond - 1), 0, "the segment is missing");
    }
    // A plain form beside its sealed one is a leftover only if it begins as that did.
    for name in names(dir)? {
        if let Some((n, Kind::Tail)) = parse_name(&name)
            && Kind::Sealed.path(dir, n).exists()
            && dir.join(&name).exists()
        {
            let tail = match SegmentReader::open(dir, n, Kind::Tail, key) {
                Ok(tail) => tail,
                // Removed meanwhile, as it should be.
                Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if tail.header != open_any(dir, n, key)?.header {
                return damaged(&name, 0, "it is not the segment that was sealed");
            }
        }
    }
    Ok(())
}

/// Walks the records of a segment to where they end or break; whether the head's event was met and is the one synced.
fn records(reader: &mut SegmentReader, head: &Head, report: &mut VerifyReport) -> Result<bool, RecordError> {
    // A head that was taken before a segment's first event names the segment's beginning.
    let at_start = head.offset == HEADER as u64;
    let mut seen = false;
    if at_start && reader.offset == head.offset && reader.header.number == head.segment {
        if reader.hash != head.hash || reader.seq != head.seq + 1 {
            return Err(reader.damaged("it is not the segment that was begun here"));
        }
        seen = true;
    }
    loop {
        match reader.step()? {
            Step::Record => {
                report.events += 1;
                report.last_sequence = reader.seq - 1;
                if reader.seq - 1 == head.seq && !at_start {
                    let same = reader.hash == head.hash
                        && reader.header.number == head.segment
                        && reader.offset == head.offset;
                    if !same {
                        return Err(reader.damaged("it is not the event that was synced here"));
                    }
                    seen = true;
                }
            }
            Step::End | Step::Broken(_) => return Ok(seen),
        }
    }
}

/// Checks how a segment ends.
fn ending(
    dir: &Path,
    reader: &mut SegmentReader,
    more: bool,
    head: &Head,
    report: &mut VerifyReport,
    head_seen: &mut bool,
) -> Result<(), RecordError> {
    if let Some(seal) = reader.seal {
        let count = reader.seq - reader.header.first_seq;
        if reader.hash != seal.last || reader.offset != seal.plain || count != seal.count {
            return Err(reader.damaged("the sealed records are not those that were signed"));
        }
        return Ok(());
    }
    // Twice, for a log that is being written: the end moves on while it is looked at.
    for attempt in 0..2 {
        *head_seen |= records(reader, head, report)?;
        let broken = match reader.step()? {
            Step::Broken(what) => Some((reader.offset, what)),
            Step::Record | Step::End => {
                reader.first_stray()?.map(|_| (reader.offset, "an event is unfinished or damaged"))
            }
        };
        match broken {
            None => return Ok(()),
            // The writer is in the middle of an event at the very end; it was not acknowledged yet.
            Some(_) if !more && is_live(dir) && reader.seq > head.seq => return Ok(()),
            Some((offset, what)) if attempt == 1 => return damaged(reader.file(), offset, what),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Checks the packed bytes of a sealed segment against their signed hash.
fn packed_bytes(dir: &Path, number: u64, hash: Hash) -> Result<(), RecordError> {
    use std::io::{Seek, SeekFrom};
    let path = Kind::Sealed.path(dir, number);
    let hashed = || {
        let mut file = fs::File::open(&path)?;
        file.seek(SeekFrom::Start(SEAL as u64))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        Ok(hasher.finalize())
    };
    if *hashed().map_err(io_error("read", &path))?.as_bytes() != hash {
        return damaged(&sealed_name(number), SEAL as u64, "the packed records are not those that were signed");
    }
    Ok(())
}

/// Both copies of the head; the later one counts, and neither may be damaged.
fn heads(dir: &Path, key: PublicKey) -> Result<Head, RecordError> {
    let path = dir.join(HEAD_FILE);
    // A copy may be read while it is written.
    for attempt in 0.. {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return damaged(HEAD_FILE, 0, "it is missing");
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if bytes.len() != 2 * SLOT {
            return damaged(HEAD_FILE, bytes.len().min(2 * SLOT) as u64, "it does not have the length of two copies");
        }
        let mut slots = bytes.chunks_exact(SLOT).enumerate().map(|(index, slot)| {
            let head = <&[u8; SLOT]>::try_from(slot).ok().and_then(|slot| Head::decode(slot, key));
            head.filter(|head| head.counter % 2 == index as u64)
        });
        match (slots.next().flatten(), slots.next().flatten()) {
            (Some(a), Some(b)) if a.counter.abs_diff(b.counter) == 1 => {
                return Ok(if a.counter > b.counter { a } else { b });
            }
            _ if attempt < 3 && is_live(dir) => std::thread::yield_now(),
            (None, _) => return damaged(HEAD_FILE, 0, "the copy is not as signed"),
            _ => return damaged(HEAD_FILE, SLOT as u64, "the copy is not as signed"),
        }
    }
    damaged(HEAD_FILE, 0, "it cannot be read")
}
