//! The bytes of the log. All integers little-endian.
//!
//! `NNNNNNNNNN.tail`: a header, then records to the first length of zero; the rest of the file is zero.
//! header: magic 8, number u64, first sequence u64, created u64 (Unix microseconds), previous segment's hash 32, then
//! BLAKE3 of those 64 bytes. record: length u32, hash 32, the event (JSON, or in short: `brief`). A record's hash is BLAKE3
//! of the hash before it (the header's for the first), the length and the event. The first segment's previous hash is
//! BLAKE3 of the public key.
//!
//! `NNNNNNNNNN.sealed`: magic 8, the header, count u64, plain bytes u64 (with header), final hash 32, last event's time
//! u64, packed bytes u64, BLAKE3 of the packed bytes 32, Ed25519 signature 64 of all before; then the records, zstd.
//!
//! `head`: twice (counter u64, segment u64, offset u64, sequence u64, hash 32) with magic and signature: what is known
//! to be on disk. `pruned`: the last segment that retention removed, its hash and the sequence after it, signed.

use std::path::{Path, PathBuf};

use super::keys::{PublicKey, SIGNATURE, Signer};

pub(super) type Hash = [u8; 32];

pub(super) const HEADER: usize = 96;
pub(super) const RECORD: usize = 36;
pub(super) const SEAL: usize = 264;
pub(super) const SLOT: usize = 136;
pub(super) const PRUNED: usize = 128;

/// File name of what is known to be on disk.
pub(super) const HEAD_FILE: &str = "head";
/// File name of the pruning marker.
pub(super) const PRUNED_FILE: &str = "pruned";

const SEGMENT_MAGIC: &[u8; 8] = b"PCLSEG01";
const SEAL_MAGIC: &[u8; 8] = b"PCLSEAL1";
const HEAD_MAGIC: &[u8; 8] = b"PCLHEAD1";
const PRUNED_MAGIC: &[u8; 8] = b"PCLPRUN1";

pub(super) fn tail_name(number: u64) -> String {
    format!("{number:010}.tail")
}

pub(super) fn sealed_name(number: u64) -> String {
    format!("{number:010}.sealed")
}

/// Number and kind of a segment's file name.
pub(super) fn parse_name(name: &str) -> Option<(u64, Kind)> {
    let (digits, kind) = match name.split_once('.')? {
        (digits, "tail") => (digits, Kind::Tail),
        (digits, "sealed") => (digits, Kind::Sealed),
        _ => return None,
    };
    let number = digits.parse().ok()?;
    (format!("{number:010}") == digits).then_some((number, kind))
}

/// How a segment is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Sealed,
    Tail,
}

impl Kind {
    pub(super) fn path(self, dir: &Path, number: u64) -> PathBuf {
        dir.join(self.name(number))
    }

    pub(super) fn name(self, number: u64) -> String {
        match self {
            Self::Sealed => sealed_name(number),
            Self::Tail => tail_name(number),
        }
    }
}

/// The hash that the first segment names as its predecessor's.
pub(super) fn genesis(key: PublicKey) -> Hash {
    *blake3::Hasher::new().update(b"portcullis log").update(&key.0).finalize().as_bytes()
}

/// A record's hash.
pub(super) fn link(previous: &Hash, length: u32, json: &[u8]) -> Hash {
    *blake3::Hasher::new().update(previous).update(&length.to_le_bytes()).update(json).finalize().as_bytes()
}

/// Head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) first_seq: u64,
    pub(super) created_us: u64,
    pub(super) previous: Hash,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let body = Bytes::new()
            .raw(SEGMENT_MAGIC)
            .int(self.number)
            .int(self.first_seq)
            .int(self.created_us)
            .raw(&self.previous)
            .0;
        out[..64].copy_from_slice(&body);
        out[64..].copy_from_slice(blake3::hash(&body).as_bytes());
        out
    }

    /// `None` where any byte is not as written.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let mut f = Fields(bytes);
        if f.raw::<8>()? != *SEGMENT_MAGIC {
            return None;
        }
        let header = Self { number: f.int()?, first_seq: f.int()?, created_us: f.int()?, previous: f.raw()? };
        (header.encode() == *bytes).then_some(header)
    }

    /// The hash before the first record.
    pub(super) fn hash(&self) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(&self.encode()[64..]);
        hash
    }
}

/// Head of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) header: SegmentHeader,
    pub(super) count: u64,
    pub(super) plain: u64,
    pub(super) last: Hash,
    pub(super) last_us: u64,
    pub(super) packed: u64,
    pub(super) packed_hash: Hash,
}

impl Seal {
    pub(super) fn encode(&self, key: &Signer) -> Vec<u8> {
        let body = Bytes::new()
            .raw(SEAL_MAGIC)
            .raw(&self.header.encode())
            .int(self.count)
            .int(self.plain)
            .raw(&self.last)
            .int(self.last_us)
            .int(self.packed)
            .raw(&self.packed_hash);
        body.signed(key)
    }

    /// `None` where the form or the signature is wrong.
    pub(super) fn decode(bytes: &[u8; SEAL], key: PublicKey) -> Option<Self> {
        let mut f = Fields(opened(bytes, key)?);
        if f.raw::<8>()? != *SEAL_MAGIC {
            return None;
        }
        Some(Self {
            header: SegmentHeader::decode(&f.raw()?)?,
            count: f.int()?,
            plain: f.int()?,
            last: f.raw()?,
            last_us: f.int()?,
            packed: f.int()?,
            packed_hash: f.raw()?,
        })
    }
}

/// What is known to be on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) counter: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

impl Head {
    pub(super) fn encode(&self, key: &Signer) -> Vec<u8> {
        let body = Bytes::new().raw(HEAD_MAGIC).int(self.counter).int(self.segment).int(self.offset).int(self.seq);
        body.raw(&self.hash).signed(key)
    }

    pub(super) fn decode(bytes: &[u8; SLOT], key: PublicKey) -> Option<Self> {
        let mut f = Fields(opened(bytes, key)?);
        if f.raw::<8>()? != *HEAD_MAGIC {
            return None;
        }
        Some(Self { counter: f.int()?, segment: f.int()?, offset: f.int()?, seq: f.int()?, hash: f.raw()? })
    }
}

/// What retention removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pruned {
    pub(super) through: u64,
    pub(super) last: Hash,
    pub(super) next_seq: u64,
    pub(super) at_us: u64,
}

impl Pruned {
    pub(super) fn encode(&self, key: &Signer) -> Vec<u8> {
        let body = Bytes::new().raw(PRUNED_MAGIC).int(self.through).raw(&self.last).int(self.next_seq);
        body.int(self.at_us).signed(key)
    }

    pub(super) fn decode(bytes: &[u8; PRUNED], key: PublicKey) -> Option<Self> {
        let mut f = Fields(opened(bytes, key)?);
        if f.raw::<8>()? != *PRUNED_MAGIC {
            return None;
        }
        Some(Self { through: f.int()?, last: f.raw()?, next_seq: f.int()?, at_us: f.int()? })
    }
}

/// The signed part of a structure that ends in its signature.
fn opened(bytes: &[u8], key: PublicKey) -> Option<&[u8]> {
    let (body, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE)?)?;
    key.verify(body, signature).then_some(body)
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn new() -> Self {
        Self(Vec::with_capacity(SEAL))
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn int(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn signed(self, key: &Signer) -> Vec<u8> {
        let signature = key.sign(&self.0);
        self.raw(&signature).0
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn raw<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn int(&mut self) -> Option<u64> {
        self.raw().map(u64::from_le_bytes)
    }
}
