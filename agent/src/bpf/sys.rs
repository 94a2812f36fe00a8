//! bpf(2) calls that aya does not offer: links it cannot pin or update, who else is attached, and the clock of the
//! programs. See linux/bpf.h for commands and structures.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; the only such module of `bpf`")]

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_insn;
use tokio::io::{Interest, unix::AsyncFd};

use super::ring::Ring;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// A `union bpf_attr`: 64-bit words, as long as the kernel of any version needs for these commands, the rest zero.
type Attributes = [u64; 16];

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const SOCK_ADDR: u32 = 18;

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Id of the attached program.
    pub(super) program: u32,
    /// Id of the cgroup; 0 once it was deleted, and then the link enforces nothing.
    pub(super) cgroup: u64,
    /// `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

/// Loads a program of the type for socket addresses. Its maps are relocated already.
pub(super) fn load_sock_addr(program: &[bpf_insn], license: &CStr, attach_type: u32) -> io::Result<OwnedFd> {
    // { prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name[16],
    //   prog_ifindex, expected_attach_type }
    let mut attributes: Words =
        [words(SOCK_ADDR, program.len() as u32), program.as_ptr() as u64, license.as_ptr() as u64].into();
    attributes.0[8] = words(0, attach_type);
    let program = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Whether the kernel takes a program for this hook: one that does nothing (`r0 = 1; exit`), and is dropped at once.
pub(super) fn probe_sock_addr(attach_type: u32) -> io::Result<()> {
    let instruction =
        |code, imm| bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm };
    load_sock_addr(&[instruction(0xb7, 1), instruction(0x95, 0)], c"GPL", attach_type).map(drop)
}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: { type, id, .. }
    let mut info = [0_u32; 64];
    let mut attributes = [words(fd(program), size_of_val(&info) as u32), info.as_mut_ptr() as u64].into();
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info[1])
}

/// Attaches a program to a cgroup, beside others.
pub(super) fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    // { prog_fd, target_fd, attach_type, flags }
    let mut attributes = [words(fd(program), fd(cgroup)), words(attach_type, 0)].into();
    let link = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Replaces the program of a link, in one step for everyone who passes it.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // { link_fd, new_prog_fd, flags, old_prog_fd }
    bpf(BPF_LINK_UPDATE, &mut [words(fd(link), fd(program)), 0].into()).map(|_| ())
}

/// What a link is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // struct bpf_link_info: { type, id, prog_id, (hole), cgroup { cgroup_id: u64, attach_type: u32 } }
    let mut info = [0_u32; 32];
    // { bpf_fd, info_len, info }
    let mut attributes = [words(fd(link), size_of_val(&info) as u32), info.as_mut_ptr() as u64].into();
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    if info[0] != BPF_LINK_TYPE_CGROUP {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a link to a cgroup"));
    }
    let mut cgroup = [0; 8];
    cgroup[..4].copy_from_slice(&info[4].to_ne_bytes());
    cgroup[4..].copy_from_slice(&info[5].to_ne_bytes());
    Ok(LinkInfo { program: info[2], cgroup: u64::from_ne_bytes(cgroup), attach_type: info[6] })
}

/// Attaches a program of the security module, for the whole host and beside others.
pub(super) fn lsm_link_create(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // { name: none, prog_fd }
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &mut [0, words(fd(program), 0)].into())?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// The id of the program that a link of the security module runs.
pub(super) fn lsm_link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_link_info: { type, id, prog_id, (hole), tracing { attach_type: u32, .. } }
    let mut info = [0_u32; 32];
    let mut attributes = [words(fd(link), size_of_val(&info) as u32), info.as_mut_ptr() as u64].into();
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    const BPF_LINK_TYPE_TRACING: u32 = 2;
    const BPF_LSM_MAC: u32 = 27;
    if info[0] != BPF_LINK_TYPE_TRACING || info[4] != BPF_LSM_MAC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a link to the security module"));
    }
    Ok(info[2])
}

/// Pins a BPF object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // { pathname, bpf_fd, file_flags }
    bpf(BPF_OBJ_PIN, &mut [path.as_ptr() as u64, words(fd(object), 0)].into()).map(|_| ())
}

/// Opens a pinned BPF object.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let object = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0].into())?;
    // SAFETY: the kernel returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Which of a cgroup's programs [`programs`] lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// To this cgroup itself.
    Here,
    /// Here and to any parent: what a task in it passes.
    HereOrAbove,
}

/// Ids of the programs attached to a cgroup.
pub(super) fn programs(cgroup: BorrowedFd<'_>, attach_type: u32, which: Attached) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 256];
    let flags = if which == Attached::HereOrAbove { BPF_F_QUERY_EFFECTIVE } else { 0 };
    // { target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt, .. }
    let mut attributes: Words = [words(fd(cgroup), attach_type), words(flags, 0), ids.as_mut_ptr() as u64].into();
    attributes.0[3] = words(ids.len() as u32, 0);
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    let count = first_word(attributes.0[3]) as usize;
    Ok(ids.iter().copied().take(count).collect())
}

/// The clock that BPF programs read with `bpf_ktime_get_ns`, in nanoseconds.
pub(super) fn monotonic_ns() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Registers the descriptor of a ring buffer with the runtime.
pub(super) fn watch<T>(ring: Ring<T>) -> io::Result<AsyncFd<Ring<T>>> {
    // SAFETY: the ring owns its descriptor and always shows the same one; who gets this keeps it to itself and puts no
    // other ring in its place, and it lets go of the descriptor before the ring does.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// The network namespace of a socket [Linux 5.14].
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    socket_number(socket, SO_NETNS_COOKIE)
}

/// The kernel's number of a socket, never given twice [Linux 4.12].
pub(super) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket_number(socket, libc::SO_COOKIE)
}

fn socket_number(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut number = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: there is as much room as said.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut number).cast(), &raw mut length)
    };
    if done == 0 { Ok(number) } else { Err(io::Error::last_os_error()) }
}

struct Words(Attributes);

impl<const N: usize> From<[u64; N]> for Words {
    fn from(first: [u64; N]) -> Self {
        let mut all = [0; 16];
        all[..N].copy_from_slice(&first);
        Self(all)
    }
}

/// Two 32-bit fields, in the order in which they lie in memory.
fn words(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn first_word(words: u64) -> u32 {
    let [a, b, c, d, ..] = words.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn bpf(command: libc::c_long, attributes: &mut Words) -> io::Result<i32> {
    // SAFETY: the attributes are as long as said; every pointer in them is to a buffer of the caller that is as long
    // as the attributes say and outlives the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size_of_val(&attributes.0) as libc::c_ulong)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}
