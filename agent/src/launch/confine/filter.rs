//! The system call filters: what passes every cgroup hook is refused here. See seccomp(2).
//!
//! What is not named is allowed: ordinary programs must run. A call of another architecture kills the process; one of
//! the x32 ABI, which shares the architecture's name and would pass by the numbers below, does not exist.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Cmp, SeccompCondition as Condition,
    SeccompFilter, SeccompRule,
};

use crate::bpf::UnixHooks;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused with EPERM.
const FORBIDDEN: &[libc::c_long] = &[
    // Descriptors and memory of other processes.
    libc::SYS_pidfd_getfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_open_by_handle_at,
    // The kernel's own programs, keys and counters.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Other namespaces and mounts.
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // The host.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Refused as if the kernel had never had them, so that callers take the older way: clone for clone3, whose flags a
/// filter cannot see, and epoll for io_uring, whose requests pass no filter.
const UNKNOWN: &[libc::c_long] =
    &[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Address families that the cgroup hooks see, or that stay on the host.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Types of unix sockets that, made as a pair, stay with each other. A datagram socket may send elsewhere.
const PAIRED: [i32; 2] = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET];

/// Where a type ends and its flags begin: `SOCK_TYPE_MASK` of linux/net.h.
const TYPES: u64 = 0xf;

/// Requests that type into, or paste from, the terminal: into the shell of whoever started the command.
const TERMINAL: [u64; 2] = [0x5412, 0x541c]; // TIOCSTI, TIOCLINUX

/// A user namespace gives back every capability inside it, a network namespace has devices of its own.
const NAMESPACES: [i32; 2] = [libc::CLONE_NEWUSER, libc::CLONE_NEWNET];

/// All filters, to be installed in this order. Each is one kind of refusal.
pub(super) fn filters(unix: UnixHooks) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut forbidden: Rules = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    let namespaces = NAMESPACES.map(|flag| flag as u64);
    forbidden.insert(libc::SYS_clone, flags(0, &namespaces)?);
    forbidden.insert(libc::SYS_unshare, flags(0, &namespaces)?);
    forbidden.insert(
        libc::SYS_ioctl,
        TERMINAL.iter().map(|request| rule(vec![condition(1, Cmp::Eq, *request)?])).collect::<Result<_, _>>()?,
    );
    let unknown = UNKNOWN.iter().map(|call| (*call, Vec::new())).collect();
    let mut sockets = families(&FAMILIES)?;
    if unix == UnixHooks::Missing {
        refuse_unix(&mut sockets)?;
    }
    Ok(vec![
        #[cfg(target_arch = "x86_64")]
        x32(),
        compiled(unknown, libc::ENOSYS)?,
        compiled(sockets, libc::EAFNOSUPPORT)?,
        compiled(forbidden, libc::EPERM)?,
    ])
}

/// What the daemon keeps of these once it serves: its programs in the kernel.
const DAEMON: &[libc::c_long] = &[libc::SYS_bpf];

/// The daemon's own: it asks the kernel for sockets' cgroups over netlink.
const DAEMON_FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The filters of a daemon that serves: what it never does, whoever speaks through it shall not do either.
pub fn of_daemon() -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut forbidden: Rules =
        FORBIDDEN.iter().filter(|call| !DAEMON.contains(call)).map(|call| (*call, Vec::new())).collect();
    forbidden.insert(libc::SYS_unshare, Vec::new());
    let unknown = UNKNOWN.iter().map(|call| (*call, Vec::new())).collect();
    Ok(vec![
        #[cfg(target_arch = "x86_64")]
        x32(),
        compiled(unknown, libc::ENOSYS)?,
        compiled(families(&DAEMON_FAMILIES)?, libc::EAFNOSUPPORT)?,
        compiled(forbidden, libc::EPERM)?,
    ])
}

/// What the helper has no use for beside: it starts no program, connects to nobody, and changes whose a file is, or who it
/// is itself, no more.
const NOT_THE_HELPERS: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_connect,
    libc::SYS_unshare,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mknodat,
    libc::SYS_setxattr,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capset,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
];

/// The filters of the daemon's privileged helper: of the calls above it needs setns(2) alone.
pub fn of_helper() -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let forbidden = FORBIDDEN.iter().filter(|call| **call != libc::SYS_setns).chain(NOT_THE_HELPERS);
    let unknown = UNKNOWN.iter().map(|call| (*call, Vec::new())).collect();
    Ok(vec![
        #[cfg(target_arch = "x86_64")]
        x32(),
        compiled(unknown, libc::ENOSYS)?,
        compiled(families(&FAMILIES)?, libc::EAFNOSUPPORT)?,
        compiled(forbidden.map(|call| (*call, Vec::new())).collect(), libc::EPERM)?,
    ])
}

/// Sockets of other families than these.
fn families(allowed: &[i32]) -> Result<Rules, seccompiler::Error> {
    let mut sockets = Rules::new();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let others = allowed.iter().map(|family| condition(0, Cmp::Ne, *family as u64)).collect::<Result<_, _>>()?;
        sockets.insert(call, vec![rule(others)?]);
    }
    Ok(sockets)
}

/// Of unix sockets, lets only pairs be made that stay with each other.
fn refuse_unix(sockets: &mut Rules) -> Result<(), seccompiler::Error> {
    let unix = || condition(0, Cmp::Eq, libc::AF_UNIX as u64);
    sockets.entry(libc::SYS_socket).or_default().push(rule(vec![unix()?])?);
    for kind in (0..=TYPES).filter(|kind| !PAIRED.iter().any(|paired| *paired as u64 == *kind)) {
        let refused = rule(vec![unix()?, condition(1, Cmp::MaskedEq(TYPES), kind)?])?;
        sockets.entry(libc::SYS_socketpair).or_default().push(refused);
    }
    Ok(())
}

fn compiled(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
        .map_err(seccompiler::Error::Backend)?;
    filter.try_into().map_err(seccompiler::Error::Backend)
}

/// Any of these bits in the argument.
fn flags(argument: u8, bits: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    bits.iter().map(|bit| rule(vec![condition(argument, Cmp::MaskedEq(*bit), *bit)?])).collect()
}

fn rule(conditions: Vec<Condition>) -> Result<SeccompRule, seccompiler::Error> {
    SeccompRule::new(conditions).map_err(seccompiler::Error::Backend)
}

/// On the low 32 bits, which are all that the kernel reads of these arguments.
fn condition(argument: u8, compare: Cmp, value: u64) -> Result<Condition, seccompiler::Error> {
    Condition::new(argument, Len::Dword, compare, value).map_err(seccompiler::Error::Backend)
}

/// ENOSYS for every call number with the x32 bit.
#[cfg(target_arch = "x86_64")]
fn x32() -> BpfProgram {
    use seccompiler::sock_filter;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_WORD, 0, 0, 0), // seccomp_data.nr
        instruction(JUMP_IF_AT_LEAST, 0, 1, X32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
