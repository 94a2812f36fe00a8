//! What can fail on the kernel side, and what [`super::Kernel::verify`] finds.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why the kernel side cannot be set up or asked.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// No object was embedded.
    #[error("this binary was built without its BPF programs: run `cargo xtask build`")]
    NotBuilt,
    /// The embedded object lacks a program or a map.
    #[error("the embedded BPF object has no `{what}`: run `cargo xtask build`")]
    Incomplete {
        /// Which.
        what: &'static str,
    },
    /// A listening socket cannot be asked what it is.
    #[error("the kernel does not tell of a listening socket what is needed")]
    Socket(#[source] io::Error),
    /// Pins cannot be kept.
    #[error("{} cannot hold pinned BPF objects", dir.display())]
    Pins {
        /// Where.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another daemon has these pins.
    #[error("another daemon uses the pinned objects in {}", dir.display())]
    InUse {
        /// Where.
        dir: PathBuf,
    },
    /// The kernel did not take the object.
    #[error("the kernel did not take the BPF object")]
    Object(#[source] Box<EbpfError>),
    /// The kernel did not take a program.
    #[error("the kernel did not take the program for `{hook}`")]
    Load {
        /// Which.
        hook: &'static str,
        /// Why not; with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("`{hook}` cannot be attached to {}", cgroup.display())]
    Attach {
        /// Which.
        hook: &'static str,
        /// To what.
        cgroup: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cgroup cannot be opened or asked.
    #[error("{} is not a cgroup that can be governed", cgroup.display())]
    Cgroup {
        /// Which.
        cgroup: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else changes connections of this cgroup.
    #[error(
        "connections of {} are changed by another BPF program (id {program}) already; two would corrupt origins",
        cgroup.display()
    )]
    Redirector {
        /// Where it was found.
        cgroup: PathBuf,
        /// Its id; `bpftool prog show id` tells more.
        program: u32,
    },
    /// A governed cgroup would be above or below another, or hold the enforcer.
    #[error("{} and {} must not lie in one another", inner.display(), outer.display())]
    Nested {
        /// The one below.
        inner: PathBuf,
        /// The one above.
        outer: PathBuf,
    },
    /// The enforcer must listen on the loopback device: nothing else passes the packet filter.
    #[error("the enforcer cannot listen on {0}: it must be a loopback address and a port")]
    Listener(SocketAddr),
    /// No unix socket could have this path.
    #[error("`{0}` cannot be the path of a unix socket: absolute, up to {max} bytes", max = portcullis_ebpf::UNIX_PATH_MAX)]
    UnixPath(String),
    /// A map could not be changed.
    #[error("the kernel's table `{map}` cannot be changed")]
    Map {
        /// Which.
        map: &'static str,
        /// Why not.
        #[source]
        source: MapError,
    },
    /// The monotonic clock cannot be read.
    #[error("the clock cannot be read")]
    Clock(#[source] io::Error),
}

/// Something that makes enforcement incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A pinned link is gone.
    Missing {
        /// Which hook.
        hook: &'static str,
        /// Of which cgroup.
        cgroup: PathBuf,
    },
    /// The cgroup was deleted; what is at its path now, if anything, is another that nothing governs.
    Deleted {
        /// Its path.
        cgroup: PathBuf,
    },
    /// A link runs another program than ours.
    Replaced {
        /// Which hook.
        hook: &'static str,
        /// Of which cgroup.
        cgroup: PathBuf,
    },
    /// Another program changes connections.
    Redirector {
        /// Where.
        cgroup: PathBuf,
        /// Its id.
        program: u32,
    },
    /// The kernel does not tell.
    Unknown {
        /// About which cgroup.
        cgroup: PathBuf,
        /// Why not.
        why: String,
    },
    /// The kernel has no hooks for unix sockets: governed processes that our launcher did not confine reach them all.
    Unix {
        /// What it said.
        why: String,
    },
    /// A link of the security module is gone or runs another program.
    Lsm {
        /// Which hook.
        hook: &'static str,
    },
    /// The enforcer's own hook is gone: no connection gets an origin.
    Enforcer,
    /// The pins lie in a mount that ends with this process's mount namespace, and enforcement with it.
    PrivateMount {
        /// The mount.
        dir: PathBuf,
    },
}

/// What helps against a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The operator can do this.
    Do(&'static str),
    /// Only another kernel: it must have this.
    Kernel(&'static str),
}

impl Problem {
    /// What helps.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Missing { .. }
            | Self::Replaced { .. }
            | Self::Deleted { .. }
            | Self::Unknown { .. }
            | Self::Lsm { .. } => Remedy::Do(
                "restart the daemon (systemctl restart portcullis): it attaches what is missing; find out who took it away",
            ),
            Self::Redirector { .. } => Remedy::Do(
                "detach the other program (`bpftool cgroup tree` shows it), or give the workload another cgroup",
            ),
            Self::Unix { .. } => Remedy::Kernel(
                "hooks for unix sockets (Linux 6.7), or BPF as a security module (`bpf` in its lsm=, CONFIG_BPF_LSM)",
            ),
            Self::Enforcer => Remedy::Do("restart the daemon (systemctl restart portcullis)"),
            Self::PrivateMount { .. } => {
                Remedy::Do("mount a bpffs on /sys/fs/bpf before the daemon starts: mount -t bpf bpf /sys/fs/bpf")
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { hook, cgroup } => write!(f, "`{hook}` is not attached to {}", cgroup.display()),
            Self::Deleted { cgroup } => write!(f, "{} was deleted; its hooks enforce nothing", cgroup.display()),
            Self::Replaced { hook, cgroup } => write!(f, "`{hook}` of {} runs another program", cgroup.display()),
            Self::Redirector { cgroup, program } => {
                write!(f, "BPF program {program} also changes connections of {}", cgroup.display())
            }
            Self::Unknown { cgroup, why } => write!(f, "{} cannot be checked: {why}", cgroup.display()),
            Self::Unix { why } => {
                write!(
                    f,
                    "unix sockets of the host are not refused: this kernel cannot (Linux 6.7 can), so sessions of \
                     `portcullis run` make none, whatever their policies list: {why}"
                )
            }
            Self::Lsm { hook } => write!(f, "`{hook}` is not attached to the kernel's security module"),
            Self::Enforcer => write!(f, "the enforcer's own hook is not attached; connections are refused"),
            Self::PrivateMount { dir } => {
                write!(f, "{} is a mount of this process alone; enforcement ends with the process", dir.display())
            }
        }
    }
}
