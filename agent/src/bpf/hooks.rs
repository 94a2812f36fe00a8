//! The programs and where each is attached.

use std::os::fd::{AsFd, OwnedFd};

use aya::{Ebpf, programs::Program};

use super::BpfError;

/// One program of the object, and the hook it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// Name of the program, and of its pinned link.
    pub(super) name: &'static str,
    /// `enum bpf_attach_type` of linux/bpf.h.
    pub(super) attach_type: u32,
    /// Whose sockets it sees.
    pub(super) side: Side,
}

/// Whose cgroup a hook is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A governed one.
    Governed,
    /// The enforcer's.
    Own,
}

const fn hook(name: &'static str, attach_type: u32) -> Hook {
    Hook { name, attach_type, side: Side::Governed }
}

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`: where another redirector would be found.
pub(super) const REDIRECTS: [u32; 2] = [10, 11];

/// The hooks of a governed cgroup, in the order of attaching: first the roads are closed, then the one is opened, so
/// that a failure half-way leaves a cgroup that reaches nothing.
pub(super) const GOVERNED: [Hook; 15] = [
    hook("egress", 1),
    hook("ingress", 0),
    hook("sock_create", 2),
    hook("sendmsg4", 14),
    hook("sendmsg6", 15),
    hook("setsockopt", 22),
    hook("bind4", 8),
    hook("bind6", 9),
    hook("recvmsg4", 19),
    hook("recvmsg6", 20),
    hook("getpeername4", 29),
    hook("getpeername6", 30),
    hook("carry", 3),
    hook("connect4", REDIRECTS[0]),
    hook("connect6", REDIRECTS[1]),
];

/// The hooks of a governed cgroup that a kernel may lack: `BPF_CGROUP_UNIX_CONNECT` and `BPF_CGROUP_UNIX_SENDMSG`. Attached
/// before [`GOVERNED`]: they close roads.
pub(super) const UNIX: [Hook; 2] = [hook("connect_unix", 49), hook("sendmsg_unix", 50)];

/// The hooks of the enforcer's own cgroup: `BPF_CGROUP_SOCK_OPS` and `BPF_CGROUP_INET_SOCK_RELEASE`.
pub(super) const OWN: [Hook; 2] = [
    Hook { name: "accepted", attach_type: 3, side: Side::Own },
    Hook { name: "released", attach_type: 34, side: Side::Own },
];

/// A program in the kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) hook: Hook,
    pub(super) program: OwnedFd,
    pub(super) id: u32,
}

/// Loads one program; the verifier's log is part of the error.
pub(super) fn load(object: &mut Ebpf, hook: Hook) -> Result<Loaded, BpfError> {
    let program = object.program_mut(hook.name).ok_or(BpfError::Incomplete { what: hook.name })?;
    let failed = |source| BpfError::Load { hook: hook.name, source: Box::new(source) };
    match program {
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::SockOps(p) => p.load(),
        _ => return Err(BpfError::Incomplete { what: hook.name }),
    }
    .map_err(failed)?;
    let id = program.info().map_err(failed)?.id();
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    let program = fd.map_err(|source| BpfError::Attach { hook: hook.name, cgroup: Default::default(), source })?;
    Ok(Loaded { hook, program, id })
}
