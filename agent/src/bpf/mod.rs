//! The kernel side: load the programs, attach them to governed cgroups, keep them there, and read origins.
//!
//! Every link and map is pinned, so that enforcement does not depend on this process: with the daemon dead the pinned
//! programs find a stale heartbeat and refuse every connect, and the packet filters know no road but to a listener that
//! is gone. A new daemon takes the pinned links over and replaces their programs in one step each, so that there is no
//! moment without enforcement. Known sessions are forgotten then, and must be allowed again by whoever restored them.
//!
//! The programs that give accepted sockets their origin and see listening ones close are attached to the enforcer's own
//! cgroup, because sockets are known by the cgroup they were made in. So the daemon must be in a cgroup of its own (below
//! the root, where a hook would see the whole host) before it makes its listeners.
//!
//! The failure mode is refusal: a half-attached cgroup reaches nothing, a full table loses origins, and a connection
//! without an origin is closed.
//!
//! Longer than most files: [`Kernel`] is what all of these steps act on, in an order that is the point of them.

mod btf;
mod error;
mod hooks;
mod listeners;
mod lsm;
mod maps;
mod names;
mod origin;
mod own;
mod pins;
mod probe;
mod refusals;
mod ring;
mod sys;
#[cfg(test)]
mod tests;
mod unix;

pub use error::{BpfError, Problem, Remedy};
pub use names::{Question, Questions, SocketNumber, WatchedQuestions};
pub use origin::{Origin, OriginError};
pub use pins::Pins;
pub use portcullis_ebpf::{HEARTBEAT_STALE_NS, Reason};
pub use probe::{Probe, Probed, probe};
pub use refusals::{Refusal, Refusals, WatchedRefusals};
pub use ring::{Ring, Told, Watched};
pub use unix::UnixHooks;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use aya::{Btf, EbpfLoader, maps::MapError};
use portcullis_ebpf::Enforcer;

use self::{
    hooks::{GOVERNED, Loaded, OWN, REDIRECTS, Side},
    listeners::Protocol,
    lsm::Lsm,
    maps::{Maps, absent_is_fine, is_not_found, lock},
    own::Own,
    sys::Attached,
};
use crate::identity::cgroup_id;

/// The programs, or nothing where the binary was built without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-ebpf"));

/// What the kernel side needs to know.
#[derive(Clone, Debug)]
pub struct KernelSettings {
    /// Folder for pinned objects; one for each daemon. Chosen where absent: see [`KernelSettings::pin_dir`].
    pub pin_dir: Option<PathBuf>,
    /// The daemon's runtime folder.
    pub runtime_dir: PathBuf,
    /// Mount of the cgroup2 tree.
    pub cgroup_root: PathBuf,
}

impl KernelSettings {
    /// The folder of pinned objects: as set, else below `/sys/fs/bpf` if that is a bpffs, else `bpf` in the runtime
    /// folder, where one is mounted.
    pub fn pin_dir(&self) -> PathBuf {
        self.pin_dir.clone().unwrap_or_else(|| pins::default_dir(&self.runtime_dir))
    }
}

/// Ids of the cgroups on which links are pinned under these settings, with or without a daemon.
pub fn pinned_cgroups(settings: &KernelSettings) -> io::Result<Vec<u64>> {
    pins::governed(&settings.pin_dir())
}

/// Ends all enforcement that was pinned under these settings and removes its traces. For uninstalling and for tests; the
/// daemon must not be running.
pub fn remove_pins(settings: &KernelSettings) -> io::Result<()> {
    pins::remove(&settings.pin_dir())
}

/// The kernel side of one daemon. Dropping it ends nothing: pinned links enforce on.
pub struct Kernel {
    pins: Pins,
    cgroup_root: PathBuf,
    /// In the order of [`hooks::UNIX`] and [`GOVERNED`].
    programs: Vec<Loaded>,
    /// Why there are none of [`hooks::UNIX`].
    no_unix: Option<String>,
    /// In the order of [`OWN`].
    own_programs: Vec<Loaded>,
    lsm: Lsm,
    maps: Maps,
    own: Mutex<Option<Own>>,
    /// Governed cgroups: id to path.
    governed: Mutex<BTreeMap<u64, PathBuf>>,
}

impl Kernel {
    /// Opens its folder of pins, and then as [`Kernel::open_in`].
    pub fn open(settings: &KernelSettings) -> Result<Self, BpfError> {
        Self::open_in(settings, Pins::open(&settings.pin_dir())?)
    }

    /// Loads the programs, takes over what an earlier daemon left pinned, and forgets its sessions. Nothing is let
    /// through before [`Kernel::set_enforcer`] and the first [`Kernel::heartbeat`].
    pub fn open_in(settings: &KernelSettings, mut pins: Pins) -> Result<Self, BpfError> {
        if OBJECT.is_empty() {
            return Err(BpfError::NotBuilt);
        }
        pins.lay_out()?;
        let types = Btf::from_sys_fs().ok();
        let mut loader = EbpfLoader::new();
        loader.btf(types.as_ref());
        let named = Maps::NAMES.map(|name| (name, pins.map(name)));
        for (name, path) in &named {
            loader.map_pin_path(name, path.as_path());
        }
        let mut object = loader.load(OBJECT).map_err(|source| BpfError::Object(Box::new(source)))?;
        let maps = Maps::take(&mut object)?;
        let (mut programs, no_unix) = match unix::load(OBJECT, &pins, &mut lock(&maps.places)) {
            Ok(programs) => (programs, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        for hook in GOVERNED {
            programs.push(hooks::load(&mut object, hook)?);
        }
        let own_programs = OWN.iter().map(|hook| hooks::load(&mut object, *hook)).collect::<Result<_, _>>()?;
        maps.reset()?;
        // Known before the programs are: theirs take the place of an earlier daemon's at once.
        let pinned =
            pins.cgroups(Side::Governed).map_err(|source| BpfError::Pins { dir: pins.dir().to_owned(), source })?;
        maps.lsm.govern_only(&pinned)?;
        let lsm = Lsm::open(&mut object, types.as_ref(), &pins, &maps.lsm, no_unix.is_some());
        let kernel = Self {
            pins,
            cgroup_root: settings.cgroup_root.clone(),
            programs,
            no_unix,
            own_programs,
            lsm,
            maps,
            own: Mutex::new(None),
            governed: Mutex::new(BTreeMap::new()),
        };
        kernel.adopt()?;
        Ok(kernel)
    }

    /// Says where the enforcer listens and attaches its own hooks to the cgroups in which its listeners are made. They
    /// must be on loopback addresses: nothing else passes the packet filter. They should be the same as before a restart:
    /// a client that was still connecting to another port waits for its own time-out.
    pub fn set_enforcer(&self, v4: SocketAddrV4, v6: Option<SocketAddrV6>, own: &[&Path]) -> Result<(), BpfError> {
        for address in [Some(SocketAddr::V4(v4)), v6.map(SocketAddr::V6)].into_iter().flatten() {
            if address.port() == 0 || !address.ip().is_loopback() {
                return Err(BpfError::Listener(address));
            }
        }
        let mut cgroups = BTreeMap::new();
        for own in own {
            if let Some(outer) = lock(&self.governed).values().find(|governed| own.starts_with(governed)) {
                return Err(BpfError::Nested { inner: (*own).to_owned(), outer: outer.clone() });
            }
            let file = open_cgroup(own)?;
            let id = cgroup_id(own).map_err(|source| BpfError::Cgroup { cgroup: (*own).to_owned(), source })?;
            self.attach_all(&self.own_programs, file.as_fd(), id, own)?;
            cgroups.insert(id, (*own).to_owned());
        }
        // After the new ones are there, so that no handshake in between loses its origin.
        let failed = |source| BpfError::Pins { dir: self.pins.dir().to_owned(), source };
        for id in self.pins.cgroups(Side::Own).map_err(failed)? {
            if !cgroups.contains_key(&id) {
                self.pins.drop_cgroup(Side::Own, id).map_err(failed)?;
            }
        }
        let enforcer = Enforcer {
            v4: u32::from_ne_bytes(v4.ip().octets()),
            v4_port: v4.port().into(),
            v6: v6.map_or([0; 4], |v6| network_words(v6.ip().octets())),
            v6_port: v6.map_or(0, |v6| v6.port().into()),
            pad: 0,
        };
        lock(&self.maps.enforcer)
            .set(0, enforcer, 0)
            .map_err(|source| BpfError::Map { map: Maps::NAMES[0], source })?;
        *lock(&self.own) = Some(Own { v4, v6, cgroups });
        Ok(())
    }

    /// Lets governed connections of the network namespace of this listening socket come to it, for as long as it is open
    /// anywhere. It must be made in one of the cgroups, and have one of the addresses, of [`Kernel::set_enforcer`].
    pub fn add_listener(&self, listener: &TcpListener) -> Result<(), BpfError> {
        self.maps.listeners.add(listener, listener.local_addr().map_err(BpfError::Socket)?, Protocol::Tcp)
    }

    /// Lets governed processes of the network namespace of this socket ask for names over UDP, for as long as it is open
    /// anywhere: their questions are told by [`Kernel::questions`], and answers are to be sent by this socket. Else as for
    /// [`Kernel::add_listener`]. Returns the number of the namespace, as origins have it.
    pub fn add_resolver(&self, socket: &UdpSocket) -> Result<u64, BpfError> {
        let address = socket.local_addr().map_err(BpfError::Socket)?;
        if !lock(&self.own).as_ref().is_some_and(|own| own.is_at(address)) {
            return Err(BpfError::Listener(address));
        }
        let netns_cookie = names::netns_of(socket)?;
        self.maps.listeners.add(socket, address, Protocol::Udp)?;
        Ok(netns_cookie)
    }

    /// Questions for names over UDP from now on, and those that nobody read. `None` if somebody reads them already.
    pub fn questions(&self) -> Option<Questions> {
        lock(&self.maps.questions).take().map(Questions::new)
    }

    /// Lets one message with this id, sent within two seconds, arrive at the socket that asked.
    pub fn expect_answer(&self, socket: SocketNumber, id: u16) -> Result<(), BpfError> {
        self.maps.answers.expect(socket, id)
    }

    /// Governs a cgroup and all below it, now and later. It should be a stable parent: with its cgroup a hook goes too.
    /// Does nothing where it is governed already. Refused where another program changes connections there, where a
    /// governed cgroup lies above or below, or where the enforcer itself would be governed.
    pub fn govern(&self, cgroup: &Path) -> Result<(), BpfError> {
        let asked = |source| BpfError::Cgroup { cgroup: cgroup.to_owned(), source };
        let mut governed = lock(&self.governed);
        let file = open_cgroup(cgroup)?;
        let id = cgroup_id(cgroup).map_err(asked)?;
        for path in governed.values() {
            if path == cgroup {
                continue;
            }
            if path.starts_with(cgroup) {
                return Err(BpfError::Nested { inner: path.clone(), outer: cgroup.to_owned() });
            }
            if cgroup.starts_with(path) {
                return Err(BpfError::Nested { inner: cgroup.to_owned(), outer: path.clone() });
            }
        }
        let own = lock(&self.own);
        if let Some(inner) = own.iter().flat_map(|own| own.cgroups.values()).find(|own| own.starts_with(cgroup)) {
            return Err(BpfError::Nested { inner: inner.clone(), outer: cgroup.to_owned() });
        }
        drop(own);
        if let Some((found, program)) = self.redirector(cgroup).map_err(asked)? {
            return Err(BpfError::Redirector { cgroup: found, program });
        }
        self.maps.lsm.govern(id)?;
        self.attach_all(&self.programs, file.as_fd(), id, cgroup)?;
        // The cgroup may have been deleted and made again while this ran; then what was attached is not at this path.
        if cgroup_id(cgroup).map_err(asked)? != id {
            return Err(asked(io::Error::other("the cgroup was replaced by another meanwhile")));
        }
        // One that was at this path before is deleted; its links are of no use.
        let before = governed.extract_if(.., |other, path| *other != id && path == cgroup).map(|(other, _)| other);
        for other in before.collect::<Vec<_>>() {
            self.pins.drop_cgroup(Side::Governed, other).map_err(asked)?;
            self.maps.lsm.release(other)?;
        }
        governed.insert(id, cgroup.to_owned());
        Ok(())
    }

    /// Lets tasks in a cgroup below a governed one reach the enforcer.
    pub fn allow_session(&self, cgroup_id: u64) -> Result<(), BpfError> {
        self.maps.unix.begin(cgroup_id);
        lock(&self.maps.sessions)
            .insert(cgroup_id, 1, 0)
            .map_err(|source| BpfError::Map { map: Maps::NAMES[2], source })
    }

    /// Refuses the tasks of a cgroup every new connection. Not an error where it was not allowed.
    pub fn forget_session(&self, cgroup_id: u64) -> Result<(), BpfError> {
        absent_is_fine(lock(&self.maps.sessions).remove(&cgroup_id))
            .map_err(|source| BpfError::Map { map: Maps::NAMES[2], source })?;
        self.maps.unix.end(cgroup_id)
    }

    /// Lets an allowed session reach the unix sockets with exactly these paths, and no others. Does nothing for a session
    /// that is not allowed.
    pub fn set_unix_paths(&self, cgroup_id: u64, paths: &[&str]) -> Result<(), BpfError> {
        self.maps.unix.set(cgroup_id, paths)
    }

    /// Lets an allowed session reach every unix socket in this folder, an absolute path with a `/` at its end. It must be
    /// the session's alone, and mounted so that symbolic links in it are not followed.
    pub fn set_unix_folder(&self, cgroup_id: u64, folder: &str) -> Result<(), BpfError> {
        self.maps.unix.set_folder(cgroup_id, folder)
    }

    /// Whether this kernel judges unix sockets.
    pub fn unix_hooks(&self) -> UnixHooks {
        if self.no_unix.is_none() || self.lsm.judges_peers() { UnixHooks::Attached } else { UnixHooks::Missing }
    }

    /// Why the programs of the security module do not enforce, or not all of them; `None` where they do.
    pub fn no_lsm(&self) -> Option<&str> {
        self.lsm.missing()
    }

    /// Tells the programs that the enforcer is alive. They refuse every connect when they have not heard for two seconds.
    pub fn heartbeat(&self) -> Result<(), BpfError> {
        self.maps.beat(sys::monotonic_ns().map_err(BpfError::Clock)?)
    }

    /// How long ago the programs heard of the enforcer; `None` if it stopped.
    pub fn heartbeat_age(&self) -> Result<Option<Duration>, BpfError> {
        let at = self.maps.beaten()?;
        let now = sys::monotonic_ns().map_err(BpfError::Clock)?;
        Ok((at != 0).then(|| Duration::from_nanos(now.saturating_sub(at))))
    }

    /// Folder of the pinned objects.
    pub fn pin_dir(&self) -> &Path {
        self.pins.dir()
    }

    /// How many hooks each governed cgroup has.
    pub fn hooks(&self) -> usize {
        self.programs.len()
    }

    /// Tells the programs that the enforcer stops: every connect is refused from now on.
    pub fn stop(&self) -> Result<(), BpfError> {
        self.maps.beat(0)
    }

    /// Where an accepted connection wanted to go. On any error it must be closed.
    pub fn origin(&self, accepted: BorrowedFd<'_>) -> Result<Origin, OriginError> {
        let raw = self.maps.origins.get(&accepted, 0).map_err(|source| match source {
            MapError::KeyNotFound => OriginError::Missing,
            source if is_not_found(&source) => OriginError::Missing,
            source => OriginError::Map(source),
        })?;
        let origin = Origin::from_raw(&raw)?;
        // Relayed, it would come back here, and again.
        if lock(&self.own).as_ref().is_some_and(|own| own.listens_on(origin.address)) {
            return Err(OriginError::Enforcer);
        }
        Ok(origin)
    }

    /// What the hooks refuse from now on, and what they refused that nobody read. `None` if somebody reads it already.
    pub fn refusals(&self) -> Option<Refusals> {
        lock(&self.maps.refusals).take().map(Refusals::new)
    }

    /// How much was refused so far, by reason: since the maps were made, which outlive daemons.
    pub fn refused(&self) -> Result<Vec<(Reason, u64)>, BpfError> {
        Reason::ALL.iter().map(|reason| Ok((*reason, self.maps.refused(*reason)?))).collect()
    }

    /// How many entries each table has whose entries come and go: what a host that is at rest should not keep.
    pub fn entries(&self) -> Result<Vec<(&'static str, usize)>, BpfError> {
        self.maps.entries()
    }

    /// How many refusals of each cgroup were counted but not told so far.
    pub fn left_out(&self) -> Vec<(u64, u64)> {
        self.maps.left_out()
    }

    /// Looks for anything that makes enforcement incomplete; empty when all is well.
    pub fn verify(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (id, cgroup) in lock(&self.governed).iter() {
            self.verify_cgroup(*id, cgroup, &mut problems);
        }
        for id in lock(&self.own).iter().flat_map(|own| own.cgroups.keys()) {
            if !self.own_programs.iter().all(|loaded| self.is_attached(loaded, *id)) {
                problems.push(Problem::Enforcer);
            }
        }
        self.lsm.verify(&self.pins, &mut problems);
        if let (Some(why), UnixHooks::Missing) = (&self.no_unix, self.unix_hooks()) {
            problems.push(Problem::Unix { why: why.clone() });
        }
        if self.pins.is_private() {
            problems.push(Problem::PrivateMount { dir: self.pins.dir().to_owned() });
        }
        problems
    }

    /// Ends the enforcement of one cgroup. Its tasks are then governed by nothing: it must be empty.
    pub fn release(&self, cgroup: &Path) -> Result<(), BpfError> {
        let mut governed = lock(&self.governed);
        let id = governed.iter().find_map(|(id, path)| (path == cgroup).then_some(*id));
        if let Some(id) = id {
            let dropped = self.pins.drop_cgroup(Side::Governed, id);
            dropped.map_err(|source| BpfError::Pins { dir: self.pins.dir().to_owned(), source })?;
            self.maps.lsm.release(id)?;
            governed.remove(&id);
        }
        Ok(())
    }

    /// Gives every pinned link the programs just loaded, and drops those whose cgroup is gone.
    fn adopt(&self) -> Result<(), BpfError> {
        let failed = |source| BpfError::Pins { dir: self.pins.dir().to_owned(), source };
        let mut adopted = Vec::new();
        for cgroup in self.pins.cgroups(Side::Governed).map_err(failed)? {
            let mut alive = false;
            for loaded in &self.programs {
                if let Some(link) = self.pins.link(cgroup, loaded.hook).map_err(failed)?
                    && sys::link_info(link.as_fd()).map_err(failed)?.cgroup != 0
                {
                    sys::link_update(link.as_fd(), loaded.program.as_fd()).map_err(failed)?;
                    alive = true;
                }
            }
            if alive {
                adopted.push(cgroup);
            } else {
                self.pins.drop_cgroup(Side::Governed, cgroup).map_err(failed)?;
            }
        }
        self.maps.lsm.govern_only(&adopted)?;
        self.pins.drop_other_layouts().map_err(failed)
    }

    fn attach_all(&self, all: &[Loaded], file: BorrowedFd<'_>, id: u64, path: &Path) -> Result<(), BpfError> {
        for loaded in all {
            let (hook, cgroup) = (loaded.hook.name, path.to_owned());
            self.attach(loaded, file, id).map_err(|source| BpfError::Attach { hook, cgroup, source })?;
        }
        Ok(())
    }

    fn is_attached(&self, loaded: &Loaded, cgroup: u64) -> bool {
        let link = self.pins.link(cgroup, loaded.hook).ok().flatten();
        let info = link.and_then(|link| sys::link_info(link.as_fd()).ok());
        info.is_some_and(|info| info.cgroup == cgroup && info.program == loaded.id)
    }

    fn attach(&self, loaded: &Loaded, cgroup: BorrowedFd<'_>, id: u64) -> io::Result<()> {
        if let Some(link) = self.pins.link(id, loaded.hook)? {
            let info = sys::link_info(link.as_fd())?;
            if info.cgroup == id && info.attach_type == loaded.hook.attach_type {
                return if info.program == loaded.id {
                    Ok(())
                } else {
                    sys::link_update(link.as_fd(), loaded.program.as_fd())
                };
            }
            return Err(io::Error::other("a pinned link of that name is attached to something else"));
        }
        let link = sys::link_create(loaded.program.as_fd(), cgroup, loaded.hook.attach_type)?;
        self.pins.keep(id, loaded.hook, &link)
    }

    fn verify_cgroup(&self, id: u64, cgroup: &Path, problems: &mut Vec<Problem>) {
        let cgroup = cgroup.to_owned();
        if cgroup_id(&cgroup).ok() != Some(id) {
            problems.push(Problem::Deleted { cgroup });
            return;
        }
        for loaded in &self.programs {
            let (hook, cgroup) = (loaded.hook.name, cgroup.clone());
            match self.pins.link(id, loaded.hook).and_then(|l| l.map(|l| sys::link_info(l.as_fd())).transpose()) {
                Ok(None) => problems.push(Problem::Missing { hook, cgroup }),
                Ok(Some(info)) if info.cgroup != id => problems.push(Problem::Missing { hook, cgroup }),
                Ok(Some(info)) if info.program != loaded.id => problems.push(Problem::Replaced { hook, cgroup }),
                Ok(Some(_)) => {}
                Err(e) => problems.push(Problem::Unknown { cgroup, why: format!("{hook}: {e}") }),
            }
        }
        match self.redirector(&cgroup) {
            Ok(None) => {}
            Ok(Some((cgroup, program))) => problems.push(Problem::Redirector { cgroup, program }),
            Err(e) => problems.push(Problem::Unknown { cgroup, why: e.to_string() }),
        }
    }

    /// A program of somebody else that changes the connections of this cgroup or of one below it.
    fn redirector(&self, cgroup: &Path) -> io::Result<Option<(PathBuf, u32)>> {
        let mut which = Attached::HereOrAbove;
        let mut todo = vec![cgroup.to_owned()];
        while let Some(path) = todo.pop() {
            let file = match File::open(&path) {
                // Cgroups below come and go.
                Err(e) if e.kind() == io::ErrorKind::NotFound && path != cgroup => continue,
                file => file?,
            };
            for attach_type in REDIRECTS {
                let found = match sys::programs(file.as_fd(), attach_type, which) {
                    Err(e) if e.raw_os_error() == Some(libc::ENODEV) && path != cgroup => Vec::new(),
                    found => found?,
                };
                if let Some(other) = found.into_iter().find(|id| !self.programs.iter().any(|p| p.id == *id)) {
                    return Ok(Some((path, other)));
                }
            }
            which = Attached::Here;
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    todo.push(entry.path());
                }
            }
        }
        Ok(None)
    }

    /// Mount of the cgroup2 tree.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }
}

fn open_cgroup(path: &Path) -> Result<File, BpfError> {
    File::open(path).map_err(|source| BpfError::Cgroup { cgroup: path.to_owned(), source })
}

/// An address as the words that lie in a packet.
fn network_words(octets: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_ne_bytes);
    }
    words
}
