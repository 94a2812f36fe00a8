//! The programs of the security module (LSM BPF): loaded where the kernel takes them and calls them, which is found by
//! loading, attaching and looking. The kernel's list of modules does not tell: it may name `bpf` and take none.
//!
//! They close what follows from cgroup hooks being those of a socket's cgroup, whoever uses it: see `lsm.rs` of the
//! programs. Where they cannot be had everything else is as before, and `doctor` says so.
//!
//! Their links are of the host, not of a cgroup, and the kernel cannot give such a link another program. So a new link is
//! pinned over the old one: both enforce until the old one is gone.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Mutex,
};

use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{Program as AyaProgram, ProgramError},
};
use portcullis_ebpf::LsmPlaces;

use super::{
    BpfError, Problem,
    btf::Types,
    maps::{absent_is_fine, lock},
    pins::Pins,
    sys, unix,
};

/// The programs; each is named after its hook.
pub(super) const HOOKS: [&str; 13] = [
    "lsm_socket_create",
    "lsm_socket_connect",
    "lsm_socket_sendmsg",
    "lsm_socket_recvmsg",
    "lsm_socket_bind",
    "lsm_socket_listen",
    "lsm_socket_accept",
    "lsm_socket_setsockopt",
    "lsm_file_receive",
    "lsm_inode_permission",
    "lsm_ptrace_access_check",
    "lsm_bpf",
    "lsm_perf_event_open",
];

/// Those that judge peers of unix sockets, where cgroups have no hooks for that.
pub(super) const PEERS: [&str; 2] = ["lsm_unix_stream_connect", "lsm_unix_may_send"];

/// The one that sees pages go to a socket without a message, on kernels whose protocols have a way of their own for that
/// [before Linux 6.5]. It is called for every write of the host, so it is left out where none needs it.
pub(super) const PAGES: &str = "lsm_file_permission";

/// Names of the maps.
pub(super) const GOVERNED: &str = "GOVERNED";
pub(super) const PLACES: &str = "LSM_PLACES";
pub(super) const CALLS: &str = "LSM_CALLS";

/// Said where programs load and attach, and are not called.
const NOT_CALLED: &str = "the kernel takes its programs and calls none";

/// The maps of these programs.
pub(super) struct Maps {
    governed: Mutex<HashMap<MapData, u64, u32>>,
    places: Mutex<Array<MapData, LsmPlaces>>,
    calls: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(super) fn new(
        governed: HashMap<MapData, u64, u32>,
        places: Array<MapData, LsmPlaces>,
        calls: PerCpuArray<MapData, u64>,
    ) -> Self {
        Self { governed: Mutex::new(governed), places: Mutex::new(places), calls }
    }

    /// Judges the tasks of a cgroup and below.
    pub(super) fn govern(&self, cgroup: u64) -> Result<(), BpfError> {
        lock(&self.governed).insert(cgroup, 1, 0).map_err(|source| BpfError::Map { map: GOVERNED, source })
    }

    /// Judges them no longer.
    pub(super) fn release(&self, cgroup: u64) -> Result<(), BpfError> {
        absent_is_fine(lock(&self.governed).remove(&cgroup)).map_err(|source| BpfError::Map { map: GOVERNED, source })
    }

    /// Judges the tasks of these cgroups and of no others.
    pub(super) fn govern_only(&self, cgroups: &[u64]) -> Result<(), BpfError> {
        let known = lock(&self.governed).keys().collect::<Result<Vec<_>, _>>();
        let known = known.map_err(|source| BpfError::Map { map: GOVERNED, source })?;
        cgroups.iter().try_for_each(|id| self.govern(*id))?;
        known.into_iter().filter(|id| !cgroups.contains(id)).try_for_each(|id| self.release(id))
    }

    /// Whether the attached programs are called when a socket is made.
    fn are_called(&self) -> Result<bool, String> {
        let before = self.count()?;
        UnixStream::pair().map_err(|e| e.to_string())?;
        Ok(self.count()? != before)
    }

    fn count(&self) -> Result<u64, String> {
        Ok(self.calls.get(&0, 0).map_err(|e| e.to_string())?.iter().sum())
    }
}

/// A program in the kernel.
struct Loaded {
    name: &'static str,
    program: OwnedFd,
    id: u32,
}

/// What of them enforces.
pub(super) struct Lsm {
    programs: Vec<Loaded>,
    missing: Option<String>,
}

impl Lsm {
    /// Loads the programs, attaches and pins them in the place of those of an earlier daemon. What fails is not used, and
    /// [`Lsm::missing`] tells why.
    pub(super) fn open(object: &mut Ebpf, btf: Option<&Btf>, pins: &Pins, maps: &Maps, peers: bool) -> Self {
        let (wanted, programs, mut missing) = match Needs::of_kernel(peers).and_then(|needs| {
            lock(&maps.places).set(0, needs.places, 0).map_err(|e| e.to_string())?;
            Ok((needs, btf.ok_or("the kernel does not tell its types")?))
        }) {
            Ok((needs, btf)) => {
                let (programs, missing) = load(object, btf, &needs.hooks);
                (needs.hooks, programs, missing)
            }
            // What an earlier daemon pinned goes on as it is.
            Err(why) => ([&HOOKS[..], &PEERS, &[PAGES]].concat(), Vec::new(), Some(why)),
        };
        let mut lsm = Self { programs: Vec::new(), missing: None };
        for loaded in programs {
            match attach(&loaded, pins) {
                Ok(()) => lsm.programs.push(loaded),
                Err(why) => missing = missing.or(Some(format!("`{}`: {why}", loaded.name))),
            }
        }
        if !lsm.programs.is_empty() {
            let called = maps.are_called();
            if called != Ok(true) {
                missing = Some(called.err().unwrap_or_else(|| NOT_CALLED.into()));
                lsm.programs.clear();
            }
        }
        // Those that an earlier daemon pinned and this one has no use for. One that could be replaced but was not stays.
        for name in pins.lsm_links().unwrap_or_default() {
            if !wanted.contains(&name.as_str()) || missing.as_deref() == Some(NOT_CALLED) {
                // What stays refuses more than it should; it goes with the folder.
                let _ = pins.drop_lsm(&name);
            }
        }
        lsm.missing = missing;
        lsm
    }

    /// Why not all of it enforces, if so.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Whether it judges to which unix sockets a session connects.
    pub(super) fn judges_peers(&self) -> bool {
        PEERS.iter().all(|name| self.programs.iter().any(|loaded| loaded.name == *name))
    }

    /// Finds links that are gone or run something else.
    pub(super) fn verify(&self, pins: &Pins, problems: &mut Vec<Problem>) {
        for loaded in &self.programs {
            let link = pins.lsm_link(loaded.name).ok().flatten();
            if link.and_then(|link| sys::lsm_link_program(link.as_fd()).ok()) != Some(loaded.id) {
                problems.push(Problem::Lsm { hook: loaded.name });
            }
        }
    }
}

/// Whether this kernel takes and calls all of them, or why not. What is attached for that knows no governed cgroup, and is
/// gone when this returns.
pub(super) fn probe(object: &mut Ebpf, btf: Option<&Btf>, maps: &Maps, peers: bool) -> Option<String> {
    let tried = Needs::of_kernel(peers).and_then(|needs| {
        let btf = btf.ok_or("the kernel does not tell its types")?;
        let (programs, missing) = load(object, btf, &needs.hooks);
        if let Some(missing) = missing {
            return Err(missing);
        }
        // One tells for all: the kernel calls programs of the security module, or it does not.
        let first = programs.first().ok_or("there is no program")?;
        let _link = sys::lsm_link_create(first.program.as_fd()).map_err(|e| format!("`{}`: {e}", first.name))?;
        if maps.are_called()? { Ok(()) } else { Err(NOT_CALLED.into()) }
    });
    tried.err()
}

/// Loads what the kernel takes; and of the first that it does not take, why.
fn load(object: &mut Ebpf, btf: &Btf, hooks: &[&'static str]) -> (Vec<Loaded>, Option<String>) {
    let (mut programs, mut missing) = (Vec::new(), None);
    for name in hooks {
        match load_one(object, btf, name) {
            Ok(loaded) => programs.push(loaded),
            Err(why) => missing = missing.or_else(|| Some(format!("`{name}`: {why}"))),
        }
    }
    (programs, missing)
}

fn load_one(object: &mut Ebpf, btf: &Btf, name: &'static str) -> Result<Loaded, String> {
    let Some(AyaProgram::Lsm(program)) = object.program_mut(name) else { return Err("the object has none".into()) };
    let hook = name.strip_prefix("lsm_").unwrap_or(name);
    program.load(hook, btf).map_err(|e| reason(&e))?;
    let id = program.info().map_err(|e| reason(&e))?.id();
    let fd = program.fd().map_err(|e| reason(&e))?.as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    Ok(Loaded { name, program: fd, id })
}

/// One line, of a kernel that may say hundreds.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            // Last come counts; before them, what is wrong.
            const COUNTS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
            let counts = |line: &&str| line.trim().is_empty() || COUNTS.iter().any(|start| line.starts_with(start));
            let said = log.lines().rev().find(|line| !counts(line));
            said.map_or_else(|| io_error.to_string(), |said| format!("{io_error}: {said}"))
        }
        error => error.to_string(),
    }
}

fn attach(loaded: &Loaded, pins: &Pins) -> Result<(), String> {
    let link = sys::lsm_link_create(loaded.program.as_fd()).map_err(|e| e.to_string())?;
    pins.keep_lsm(loaded.name, &link).map_err(|e| e.to_string())
}

/// What the programs need on a kernel.
pub(super) struct Needs {
    /// Which are of use there.
    pub(super) hooks: Vec<&'static str>,
    pub(super) places: LsmPlaces,
}

impl Needs {
    /// From the running kernel's types, or why not.
    fn of_kernel(peers: bool) -> Result<Self, String> {
        let types = unix::kernel_types()?;
        Self::read(&types, peers).ok_or_else(|| "the kernel does not tell where it keeps sockets' cgroups".into())
    }

    /// From a kernel's types. `peers`: unix sockets are to be judged, too.
    pub(super) fn read(types: &[u8], peers: bool) -> Option<Self> {
        let types = Types::read(types)?;
        let places = places(&types)?;
        let mut hooks = HOOKS.to_vec();
        if types.offsets("proto_ops", ["sendpage"]).is_some() {
            hooks.push(PAGES);
        }
        if peers {
            hooks.extend(PEERS);
        }
        Some(Self { hooks, places })
    }
}

fn places(types: &Types<'_>) -> Option<LsmPlaces> {
    let [socket_sock, socket_file] = types.offsets("socket", ["sk", "file"])?;
    let [common, sock_kind, sock_protocol, sock_data] =
        types.offsets("sock", ["__sk_common", "sk_type", "sk_protocol", "sk_cgrp_data"])?;
    let [family] = types.offsets("sock_common", ["skc_family"])?;
    let [data_cgroup] = types.offsets("sock_cgroup_data", ["cgroup"])?;
    let [cgroup_node, cgroup_level, cgroup_ancestors] = types.offsets("cgroup", ["kn", "level", "ancestors"])?;
    let [node_id, node_name] = types.offsets("kernfs_node", ["id", "name"])?;
    let parent = types.offsets("kernfs_node", ["parent"]).or_else(|| types.offsets("kernfs_node", ["__parent"]));
    let [node_parent] = parent?;
    let [task_set] = types.offsets("task_struct", ["cgroups"])?;
    let [set_cgroup] = types.offsets("css_set", ["dfl_cgrp"])?;
    let [file_inode, file_private, file_path] = types.offsets("file", ["f_inode", "private_data", "f_path"])?;
    let [path_dentry] = types.offsets("path", ["dentry"])?;
    let [inode_mode, inode_super, inode_private] = types.offsets("inode", ["i_mode", "i_sb", "i_private"])?;
    let [super_magic] = types.offsets("super_block", ["s_magic"])?;
    let [dentry_name] = types.offsets("dentry", ["d_name"])?;
    let [name_text] = types.offsets("qstr", ["name"])?;
    let [unix_address, unix_peer] = types.offsets("unix_sock", ["addr", "peer"])?;
    let [address_length, address_name] = types.offsets("unix_address", ["len", "name"])?;
    Some(LsmPlaces {
        known: 1,
        socket_sock,
        socket_file,
        sock_family: common.checked_add(family)?,
        sock_kind,
        sock_protocol,
        sock_cgroup: sock_data.checked_add(data_cgroup)?,
        cgroup_node,
        cgroup_level,
        cgroup_ancestors,
        node_id,
        node_parent,
        node_name,
        task_set,
        set_cgroup,
        file_inode,
        file_private,
        file_dentry: file_path.checked_add(path_dentry)?,
        inode_mode,
        inode_super,
        inode_private,
        super_magic,
        dentry_name: dentry_name.checked_add(name_text)?,
        unix_address,
        unix_peer,
        address_length,
        address_name,
    })
}
