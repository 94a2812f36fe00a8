//! The maps that the agent reads and writes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf, SkStorage},
};
use portcullis_ebpf::{Enforcer, RawAnswer, RawOrigin, Reason, Reporting, Tuple, UnixPlaces};

use super::{
    BpfError,
    listeners::{self, Listeners},
    lsm,
    names::{self, Answers},
    unix,
};

/// Each behind what its use needs.
pub(super) struct Maps {
    pub(super) enforcer: Mutex<Array<MapData, Enforcer>>,
    heartbeat: Mutex<Array<MapData, u64>>,
    pub(super) sessions: Mutex<HashMap<MapData, u64, u32>>,
    pub(super) origins: SkStorage<MapData, RawOrigin>,
    pub(super) listeners: Listeners,
    tuples: HashMap<MapData, Tuple, RawOrigin>,
    pub(super) unix: unix::Paths,
    pub(super) places: Mutex<Array<MapData, UnixPlaces>>,
    refused: PerCpuArray<MapData, u64>,
    reporting: HashMap<MapData, u64, Reporting>,
    pub(super) lsm: lsm::Maps,
    /// Until somebody reads it.
    pub(super) refusals: Mutex<Option<RingBuf<MapData>>>,
    /// As above.
    pub(super) questions: Mutex<Option<RingBuf<MapData>>>,
    pub(super) answers: Answers,
}

impl Maps {
    /// Every map of the object; all are pinned.
    pub(super) const NAMES: [&str; 18] = [
        "ENFORCER",
        "HEARTBEAT",
        "SESSIONS",
        "ORIGINS",
        "TUPLES",
        unix::TABLE,
        "UNIX_PLACES",
        "REFUSED",
        "REPORTING",
        "REFUSALS",
        listeners::TABLE,
        listeners::STORAGE,
        lsm::GOVERNED,
        lsm::PLACES,
        lsm::CALLS,
        names::QUESTIONS,
        names::ANSWERS,
        names::ASKING,
    ];

    /// From the object that they were loaded with.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        let [
            enforcer,
            heartbeat,
            sessions,
            origins,
            tuples,
            paths,
            places,
            refused,
            reporting,
            refusals,
            table,
            storage,
            governed,
            lsm_places,
            calls,
            questions,
            answers,
            _,
        ] = Self::NAMES;
        Ok(Self {
            enforcer: Mutex::new(take(object, enforcer, Array::try_from)?),
            heartbeat: Mutex::new(take(object, heartbeat, Array::try_from)?),
            sessions: Mutex::new(take(object, sessions, HashMap::try_from)?),
            origins: take(object, origins, SkStorage::try_from)?,
            listeners: Listeners::new(
                take(object, table, HashMap::try_from)?,
                take(object, storage, SkStorage::try_from)?,
            ),
            tuples: take(object, tuples, HashMap::try_from)?,
            unix: unix::Paths::new(take(object, paths, HashMap::try_from)?),
            places: Mutex::new(take(object, places, Array::try_from)?),
            refused: take(object, refused, PerCpuArray::try_from)?,
            reporting: take(object, reporting, HashMap::try_from)?,
            lsm: lsm::Maps::new(
                take(object, governed, HashMap::try_from)?,
                take(object, lsm_places, Array::try_from)?,
                take(object, calls, PerCpuArray::try_from)?,
            ),
            refusals: Mutex::new(Some(take(object, refusals, RingBuf::try_from)?)),
            questions: Mutex::new(Some(take(object, questions, RingBuf::try_from)?)),
            answers: Answers::new(take(object, answers, HashMap::try_from)?),
        })
    }

    /// Refuses every new connection: no heartbeat, no sessions, no listeners. The listeners' addresses stay: packets of connections
    /// that an earlier enforcer had not accepted yet reach the next one, if it listens on the same ports.
    pub(super) fn reset(&self) -> Result<(), BpfError> {
        self.beat(0)?;
        let map = Self::NAMES[2];
        let mut sessions = lock(&self.sessions);
        let known = sessions.keys().collect::<Result<Vec<_>, _>>().map_err(|source| BpfError::Map { map, source })?;
        for id in known {
            absent_is_fine(sessions.remove(&id)).map_err(|source| BpfError::Map { map, source })?;
        }
        self.listeners.reset()?;
        self.unix.reset()
    }

    /// Sets the time of the last heartbeat; 0 for an enforcer that is not alive.
    pub(super) fn beat(&self, at: u64) -> Result<(), BpfError> {
        lock(&self.heartbeat).set(0, at, 0).map_err(|source| BpfError::Map { map: Self::NAMES[1], source })
    }

    /// The time of the last heartbeat; 0 where the enforcer said that it stops.
    pub(super) fn beaten(&self) -> Result<u64, BpfError> {
        lock(&self.heartbeat).get(&0, 0).map_err(|source| BpfError::Map { map: Self::NAMES[1], source })
    }

    /// How much was refused so far for this reason, on all processors.
    pub(super) fn refused(&self, reason: Reason) -> Result<u64, BpfError> {
        let counts = self.refused.get(&(reason as u32), 0);
        let counts = counts.map_err(|source| BpfError::Map { map: Self::NAMES[7], source })?;
        Ok(counts.iter().sum())
    }

    /// How much each table holds.
    pub(super) fn entries(&self) -> Result<Vec<(&'static str, usize)>, BpfError> {
        let tuples = count(Self::NAMES[4], self.tuples.keys())?;
        let sessions = count(Self::NAMES[2], lock(&self.sessions).keys())?;
        Ok(vec![
            (Self::NAMES[2], sessions),
            (Self::NAMES[4], tuples),
            (unix::TABLE, self.unix.entries()?),
            (listeners::TABLE, self.listeners.entries()?),
        ])
    }

    /// How many refusals of each cgroup were not told so far. A cgroup that was quiet for long may be missing.
    pub(super) fn left_out(&self) -> Vec<(u64, u64)> {
        // Entries come and go while they are read; one that went has nothing to say.
        self.reporting.iter().flatten().map(|(cgroup, reporting)| (cgroup, reporting.left_out)).collect()
    }
}

fn take<M>(
    object: &mut Ebpf,
    name: &'static str,
    into: impl FnOnce(Map) -> Result<M, MapError>,
) -> Result<M, BpfError> {
    let map = object.take_map(name).ok_or(BpfError::Incomplete { what: name })?;
    into(map).map_err(|source| BpfError::Map { map: name, source })
}

/// How many keys a table has.
pub(super) fn count<K>(
    map: &'static str,
    mut keys: impl Iterator<Item = Result<K, MapError>>,
) -> Result<usize, BpfError> {
    keys.try_fold(0, |n, key| key.map(|_| n + 1)).map_err(|source| BpfError::Map { map, source })
}

/// Removing what is not there is no error.
pub(super) fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(e) if is_not_found(&e) => Ok(()),
        removed => removed,
    }
}

/// Whether the kernel has no such entry.
pub(super) fn is_not_found(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::ENOENT))
}

/// None of these is left half changed by a panic: each guards single calls.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values that go into maps have no padding whose bytes would be undefined.
const _: fn() = || {
    fn plain<T: Pod>() {}
    plain::<Enforcer>();
    plain::<RawOrigin>();
    plain::<RawAnswer>();
};
