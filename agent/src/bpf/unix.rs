//! Unix sockets: the two hooks that name a peer (Linux 6.7), loaded by hand, and each session's list of paths.
//!
//! `aya` knows neither hook, so it loads everything else, and this module relocates and loads these two against the same
//! pinned maps. Where the kernel has no such hooks, or does not tell where it keeps a peer's name, [`super::lsm`] judges
//! instead. Where it cannot, either, [`super::Kernel::verify`] says so: unix sockets are then open, and the launcher lets a
//! session make none.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Mutex,
};

use aya::maps::{Array, HashMap, MapData};
use portcullis_ebpf::{UNIX_CONTEXT_WORDS, UNIX_PATH_MAX, UNIX_PATH_ROOM, UnixPath, UnixPlaces};
use serde::{Deserialize, Serialize};

use super::{
    BpfError, btf,
    hooks::{Hook, Loaded, UNIX},
    maps::{Maps, absent_is_fine, count, lock},
    pins::Pins,
    sys,
};

/// Whether the kernel's hooks judge to which unix sockets a session connects: those of its cgroup [Linux 6.7], or those of
/// the security module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnixHooks {
    /// They do.
    Attached,
    /// They do not, so a session must have no socket that could be connected.
    #[default]
    Missing,
}

/// Where a kernel shows its types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// The kernel's names of what [`UnixPlaces`] tells.
const CONTEXT: &str = "bpf_sock_addr_kern";
const CONTEXT_FIELDS: [&str; 2] = ["uaddr", "uaddrlen"];

/// Loads both programs, or says why this kernel cannot have them.
pub(super) fn load(object: &[u8], pins: &Pins, places: &mut Array<MapData, UnixPlaces>) -> Result<Vec<Loaded>, String> {
    places.set(0, self::places()?, 0).map_err(|e| e.to_string())?;
    let mut object = aya_obj::Object::parse(object).map_err(|e| e.to_string())?;
    let mut pinned: Vec<(String, OwnedFd)> = Vec::new();
    for name in object.maps.keys().filter(|name| Maps::NAMES.contains(&name.as_str())) {
        let map = sys::open_pinned(&pins.map(name)).map_err(|e| format!("map `{name}`: {e}"))?;
        pinned.push((name.clone(), map));
    }
    let maps = object.maps.clone();
    let maps = pinned.iter().filter_map(|(name, fd)| Some((name.as_str(), fd.as_raw_fd(), maps.get(name)?)));
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps, &sections).map_err(|e| e.to_string())?;
    object.relocate_calls(&sections).map_err(|e| e.to_string())?;
    UNIX.iter().map(|hook| load_one(&object, *hook)).collect()
}

/// The places that the programs need, or why they are not known.
pub(super) fn places() -> Result<UnixPlaces, String> {
    read_places(&kernel_types()?).ok_or_else(|| "the kernel does not tell where it keeps a peer's name".into())
}

/// The running kernel's types, or why they are not known.
pub(super) fn kernel_types() -> Result<Vec<u8>, String> {
    std::fs::read(KERNEL_TYPES).map_err(|e| format!("{KERNEL_TYPES}: {e}"))
}

fn load_one(object: &aya_obj::Object, hook: Hook) -> Result<Loaded, String> {
    let program = object.programs.get(hook.name).ok_or_else(|| format!("the object has no `{}`", hook.name))?;
    let function = object.functions.get(&program.function_key()).ok_or_else(|| format!("`{}` is empty", hook.name))?;
    let loaded = sys::load_sock_addr(&function.instructions, &program.license, hook.attach_type)
        .and_then(|program| Ok((sys::program_id(program.as_fd())?, program)));
    let (id, program) = loaded.map_err(|e| format!("`{}`: {e}", hook.name))?;
    Ok(Loaded { hook, program, id })
}

/// The places that the programs need. They read whole words of the start of the context.
pub(super) fn read_places(types: &[u8]) -> Option<UnixPlaces> {
    let [address, length] = btf::offsets(types, CONTEXT, CONTEXT_FIELDS)?;
    let word = |offset: u32| (offset > 0 && offset.is_multiple_of(8)).then_some(offset / 8);
    let places = UnixPlaces { address: word(address)?, length: word(length)? };
    let last = places.address.max(places.length) as usize;
    (last < UNIX_CONTEXT_WORDS).then_some(places)
}

/// The table of paths, and what is in it.
pub(super) struct Paths {
    table: Mutex<HashMap<MapData, UnixPath, u32>>,
    /// By cgroup of the session; those that are not here were not allowed.
    known: Mutex<BTreeMap<u64, Known>>,
}

/// What a session may reach.
#[derive(Debug, Default)]
struct Known {
    paths: BTreeSet<String>,
    folder: Option<String>,
}

/// Its name among the maps.
pub(super) const TABLE: &str = "UNIX_PATHS";

impl Paths {
    pub(super) fn new(table: HashMap<MapData, UnixPath, u32>) -> Self {
        Self { table: Mutex::new(table), known: Mutex::default() }
    }

    /// Forgets all that an earlier daemon allowed.
    pub(super) fn reset(&self) -> Result<(), BpfError> {
        let mut table = lock(&self.table);
        let failed = |source| BpfError::Map { map: TABLE, source };
        for key in table.keys().collect::<Result<Vec<_>, _>>().map_err(failed)? {
            absent_is_fine(table.remove(&key)).map_err(failed)?;
        }
        Ok(())
    }

    /// How many the table holds.
    pub(super) fn entries(&self) -> Result<usize, BpfError> {
        count(TABLE, lock(&self.table).keys())
    }

    /// Gives a session a folder of its own: an absolute path with a `/` at its end. Every path in it that does not lead
    /// out by `..` may be reached. Does nothing for one that has not begun or has ended.
    pub(super) fn set_folder(&self, cgroup_id: u64, folder: &str) -> Result<(), BpfError> {
        let mut known = lock(&self.known);
        let Some(session) = known.get_mut(&cgroup_id) else { return Ok(()) };
        let bad = || BpfError::UnixPath(folder.to_owned());
        if !folder.ends_with('/') || folder.split('/').any(|segment| segment == "..") {
            return Err(bad());
        }
        let (path, length) = (key(cgroup_id, folder).ok_or_else(bad)?, folder.len() as u32);
        let mut table = lock(&self.table);
        // No path of a list ends with a slash, so none is taken for the folder, and no list takes it away.
        let failed = |source| BpfError::Map { map: TABLE, source };
        table.insert(path, 1, 0).map_err(failed)?;
        table.insert(length_key(cgroup_id), length, 0).map_err(failed)?;
        session.folder = Some(folder.to_owned());
        Ok(())
    }

    /// A session that may reach none yet.
    pub(super) fn begin(&self, cgroup_id: u64) {
        lock(&self.known).entry(cgroup_id).or_default();
    }

    /// Gives a session this list and no other. Does nothing for one that has not begun or has ended.
    pub(super) fn set(&self, cgroup_id: u64, paths: &[&str]) -> Result<(), BpfError> {
        let mut known = lock(&self.known);
        let Some(Known { paths: known, .. }) = known.get_mut(&cgroup_id) else { return Ok(()) };
        let wanted: BTreeSet<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        // What is taken is taken first: if the table fails, a session has less than it should.
        for path in known.difference(&wanted).cloned().collect::<Vec<_>>() {
            self.remove(cgroup_id, &path)?;
            known.remove(&path);
        }
        for path in wanted {
            if !known.contains(&path) {
                let key = key(cgroup_id, &path).ok_or_else(|| BpfError::UnixPath(path.clone()))?;
                lock(&self.table).insert(key, 1, 0).map_err(|source| BpfError::Map { map: TABLE, source })?;
                known.insert(path);
            }
        }
        Ok(())
    }

    /// Takes all that a session had.
    pub(super) fn end(&self, cgroup_id: u64) -> Result<(), BpfError> {
        let mut known = lock(&self.known);
        if let Some(Known { paths, folder }) = known.get(&cgroup_id) {
            absent_is_fine(lock(&self.table).remove(&length_key(cgroup_id)))
                .map_err(|source| BpfError::Map { map: TABLE, source })?;
            for path in paths.iter().chain(folder) {
                self.remove(cgroup_id, path)?;
            }
        }
        known.remove(&cgroup_id);
        Ok(())
    }

    fn remove(&self, cgroup_id: u64, path: &str) -> Result<(), BpfError> {
        let Some(key) = key(cgroup_id, path) else { return Ok(()) };
        absent_is_fine(lock(&self.table).remove(&key)).map_err(|source| BpfError::Map { map: TABLE, source })
    }
}

/// Under which the length of a session's folder lies: the empty path.
fn length_key(cgroup_id: u64) -> UnixPath {
    UnixPath { cgroup_id, path: [0; UNIX_PATH_ROOM] }
}

/// The key of a path. `None` where no client could write it so, or the program would not look it up.
pub(super) fn key(cgroup_id: u64, path: &str) -> Option<UnixPath> {
    let bytes = path.as_bytes();
    if !path.starts_with('/') || bytes.len() > UNIX_PATH_MAX || bytes.contains(&0) {
        return None;
    }
    let mut key = UnixPath { cgroup_id, path: [0; UNIX_PATH_ROOM] };
    key.path.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(key)
}
