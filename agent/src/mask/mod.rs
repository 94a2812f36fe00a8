//! Masking: what is sensitive in a value, and what takes its place.
//!
//! Three things are masked. Columns that a policy names ([`MaskSet::column`]): the guarantee, because the protocol
//! binds them to where a value comes from, whatever it looks like. Detectors ([`MaskSet::scrub`]): values found by
//! their looks, which a client that can compute on the server can evade by reshaping them; they are a second net.
//! Known secrets ([`KnownSecrets`]): every credential that the daemon itself uses, in the usual encodings, always on.
//!
//! Everything works on bytes: text that is not UTF-8 is searched all the same. Nothing here can fail on a value; where
//! two masks meet, the stricter one wins and their ranges are merged. Text in which nothing is found is not copied.

mod column;
mod detect;
mod fit;
pub mod fuzz;
mod json;
mod known;
mod protobuf;
mod stream;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod token;

pub use column::ColumnMask;
pub use json::{JsonError, JsonMasker};
pub use known::KnownSecrets;
pub use stream::StreamScrubber;

use std::{borrow::Cow, sync::Arc};

use smallvec::SmallVec;

use crate::action::{Detector, GlobError, MaskSpec, MaskWith, Unresolved};
use column::{ColumnPattern, PlacePattern};
use detect::{Detectors, Found};

/// What [`MaskWith::Redact`] puts in place of a value.
pub const REDACTED: &str = "[redacted]";

/// Why masks could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// A pattern over columns or places is not a glob.
    #[error("`{pattern}` is not a pattern: {source}")]
    Pattern {
        /// The pattern as written.
        pattern: String,
        /// What is wrong with it.
        source: GlobError,
    },
}

/// The masks of one policy for one upstream, compiled. Immutable. Share it in an `Arc`, each connection in one of its own
/// (a clone is the same set): to count references in one place, processors wait for each other.
#[derive(Clone)]
pub struct MaskSet(Arc<Compiled>);

struct Compiled {
    columns: Box<[ColumnPattern]>,
    places: Box<[PlacePattern]>,
    detectors: Detectors,
    labels: Labels,
    key: Arc<HashKey>,
    unresolved: Unresolved,
}

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub enum Masked<'a> {
    /// Nothing to mask: send the value as it is.
    Unchanged,
    /// This takes its place.
    Text(Cow<'a, [u8]>),
    /// NULL takes its place.
    Null,
}

impl<'a> Masked<'a> {
    /// For places that cannot be NULL (messages, parts of a text): NULL becomes [`REDACTED`].
    pub fn or_text(self, original: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Self::Unchanged => Cow::Borrowed(original),
            Self::Text(text) => text,
            Self::Null => Cow::Borrowed(REDACTED.as_bytes()),
        }
    }
}

/// What was masked: how often, and by what. Labels are those of the record (`credit_card`, `known_secret`,
/// `column:PATTERN`), each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// How many values or parts of values.
    pub count: u64,
    /// By what.
    pub detectors: SmallVec<[Arc<str>; 4]>,
}

/// Its key is nobody's to see.
impl std::fmt::Debug for MaskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaskSet").field("columns", &self.0.columns.len()).finish_non_exhaustive()
    }
}

impl Hits {
    /// Counts one masked value.
    pub fn add(&mut self, label: &Arc<str>) {
        self.count += 1;
        self.name(label);
    }

    /// Adds another's counts and labels to these.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        for label in &other.detectors {
            self.name(label);
        }
    }

    /// The same, as of what the workload has sent.
    #[must_use]
    pub fn of_request(self) -> Self {
        let detectors = self.detectors.iter().map(|label| format!("request:{label}").into()).collect();
        Self { detectors, ..self }
    }

    fn name(&mut self, label: &Arc<str>) {
        if !self.detectors.contains(label) {
            self.detectors.push(label.clone());
        }
    }
}

/// The key of [`MaskWith::Hash`], wiped when the last user is gone.
#[derive(zeroize::ZeroizeOnDrop)]
struct HashKey([u8; 32]);

/// The record's names of what can be found in a text, allocated once.
struct Labels {
    detectors: [Arc<str>; 5],
    known_secret: Arc<str>,
}

/// What was found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Detected(Detector),
    KnownSecret,
}

impl MaskSet {
    /// Compiles the `[[mask]]`s that apply to one upstream. `hash_key` makes [`MaskWith::Hash`] irreversible for
    /// whoever does not have it; take a fresh random one per daemon.
    pub fn compile(specs: &[MaskSpec], hash_key: [u8; 32]) -> Result<Self, MaskError> {
        let key = Arc::new(HashKey(hash_key));
        let (mut columns, mut places) = (Vec::new(), Vec::new());
        let mut wanted: Vec<(Detector, MaskWith)> = Vec::new();
        for spec in specs {
            for pattern in &spec.columns {
                columns.push(ColumnPattern::compile(pattern, spec.with, &key)?);
            }
            for pattern in &spec.json {
                places.push(PlacePattern::compile(pattern, spec.with, &key)?);
            }
            for &detector in &spec.detect {
                match wanted.iter_mut().find(|(known, _)| *known == detector) {
                    Some((_, with)) => *with = (*with).min(spec.with),
                    None => wanted.push((detector, spec.with)),
                }
            }
        }
        let by_place = specs.iter().filter(|spec| !spec.columns.is_empty() || !spec.json.is_empty());
        let unresolved = by_place.map(|spec| spec.unresolved).max().unwrap_or_default();
        let (columns, places, detectors) = (columns.into(), places.into(), Detectors::new(&wanted));
        Ok(Self(Arc::new(Compiled { columns, places, detectors, labels: Labels::new(), key, unresolved })))
    }

    /// A set without masks; it still scrubs known secrets.
    pub fn none() -> Self {
        let key = Arc::new(HashKey([0; 32]));
        let (detectors, unresolved) = (Detectors::new(&[]), Unresolved::default());
        let (columns, places) = (Box::default(), Box::default());
        Self(Arc::new(Compiled { columns, places, detectors, labels: Labels::new(), key, unresolved }))
    }

    /// Whether it is the same set, not only an equal one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the policy asks for no mask at all. Known secrets are scrubbed even so.
    pub fn is_empty(&self) -> bool {
        !self.has_columns() && !self.has_places() && !self.has_detectors()
    }

    /// Whether any column is masked.
    pub fn has_columns(&self) -> bool {
        !self.0.columns.is_empty()
    }

    /// Whether any place in JSON is masked.
    pub fn has_places(&self) -> bool {
        !self.0.places.is_empty()
    }

    /// The strictest mask of a place in JSON: `$`, then each name in lower case behind a `/`.
    fn place(&self, path: &str) -> Option<ColumnMask> {
        let strictest = self.0.places.iter().filter(|p| p.matches(path)).min_by_key(|p| p.mask.with)?;
        Some(strictest.mask.clone())
    }

    /// What happens to a result that cannot be traced.
    pub fn unresolved(&self) -> Unresolved {
        self.0.unresolved
    }

    /// Whether any detector is on.
    pub fn has_detectors(&self) -> bool {
        self.0.detectors.any()
    }

    /// The strictest mask of a column, given by its parts as the catalogue has them (not quoted). See
    /// [`ColumnMask`] for what patterns match.
    pub fn column(&self, schema: &str, table: &str, column: &str) -> Option<ColumnMask> {
        if self.0.columns.is_empty() {
            return None;
        }
        let target = column::canonical(&[schema, table, column]);
        let strictest = self.0.columns.iter().filter(|p| p.matches(&target)).min_by_key(|p| p.mask.with)?;
        Some(strictest.mask.clone())
    }

    /// Whether some masked column, of whatever table, may have this name (not quoted).
    pub fn may_name_column(&self, identifier: &str) -> bool {
        if self.0.columns.is_empty() {
            return false;
        }
        let name = column::canonical(&[identifier]);
        self.0.columns.iter().any(|p| p.matches_name(&name))
    }

    /// Masks whatever the detectors and the known secrets find in a text. Null is answered where a detector that
    /// found something is masked with [`MaskWith::Null`].
    pub fn scrub<'a>(&self, text: &'a [u8], secrets: &KnownSecrets, hits: &mut Hits) -> Masked<'a> {
        let mut found = SmallVec::new();
        self.find(text, secrets, &mut found);
        if found.is_empty() {
            return Masked::Unchanged;
        }
        merge(&mut found);
        let mut out = Vec::with_capacity(text.len() + 16);
        let mut at = 0;
        let mut null = false;
        for range in &found {
            self.count(range, hits);
            null |= range.with == MaskWith::Null;
            out.extend_from_slice(&text[at..range.start]);
            self.replace(range, text, &mut out);
            at = range.end;
        }
        if null {
            return Masked::Null;
        }
        out.extend_from_slice(&text[at..]);
        Masked::Text(Cow::Owned(out))
    }

    /// Whether neither the detectors nor the known secrets find anything in a text.
    pub fn is_clean(&self, text: &[u8], secrets: &KnownSecrets) -> bool {
        let mut found = SmallVec::new();
        self.find(text, secrets, &mut found);
        found.is_empty()
    }

    fn find(&self, text: &[u8], secrets: &KnownSecrets, found: &mut SmallVec<[Found; 4]>) {
        secrets.find(text, |range| found.push(secret(range)));
        // What stands beside a secret ends where that begins: with it gone, it would be found in what is left.
        if !found.is_empty() && self.has_detectors() {
            let mut beside = SmallVec::<[Found; 4]>::new();
            merge(found);
            let ends = found.iter().map(|f| f.end);
            let starts = found.iter().map(|f| f.start).chain([text.len()]);
            for (from, to) in std::iter::once(0).chain(ends).zip(starts) {
                let first = beside.len();
                self.0.detectors.find(&text[from..to], &mut beside);
                for range in &mut beside[first..] {
                    range.start += from;
                    range.end += from;
                }
            }
            found.extend(beside);
        }
        self.0.detectors.find(text, found);
    }

    fn count(&self, range: &Found, hits: &mut Hits) {
        hits.add(self.0.labels.of(range.kind));
    }

    fn replace(&self, range: &Found, text: &[u8], out: &mut Vec<u8>) {
        fit::write(range.with, &text[range.start..range.end], &self.0.key, out);
    }
}

fn secret(range: std::ops::Range<usize>) -> Found {
    Found { start: range.start, end: range.end, kind: Kind::KnownSecret, with: MaskWith::Redact }
}

/// Sorts ranges and merges those that overlap; the stricter mask stays, and a known secret's name.
fn merge(found: &mut SmallVec<[Found; 4]>) {
    found.sort_unstable_by_key(|f| (f.start, f.end));
    let mut last = 0;
    for i in 1..found.len() {
        let next = found[i];
        let open = &mut found[last];
        if next.start < open.end {
            open.end = open.end.max(next.end);
            open.with = open.with.min(next.with);
            if next.kind == Kind::KnownSecret {
                open.kind = next.kind;
            }
        } else {
            last += 1;
            found[last] = next;
        }
    }
    found.truncate(last + 1);
}

impl Labels {
    fn new() -> Self {
        Self { detectors: detect::ALL.map(|d| Arc::from(d.as_str())), known_secret: Arc::from("known_secret") }
    }

    fn of(&self, kind: Kind) -> &Arc<str> {
        match kind {
            Kind::Detected(detector) => &self.detectors[detect::index(detector)],
            Kind::KnownSecret => &self.known_secret,
        }
    }
}
