//! Types shared between the BPF programs and the agent: `repr(C)`, padded by hand, `u32` instead of `bool`.
//!
//! A change to any of these is a change of [`LAYOUT`]: maps outlive the process that made them, and one made with
//! another layout must never be taken for one of ours.
#![cfg_attr(not(feature = "user"), no_std)]

/// Version of every type and map in this crate; part of the folder where maps are pinned.
pub const LAYOUT: u32 = 8;

/// A heartbeat older than this (nanoseconds) means that no enforcer is alive, and every connect is refused.
pub const HEARTBEAT_STALE_NS: u64 = 2_000_000_000;

/// How many connections may be between their first packet and their acceptance at one time. Past it a connection has
/// no origin and the enforcer closes it.
pub const MAX_TUPLES: usize = 65_536;

/// How many sessions may be known at one time.
pub const MAX_SESSIONS: usize = 65_536;

/// How many sockets the enforcer may have for what comes from sessions: for each protocol, one of each family in each
/// network namespace.
pub const MAX_LISTENERS: usize = 16_384;

/// How many cgroups may be governed at one time.
pub const MAX_GOVERNED: usize = 1024;

/// How deep below the root of the tree a cgroup may lie to be known to the security module's programs as governed.
pub const MAX_GOVERNED_LEVEL: u32 = 32;

/// How many paths of unix sockets all sessions may reach together.
pub const MAX_UNIX_PATHS: usize = 65_536;

/// Longest path of a unix socket, in bytes: `sun_path` in linux/un.h. One of this length has no NUL at its end.
pub const UNIX_PATH_MAX: usize = 108;

/// Room for such a path, a NUL, and what aligns a [`UnixPath`].
pub const UNIX_PATH_ROOM: usize = 112;

/// How much of the kernel's context is read for [`UnixPlaces`], in words of 8 bytes.
pub const UNIX_CONTEXT_WORDS: usize = 5;

/// How many refusals of one cgroup are told in [`REPORT_WINDOW_NS`]; all are counted.
pub const REPORTS_PER_WINDOW: u64 = 16;

/// See [`REPORTS_PER_WINDOW`]. Nanoseconds.
pub const REPORT_WINDOW_NS: u64 = 1_000_000_000;

/// How many cgroups' refusals are kept account of; the one that was quiet for longest is forgotten first.
pub const MAX_REPORTING: usize = 4096;

/// Room for refusals that the agent has not read yet, in bytes: a power of two, and whole pages of any size in use.
pub const REFUSAL_BYTES: usize = 1 << 18;

/// Longest question for a name over UDP, in bytes: RFC 1035 section 2.3.4.
pub const QUESTION_BYTES: usize = 512;

/// How many questions over UDP a session may ask in [`QUESTION_WINDOW_NS`].
pub const QUESTIONS_PER_WINDOW: u64 = 200;

/// See [`QUESTIONS_PER_WINDOW`]. Nanoseconds.
pub const QUESTION_WINDOW_NS: u64 = 1_000_000_000;

/// Room for questions that the agent has not read yet, in bytes: as [`REFUSAL_BYTES`].
pub const QUESTION_RING_BYTES: usize = 1 << 18;

/// How many answers may be on their way at one time; the oldest do not arrive past it.
pub const MAX_ANSWERS: usize = 16_384;

/// How long an answer may be on its way. Nanoseconds.
pub const ANSWER_STALE_NS: u64 = 2_000_000_000;

/// The port of DNS.
pub const DNS_PORT: u32 = 53;

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u32 = 6;
/// `IPPROTO_UDP`.
pub const IPPROTO_UDP: u32 = 17;

/// Where governed connections are sent: the enforcer's listeners. A port of 0 means that there is none of that family. UDP
/// has the same addresses and ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforcer {
    /// IPv4 address, network byte order.
    pub v4: u32,
    /// TCP port of the IPv4 listener, host byte order.
    pub v4_port: u32,
    /// IPv6 address, each word in network byte order.
    pub v6: [u32; 4],
    /// TCP port of the IPv6 listener, host byte order.
    pub v6_port: u32,
    /// Always 0.
    pub pad: u32,
}

/// A family of addresses and a protocol in a network namespace, for which the enforcer may have a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// [`AF_INET`] or [`AF_INET6`].
    pub family: u32,
    /// [`IPPROTO_TCP`] or [`IPPROTO_UDP`].
    pub protocol: u32,
}

/// Where a client wanted to go, and who it is, as seen at `connect()`, or where a datagram was sent to an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOrigin {
    /// [`AF_INET`] or [`AF_INET6`]: the family of the client's socket, so a mapped address stays mapped.
    pub family: u32,
    /// Port, host byte order.
    pub port: u32,
    /// Address in network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// cgroup of the task that called it: the identity.
    pub cgroup_id: u64,
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// Process id (thread group). A hint: kernel threads connect for io_uring.
    pub pid: u32,
    /// Real user id in the initial user namespace. A hint.
    pub uid: u32,
    /// Name of the task. A hint.
    pub comm: [u8; 16],
}

/// One TCP connection as its client sees it. IPv4 addresses are kept in mapped form, so a mapped socket and a plain
/// one are the same connection to the listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// Network namespace: the same addresses may be in use in several.
    pub netns_cookie: u64,
    /// Client's address, network byte order.
    pub client: [u32; 4],
    /// Listener's address, network byte order.
    pub server: [u32; 4],
    /// Client's port, host byte order.
    pub client_port: u32,
    /// Listener's port, host byte order.
    pub server_port: u32,
}

/// A question for a name, as it left a session's UDP socket. Beside each lie its bytes, as many as `length` says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawQuestion {
    /// Who asks, and which name server. Its cgroup is the socket's as well.
    pub origin: RawOrigin,
    /// The kernel's number of the socket, never given twice.
    pub socket_cookie: u64,
    /// When, on the monotonic clock. Nanoseconds.
    pub asked_ns: u64,
    /// Address that it came from, network byte order; mapped, if IPv4.
    pub client: [u32; 4],
    /// Port that it came from, host byte order.
    pub client_port: u32,
    /// How many bytes the question has.
    pub length: u32,
}

/// A question and the bytes beside it, as they lie in the ring buffer. Those past its length are of no meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ToldQuestion(pub RawQuestion, pub [u8; QUESTION_BYTES]);

/// An answer that the agent sends: it arrives at this socket, and at no other that has come to have its port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawAnswer {
    /// The socket that asked.
    pub socket_cookie: u64,
    /// The message's id (RFC 1035 section 4.1.1), host byte order.
    pub id: u32,
    /// Always 0.
    pub pad: u32,
}

/// A unix socket that a session may reach.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixPath {
    /// cgroup of the session.
    pub cgroup_id: u64,
    /// Absolute path, exactly as clients write it; zeros after it.
    pub path: [u8; UNIX_PATH_ROOM],
}

/// Where the fields of the kernel's `struct bpf_sock_addr_kern` lie, in words of 8 bytes from its start. Zero: not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixPlaces {
    /// `uaddr`: pointer to the name.
    pub address: u32,
    /// `uaddrlen`: its length in bytes, with the family.
    pub length: u32,
}

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Where the kernel keeps what the security module's programs read, in bytes from the start of each structure.
        /// Written once as a whole; all zeros where it is not known.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct LsmPlaces {
            $($(#[$doc])* pub $name: u32,)*
        }

        const _: () = assert!(size_of::<LsmPlaces>() == 4 * [$(stringify!($name)),*].len());
    };
}

places! {
    /// 1 where all others are known.
    known,
    /// `socket.sk`.
    socket_sock,
    /// `socket.file`.
    socket_file,
    /// `sock.__sk_common.skc_family`.
    sock_family,
    /// `sock.sk_type`.
    sock_kind,
    /// `sock.sk_protocol`.
    sock_protocol,
    /// `sock.sk_cgrp_data.cgroup`.
    sock_cgroup,
    /// `cgroup.kn`.
    cgroup_node,
    /// `cgroup.level`.
    cgroup_level,
    /// `cgroup.ancestors`.
    cgroup_ancestors,
    /// `kernfs_node.id`.
    node_id,
    /// `kernfs_node.parent`, `__parent` since Linux 6.15.
    node_parent,
    /// `kernfs_node.name`.
    node_name,
    /// `task_struct.cgroups`.
    task_set,
    /// `css_set.dfl_cgrp`.
    set_cgroup,
    /// `file.f_inode`.
    file_inode,
    /// `file.private_data`.
    file_private,
    /// `file.f_path.dentry`.
    file_dentry,
    /// `inode.i_mode`.
    inode_mode,
    /// `inode.i_sb`.
    inode_super,
    /// `inode.i_private`: of a cgroup's file its node.
    inode_private,
    /// `super_block.s_magic`.
    super_magic,
    /// `dentry.d_name.name`.
    dentry_name,
    /// `unix_sock.addr`.
    unix_address,
    /// `unix_sock.peer`.
    unix_peer,
    /// `unix_address.len`.
    address_length,
    /// `unix_address.name`.
    address_name,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a hook refused. The number is the place in the counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every one, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// A short name, for counters.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// A socket of the internet families that is neither TCP nor, where the enforcer answers there, UDP.
    Socket = "socket",
    /// A connect of such a socket, or of a UDP socket to anything but a name server.
    NotTcp = "not-tcp",
    /// A connect of a socket that is bound to a device.
    Device = "device",
    /// No live enforcer, or no listener of that family.
    Enforcer = "enforcer",
    /// No listener of the enforcer in the network namespace.
    Namespace = "namespace",
    /// A cgroup that is no session.
    Session = "session",
    /// No memory to keep the origin.
    Memory = "memory",
    /// A datagram to anything but a name server.
    Datagram = "datagram",
    /// A port or address that others could reach.
    Bind = "bind",
    /// An option of a socket that chooses a road.
    Option = "option",
    /// A unix socket that the session's list does not have.
    Unix = "unix",
    /// A packet to anywhere but the enforcer.
    Egress = "egress",
    /// A packet from anywhere but the enforcer.
    Ingress = "ingress",
    /// A socket of another family than the internet's and unix sockets.
    Family = "family",
    /// A socket that was made outside of the session.
    Foreign = "foreign",
    /// A call of bpf(2).
    Bpf = "bpf",
    /// A look into a process outside of the session.
    Trace = "trace",
    /// A call of perf_event_open(2).
    Perf = "perf",
    /// A change of a cgroup.
    Cgroup = "cgroup",
    /// More questions for names over UDP than a session may ask, or than the enforcer gets round to.
    Questions = "questions",
}

/// What was refused. Beside each lies the path of the unix socket, [`UNIX_PATH_ROOM`] bytes, else zeros; an abstract name
/// begins with `@`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRefusal {
    /// A [`Reason`].
    pub reason: u32,
    /// Family of the socket, or 0.
    pub family: u32,
    /// Type of the socket; for [`Reason::Option`], its level.
    pub kind: u32,
    /// Protocol of the socket; for [`Reason::Option`], its name.
    pub protocol: u32,
    /// Address of the other side (of this one for [`Reason::Bind`]) in network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Its port, host byte order.
    pub port: u32,
    /// Process id (thread group).
    pub pid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// 1 where process, user and name are known, else 0.
    pub has_task: u32,
    /// cgroup of the task, or of the packet's socket.
    pub cgroup_id: u64,
    /// How many refusals of that cgroup were not told so far.
    pub left_out: u64,
    /// Name of the task.
    pub comm: [u8; 16],
}

/// A refusal and the path beside it, as they lie in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ToldRefusal(pub RawRefusal, pub [u8; UNIX_PATH_ROOM]);

/// How often a cgroup was told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reporting {
    /// When the window began, on the monotonic clock. Nanoseconds.
    pub since_ns: u64,
    /// How many were told in it.
    pub told: u64,
    /// How many were not told, ever.
    pub left_out: u64,
}

#[cfg(feature = "user")]
mod user {
    impl super::ToldQuestion {
        /// From the bytes of a ring buffer's entry; `None` if they are not as many as they should be.
        pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
            // SAFETY: as many bytes as the type has, any of which is a value of it; read wherever they lie.
            (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
        }
    }

    impl super::ToldRefusal {
        /// From the bytes of a ring buffer's entry; `None` if they are not as many as they should be.
        pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
            // SAFETY: as many bytes as the type has, any of which is a value of it; read wherever they lie.
            (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
        }
    }

    // SAFETY: repr(C), no padding (checked below), no pointers, any bit pattern is a value.
    unsafe impl aya::Pod for super::Enforcer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Listener {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RawOrigin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RawAnswer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UnixPath {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UnixPlaces {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LsmPlaces {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Reporting {}
}

// The sum of the fields is the size: there is no hidden padding whose content would leak or compare unequal.
const _: () = assert!(size_of::<Enforcer>() == 4 + 4 + 16 + 4 + 4);
const _: () = assert!(size_of::<Listener>() == 8 + 4 + 4);
const _: () = assert!(size_of::<RawOrigin>() == 4 + 4 + 16 + 8 + 8 + 4 + 4 + 16);
const _: () = assert!(size_of::<RawQuestion>() == size_of::<RawOrigin>() + 8 + 8 + 16 + 4 + 4);
const _: () = assert!(size_of::<ToldQuestion>() == size_of::<RawQuestion>() + QUESTION_BYTES);
const _: () = assert!(size_of::<RawAnswer>() == 8 + 4 + 4);
const _: () = assert!(size_of::<Tuple>() == 8 + 16 + 16 + 4 + 4);
const _: () = assert!(size_of::<UnixPath>() == 8 + UNIX_PATH_ROOM);
const _: () = assert!(UNIX_PATH_ROOM > UNIX_PATH_MAX);
const _: () = assert!(size_of::<UnixPlaces>() == 4 + 4);
const _: () = assert!(size_of::<RawRefusal>() == 4 * 4 + 16 + 4 * 4 + 8 + 8 + 16);
const _: () = assert!(size_of::<ToldRefusal>() == size_of::<RawRefusal>() + UNIX_PATH_ROOM);
const _: () = assert!(size_of::<Reporting>() == 8 + 8 + 8);
