//! The recorder: one writer, appended to from any thread.
//!
//! `append` serialises outside of the lock, in short ([`brief`]) where the segment allows it, then takes it for a hash and
//! a copy into the mapped tail; it never waits for a disk. Two threads do that: one syncs what was asked for at once and everything else within
//! [`SYNC_WITHIN`], the other prepares, seals and prunes segments. One file, because all of it is what the one lock guards.

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};

use super::{
    Event, EventBody, Follower, Parts, RecordError, Told,
    brief::{self, STAMP_BLANK},
    clock::Clock,
    follow::Following,
    format::{HEADER, Hash, RECORD, SegmentHeader, link},
    keys::{PublicKey, Signer},
    open::{self, Allocate, Lock, Spare},
    syncing,
    tail::{TailMap, TailWriter},
    upkeep,
};

/// Everything is on disk this long after it was appended, at the latest.
pub(super) const SYNC_WITHIN: Duration = Duration::from_millis(100);

/// How long a full disk is believed to be full.
const FULL_FOR: Duration = Duration::from_secs(1);

/// How the record is kept.
#[derive(Clone, Debug)]
pub struct RecordSettings {
    /// Its folder; made with mode 0700.
    pub dir: PathBuf,
    /// Bytes of a segment before it is sealed.
    pub segment_bytes: u64,
    /// Sealed segments whose last event is older are removed.
    pub max_age: Option<Duration>,
    /// The oldest sealed segments are removed while the record is larger, in bytes on disk.
    pub max_bytes: Option<u64>,
    /// How blocks are set aside for a new segment.
    pub(super) allocate: Allocate,
}

impl RecordSettings {
    /// The defaults: segments of 64 MiB, nothing removed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), segment_bytes: 64 << 20, max_age: None, max_bytes: None, allocate: open::allocate }
    }
}

/// An event's place in the log: its sequence number, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub(super) u64);

impl Position {
    /// The sequence number.
    pub fn sequence(self) -> u64 {
        self.0
    }
}

/// An event with its place.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its place.
    pub position: Position,
    /// The event, with its timestamp.
    pub event: Arc<Event>,
}

/// Writes the record. Clones share one log; the last one to go syncs and closes it.
#[derive(Clone)]
pub struct Recorder {
    closer: Arc<Closer>,
}

struct Closer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

pub(super) struct Shared {
    pub(super) settings: RecordSettings,
    pub(super) key: Signer,
    pub(super) state: Mutex<State>,
    /// Wakes the syncing thread.
    pub(super) wake_sync: Condvar,
    /// Wakes the upkeep thread.
    pub(super) wake_upkeep: Condvar,
    pub(super) durable: watch::Sender<Durable>,
    pub(super) events: broadcast::Sender<Recorded>,
    /// How many follow; grows under the lock of `state`.
    followers: Arc<AtomicUsize>,
    /// Number of the segment that is written; changes under the lock of `state`.
    segment: AtomicU64,
    _lock: Lock,
}

/// How far the log is known to be on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) seq: u64,
    pub(super) failed: Option<Arc<str>>,
}

pub(super) struct State {
    pub(super) active: Active,
    /// Segments that are full and not yet known to be on disk.
    pub(super) retired: Vec<TailMap>,
    /// Segments that are full and on disk, to be sealed.
    pub(super) to_seal: Vec<u64>,
    /// A prepared, empty segment.
    pub(super) spare: Option<Spare>,
    pub(super) spare_wanted: bool,
    /// Somebody waits for this sequence number to be on disk.
    pub(super) requested: u64,
    /// Something is not on disk yet, since then.
    pub(super) dirty: Option<Instant>,
    pub(super) failed: Option<Arc<str>>,
    pub(super) closing: bool,
    pub(super) full_until: Option<Instant>,
    clock: Clock,
}

/// The segment that is written.
pub(super) struct Active {
    pub(super) writer: TailWriter,
    pub(super) number: u64,
    pub(super) offset: usize,
    /// Sequence number of the last event.
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

impl Recorder {
    /// Opens a log or begins one. What a killed daemon left half-written at the end is removed, and an event says so.
    /// Errors: another process has it, the disk is full, or it is damaged in a way that a crash does not explain.
    pub fn open(settings: &RecordSettings) -> Result<Self, RecordError> {
        let opened = open::open(settings)?;
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            durable: watch::channel(Durable { seq: opened.durable_seq, failed: None }).0,
            events: broadcast::channel(1024).0,
            followers: Arc::default(),
            segment: AtomicU64::new(opened.active.number),
            state: Mutex::new(State {
                active: opened.active,
                retired: Vec::new(),
                to_seal: opened.to_seal,
                spare: None,
                spare_wanted: false,
                requested: 0,
                dirty: Some(Instant::now()),
                failed: None,
                closing: false,
                full_until: None,
                clock: Clock::default(),
            }),
            wake_sync: Condvar::new(),
            wake_upkeep: Condvar::new(),
            key: opened.key,
            _lock: opened.lock,
        });
        let failed = |source| RecordError::Io { what: "start a thread for", path: settings.dir.clone(), source };
        let recorder = Self { closer: Arc::new(Closer { shared: shared.clone(), threads: Mutex::default() }) };
        let spawn = |name: &str, run: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&shared)).map_err(failed)?;
            recorder.closer.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            Ok::<_, RecordError>(())
        };
        let head = opened.head;
        spawn("record-sync", Box::new(move |shared| syncing::run(shared, head)))?;
        spawn("record-upkeep", Box::new(upkeep::run))?;
        if let Some(what) = opened.repaired {
            recorder.append(Event::daemon(what))?;
        }
        Ok(recorder)
    }

    /// Appends an event, with the time of now. Once this returned, the event survives the death of the process; see
    /// [`Recorder::sync`] for the death of the host. Never waits for a disk. Any error means that it was not recorded.
    pub fn append(&self, event: Event) -> Result<Position, RecordError> {
        self.shared().append(event, None)
    }

    /// The same for an event of a connection, each of whose events names the same `told`: those after the first of a
    /// segment may leave out what that has told, and `whole` is asked for it only where they do not.
    pub fn append_of(
        &self,
        told: &Told,
        connection: u64,
        body: EventBody,
        whole: impl FnOnce(EventBody) -> Event,
    ) -> Result<Position, RecordError> {
        let short = |bytes: &mut Vec<u8>| brief::write(connection, &body, bytes);
        if let Some(position) = self.shared().append_short(told, short)? {
            return Ok(position);
        }
        self.shared().append(whole(body), Some(told))
    }

    /// The same for an event in parts that somebody else has.
    pub fn append_parts(
        &self,
        told: &Told,
        connection: u64,
        parts: Parts<'_>,
        whole: impl FnOnce(EventBody) -> Event,
    ) -> Result<Position, RecordError> {
        let short = |bytes: &mut Vec<u8>| {
            parts.write(connection, bytes);
            Some(())
        };
        if let Some(position) = self.shared().append_short(told, short)? {
            return Ok(position);
        }
        self.shared().append(whole(parts.to_body()), Some(told))
    }

    /// Waits until everything up to a position is on disk, together with whoever else waits. Cancel safe.
    pub async fn sync(&self, position: Position) -> Result<(), RecordError> {
        let shared = self.shared();
        let mut durable = shared.durable.subscribe();
        {
            let now = durable.borrow();
            if now.seq >= position.0 {
                return Ok(());
            }
        }
        {
            let mut state = shared.lock();
            state.requested = state.requested.max(position.0);
        }
        shared.wake_sync.notify_one();
        let reached = durable
            .wait_for(|durable| durable.seq >= position.0 || durable.failed.is_some())
            .await
            .map_err(|_| RecordError::Closed)?;
        match &reached.failed {
            Some(why) if reached.seq < position.0 => Err(RecordError::Failed(why.clone())),
            _ => Ok(()),
        }
    }

    /// [`Recorder::append`], then [`Recorder::sync`]: for what must be on disk before it happens.
    pub async fn append_synced(&self, event: Event) -> Result<Position, RecordError> {
        let position = self.append(event)?;
        self.sync(position).await?;
        Ok(position)
    }

    /// Every event from now on.
    pub fn follow(&self) -> Follower {
        let shared = self.shared();
        let state = shared.lock();
        let following = Following::new(&shared.followers);
        Follower::new(shared.settings.dir.clone(), state.active.seq + 1, shared.events.subscribe(), following)
    }

    /// The place of the last event.
    pub fn last(&self) -> Position {
        Position(self.shared().lock().active.seq)
    }

    /// The place of the last event that is known to be on disk.
    pub fn durable(&self) -> Position {
        Position(self.shared().durable.borrow().seq)
    }

    /// The key that signs this log.
    pub fn public_key(&self) -> PublicKey {
        self.shared().key.public()
    }

    /// Applies the retention of the settings as if it were `now`; done in the background too. Returns how many sealed
    /// segments were removed.
    pub fn prune(&self, now: Timestamp) -> Result<u64, RecordError> {
        upkeep::prune(self.shared(), now)
    }

    /// Syncs everything and closes the log. Appending fails from then on. Blocks for as long as the disk takes.
    pub fn close(&self) -> Result<(), RecordError> {
        self.closer.close();
        let durable = self.shared().durable.borrow();
        durable.failed.as_ref().map_or(Ok(()), |why| Err(RecordError::Failed(why.clone())))
    }

    #[cfg(test)]
    pub(super) fn rotate_for_tests(&self) {
        let shared = self.shared();
        shared.rotate(&mut shared.lock()).expect("there is space");
    }

    #[cfg(test)]
    pub(super) fn with_state_for_tests(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared().lock());
    }

    fn shared(&self) -> &Shared {
        &self.closer.shared
    }
}

impl Closer {
    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake_sync.notify_all();
        self.shared.wake_upkeep.notify_all();
        let threads: Vec<_> = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the recorder panicked");
            }
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic within the lock may have left a half-written record behind: nothing more may be appended.
        self.state.lock().unwrap_or_else(|poisoned| {
            let mut state = poisoned.into_inner();
            state.failed.get_or_insert_with(|| "the recorder panicked".into());
            state
        })
    }

    /// In short, where the segment that is written knows the connection and nobody follows.
    fn append_short(
        &self,
        told: &Told,
        write: impl FnOnce(&mut Vec<u8>) -> Option<()>,
    ) -> Result<Option<Position>, RecordError> {
        let segment = self.segment.load(Ordering::Acquire);
        if !told.is(segment) || self.followers.load(Ordering::Relaxed) > 0 {
            return Ok(None);
        }
        buffered(|bytes| match write(bytes) {
            Some(()) => self.append_bytes(bytes, None, Form::Short(segment)),
            None => Ok(None),
        })
    }

    pub(super) fn append(&self, mut event: Event, told: Option<&Told>) -> Result<Position, RecordError> {
        event.timestamp.clear();
        event.timestamp.push_str(STAMP_BLANK);
        buffered(|bytes| {
            let segment = self.segment.load(Ordering::Acquire);
            if told.is_some_and(|told| told.is(segment))
                && brief::write(event.connection_id, &event.body, bytes).is_some()
                && let Some(position) = self.append_bytes(bytes, Some(&mut event), Form::Short(segment))?
            {
                return Ok(position);
            }
            bytes.clear();
            serde_json::to_writer(&mut *bytes, &event)?;
            let told = told.filter(|_| brief::tells(&event.body));
            self.append_bytes(bytes, Some(&mut event), Form::Full(told))?.ok_or(RecordError::Closed)
        })
    }

    /// `None` where the segment is not the one that an event in short is meant for, or somebody follows and there is no
    /// `event` to show.
    fn append_bytes(
        &self,
        json: &mut [u8],
        event: Option<&mut Event>,
        form: Form<'_>,
    ) -> Result<Option<Position>, RecordError> {
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            return Err(RecordError::Failed(why.clone()));
        }
        if state.closing {
            return Err(RecordError::Closed);
        }
        let limit = (self.settings.segment_bytes as usize).saturating_sub(HEADER + RECORD).min(u32::MAX as usize);
        if json.len() > limit {
            return Err(RecordError::TooLarge { size: json.len(), limit });
        }
        if state.active.writer.len() - state.active.offset < RECORD + json.len() {
            self.rotate(&mut state)?;
            if state.active.writer.len() - state.active.offset < RECORD + json.len() {
                // A segment of an older, smaller setting.
                return Err(RecordError::TooLarge { size: json.len(), limit: state.active.writer.len() });
            }
        }
        let followed = self.followers.load(Ordering::Relaxed) > 0;
        if matches!(form, Form::Short(segment) if segment != state.active.number) || (followed && event.is_none()) {
            return Ok(None);
        }
        // Taken under the lock, so that times follow the order as far as the clock does.
        let stamp = state.clock.stamp(Timestamp::now());
        let place = brief::stamp(json);
        json[place].copy_from_slice(stamp.as_bytes());
        let seen = event.filter(|_| followed).map(|event| {
            event.timestamp.clear();
            event.timestamp.push_str(stamp);
            Arc::new(event.clone())
        });

        let length = json.len() as u32;
        let active = &mut state.active;
        let hash = link(&active.hash, length, json);
        active.writer.put(active.offset + 4, &hash);
        active.writer.put(active.offset + RECORD, json);
        active.writer.publish(active.offset, length);
        active.offset += RECORD + json.len();
        active.hash = hash;
        active.seq += 1;
        let position = Position(active.seq);
        if let Form::Full(Some(told)) = form {
            told.set(active.number);
        }

        let half_full = active.offset > active.writer.len() / 2;
        if half_full && state.spare.is_none() && !state.spare_wanted {
            state.spare_wanted = true;
            self.wake_upkeep.notify_one();
        }
        if let Some(event) = seen {
            // Sent under the lock, so that followers see the order of the log.
            let _ = self.events.send(Recorded { position, event });
        }
        if state.dirty.is_none() {
            state.dirty = Some(Instant::now());
            drop(state);
            self.wake_sync.notify_one();
        }
        Ok(Some(position))
    }

    /// Goes on to a new segment. On failure the old one stays, with whatever room it has.
    fn rotate(&self, state: &mut State) -> Result<(), RecordError> {
        if state.full_until.is_some_and(|until| Instant::now() < until) {
            return Err(RecordError::Full);
        }
        let spare = match state.spare.take() {
            Some(spare) => spare,
            None => open::make_spare(&self.settings, "spare.now").inspect_err(|error| {
                if matches!(error, RecordError::Full) {
                    state.full_until = Some(Instant::now() + FULL_FOR);
                }
            })?,
        };
        state.full_until = None;
        state.spare_wanted = false;
        let old = &state.active;
        let header = SegmentHeader {
            number: old.number + 1,
            first_seq: old.seq + 1,
            created_us: open::now_us(),
            previous: old.hash,
        };
        let next = open::begin(&self.settings.dir, spare, &header)?;
        self.segment.store(next.number, Ordering::Release);
        let old = std::mem::replace(&mut state.active, next);
        state.retired.push(old.writer.shared());
        state.to_seal.push(old.number);
        // Its last events and the new name are synced together.
        state.dirty.get_or_insert_with(Instant::now);
        self.wake_sync.notify_one();
        self.wake_upkeep.notify_one();
        Ok(())
    }
}

/// Gives an empty buffer, which the thread keeps.
fn buffered<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|bytes| {
        bytes.clear();
        let written = write(bytes);
        // One huge event must not keep its memory in every thread.
        if bytes.capacity() > 1 << 20 {
            bytes.shrink_to(64 << 10);
        }
        written
    })
}

/// How the bytes of an event tell it.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// As JSON. It tells what others of its connection leave out, where that is given.
    Full(Option<&'a Told>),
    /// In short, for this segment.
    Short(u64),
}

impl Event {
    /// An event about the daemon itself.
    pub fn daemon(what: impl Into<String>) -> Self {
        Self {
            timestamp: String::new(),
            tenant: None,
            workload: "".into(),
            session_id: "".into(),
            connection_id: 0,
            trace_id: None,
            upstream: None,
            body: EventBody::Daemon { what: what.into() },
        }
    }
}
