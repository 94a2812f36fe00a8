//! Reading one segment, sealed or not, record by record, with its chain checked.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take},
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    RecordError,
    error::io_error,
    format::{HEADER, Hash, Kind, RECORD, SEAL, Seal, SegmentHeader, link},
    keys::PublicKey,
};

/// How much of a tail is read at once.
const WINDOW: usize = 256 << 10;

/// A segment and how far it was read.
pub(super) struct SegmentReader {
    pub(super) header: SegmentHeader,
    /// Present where the segment is sealed.
    pub(super) seal: Option<Seal>,
    /// Hash of the last record read.
    pub(super) hash: Hash,
    /// Where the next record begins, in the uncompressed segment.
    pub(super) offset: u64,
    /// Sequence number of the next record.
    pub(super) seq: u64,
    pub(super) bytes: Vec<u8>,
    file: String,
    source: Source,
}

enum Source {
    Sealed(Box<zstd::stream::read::Decoder<'static, BufReader<Take<File>>>>),
    Tail { file: File, length: u64, base: u64, window: Vec<u8> },
}

/// What stands at the reader's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record: [`SegmentReader::bytes`] has it.
    Record,
    /// The end, where a tail goes on as zeros.
    End,
    /// Bytes that are not a record of this chain: a torn end, or damage.
    Broken(&'static str),
}

impl SegmentReader {
    /// Opens a segment and checks its header (and, where sealed, the signature, not yet the packed bytes).
    pub(super) fn open(dir: &Path, number: u64, kind: Kind, key: PublicKey) -> Result<Self, RecordError> {
        let path = kind.path(dir, number);
        let name = kind.name(number);
        let damaged = |what| RecordError::Damaged { file: name.clone(), offset: 0, what };
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        let (header, seal, source) = match kind {
            Kind::Tail => {
                let mut bytes = [0; HEADER];
                file.read_exact_at(&mut bytes, 0).map_err(short(&path, &name))?;
                let header = SegmentHeader::decode(&bytes).ok_or_else(|| damaged("the header is not as written"))?;
                (header, None, Source::Tail { file, length, base: 0, window: Vec::new() })
            }
            Kind::Sealed => {
                let mut bytes = [0; SEAL];
                file.read_exact_at(&mut bytes, 0).map_err(short(&path, &name))?;
                let seal = Seal::decode(&bytes, key).ok_or_else(|| damaged("the seal is not as signed"))?;
                if Some(length) != seal.packed.checked_add(SEAL as u64) {
                    let what = "the file does not have the length that was signed";
                    return Err(RecordError::Damaged { file: name, offset: length, what });
                }
                let mut file = file;
                file.seek(SeekFrom::Start(SEAL as u64)).map_err(io_error("read", &path))?;
                let decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(file.take(seal.packed)))
                    .map_err(io_error("read", &path))?;
                (seal.header, Some(seal), Source::Sealed(Box::new(decoder)))
            }
        };
        if header.number != number {
            return Err(damaged("the file has the name of another segment"));
        }
        Ok(Self {
            hash: header.hash(),
            offset: HEADER as u64,
            seq: header.first_seq,
            header,
            seal,
            bytes: Vec::new(),
            file: name,
            source,
        })
    }

    /// Reads the next record and checks its place in the chain.
    pub(super) fn step(&mut self) -> Result<Step, RecordError> {
        let step = self.try_step()?;
        // In a tail that is being written, what was read ahead may be older than what is there now.
        if step != Step::Record
            && let Source::Tail { window, .. } = &mut self.source
        {
            window.clear();
            return self.try_step();
        }
        Ok(step)
    }

    fn try_step(&mut self) -> Result<Step, RecordError> {
        let end = match &self.source {
            Source::Sealed(_) => self.seal.map_or(0, |seal| seal.plain),
            Source::Tail { length, .. } => *length,
        };
        let left = end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Step::End);
        }
        if left < RECORD as u64 {
            return Ok(match &mut self.source {
                Source::Sealed(_) => Step::Broken("the segment ends within a record"),
                // Too short for a record: the writer left it.
                Source::Tail { .. } => Step::End,
            });
        }
        let mut head = [0; RECORD];
        if !self.fill(self.offset, &mut head)? {
            return Ok(Step::Broken("the packed records end early or are damaged"));
        }
        let [l0, l1, l2, l3, hash @ ..] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length == 0 {
            return Ok(match &self.source {
                Source::Sealed(_) => Step::Broken("a record has no length"),
                Source::Tail { .. } => Step::End,
            });
        }
        if u64::from(length) > left - RECORD as u64 {
            return Ok(Step::Broken("a record is longer than its segment"));
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(length as usize, 0);
        let filled = self.fill(self.offset + RECORD as u64, &mut bytes);
        self.bytes = bytes;
        if !filled? {
            return Ok(Step::Broken("the packed records end early or are damaged"));
        }
        if link(&self.hash, length, &self.bytes) != hash {
            return Ok(Step::Broken("a record is not the one that was written here"));
        }
        self.hash = hash;
        self.offset += RECORD as u64 + u64::from(length);
        self.seq += 1;
        Ok(Step::Record)
    }

    /// Whether everything from the current place to the end of a tail is zero; the offset of the first that is not.
    pub(super) fn first_stray(&self) -> Result<Option<u64>, RecordError> {
        let Source::Tail { file, length, .. } = &self.source else { return Ok(None) };
        let mut buffer = vec![0; WINDOW];
        let mut at = self.offset;
        while at < *length {
            let wanted = (*length - at).min(WINDOW as u64) as usize;
            file.read_exact_at(&mut buffer[..wanted], at).map_err(io_error("read", Path::new(&self.file)))?;
            if let Some(found) = buffer[..wanted].iter().position(|b| *b != 0) {
                return Ok(Some(at + found as u64));
            }
            at += wanted as u64;
        }
        Ok(None)
    }

    pub(super) fn damaged(&self, what: &'static str) -> RecordError {
        RecordError::Damaged { file: self.file.clone(), offset: self.offset, what }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Fills a buffer from an offset; `false` where the packed stream cannot give it.
    fn fill(&mut self, offset: u64, out: &mut [u8]) -> Result<bool, RecordError> {
        match &mut self.source {
            // Read strictly in order: the offset is where the stream is.
            Source::Sealed(decoder) => match decoder.read_exact(out) {
                Ok(()) => Ok(true),
                Err(error) if error.raw_os_error().is_none() => Ok(false),
                Err(error) => Err(io_error("read", Path::new(&self.file))(error)),
            },
            Source::Tail { file, length, base, window } => {
                let failed = io_error("read", Path::new(&self.file));
                let have = offset >= *base && offset + out.len() as u64 <= *base + window.len() as u64;
                if !have {
                    let wanted = (out.len().max(WINDOW) as u64).min(*length - offset) as usize;
                    window.resize(wanted, 0);
                    *base = offset;
                    if let Err(error) = file.read_exact_at(window, offset) {
                        window.clear();
                        return Err(failed(error));
                    }
                }
                let start = (offset - *base) as usize;
                out.copy_from_slice(&window[start..start + out.len()]);
                Ok(true)
            }
        }
    }
}

fn short<'a>(path: &'a Path, name: &'a str) -> impl FnOnce(io::Error) -> RecordError + 'a {
    move |error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            RecordError::Damaged { file: name.to_owned(), offset: 0, what: "the file is too short for its header" }
        }
        _ => io_error("read", path)(error),
    }
}
