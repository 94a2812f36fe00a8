//! What the attempts share: sockets, addresses, and a child process for each attempt.

use std::{
    mem::{size_of, zeroed},
    os::fd::{FromRawFd, OwnedFd},
};

use super::{Answer, Target};

pub(super) const INET: i32 = libc::AF_INET;
pub(super) const INET6: i32 = libc::AF_INET6;

/// How long an attempt may take, in seconds.
const PATIENCE: u32 = 2;

/// Where to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    V4,
    V6,
    /// The IPv4 witness through an IPv6 socket.
    Mapped,
    Loopback4,
    Loopback6,
}

impl To {
    pub(super) fn family(self) -> i32 {
        if matches!(self, Self::V4 | Self::Loopback4) { INET } else { INET6 }
    }
}

/// An address and its length.
pub(super) type Address = (libc::sockaddr_storage, u32);

/// Runs an attempt in a child with an alarm: a hang, a crash or a kill by a filter is an answer, too.
pub(super) fn in_child(attempt: impl Fn() -> Answer) -> Answer {
    let mut ends = [0; 2];
    // SAFETY: a valid place for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
        return Answer::Done;
    }
    let [read, write] = ends;
    // SAFETY: this program has one thread; the child runs on a copy of it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a plain system call.
        unsafe { libc::alarm(PATIENCE) };
        let said: [u16; 2] = match attempt() {
            Answer::Done => [0, 0],
            Answer::Effect => [1, 0],
            Answer::Listens(port) => [2, port],
        };
        // SAFETY: the buffer is valid for its length; then the child ends.
        unsafe {
            libc::write(write, said.as_ptr().cast(), size_of_val(&said));
            libc::_exit(0);
        }
    }
    let mut said = [0u16; 2];
    // SAFETY: our child, a valid place for what it said, and our own descriptors.
    let n = unsafe {
        libc::waitpid(child, std::ptr::null_mut(), 0);
        let n = libc::read(read, said.as_mut_ptr().cast(), size_of_val(&said));
        libc::close(read);
        libc::close(write);
        n
    };
    match said {
        [1, _] if n > 0 => Answer::Effect,
        [2, port] if n > 0 => Answer::Listens(port),
        _ => Answer::Done,
    }
}

pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> i32 {
    // SAFETY: a plain system call.
    unsafe { libc::socket(family, kind, protocol) }
}

/// An address of the witness, or of this host's loopback.
pub(super) fn address(target: &Target, to: To, port: u16) -> Address {
    let v4 = |ip: std::net::Ipv4Addr| {
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_in = unsafe { zeroed() };
        address.sin_family = INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
        stored(&address)
    };
    let v6 = |ip: std::net::Ipv6Addr| {
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_in6 = unsafe { zeroed() };
        address.sin6_family = INET6 as u16;
        address.sin6_port = port.to_be();
        address.sin6_addr.s6_addr = ip.octets();
        stored(&address)
    };
    match to {
        To::V4 => v4(target.v4),
        To::V6 => v6(target.v6),
        To::Mapped => v6(target.v4.to_ipv6_mapped()),
        To::Loopback4 => v4(std::net::Ipv4Addr::LOCALHOST),
        To::Loopback6 => v6(std::net::Ipv6Addr::LOCALHOST),
    }
}

/// Any address of a family as the system calls take it.
pub(super) fn stored<T>(address: &T) -> Address {
    // SAFETY: all zeros is a valid address of no family.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let length = size_of::<T>().min(size_of_val(&storage));
    // SAFETY: both are plain memory of at least this length, and do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(address).cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            length,
        );
    }
    (storage, length as u32)
}

/// The witness's listener at one of its places.
pub(super) fn place(target: &Target, to: To) -> Address {
    address(target, to, target.port)
}

pub(super) fn connect(fd: i32, (storage, length): Address) -> i32 {
    // What does not answer need not be waited for: the witness has seen what was sent.
    let patience = libc::timeval { tv_sec: 0, tv_usec: 300_000 };
    // SAFETY: value and address are valid for their lengths.
    unsafe {
        let size = size_of_val(&patience) as u32;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, (&raw const patience).cast(), size);
        libc::connect(fd, (&raw const storage).cast(), length)
    }
}

pub(super) fn bind(fd: i32, (storage, length): Address) -> i32 {
    // SAFETY: the address is valid for its length.
    unsafe { libc::bind(fd, (&raw const storage).cast(), length) }
}

pub(super) fn send(fd: i32, data: &[u8], flags: i32) -> isize {
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags | libc::MSG_NOSIGNAL) }
}

pub(super) fn sendto(fd: i32, data: &[u8], flags: i32, (storage, length): Address) -> isize {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: buffer and address are valid for their lengths.
    unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, (&raw const storage).cast(), length) }
}

/// A message with an address and control data.
pub(super) fn sendmsg(fd: i32, data: &[u8], (mut storage, length): Address, control: &[u8]) -> isize {
    let mut piece = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = length;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len();
    }
    // SAFETY: everything the message names lives until the call returns.
    unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) }
}

/// One control message: cmsg(3). The data is padded to whole words.
pub(super) fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut out = (HEADER + data.len()).to_ne_bytes().to_vec();
    out.extend_from_slice(&level.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(size_of::<usize>()), 0);
    out
}

pub(super) fn option(fd: i32, level: i32, name: i32, value: &[u8]) -> i32 {
    // SAFETY: the value is valid for its length.
    unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as u32) }
}

/// Sets an option to 1.
pub(super) fn on(fd: i32, level: i32, name: i32) -> i32 {
    option(fd, level, name, &1i32.to_ne_bytes())
}

/// Version of the kernel's Landlock: landlock_create_ruleset(2). 0 where it has none.
pub(in crate::doctor) fn landlock_version() -> i32 {
    const VERSION: usize = 1;
    i32::try_from(raw_syscall(libc::SYS_landlock_create_ruleset, [0, 0, VERSION, 0, 0])).unwrap_or(0).max(0)
}

/// A ring with a kernel thread that outlives exec, for a session to inherit. `None` where the kernel gives none.
pub(in crate::doctor) fn ring() -> Option<OwnedFd> {
    let mut parameters = [0u32; 30];
    // IORING_SETUP_SQPOLL, and that the thread sleeps after a millisecond.
    parameters[2] = 2;
    parameters[4] = 1;
    let fd = raw_syscall(libc::SYS_io_uring_setup, [4, parameters.as_mut_ptr() as usize, 0, 0, 0]);
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a new descriptor that nothing else owns, and a plain system call.
    unsafe {
        libc::fcntl(fd, libc::F_SETFD, 0);
        Some(OwnedFd::from_raw_fd(fd))
    }
}

/// A system call; whether it succeeded.
pub(super) fn syscall(number: i64, arguments: [usize; 5]) -> bool {
    raw_syscall(number, arguments) >= 0
}

/// A system call and its answer.
pub(super) fn raw_syscall(number: i64, [a, b, c, d, e]: [usize; 5]) -> i64 {
    // SAFETY: pointers among the arguments, if any, are valid while the call lasts: see the callers.
    unsafe { libc::syscall(number, a, b, c, d, e, 0usize) }
}

/// What the last system call failed with.
pub(super) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The number of a device; 0 if there is none of that name.
pub(super) fn device_number(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: a valid string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Runs something in another process that outlives the attempt. It ends when that returns, or after half a second.
pub(super) fn in_background(work: impl Fn()) {
    // SAFETY: one thread; the child runs on a copy and ends here.
    unsafe {
        if libc::fork() == 0 {
            libc::alarm(1);
            work();
            libc::_exit(0);
        }
    }
}
