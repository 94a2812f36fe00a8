//! Reading the log: while it is written, and after.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    RecordError,
    brief::Connections,
    error::io_error,
    format::{Hash, Kind, PRUNED, PRUNED_FILE, Pruned, SEAL, Seal, parse_name, sealed_name},
    keys::PublicKey,
    open::names,
    segment::{SegmentReader, Step},
    writer::{Position, Recorded},
};

/// Every event of a log, oldest first, its chain checked on the way. A log that is being written is read to where it
/// is; after the end, asking again goes on with what came since.
pub fn events(dir: impl Into<PathBuf>) -> Result<Events, RecordError> {
    Events::open(dir.into(), 0)
}

/// As [`events`], from a sequence number on. Errors also where retention has removed that.
pub fn events_from(dir: impl Into<PathBuf>, sequence: u64) -> Result<Events, RecordError> {
    Events::open(dir.into(), sequence)
}

/// Iterator over the events of a log.
pub struct Events {
    dir: PathBuf,
    key: PublicKey,
    /// The segment that is read; `None` until there is one.
    reader: Option<SegmentReader>,
    /// The number to read next, and what its header must name, where that is known.
    next: u64,
    previous: Option<Hash>,
    from: u64,
    broken: bool,
    connections: Connections,
}

impl Events {
    fn open(dir: PathBuf, from: u64) -> Result<Self, RecordError> {
        let key = PublicKey::read(&dir)?;
        let numbers = segment_numbers(&dir)?;
        let mut next = numbers.first().copied().unwrap_or(1);
        let mut first_seq = None;
        // The last segment that begins at or before the wanted event.
        for number in numbers.iter().rev().filter(|_| from > 0) {
            let reader = open_any(&dir, *number, key)?;
            first_seq = Some(reader.header.first_seq);
            if reader.header.first_seq <= from {
                next = *number;
                break;
            }
        }
        if let Some(first) = first_seq
            && first > from
        {
            return Err(RecordError::Pruned { from, to: first - 1 });
        }
        Ok(Self {
            dir,
            key,
            reader: None,
            next,
            previous: None,
            from,
            broken: false,
            connections: Connections::default(),
        })
    }

    /// The number of the segment that is read.
    pub fn segment(&self) -> u64 {
        self.reader.as_ref().map_or(self.next, |reader| reader.header.number)
    }

    fn advance(&mut self) -> Result<Option<Recorded>, RecordError> {
        loop {
            let Some(reader) = self.reader.as_mut() else {
                if !exists(&self.dir, self.next) {
                    return Ok(None);
                }
                let reader = open_any(&self.dir, self.next, self.key)?;
                if self.previous.is_some_and(|hash| hash != reader.header.previous) {
                    return Err(reader.damaged("it does not follow the segment before it"));
                }
                self.reader = Some(reader);
                self.connections = Connections::default();
                continue;
            };
            let mut step = reader.step()?;
            if step == Step::End && reader.seal.is_none() {
                if !exists(&self.dir, reader.header.number + 1) {
                    return Ok(None);
                }
                // It has no writer any more; what came between the two looks is read first.
                step = reader.step()?;
            }
            match step {
                Step::Record => {
                    let position = Position(reader.seq - 1);
                    if position.0 < self.from {
                        self.connections.learn(&reader.bytes);
                        continue;
                    }
                    let event = self.connections.read(&reader.bytes);
                    let event = event.ok_or_else(|| reader.damaged("the record before this is not an event"))?;
                    return Ok(Some(Recorded { position, event: event.into() }));
                }
                Step::Broken(what) => return Err(reader.damaged(what)),
                Step::End => {
                    if reader.seal.is_some_and(|seal| seal.last != reader.hash) {
                        return Err(reader.damaged("the segment ends early"));
                    }
                    self.previous = Some(reader.hash);
                    self.next = reader.header.number + 1;
                    self.reader = None;
                }
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Recorded, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let item = self.advance();
        self.broken = item.is_err();
        item.transpose()
    }
}

/// Numbers of the segments that there are, in order. A listing may miss a segment that is being sealed, in both its
/// forms, so what lies between and right before those found is looked at by name.
pub(super) fn segment_numbers(dir: &Path) -> Result<Vec<u64>, RecordError> {
    let listed: BTreeSet<u64> = names(dir)?.iter().filter_map(|name| parse_name(name)).map(|(n, _)| n).collect();
    let mut numbers = listed.clone();
    for number in &listed {
        let before = (1..*number).rev();
        numbers.extend(before.take_while(|n| !listed.contains(n) && exists(dir, *n)));
    }
    Ok(numbers.into_iter().collect())
}

pub(super) fn exists(dir: &Path, number: u64) -> bool {
    [Kind::Sealed, Kind::Tail, Kind::Sealed].iter().any(|kind| kind.path(dir, number).exists())
}

/// Opens a segment in whichever form it has; it may be sealed while we look.
pub(super) fn open_any(dir: &Path, number: u64, key: PublicKey) -> Result<SegmentReader, RecordError> {
    let missing = |error: &RecordError| matches!(error, RecordError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
    let mut last = None;
    for kind in [Kind::Sealed, Kind::Tail, Kind::Sealed] {
        match SegmentReader::open(dir, number, kind, key) {
            Err(error) if missing(&error) => last = Some(error),
            other => return other,
        }
    }
    Err(last.unwrap_or(RecordError::Closed))
}

/// The checked seal of a sealed segment.
pub(super) fn seal_of(dir: &Path, number: u64, key: PublicKey) -> Result<Seal, RecordError> {
    let name = sealed_name(number);
    let path = dir.join(&name);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    let mut bytes = [0; SEAL];
    let seal = match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Seal::decode(&bytes, key).filter(|seal| seal.header.number == number),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    seal.ok_or(RecordError::Damaged { file: name, offset: 0, what: "the seal is not as signed" })
}

/// The checked marker of what retention removed.
pub(super) fn pruned_marker(dir: &Path, key: PublicKey) -> Result<Option<Pruned>, RecordError> {
    let path = dir.join(PRUNED_FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let damaged = RecordError::Damaged { file: PRUNED_FILE.into(), offset: 0, what: "the marker is not as signed" };
    let bytes: [u8; PRUNED] = bytes.try_into().map_err(|_| RecordError::Damaged {
        file: PRUNED_FILE.into(),
        offset: 0,
        what: "the marker is not as signed",
    })?;
    Pruned::decode(&bytes, key).map(Some).ok_or(damaged)
}
