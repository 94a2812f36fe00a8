//! Attempts that do not begin with an internet socket: unix sockets, other families, namespaces, the kernel itself.

use std::{ffi::CString, fs, io::Write};

use super::{
    Attempt, Road, Target,
    sys::{Address, connect, device_number, errno, raw_syscall, send, sendto, socket, stored, syscall},
};

/// An address of a unix socket: its path, or its name where it is abstract.
pub(super) fn unix_address(path: &str, is_abstract: bool) -> Address {
    let (before, after): (&[u8], &[u8]) = if is_abstract { (b"\0", b"") } else { (b"", b"\0") };
    let bytes = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], before, path.as_bytes(), after].concat();
    let mut whole = [0u8; 110];
    let length = bytes.len().min(whole.len());
    whole[..length].copy_from_slice(&bytes[..length]);
    (stored(&whole).0, length as u32)
}

fn unix(target: &Target, name: &str, kind: i32, is_abstract: bool, by_sendto: bool) {
    let there = unix_address(&format!("{}/{name}", target.unix), is_abstract);
    let fd = socket(libc::AF_UNIX, kind, 0);
    if by_sendto {
        sendto(fd, target.marker(), 0, there);
    } else {
        connect(fd, there);
        send(fd, target.marker(), 0);
    }
}

fn effect(name: &str, attempt: impl Fn(&Target) -> bool + 'static) -> Attempt {
    Attempt::effect(Road::Kernel, name, attempt)
}

/// Whether a file could be written to; it is left as it is.
fn opens(path: &str) -> bool {
    fs::OpenOptions::new().write(true).open(path).is_ok()
}

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    let kinds = [("stream", libc::SOCK_STREAM), ("dgram", libc::SOCK_DGRAM), ("seqpacket", libc::SOCK_SEQPACKET)];
    for (where_, is_abstract) in [("path", false), ("abstract", true)] {
        for (kind_name, kind) in kinds {
            let attempt = move |target: &Target| unix(target, kind_name, kind, is_abstract, false);
            all.push(Attempt::sends(Road::Unix, format!("unix {where_} {kind_name}"), attempt));
        }
        let attempt = move |target: &Target| unix(target, "dgram", libc::SOCK_DGRAM, is_abstract, true);
        all.push(Attempt::sends(Road::Unix, format!("unix {where_} dgram sendto"), attempt));
    }
    for (name, family, kind, protocol) in [
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
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
        let attempt = move |_: &Target| socket(family, kind, protocol) >= 0;
        all.push(Attempt::effect(Road::Families, format!("family {name}"), attempt));
    }
    all.push(Attempt::sends(Road::Families, "packet raw", |target| frame(target, libc::SOCK_RAW)));
    all.push(Attempt::sends(Road::Families, "packet dgram", |target| frame(target, libc::SOCK_DGRAM)));
    all.push(Attempt::effect(Road::Families, "netlink adds a route", adds_a_route));
    all.push(Attempt::effect(Road::Families, "netlink lists sockets", lists_sockets));
    all.extend(namespaces());
    all.extend(kernel());
    all
}

/// For experiments in private: IEEE 802, and so of no other listener.
const ETHERTYPE: u16 = 0x88b5;

/// Length of an Ethernet header.
const HEADER: usize = 14;

/// A frame to everybody.
pub(super) fn broadcast(target: &Target) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
    bytes.extend_from_slice(&ETHERTYPE.to_be_bytes());
    bytes.extend_from_slice(target.marker());
    // Shorter ones do not exist on a wire.
    bytes.resize(bytes.len().max(64), 0);
    bytes
}

/// A frame straight to the device.
fn frame(target: &Target, kind: i32) {
    let fd = socket(libc::AF_PACKET, kind, i32::from(ETHERTYPE.to_be()));
    let whole = broadcast(target);
    let bytes = if kind == libc::SOCK_RAW { &whole[..] } else { &whole[HEADER..] };
    let mut there = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ETHERTYPE.to_be(),
        sll_ifindex: device_number(&target.device).cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    there.sll_addr[6..].fill(0);
    sendto(fd, bytes, 0, stored(&there));
}

/// `struct nlmsghdr` and a body.
fn netlink(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(body);
    out
}

/// Sends a request; the type of the answer and its first number.
fn asks(protocol: i32, request: &[u8]) -> Option<(u16, i32)> {
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol);
    if send(fd, request, 0) < 0 {
        return None;
    }
    let mut answer = [0u8; 4096];
    // SAFETY: the buffer is valid for its length.
    let n = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
    (n >= 20).then(|| {
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        (kind, i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]))
    })
}

/// A route for an address that is nobody's (RFC 5737), by the loopback device; it is taken away at once.
fn adds_a_route(_: &Target) -> bool {
    const NEW: u16 = 24;
    const DELETE: u16 = 25;
    const NLMSG_ERROR: u16 = 2;
    // struct rtmsg: an IPv4 address of 32 bits, table main, protocol static, scope link, unicast.
    let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    for (kind, value) in [(1u16, [203, 0, 113, 77]), (4, 1u32.to_ne_bytes())] {
        body.extend_from_slice(&8u16.to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(&value);
    }
    // NLM_F_REQUEST | NLM_F_ACK, and to add: NLM_F_CREATE | NLM_F_EXCL.
    let added = asks(libc::NETLINK_ROUTE, &netlink(NEW, 0x605, &body)) == Some((NLMSG_ERROR, 0));
    if added {
        asks(libc::NETLINK_ROUTE, &netlink(DELETE, 5, &body));
    }
    added
}

/// Every listening TCP socket of the host, by sock_diag(7).
fn lists_sockets(_: &Target) -> bool {
    const BY_FAMILY: u16 = 20;
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&(1u32 << 10).to_ne_bytes());
    body.resize(8 + 48, 0);
    asks(4, &netlink(BY_FAMILY, 0x301, &body)).is_some_and(|(kind, _)| kind == BY_FAMILY)
}

fn namespaces() -> Vec<Attempt> {
    let unshare = |name: &str, flags: i32| {
        Attempt::effect(Road::Namespaces, format!("unshare {name}"), move |_| {
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
        Attempt::effect(Road::Namespaces, "setns net", |t| {
            let path = CString::new(format!("/proc/{}/ns/net", t.outside)).unwrap_or_default();
            // SAFETY: a valid string, then a plain system call.
            unsafe { libc::setns(libc::open(path.as_ptr(), libc::O_RDONLY), libc::CLONE_NEWNET) == 0 }
        }),
        Attempt::effect(Road::Namespaces, "mount", |t| {
            let place = CString::new(t.unix.as_str()).unwrap_or_default();
            let (what, place) = (c"tmpfs".as_ptr() as usize, place.as_ptr() as usize);
            // And off again: it would lie over the witness.
            syscall(libc::SYS_mount, [what, place, what, 0, 0]) && syscall(libc::SYS_umount2, [place, 0, 0, 0, 0])
        }),
    ]
}

fn kernel() -> Vec<Attempt> {
    vec![
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
        effect("bpf makes a map", |_| {
            // BPF_MAP_TYPE_ARRAY of one four-byte value.
            let attributes: [u32; 8] = [2, 4, 4, 1, 0, 0, 0, 0];
            syscall(libc::SYS_bpf, [0, attributes.as_ptr() as usize, 32, 0, 0])
        }),
        effect("bpf loads a program", |_| {
            // { prog_type: SOCKET_FILTER, insn_cnt, insns, license }: r0 = 0; exit.
            let program: [u64; 2] = [0xb7, 0x95];
            let attributes: [u64; 6] = [1 | 2 << 32, program.as_ptr() as u64, c"GPL".as_ptr() as u64, 0, 0, 0];
            syscall(libc::SYS_bpf, [5, attributes.as_ptr() as usize, 48, 0, 0])
        }),
        effect("bpf finds a program", |_| {
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
        effect("core_pattern", |_| opens("/proc/sys/kernel/core_pattern")),
        effect("modprobe", |_| opens("/proc/sys/kernel/modprobe")),
        effect("init_module", |_| {
            // No module at all: told so only after privileges were checked.
            let module = [0u8; 128];
            let loaded =
                syscall(libc::SYS_init_module, [module.as_ptr() as usize, module.len(), c"".as_ptr() as usize, 0, 0]);
            loaded || errno() == libc::ENOEXEC
        }),
        effect("finit_module", |_| {
            // SAFETY: a valid string.
            let fd = unsafe { libc::memfd_create(c"module".as_ptr(), 0) };
            // SAFETY: a descriptor of our own, which nothing else owns.
            let mut file = unsafe { <fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
            let written = file.write_all(&[0; 128]).is_ok();
            let loaded = raw_syscall(libc::SYS_finit_module, [fd as usize, c"".as_ptr() as usize, 0, 0, 0]) >= 0;
            // A file that may not be run is refused before its content is looked at, and after the privileges are.
            written && (loaded || matches!(errno(), libc::ENOEXEC | libc::EACCES))
        }),
        effect("kexec_load", |_| {
            // More segments than there may be: refused after the check of privileges, so that nothing is loaded or unloaded.
            let loaded = syscall(libc::SYS_kexec_load, [0, 17, 0, 0, 0]);
            loaded || errno() == libc::EINVAL
        }),
    ]
}
