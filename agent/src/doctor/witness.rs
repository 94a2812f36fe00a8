//! What watches where attempts would arrive, and what they are tried on.
//!
//! Listeners on loopback and on an address of this host, unix sockets, a process that is not governed, a pipe, a decoy
//! among the pins, and somebody who gives sockets away. Every payload carries the number of its attempt, and attempts take
//! ports in turn, so that what arrives late is still booked to the attempt that sent it.
//!
//! The failure mode is silence: a witness that sees nothing finds nothing. So [`Witness::prove_awake`] sends to each of
//! its places from outside of any session, before and after, and fails where that is not seen.

mod giver;
mod outside;
mod places;
mod sniffer;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use self::{
    giver::Giver,
    outside::Outside,
    places::{Place, is_no_address, listeners, send_to, unix_places},
    sniffer::Sniffer,
};
use super::attempts::{self, Target, ring, tag, tagged};

/// Ports that attempts take in turn.
const PORTS: usize = 16;
/// Number of what [`Witness::prove_awake`] sends.
const AWAKE: usize = 99_999;
/// How long something may be on its way.
const SETTLE: Duration = Duration::from_millis(300);
/// How long the witness's own messages may be on their way.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a session that listens is asked.
const ASK: Duration = Duration::from_millis(100);
/// A user that nobody is: only to see whether a program's set-user-id bit counts.
const OTHER_UID: u32 = 65_533;

/// Where attempts aim, beside loopback.
#[derive(Clone, Debug)]
pub struct Aim {
    /// An IPv4 address.
    pub v4: Ipv4Addr,
    /// An IPv6 address.
    pub v6: Ipv6Addr,
    /// The device that leads there.
    pub device: String,
    /// Whose they are.
    pub at: Whose,
}

/// Whose addresses those of an [`Aim`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This host's: the witness listens there.
    ThisHost,
    /// Another's: somebody else watches there.
    Another,
}

/// What the witness must know to set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where attempts aim.
    pub aim: Aim,
    /// The user that the session's processes run as; `None` for our own.
    pub user: Option<(u32, u32)>,
    /// Where its own folder is made: one that sessions see, too.
    pub folder: PathBuf,
    /// Ports of the enforcer: what goes there is as it should be.
    pub enforcer: Vec<u16>,
    /// The daemon's control socket.
    pub control: PathBuf,
    /// Folder of the pinned objects.
    pub pins: PathBuf,
    /// The workload that is governed.
    pub workload: String,
}

/// The witness could not be set up, or does not see what it should.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// Something it needs could not be made.
    #[error("the witness cannot have {what}")]
    Make {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is blind at this place.
    #[error("the witness does not see what arrives by `{0}`; its findings would mean nothing")]
    Blind(&'static str),
}

fn make<T>(what: &'static str, made: io::Result<T>) -> Result<T, WitnessError> {
    made.map_err(|source| WitnessError::Make { what, source })
}

/// See the module.
pub struct Witness {
    setup: Setup,
    marker: String,
    folder: PathBuf,
    ports: Vec<u16>,
    /// The last attempt that took each port.
    takers: Vec<usize>,
    /// Name, index of the port, and the place.
    places: Vec<(&'static str, usize, Place)>,
    /// Connections that arrived.
    open: Vec<(&'static str, usize, TcpStream)>,
    sniffer: Option<Sniffer>,
    /// By ports from and to, the attempt that was first seen to use them.
    flows: HashMap<(u16, u16), usize>,
    groups: [Ipv4Addr; 2],
    /// The attempts that join them.
    joins: [usize; 2],
    outside: Outside,
    decoy: Option<PathBuf>,
    inherited: (UdpSocket, TcpStream),
    _ring: Option<OwnedFd>,
    giver: Giver,
    /// Attempt that is under way.
    current: usize,
}

impl Witness {
    /// Sets everything up. As root, it also sniffs packets where its aim is this host, and makes what only root can.
    pub fn new(setup: Setup) -> Result<Self, WitnessError> {
        let folder =
            make("a folder", nix::unistd::mkdtemp(&setup.folder.join("witness-XXXXXX")).map_err(io::Error::from))?;
        make("a folder", fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)))?;
        let mut addresses: Vec<(IpAddr, [&'static str; 2])> = vec![
            (Ipv4Addr::LOCALHOST.into(), ["tcp on loopback, v4", "udp on loopback, v4"]),
            (Ipv6Addr::LOCALHOST.into(), ["tcp on loopback, v6", "udp on loopback, v6"]),
        ];
        if setup.aim.at == Whose::ThisHost {
            let own: [(IpAddr, _); 2] =
                [(setup.aim.v4.into(), ["tcp, v4", "udp, v4"]), (setup.aim.v6.into(), ["tcp, v6", "udp, v6"])];
            addresses.extend(own.into_iter().filter(|(ip, _)| !ip.is_loopback()));
        }
        // A host without IPv6 has no such place.
        addresses.retain(|(ip, _)| !matches!(TcpListener::bind((*ip, 0)), Err(e) if is_no_address(&e)));
        let mut places = Vec::new();
        let mut ports = Vec::new();
        while ports.len() < PORTS {
            let (port, listeners) = make("a port of its own", listeners(&addresses))?;
            places.extend(listeners.into_iter().map(|(name, place)| (name, ports.len(), place)));
            ports.push(port);
        }
        make("unix sockets", unix_places(&folder, &mut places))?;
        let sniffer = match setup.aim.at {
            Whose::ThisHost => Sniffer::open(&setup, &ports),
            Whose::Another => None,
        };
        let udp = make("a socket to be inherited", UdpSocket::bind("0.0.0.0:0"))?;
        let tcp = make("a socket to be inherited", TcpStream::connect(("127.0.0.1", ports[0])))?;
        for fd in [udp.as_fd(), tcp.as_fd()] {
            make("a socket to be inherited", fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(io::Error::from))?;
        }
        let outside = make("a process outside of the session", Outside::start(setup.user))?;
        let giver = make("a giver of sockets", Giver::start(&folder, ports[0]))?;
        let marker =
            format!("portcullis-{:08x}-", std::process::id() ^ (jiff::Timestamp::now().as_nanosecond() as u32));
        let mut witness = Self {
            marker,
            folder,
            takers: vec![0; ports.len()],
            ports,
            places,
            open: Vec::new(),
            sniffer,
            flows: HashMap::new(),
            groups: [Ipv4Addr::new(239, 77, 77, 0); 2],
            joins: joins(),
            outside,
            decoy: None,
            inherited: (udp, tcp),
            _ring: ring(),
            giver,
            setup,
            current: 0,
        };
        witness.decoy = witness.make_decoy();
        // The connections that are to be inherited and given away are no arrivals.
        witness.drain();
        Ok(witness)
    }

    /// What the attempts of another user are told; `hold` is the id of a held command of the workload.
    pub fn target(&mut self, hold: &str) -> Target {
        // Hosts tell for seconds which groups they joined and left: each user has its own.
        self.groups = match self.groups[1].octets() {
            [a, b, c, last] => [1, 2].map(|more| Ipv4Addr::new(a, b, c, last.wrapping_add(more))),
        };
        let setup = &self.setup;
        let (other_user, other_uid) = match self.other_user() {
            Ok(path) => (path.display().to_string(), OTHER_UID),
            Err(_) => (String::new(), OTHER_UID),
        };
        Target {
            v4: setup.aim.v4,
            v6: setup.aim.v6,
            port: 0,
            unix: self.folder.display().to_string(),
            device: setup.aim.device.clone(),
            groups: self.groups,
            outside: self.outside.pid(),
            outside_memory: self.outside.memory(),
            enforcer: setup.enforcer.first().copied().unwrap_or(0),
            control: setup.control.display().to_string(),
            pins: setup.pins.display().to_string(),
            decoy: self.decoy.as_ref().map_or(String::new(), |path| path.display().to_string()),
            workload: setup.workload.clone(),
            hold: hold.into(),
            other_user,
            other_uid,
            inherited: [self.inherited.0.as_raw_fd(), self.inherited.1.as_raw_fd()],
            marker: self.marker.clone(),
        }
    }

    /// A standard error for a session, over which the witness passes it sockets.
    pub fn standard_error(&self) -> Result<Stdio, WitnessError> {
        make("a socket to share with a session", self.giver.standard_error().map(Stdio::from))
    }

    /// What every payload begins with.
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// The ports that attempts take.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The attempt of now that joins a group.
    pub fn joiner(&self, last_octet: u8) -> Option<usize> {
        let group = self.groups.iter().position(|group| group.octets()[3] == last_octet)?;
        Some(self.joins[group])
    }

    /// A folder that every user can read.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether packets are sniffed.
    pub fn sniffs(&self) -> bool {
        self.sniffer.is_some()
    }

    /// The port that an attempt is to take.
    pub(super) fn begin(&mut self, number: usize) -> u16 {
        let turn = number % self.ports.len();
        self.takers[turn] = number;
        self.current = number;
        self.ports[turn]
    }

    /// The attempt that something without a number belongs to, which came to this port if to any.
    pub fn taker(&self, port: Option<u16>) -> usize {
        let turn = port.and_then(|port| self.ports.iter().position(|own| *own == port));
        turn.map_or(self.current, |turn| self.takers[turn])
    }

    /// Which attempts arrived since the last call.
    pub fn arrived(&mut self) -> BTreeSet<usize> {
        self.drain().into_iter().map(|(_, number)| number).filter(|number| *number != AWAKE).collect()
    }

    /// The same, with time for what is on its way.
    pub fn settle(&mut self) -> BTreeSet<usize> {
        let mut all = self.arrived();
        let start = Instant::now();
        while start.elapsed() < SETTLE {
            thread::sleep(Duration::from_millis(20));
            all.extend(self.arrived());
        }
        all
    }

    /// Whether a session that listens can be reached.
    pub(super) fn reaches(&self, port: u16) -> bool {
        let mut hosts: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        if self.setup.aim.at == Whose::ThisHost {
            hosts.push(self.setup.aim.v4.into());
        }
        hosts.into_iter().any(|host| TcpStream::connect_timeout(&SocketAddr::new(host, port), ASK).is_ok())
    }

    /// Sends to each place from here, and fails where it is not seen.
    pub fn prove_awake(&mut self) -> Result<(), WitnessError> {
        let text = tag(&self.marker, AWAKE);
        let mut missing = BTreeSet::new();
        for (name, turn, place) in &self.places {
            if *turn == 0 {
                missing.insert(*name);
                // What fails is not seen, and so is found below.
                let _ = send_to(place, &text);
            }
        }
        if self.sniffer.is_some() {
            missing.insert(Sniffer::NAME);
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE && !missing.is_empty() {
            for (name, number) in self.drain() {
                if number == AWAKE {
                    missing.remove(name);
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
        missing.first().map_or(Ok(()), |name| Err(WitnessError::Blind(name)))
    }

    /// Everything that arrived: by which place, and of which attempt.
    fn drain(&mut self) -> Vec<(&'static str, usize)> {
        let mut all = Vec::new();
        let mut buffer = [0u8; 4096];
        for (name, turn, place) in &self.places {
            let taker = self.takers[*turn];
            match place {
                Place::Tcp(listener) => {
                    while let Ok((stream, _)) = listener.accept() {
                        let _ = stream.set_nonblocking(true);
                        self.open.push((name, *turn, stream));
                    }
                }
                Place::Udp(socket) => {
                    while let Ok(n) = socket.recv(&mut buffer) {
                        all.push((*name, tagged(&self.marker, &buffer[..n]).unwrap_or(taker)));
                    }
                }
                Place::Stream(listener) => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        let _ = stream.set_nonblocking(true);
                        let n = stream.read(&mut buffer).unwrap_or(0);
                        all.push((*name, tagged(&self.marker, &buffer[..n]).unwrap_or(self.current)));
                    }
                }
                Place::Datagrams(socket) => {
                    while let Ok(n) = socket.recv(&mut buffer) {
                        all.push((*name, tagged(&self.marker, &buffer[..n]).unwrap_or(self.current)));
                    }
                }
            }
        }
        self.open.retain_mut(|(name, turn, stream)| match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                all.push((*name, tagged(&self.marker, &buffer[..n]).unwrap_or(self.takers[*turn])));
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        if let Some(sniffer) = &mut self.sniffer {
            for seen in sniffer.seen(&self.marker, self.groups) {
                let taker = match (seen.flow, seen.group) {
                    // What is sent again carries no number, and may come long after its attempt.
                    (Some(flow), _) => {
                        let turn = self.ports.iter().position(|port| *port == flow.1);
                        *self.flows.entry(flow).or_insert(turn.map_or(self.current, |turn| self.takers[turn]))
                    }
                    // Told by a timer, perhaps late.
                    (None, Some(group)) => self.joins[group],
                    (None, None) => self.current,
                };
                all.push((Sniffer::NAME, seen.number.unwrap_or(taker)));
            }
        }
        all.extend(self.outside.written(&self.marker).into_iter().map(|number| ("outside", number)));
        if self.decoy.as_ref().is_some_and(|decoy| !decoy.is_dir()) {
            all.push(("decoy", self.current));
            self.decoy = self.make_decoy();
        }
        all
    }

    /// A folder among the pins; `None` for those who may not make one.
    fn make_decoy(&self) -> Option<PathBuf> {
        let decoy = self.setup.pins.join("escape_decoy");
        let _ = fs::remove_dir(self.setup.pins.join("escape_decoy2"));
        let _ = fs::remove_dir(&decoy);
        fs::create_dir(&decoy).ok().map(|()| decoy)
    }

    /// A copy of id(1) that runs as another user than whoever starts it.
    fn other_user(&self) -> io::Result<PathBuf> {
        let path = self.folder.join("id");
        if !path.exists() {
            fs::copy("/usr/bin/id", &path)?;
            chown(&path, Some(OTHER_UID), None)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o4755))?;
        }
        Ok(path)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some(decoy) = &self.decoy {
            let _ = fs::remove_dir(decoy);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Numbers of the attempts that join groups, in the order of the groups.
fn joins() -> [usize; 2] {
    let all = attempts::all();
    // All are there: a number that is none would be an attempt that nobody runs.
    attempts::JOINS.map(|name| all.iter().position(|attempt| attempt.name == name).unwrap_or(all.len()))
}
