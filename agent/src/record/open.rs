//! Opening a log: the lock, the keys, and recovery of what a killed daemon left.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    RecordError,
    error::io_error,
    format::{HEADER, Hash, Head, Kind, SegmentHeader, genesis, parse_name, sealed_name, tail_name},
    keys::Signer,
    read::{pruned_marker, seal_of},
    segment::{SegmentReader, Step},
    syncing::HeadFile,
    tail::TailWriter,
    writer::{Active, RecordSettings},
};

const LOCK: &str = "lock";

/// Sets blocks aside for the first so many bytes of a file.
pub(super) type Allocate = fn(&File, u64) -> io::Result<()>;

/// Held while this process writes the log.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

/// A log that can be appended to.
pub(super) struct Opened {
    pub(super) key: Signer,
    pub(super) lock: Lock,
    pub(super) head: HeadFile,
    pub(super) active: Active,
    pub(super) to_seal: Vec<u64>,
    pub(super) durable_seq: u64,
    /// What was repaired, for the record.
    pub(super) repaired: Option<String>,
}

pub(super) fn open(settings: &RecordSettings) -> Result<Opened, RecordError> {
    let dir = &settings.dir;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
    let lock = take_lock(dir)?;
    let key = Signer::open(dir)?;
    let segments = clean(dir, &key)?;
    let head = HeadFile::open(dir, &key, segments.is_empty())?;

    // Where the unsealed part of the chain begins.
    let pruned = pruned_marker(dir, key.public())?;
    let sealed = segments.iter().filter(|(_, kind)| *kind == Kind::Sealed).map(|(number, _)| *number).max();
    let mut end = match (sealed, pruned) {
        (Some(number), _) => {
            let seal = seal_of(dir, number, key.public())?;
            End { number, next_seq: seal.header.first_seq + seal.count, hash: seal.last }
        }
        (None, Some(pruned)) => End { number: pruned.through, next_seq: pruned.next_seq, hash: pruned.last },
        (None, None) => End { number: 0, next_seq: 1, hash: genesis(key.public()) },
    };
    let tails: Vec<u64> = segments.iter().filter(|(_, kind)| *kind == Kind::Tail).map(|(number, _)| *number).collect();
    let mut recovered = None;
    for (index, number) in tails.iter().enumerate() {
        if *number != end.number + 1 {
            return Err(damaged(&tail_name(*number), 0, "the segment before it is missing"));
        }
        let last = index + 1 == tails.len();
        let tail = recover(dir, *number, &end, &head.latest(), &key, last)?;
        end = End { number: *number, next_seq: tail.seq + 1, hash: tail.hash };
        if last {
            recovered = Some(tail);
        }
    }
    let known = head.latest();
    if end.next_seq <= known.seq {
        let file = if end.number == 0 { "head".to_owned() } else { tail_name(end.number) };
        return Err(damaged(&file, 0, "events that were on disk are missing from its end"));
    }
    let (active, repaired) = match recovered {
        Some(tail) => reopen(dir, settings, tail)?,
        None => {
            let header = SegmentHeader {
                number: end.number + 1,
                first_seq: end.next_seq,
                created_us: now_us(),
                previous: end.hash,
            };
            (begin(dir, make_spare(settings, "spare.now")?, &header)?, None)
        }
    };
    let to_seal = tails.split_last().map(|(_, full)| full.to_vec()).unwrap_or_default();
    Ok(Opened { key, lock, head, active, to_seal, durable_seq: known.seq, repaired })
}

/// Where the chain stands after a segment.
struct End {
    number: u64,
    next_seq: u64,
    hash: Hash,
}

/// A tail as found.
struct Found {
    number: u64,
    offset: u64,
    seq: u64,
    hash: Hash,
    torn: Option<(u64, &'static str)>,
    /// The header was never written.
    blank: Option<SegmentHeader>,
}

/// Walks an unsealed segment. Only the last one may end in something that is not a record.
fn recover(dir: &Path, number: u64, end: &End, known: &Head, key: &Signer, last: bool) -> Result<Found, RecordError> {
    let name = tail_name(number);
    let mut reader = match SegmentReader::open(dir, number, Kind::Tail, key.public()) {
        Ok(reader) => reader,
        // The host died between naming the file and writing its first page.
        Err(RecordError::Damaged { .. }) if last && known.segment < number && is_blank(&dir.join(&name))? => {
            let header = SegmentHeader { number, first_seq: end.next_seq, created_us: now_us(), previous: end.hash };
            return Ok(Found {
                number,
                offset: HEADER as u64,
                seq: end.next_seq - 1,
                hash: header.hash(),
                torn: None,
                blank: Some(header),
            });
        }
        Err(error) => return Err(error),
    };
    if reader.header.previous != end.hash || reader.header.first_seq != end.next_seq {
        return Err(reader.damaged("it does not follow the segment before it"));
    }
    if known.segment == number
        && known.offset == reader.offset
        && (known.hash != reader.hash || known.seq + 1 != reader.seq)
    {
        return Err(reader.damaged("it is not the segment that was begun here"));
    }
    let mut torn = None;
    loop {
        match reader.step()? {
            Step::Record => {
                let at_head = reader.seq - 1 == known.seq && known.segment == number;
                if at_head && (reader.hash != known.hash || reader.offset != known.offset) {
                    return Err(reader.damaged("it is not the event that was synced here"));
                }
            }
            Step::End => {
                if let Some(at) = reader.first_stray()? {
                    torn = Some((at, "an event that was not finished"));
                }
                break;
            }
            Step::Broken(what) => {
                torn = Some((reader.offset, what));
                break;
            }
        }
    }
    if torn.is_some() && (!last || reader.seq <= known.seq) {
        return Err(reader.damaged("what follows is not an event of this record"));
    }
    Ok(Found { number, offset: reader.offset, seq: reader.seq - 1, hash: reader.hash, torn, blank: None })
}

fn is_blank(path: &Path) -> Result<bool, RecordError> {
    use std::io::Read;
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(io_error("read", path))? {
            0 => return Ok(true),
            n if buffer[..n].iter().all(|b| *b == 0) => {}
            _ => return Ok(false),
        }
    }
}

fn reopen(dir: &Path, settings: &RecordSettings, tail: Found) -> Result<(Active, Option<String>), RecordError> {
    let path = dir.join(tail_name(tail.number));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("open", &path))?;
    let length = file.metadata().map_err(io_error("read", &path))?.len().max(tail.offset);
    // Blocks that a copy or a restore left out would be found as SIGBUS.
    (settings.allocate)(&file, length).map_err(io_error("allocate", &path))?;
    let mut writer = TailWriter::map(&file, length as usize).map_err(io_error("map", &path))?;
    if let Some(header) = &tail.blank {
        writer.put(0, &header.encode());
    }
    let offset = tail.offset as usize;
    let repaired = tail.torn.map(|(at, what)| {
        writer.clear(offset, writer.len() - offset);
        format!(
            "record recovered after an unclean stop: the end of segment {} from byte {offset} on was removed ({what}, at \
             byte {at})",
            tail.number
        )
    });
    if repaired.is_some() {
        writer.shared().flush(offset, writer.len() - offset).map_err(io_error("sync", &path))?;
    }
    Ok((Active { writer, number: tail.number, offset, seq: tail.seq, hash: tail.hash }, repaired))
}

/// Removes what an earlier daemon left unfinished and lists the segments, in order, sealed ones in place of their tails.
fn clean(dir: &Path, key: &Signer) -> Result<Vec<(u64, Kind)>, RecordError> {
    let remove = |name: &str| fs::remove_file(dir.join(name)).map_err(io_error("remove", &dir.join(name)));
    let mut segments = Vec::new();
    for name in names(dir)? {
        if name.starts_with("spare.") || name.ends_with(".new") {
            remove(&name)?;
        } else if let Some(segment) = parse_name(&name) {
            segments.push(segment);
        }
    }
    segments.sort_unstable();
    let pruned = pruned_marker(dir, key.public())?.map_or(0, |p| p.through);
    let mut kept: Vec<(u64, Kind)> = Vec::new();
    for (number, kind) in segments {
        if number <= pruned {
            remove(&kind.name(number))?;
        } else if kept.last() == Some(&(number, Kind::Sealed)) {
            // Sealed, and killed before its plain form was removed.
            seal_of(dir, number, key.public())?;
            remove(&kind.name(number))?;
        } else {
            kept.push((number, kind));
        }
    }
    if let Some((number, _)) = kept.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0).map(|pair| pair[1]) {
        return Err(damaged(&sealed_name(number - 1), 0, "the segment is missing"));
    }
    if let Some(pair) = kept.windows(2).find(|pair| pair[0].1 == Kind::Tail && pair[1].1 == Kind::Sealed) {
        // Sealing goes in order; an older tail is read with its successor's seal in force. Not an error, but it must be
        // walked again, which `open` does not do: refuse.
        return Err(damaged(&tail_name(pair[0].0), 0, "it is not sealed, though a later segment is"));
    }
    if let Some((first, _)) = kept.first()
        && *first != pruned + 1
    {
        return Err(damaged(&sealed_name(pruned + 1), 0, "the segment is missing"));
    }
    Ok(kept)
}

/// File names of a folder, sorted. Names that are not UTF-8 are not ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, RecordError> {
    let list = || {
        let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        entries.filter_map(Result::transpose).collect::<io::Result<Vec<_>>>()
    };
    let mut names = list().map_err(io_error("list", dir))?;
    names.sort_unstable();
    Ok(names)
}

fn take_lock(dir: &Path) -> Result<Lock, RecordError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    // A reader that looks whether the log is live holds the lock for an instant.
    for _ in 0..50 {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(fs::TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
    }
    Err(RecordError::Locked(dir.to_owned()))
}

/// Whether a process writes this log now.
pub(super) fn is_live(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
}

/// An empty segment file under a name that no reader looks at.
pub(super) struct Spare {
    writer: TailWriter,
    path: PathBuf,
}

/// Makes an empty segment file, its blocks allocated. Each thread uses a name of its own.
pub(super) fn make_spare(settings: &RecordSettings, name: &str) -> Result<Spare, RecordError> {
    let path = settings.dir.join(name);
    // Never one that is mapped already: truncating that would be felt.
    let _ = fs::remove_file(&path);
    let make = || {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        (settings.allocate)(&file, settings.segment_bytes)?;
        TailWriter::map(&file, settings.segment_bytes as usize)
    };
    match make() {
        Ok(writer) => Ok(Spare { writer, path }),
        Err(error) => {
            let _ = fs::remove_file(&path);
            Err(io_error("allocate", &path)(error))
        }
    }
}

/// Makes a spare file the segment of this header.
pub(super) fn begin(dir: &Path, spare: Spare, header: &SegmentHeader) -> Result<Active, RecordError> {
    let Spare { mut writer, path: from } = spare;
    writer.put(0, &header.encode());
    let path = dir.join(tail_name(header.number));
    fs::rename(from, &path).map_err(io_error("begin", &path))?;
    Ok(Active { writer, number: header.number, offset: HEADER, seq: header.first_seq - 1, hash: header.hash() })
}

/// posix_fallocate(3): on file systems that cannot, glibc writes zeros instead.
pub(super) fn allocate(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(nix::fcntl::posix_fallocate(file.as_fd(), 0, length)?)
}

/// Unix time in microseconds.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

fn damaged(file: &str, offset: u64, what: &'static str) -> RecordError {
    RecordError::Damaged { file: file.to_owned(), offset, what }
}
