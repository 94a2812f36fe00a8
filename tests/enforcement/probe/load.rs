//! Load on the redirect: connections of every kind, each of which says where it wants to go, so that the enforcer can
//! compare that with the origin it finds.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use portcullis::bpf::Origin;
use socket2::{Domain, SockAddr, Socket, Type};

/// Nothing takes so long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a connection is, in one line: where it wants to go, and who it is.
pub fn claim(address: SocketAddr, pid: u32, cgroup: u64, netns: u64) -> String {
    format!("{address} {pid} {cgroup} {netns}\n")
}

/// The same of an origin.
pub fn claim_of(origin: &Origin) -> String {
    claim(origin.address, origin.pid, origin.cgroup_id, origin.netns_cookie)
}

/// What a client does with a connection.
#[derive(Clone, Copy)]
enum Kind {
    /// Claims, reads the answer, and waits for the end.
    Patient,
    /// Claims and closes at once.
    Early,
    /// As patient, bound to a source address of many before: ports are then chosen again and again.
    Bound,
    /// Claims in the first packet, then as patient.
    FastOpen,
    /// Claims in the first packet and closes at once.
    FastOpenEarly,
    /// Claims nothing and resets.
    Reset,
}

const KINDS: [Kind; 6] = [Kind::Patient, Kind::Early, Kind::Bound, Kind::FastOpen, Kind::FastOpenEarly, Kind::Reset];

#[derive(Default)]
struct Done {
    /// Were told the origin that they wanted.
    answered: usize,
    /// Claimed and left.
    left: usize,
    reset: usize,
    /// Were told another origin, or none, or shown another peer.
    wrong: usize,
    failed: usize,
}

/// Opens as many connections, no destination twice. `process` tells this process from others: below 256.
pub fn load(cgroup: &Path, process: u8, count: u16) -> Result<()> {
    let cgroup = fs::metadata(cgroup)?.ino();
    let pid = std::process::id();
    let netns = netns_cookie(Socket::new(Domain::IPV4, Type::STREAM, None)?.as_raw_fd())?;
    let mut done = Done::default();
    for i in 0..count {
        let kind = KINDS[usize::from(i) % KINDS.len()];
        let v4 = Ipv4Addr::new(198, 18, process, (i % 251) as u8);
        let ip: IpAddr = match usize::from(i) / KINDS.len() % 3 {
            0 => v4.into(),
            1 => v4.to_ipv6_mapped().into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, process.into(), i % 251).into(),
        };
        let address = SocketAddr::new(ip, 1 + i);
        let claim = claim(address, pid, cgroup, netns);
        match connection(kind, address, process, &claim) {
            Ok(None) if matches!(kind, Kind::Reset) => done.reset += 1,
            Ok(None) => done.left += 1,
            Ok(Some(answer)) if answer == claim => done.answered += 1,
            Ok(Some(answer)) => {
                eprintln!("{}: the enforcer has {answer:?}", claim.trim_end());
                done.wrong += 1;
            }
            Err(e) => {
                eprintln!("{address}: {e}");
                done.failed += 1;
            }
        }
    }
    let Done { answered, left, reset, wrong, failed } = done;
    println!("answered {answered} left {left} reset {reset} wrong {wrong} failed {failed}");
    Ok(())
}

/// One connection; the enforcer's answer, if it waits for one.
fn connection(kind: Kind, address: SocketAddr, process: u8, claim: &str) -> io::Result<Option<String>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let to = SockAddr::from(address);
    match kind {
        Kind::FastOpen | Kind::FastOpenEarly => {
            let sent = socket.send_to_with_flags(claim.as_bytes(), &to, libc::MSG_FASTOPEN)?;
            if sent != claim.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Kind::Reset => {
            socket.connect(&to)?;
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Kind::Bound => {
            socket.set_reuse_address(true)?;
            set(socket.as_raw_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            socket.bind(&SocketAddr::new(source(address.ip(), process), 0).into())?;
            socket.connect(&to)?;
            (&socket).write_all(claim.as_bytes())?;
        }
        Kind::Patient | Kind::Early => {
            socket.connect(&to)?;
            (&socket).write_all(claim.as_bytes())?;
        }
    }
    if matches!(kind, Kind::Early | Kind::FastOpenEarly | Kind::Reset) {
        return Ok(None);
    }
    let peer = TcpStream::from(socket.try_clone()?).peer_addr()?;
    if peer != address {
        return Ok(Some(format!("the peer name {peer}")));
    }
    let mut answer = String::new();
    (&socket).read_to_string(&mut answer)?;
    Ok(Some(answer))
}

/// One of this process's source addresses, of the family of a destination.
fn source(destination: IpAddr, process: u8) -> IpAddr {
    let v4 = Ipv4Addr::new(127, 1, 0, process % 8 + 1);
    match destination {
        IpAddr::V4(_) => v4.into(),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Moves to a network namespace of its own, made for load, and keeps it until standard input ends.
pub fn namespace() -> Result<()> {
    // SAFETY: the call takes numbers only, and this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error()).context("a network namespace");
    }
    up(c"lo")?;
    // Client and server side of Fast Open; few ports, so that each is used many times.
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")?;
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 29999")?;
    println!("{}", std::process::id());
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Brings an interface up: netdevice(7).
fn up(name: &std::ffi::CStr) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: a structure of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.to_bytes_with_nul()) {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is what this call takes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } != 0 {
        return Err(io::Error::last_os_error()).context("the loopback device");
    }
    Ok(())
}

/// Sets an option that is a number.
pub fn set(socket: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is as long as said.
    let done = unsafe {
        libc::setsockopt(socket, level, option, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `SO_NETNS_COOKIE` [Linux 5.14]: the network namespace of a socket.
fn netns_cookie(socket: RawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: there is as much room as said.
    let done = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
