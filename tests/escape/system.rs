//! Attempts that do not begin with an internet socket: other families, other processes, namespaces, the kernel itself.

use std::{ffi::CString, fs, mem::zeroed};

use crate::{
    Attempt, Target,
    net::{address, connect, send, socket},
};

fn effect(name: &str, attempt: impl Fn(&Target) -> bool + 'static) -> Attempt {
    (name.to_owned(), Box::new(attempt))
}

fn syscall(number: i64, arguments: [usize; 5]) -> bool {
    let [a, b, c, d, e] = arguments;
    // SAFETY: pointers among the arguments, if any, are valid while the call lasts: see the callers.
    unsafe { libc::syscall(number, a, b, c, d, e, 0usize) >= 0 }
}

/// An address of a unix socket; an abstract one begins with NUL.
fn unix_address(path: &[u8]) -> (libc::sockaddr_storage, u32) {
    // SAFETY: all zeros is a valid address of no family.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    // SAFETY: sockaddr_storage is larger and more aligned than any address.
    let address = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_un>() };
    address.sun_family = libc::AF_UNIX as u16;
    for (place, byte) in address.sun_path.iter_mut().zip(path) {
        *place = byte.cast_signed();
    }
    (storage, 2 + path.len() as u32)
}

fn unix(target: &Target, name: &str, kind: i32, is_abstract: bool, by_sendto: bool) -> bool {
    let path = format!("{}/{name}", target.unix);
    let path = if is_abstract { [b"\0", path.as_bytes()].concat() } else { [path.as_bytes(), b"\0"].concat() };
    let (storage, length) = unix_address(&path);
    let fd = socket(libc::AF_UNIX, kind, 0);
    if by_sendto {
        let data = &target.marker;
        // SAFETY: buffer and address are valid for their lengths.
        unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), 0, (&raw const storage).cast(), length) };
    } else {
        connect(fd, (storage, length));
        send(fd, &target.marker, 0);
    }
    false
}

fn writes(path: &str, text: &str) -> bool {
    fs::write(path, text).is_ok()
}

/// Whether a file could be written to; it is left as it is.
fn opens(path: &str) -> bool {
    fs::OpenOptions::new().write(true).open(path).is_ok()
}

fn cgroup_root() -> String {
    let hybrid = "/sys/fs/cgroup/unified";
    if fs::metadata(hybrid).is_ok() { hybrid.into() } else { "/sys/fs/cgroup".into() }
}

pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (kind_name, kind) in
        [("stream", libc::SOCK_STREAM), ("dgram", libc::SOCK_DGRAM), ("seqpacket", libc::SOCK_SEQPACKET)]
    {
        for is_abstract in [false, true] {
            let name = format!("unix {} {kind_name}", if is_abstract { "abstract" } else { "path" });
            let attempt = move |target: &Target| unix(target, kind_name, kind, is_abstract, false);
            all.push(effect(&name, attempt));
        }
    }
    for is_abstract in [false, true] {
        let name = format!("unix {} dgram sendto", if is_abstract { "abstract" } else { "path" });
        all.push(effect(&name, move |target| unix(target, "dgram", libc::SOCK_DGRAM, is_abstract, true)));
    }
    for (name, family, kind, protocol) in [
        ("packet raw", libc::AF_PACKET, libc::SOCK_RAW, 0x0300),
        ("packet dgram", libc::AF_PACKET, libc::SOCK_DGRAM, 0x0300),
        ("xdp", 44, libc::SOCK_RAW, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("netlink route", libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ("netlink sock_diag", libc::AF_NETLINK, libc::SOCK_RAW, 4),
        ("netlink netfilter", libc::AF_NETLINK, libc::SOCK_RAW, 12),
        ("netlink uevent", libc::AF_NETLINK, libc::SOCK_RAW, 15),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("tipc", libc::AF_TIPC, libc::SOCK_RDM, 0),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("rxrpc", 33, libc::SOCK_DGRAM, 2),
        ("qrtr", 42, libc::SOCK_DGRAM, 0),
    ] {
        all.push(effect(&format!("family {name}"), move |_| socket(family, kind, protocol) >= 0));
    }
    all.extend(processes());
    all.extend(kernel());
    all
}

fn processes() -> Vec<Attempt> {
    vec![
        effect("ptrace attach", |t| syscall(libc::SYS_ptrace, [16, t.outside as usize, 0, 0, 0])),
        effect("ptrace seize", |t| syscall(libc::SYS_ptrace, [0x4206, t.outside as usize, 0, 0, 0])),
        effect("pidfd_getfd", |t| {
            // SAFETY: a plain system call.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, t.outside, 0) };
            pidfd >= 0 && syscall(libc::SYS_pidfd_getfd, [pidfd as usize, 0, 0, 0, 0])
        }),
        effect("process_vm_writev", |t| {
            let piece = libc::iovec { iov_base: 0x1000 as *mut _, iov_len: 0 };
            let at = (&raw const piece) as usize;
            syscall(libc::SYS_process_vm_writev, [t.outside as usize, at, 1, at, 1])
        }),
        effect("memory of another process", |t| {
            fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", t.outside)).is_ok()
        }),
        effect("enforcer's control socket", |t| {
            let path = [t.control.as_bytes(), b"\0"].concat();
            let fd = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            let asked = connect(fd, unix_address(&path)) == 0
                && send(fd, b"{\"version\":1,\"request\":{\"held\":{}}}\n", 0) > 0;
            let mut answer = [0u8; 256];
            // SAFETY: the buffer is valid for its length.
            let n = if asked { unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) } } else { 0 };
            n > 0 && !String::from_utf8_lossy(&answer).contains("denied")
        }),
        effect("port of the enforcer", |t| {
            let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let one = 1i32.to_ne_bytes();
            crate::net::option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &one);
            let (storage, length) = address(t, 3, t.enforcer);
            // SAFETY: the address is valid for its length.
            unsafe { libc::bind(fd, (&raw const storage).cast(), length) == 0 }
        }),
        effect("cgroup.procs of the root", |_| writes(&format!("{}/cgroup.procs", cgroup_root()), "0")),
        effect("a cgroup of its own", |_| {
            let folder = format!("{}/escape", cgroup_root());
            fs::create_dir(&folder).is_ok() && fs::remove_dir(&folder).is_ok()
        }),
        effect("clone3 into a cgroup", |_| {
            // struct clone_args: flags CLONE_INTO_CGROUP, and the folder of the root cgroup.
            let root = CString::new(cgroup_root()).unwrap_or_default();
            // SAFETY: a valid string.
            let folder = unsafe { libc::open(root.as_ptr(), libc::O_PATH | libc::O_DIRECTORY) };
            let mut arguments = [0u64; 11];
            arguments[0] = 0x2_0000_0000;
            arguments[4] = libc::SIGCHLD as u64;
            arguments[10] = folder as u64;
            // SAFETY: the arguments live until the call returns; the child ends at once.
            let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
            if child == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            child > 0
        }),
    ]
}

fn kernel() -> Vec<Attempt> {
    let unshare = |name: &str, flags: i32| {
        effect(&format!("unshare {name}"), move |_| {
            // SAFETY: a plain system call.
            unsafe { libc::unshare(flags) == 0 }
        })
    };
    vec![
        unshare("user", libc::CLONE_NEWUSER),
        unshare("user and net", libc::CLONE_NEWUSER | libc::CLONE_NEWNET),
        unshare("net", libc::CLONE_NEWNET),
        unshare("mount", libc::CLONE_NEWNS),
        unshare("cgroup", libc::CLONE_NEWCGROUP),
        effect("setns net", |t| {
            let path = CString::new(format!("/proc/{}/ns/net", t.outside)).unwrap_or_default();
            // SAFETY: a valid string, then a plain system call.
            unsafe { libc::setns(libc::open(path.as_ptr(), libc::O_RDONLY), libc::CLONE_NEWNET) == 0 }
        }),
        effect("io_uring", |_| {
            let parameters = [0u8; 120];
            syscall(libc::SYS_io_uring_setup, [4, parameters.as_ptr() as usize, 0, 0, 0])
        }),
        effect("io_uring with a kernel thread", |_| {
            let mut parameters = [0u8; 120];
            // IORING_SETUP_SQPOLL
            parameters[8] = 2;
            syscall(libc::SYS_io_uring_setup, [4, parameters.as_ptr() as usize, 0, 0, 0])
        }),
        effect("bpf map", |_| {
            // BPF_MAP_TYPE_ARRAY of one four-byte value.
            let attributes: [u32; 8] = [2, 4, 4, 1, 0, 0, 0, 0];
            syscall(libc::SYS_bpf, [0, attributes.as_ptr() as usize, 32, 0, 0])
        }),
        effect("bpf next program", |_| {
            let attributes = [0u32; 4];
            syscall(libc::SYS_bpf, [11, attributes.as_ptr() as usize, 16, 0, 0])
        }),
        effect("perf_event_open", |_| {
            let mut attributes = [0u32; 32];
            attributes[0] = 1;
            attributes[1] = 128;
            syscall(libc::SYS_perf_event_open, [attributes.as_ptr() as usize, 0, usize::MAX, usize::MAX, 0])
        }),
        effect("userfaultfd", |_| syscall(libc::SYS_userfaultfd, [1, 0, 0, 0, 0])),
        effect("add_key", |_| {
            let (kind, name) = (c"user", c"escape");
            let kind = kind.as_ptr() as usize;
            syscall(libc::SYS_add_key, [kind, name.as_ptr() as usize, name.as_ptr() as usize, 6, (-3isize) as usize])
        }),
        effect("keyctl", |_| syscall(libc::SYS_keyctl, [0, (-3isize) as usize, 1, 0, 0])),
        effect("mount", |t| {
            let place = CString::new(t.unix.as_str()).unwrap_or_default();
            let (what, place) = (c"tmpfs".as_ptr() as usize, place.as_ptr() as usize);
            // And off again: it would lie over the witness.
            syscall(libc::SYS_mount, [what, place, what, 0, 0]) && syscall(libc::SYS_umount2, [place, 0, 0, 0, 0])
        }),
        effect("core_pattern", |_| opens("/proc/sys/kernel/core_pattern")),
        effect("modprobe", |_| opens("/proc/sys/kernel/modprobe")),
        effect("init_module", |_| syscall(libc::SYS_init_module, [0, 0, c"".as_ptr() as usize, 0, 0])),
        effect("kexec_load", |_| {
            // More segments than there may be: refused after the check of privileges, so that nothing is loaded or unloaded.
            let loaded = syscall(libc::SYS_kexec_load, [0, 17, 0, 0, 0]);
            let error = std::io::Error::last_os_error().raw_os_error();
            loaded || error == Some(libc::EINVAL)
        }),
        effect("pins", |_| fs::read_dir("/sys/fs/bpf").is_ok_and(|dir| dir.flatten().next().is_some())),
        effect("privileges of a file", |_| {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            !status.contains("NoNewPrivs:\t1")
        }),
    ]
}
