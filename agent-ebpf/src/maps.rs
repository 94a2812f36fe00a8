//! Maps, and the few helper calls on them that aya does not offer for every program type.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::{generated::bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::btf_map,
};
use core::{ffi::c_void, ptr};
use portcullis_ebpf::{
    Enforcer, HEARTBEAT_STALE_NS, Listener, LsmPlaces, MAX_ANSWERS, MAX_GOVERNED, MAX_LISTENERS, MAX_REPORTING,
    MAX_SESSIONS, MAX_TUPLES, MAX_UNIX_PATHS, QUESTION_RING_BYTES, REFUSAL_BYTES, RawAnswer, RawOrigin, Reason,
    Reporting, ToldQuestion, ToldRefusal, Tuple, UNIX_PATH_ROOM, UnixPath, UnixPlaces,
};

/// Entry 0: the enforcer's listeners.
#[btf_map]
pub static ENFORCER: Array<Enforcer, 1> = Array::new();

/// Entry 0: the monotonic time, in nanoseconds, at which the enforcer last said that it is alive.
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();

/// cgroup ids of running sessions. A task in a governed cgroup that is not here connects nowhere.
#[btf_map]
pub static SESSIONS: HashMap<u64, u32, MAX_SESSIONS> = HashMap::new();

/// Origin of a socket: of a client's own, from `connect()` on; of an accepted one in the enforcer, from the handshake on;
/// of a UDP socket, of the name server that it asked last.
#[btf_map]
pub static ORIGINS: SkStorage<RawOrigin> = SkStorage::new();

/// Origins on their way from the client's socket to the accepted one.
#[btf_map]
pub static TUPLES: HashMap<Tuple, RawOrigin, MAX_TUPLES> = HashMap::new();

/// Where the enforcer has sockets, and the cookie of each. Elsewhere a governed connection would come to whoever has
/// the same port there. The kernel takes an entry out as its socket closes, whatever became of the process.
#[btf_map]
pub static LISTENERS: HashMap<Listener, u64, MAX_LISTENERS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Questions over UDP, for the agent to read.
#[btf_map]
pub static QUESTIONS: RingBuf<ToldQuestion, QUESTION_RING_BYTES> = RingBuf::new();

/// How often sessions asked over UDP.
#[btf_map]
pub static ASKING: LruHashMap<u64, Reporting, MAX_REPORTING> = LruHashMap::new();

/// Answers on their way, with the time at which each was sent.
#[btf_map]
pub static ANSWERS: LruHashMap<RawAnswer, u64, MAX_ANSWERS> = LruHashMap::new();

/// With a listening socket of the enforcer: its entry.
#[btf_map]
pub static LISTENING: SkStorage<Listener> = SkStorage::new();

/// Unix sockets that sessions may reach. Most hosts have a few; memory is taken as they come.
#[btf_map]
pub static UNIX_PATHS: HashMap<UnixPath, u32, MAX_UNIX_PATHS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Entry 0: where the kernel keeps the name of a unix socket's peer.
#[btf_map]
pub static UNIX_PLACES: Array<UnixPlaces, 1> = Array::new();

/// Governed cgroups, for programs that see the whole host.
#[btf_map]
pub static GOVERNED: HashMap<u64, u32, MAX_GOVERNED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Entry 0: where the kernel keeps what those programs read.
#[btf_map]
pub static LSM_PLACES: Array<LsmPlaces, 1> = Array::new();

/// Entry 0: how many sockets they saw being made on the host, by whomever. Where it stands still the kernel took the
/// programs and calls none.
#[btf_map]
pub static LSM_CALLS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// How much was refused, by [`Reason`].
#[btf_map]
pub static REFUSED: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();

/// Refusals for the agent to read.
#[btf_map]
pub static REFUSALS: RingBuf<ToldRefusal, REFUSAL_BYTES> = RingBuf::new();

/// How often cgroups were told of.
#[btf_map]
pub static REPORTING: LruHashMap<u64, Reporting, MAX_REPORTING> = LruHashMap::new();

/// The enforcer's listeners, or `None` before it has said where they are.
#[inline(always)]
pub fn enforcer() -> Option<&'static Enforcer> {
    ENFORCER.get(0)
}

/// Whether an enforcer is alive.
#[inline(always)]
pub fn alive() -> bool {
    let Some(beat) = HEARTBEAT.get(0) else { return false };
    // Read before the clock, and exactly once, or a beat in between would look like one from the future.
    // SAFETY: a map value is valid while the program runs.
    let beat = unsafe { ptr::read_volatile(beat) };
    // SAFETY: the helper takes no argument and has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    beat != 0 && now.wrapping_sub(beat) < HEARTBEAT_STALE_NS
}

/// Whether the cgroup belongs to a running session.
#[inline(always)]
pub fn is_session(cgroup_id: u64) -> bool {
    // SAFETY: only the presence is used, never the value, so a concurrent removal cannot be seen half done.
    unsafe { SESSIONS.get(&cgroup_id) }.is_some()
}

/// Whether this very cgroup is governed as a whole.
#[inline(always)]
pub fn is_governed(cgroup_id: u64) -> bool {
    // SAFETY: as in `is_session`.
    unsafe { GOVERNED.get(&cgroup_id) }.is_some()
}

/// Where the kernel keeps what the security module's programs read, or `None` before the agent has said so.
#[inline(always)]
pub fn lsm_places() -> Option<&'static LsmPlaces> {
    LSM_PLACES.get(0).filter(|places| places.known != 0)
}

/// Whether the enforcer has a socket of this family and protocol in this network namespace.
#[inline(always)]
pub fn listens(netns_cookie: u64, family: u32, protocol: u32) -> bool {
    // SAFETY: as in `is_session`.
    unsafe { LISTENERS.get(&Listener { netns_cookie, family, protocol }) }.is_some()
}

/// The entry of a listening socket of the enforcer; `None` for any other socket.
///
/// # Safety
/// `sk` must be a socket that the kernel handed to the program.
#[inline(always)]
pub unsafe fn listener_of(sk: *mut c_void) -> Option<&'static Listener> {
    let map = (&raw const LISTENING).cast_mut().cast();
    // SAFETY: the map is an SK_STORAGE map and `sk` a socket; the result is null or a value of the map.
    unsafe { bpf_sk_storage_get(map, sk, ptr::null_mut(), 0).cast::<Listener>().as_ref() }
}

/// Where the kernel keeps the name of a unix socket's peer, or `None` before the agent has said so.
#[inline(always)]
pub fn unix_places() -> Option<UnixPlaces> {
    let places = *UNIX_PLACES.get(0)?;
    (places.address != 0 && places.length != 0).then_some(places)
}

/// Whether the session may reach this unix socket.
#[inline(always)]
pub fn is_unix_path(key: &UnixPath) -> bool {
    // SAFETY: as in `is_session`.
    unsafe { UNIX_PATHS.get(key) }.is_some()
}

/// Length of the path of the session's own folder of unix sockets; 0 where it has none. The length lies beside its paths
/// under the empty one, which is no path.
#[inline(always)]
pub fn unix_folder_length(cgroup_id: u64) -> u32 {
    let key = UnixPath { cgroup_id, path: [0; UNIX_PATH_ROOM] };
    // SAFETY: a number that is written whole.
    unsafe { UNIX_PATHS.get(&key) }.copied().unwrap_or(0)
}

/// The origin kept with a socket, if there is one.
///
/// # Safety
/// `sk` must be a socket that the kernel handed to the program, checked for null.
#[inline(always)]
pub unsafe fn origin_of(sk: *mut c_void) -> Option<&'static RawOrigin> {
    // SAFETY: the map is an SK_STORAGE map and `sk` a socket; the result is null or a value of the map.
    unsafe { bpf_sk_storage_get(storage(), sk, ptr::null_mut(), 0).cast::<RawOrigin>().as_ref() }
}

/// Keeps an origin with a socket, over an older one. False when the kernel had no memory for it.
///
/// # Safety
/// As for [`origin_of`].
#[inline(always)]
pub unsafe fn keep_origin(sk: *mut c_void, origin: &RawOrigin) -> bool {
    let value = ptr::from_ref(origin).cast_mut();
    // SAFETY: as above; `value` is as long as the map's values.
    unsafe {
        let kept = bpf_sk_storage_get(storage(), sk, value.cast(), BPF_SK_STORAGE_GET_F_CREATE as u64);
        let Some(kept) = kept.cast::<RawOrigin>().as_mut() else { return false };
        // The value is only used when the storage is new; a socket may connect a second time.
        *kept = *origin;
    }
    true
}

#[inline(always)]
fn storage() -> *mut c_void {
    (&raw const ORIGINS).cast_mut().cast()
}
