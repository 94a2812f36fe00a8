//! What a governed process tries. Each attempt prints one line: `ok ...` or `error ERRNO`.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub fn act(action: &[&str]) -> Result<()> {
    match *action {
        ["connect", address] => report(connect(address.parse()?)),
        ["load", cgroup, process, count] => crate::load::load(cgroup.as_ref(), process.parse()?, count.parse()?),
        ["brief", first, count, ip] => brief(first.parse()?, count.parse()?, ip),
        ["knock", database, ref others @ ..] => crate::knock::knock(database, others),
        ["sockets"] => sockets(),
        ["datagram", address] => report(UdpSocket::bind("0.0.0.0:0").and_then(|s| {
            s.send_to(b"x", address)?;
            Ok(String::new())
        })),
        // connected|unconnected: line by line.
        ["ask", how, id, length, server] => {
            match crate::names::ask(how, id.parse()?, length.parse()?, server.parse()?) {
                Ok(()) => Ok(()),
                error => report(error.map(|()| String::new())),
            }
        }
        ["flood", count, server] => report(crate::names::flood(count.parse()?, server.parse()?)),
        // One socket of a kind, so many times; prints our own process id.
        ["socket", family, kind, protocol, times] => {
            let mut made = 0;
            for _ in 0..times.parse()? {
                made += usize::from(socket(family.parse()?, kind.parse()?, protocol.parse()?).is_ok());
            }
            println!("{made} {}", std::process::id());
            Ok(())
        }
        ["unix", kind, form, name] => report(crate::unix::reach(kind, form, name)),
        ["unix-pairs"] => report(crate::unix::pairs()),
        ["listen"] => listen(),
        ["bind", address] => report(TcpListener::bind(address).map(|l| format!("{:?}", l.local_addr()))),
        ["options"] => options(),
        ["earlier", stream, datagram] => earlier(stream, datagram),
        ["system-calls"] => system_calls(),
        // Again and again until killed: to see whether there is a moment without enforcement.
        ["hammer", ref addresses @ ..] => {
            let addresses = addresses.iter().map(|a| a.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
            println!("ok");
            loop {
                for address in &addresses {
                    let _ = TcpStream::connect(address);
                }
            }
        }
        _ => bail!("unknown action {action:?}"),
    }
}

fn report(done: io::Result<String>) -> Result<()> {
    match done {
        Ok(text) => println!("ok {text}"),
        Err(e) => println!("error {}", e.raw_os_error().unwrap_or(0)),
    }
    Ok(())
}

/// Connects, and tells the address that `getpeername` shows and what the enforcer answered.
fn connect(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect(address)?;
    // Whoever is not the enforcer may never answer.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let peer = stream.peer_addr()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(format!("{peer} {}", line.trim_end()))
}

/// Connections that are closed as soon as they are open, one to each port.
fn brief(first: u16, count: u16, ip: &str) -> Result<()> {
    let ip: std::net::IpAddr = ip.parse()?;
    for port in first..first + count {
        drop(TcpStream::connect((ip, port)).with_context(|| format!("port {port}"))?);
    }
    println!("ok");
    Ok(())
}

/// Tries to make sockets of every kind; prints those that were made.
fn sockets() -> Result<()> {
    let mut made = Vec::new();
    for family in 0..46 {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET, libc::SOCK_DCCP] {
            // 0; ICMP, TCP, UDP, DCCP, ICMPv6, SCTP, UDP-Lite, raw; MPTCP
            for protocol in [0, 1, 6, 17, 33, 58, 132, 136, 255, 262] {
                if socket(family, kind, protocol).is_ok() {
                    made.push(format!("{family}/{kind}/{protocol}"));
                }
            }
        }
    }
    println!("{}", made.join(" "));
    Ok(())
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Listens without `bind` on a port that the kernel chooses, tells it, and tells whether anybody came.
fn listen() -> Result<()> {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    // SAFETY: the call takes numbers only.
    if unsafe { libc::listen(fd.as_raw_fd(), 8) } != 0 {
        bail!(io::Error::last_os_error());
    }
    let listener = TcpListener::from(fd);
    println!("{}", listener.local_addr()?.port());
    let _ = io::stdin().lock().read_line(&mut String::new())?;
    listener.set_nonblocking(true)?;
    match listener.accept() {
        Ok(_) => println!("somebody"),
        Err(_) => println!("nobody"),
    }
    Ok(())
}

/// Opens a connection and a connected datagram socket, and uses them once more when told to: no hook of `connect` or
/// `sendmsg` sees that.
fn earlier(stream: &str, datagram: &str) -> Result<()> {
    let mut stream = TcpStream::connect(stream)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(datagram)?;
    println!("ok");
    let _ = io::stdin().lock().read_line(&mut String::new())?;
    let _ = stream.write_all(b"x");
    let _ = socket.send(b"x");
    println!("ok");
    // Closing would send more.
    let _ = io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Options that choose a road, and some that do not: prints those that were accepted.
fn options() -> Result<()> {
    let set = |name: &str, family, level, option, value: &[u8]| {
        let done = socket(family, libc::SOCK_STREAM, 0).and_then(|fd| {
            // SAFETY: the value is as long as said.
            let done = unsafe {
                libc::setsockopt(fd.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t)
            };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        if done.is_ok() { format!("{name} ") } else { String::new() }
    };
    let one = &1_i32.to_ne_bytes()[..];
    // Group 224.0.0.251 on the loopback interface.
    let group = [224, 0, 0, 251, 127, 0, 0, 1];
    let mut taken = String::new();
    for (name, family, level, option, value) in [
        ("nodelay", libc::AF_INET, libc::IPPROTO_TCP, libc::TCP_NODELAY, one),
        ("keepalive", libc::AF_INET, libc::SOL_SOCKET, libc::SO_KEEPALIVE, one),
        ("reuseaddr", libc::AF_INET6, libc::SOL_SOCKET, libc::SO_REUSEADDR, one),
        ("tos", libc::AF_INET, libc::IPPROTO_IP, libc::IP_TOS, one),
        ("v6only", libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, one),
        ("DEVICE", libc::AF_INET, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0"),
        ("MARK", libc::AF_INET, libc::SOL_SOCKET, libc::SO_MARK, one),
        ("IFINDEX", libc::AF_INET, libc::SOL_SOCKET, 62, one),
        ("OPTIONS", libc::AF_INET, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 1, 0]),
        ("TRANSPARENT", libc::AF_INET, libc::IPPROTO_IP, libc::IP_TRANSPARENT, one),
        ("JOIN", libc::AF_INET, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &group),
        ("REPAIR", libc::AF_INET, libc::IPPROTO_TCP, libc::TCP_REPAIR, one),
        ("ULP", libc::AF_INET, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls\0"),
        ("HOPOPTS", libc::AF_INET6, libc::IPPROTO_IPV6, 54, &[0; 8]),
    ] {
        taken += &set(name, family, level, option, value);
    }
    println!("{}", taken.trim_end());
    Ok(())
}

/// Calls that a confined process must not have; prints how each was answered.
fn system_calls() -> Result<()> {
    let own = libc::c_long::from(std::process::id() as i32);
    let calls: &[(&str, libc::c_long, [libc::c_long; 4])] = &[
        ("bpf", libc::SYS_bpf, [0; 4]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0; 4]),
        ("unshare user", libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]),
        ("unshare net", libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0]),
        ("unshare user and files", libc::SYS_unshare, [(libc::CLONE_NEWUSER | libc::CLONE_FILES).into(), 0, 0, 0]),
        ("clone user", libc::SYS_clone, [libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0]),
        ("high bits and clone net", libc::SYS_clone, [(1 << 40) | libc::c_long::from(libc::CLONE_NEWNET), 0, 0, 0]),
        ("setns", libc::SYS_setns, [0; 4]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("ptrace", libc::SYS_ptrace, [0, own, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [own, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [0; 4]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
        ("keyctl", libc::SYS_keyctl, [0; 4]),
        ("add_key", libc::SYS_add_key, [0; 4]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0, 0]),
        ("high bits and ioctl TIOCSTI", libc::SYS_ioctl, [0, (1 << 40) | 0x5412, 0, 0]),
        ("socket netlink", libc::SYS_socket, [16, 3, 0, 0]),
        ("socket vsock", libc::SYS_socket, [40, 1, 0, 0]),
        ("high bits and socket packet", libc::SYS_socket, [(1 << 40) | 17, 3, 0, 0]),
        ("socketpair tipc", libc::SYS_socketpair, [30, 1, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("x32 socket", 0x4000_0000 | libc::SYS_socket, [16, 3, 0, 0]),
        ("getpid", libc::SYS_getpid, [0; 4]),
        ("socket unix", libc::SYS_socket, [1, 1, 0, 0]),
    ];
    for (name, number, [a, b, c, d]) in calls {
        // SAFETY: the calls take numbers, or null pointers that they refuse; a fork would end in the child at once.
        let answer = unsafe { libc::syscall(*number, *a, *b, *c, *d, 0) };
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        println!("{name}: {}", if answer < 0 { errno } else { 0 });
    }
    Ok(())
}
