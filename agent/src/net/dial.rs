//! Names and connections toward upstreams.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use crate::session::NetError;

const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer is used. The system's resolver does not tell the record's own time to live.
const FRESH: Duration = Duration::from_secs(30);
const CACHED_MAX: usize = 1024;
const ADDRESSES_MAX: usize = 16;
/// For all addresses together, names included.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// For one address while others are left to try.
const ADDRESS_LIMIT: Duration = Duration::from_secs(3);

/// Addresses of names, kept for a short while. Failures are not kept.
#[derive(Default)]
pub(super) struct Names {
    answers: Mutex<HashMap<Box<str>, Answer>>,
}

/// When it was given, and what.
type Answer = (Instant, Vec<IpAddr>);

impl Names {
    /// Cancel safe.
    pub(super) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        if let Some(literal) = literal(host) {
            return Ok(vec![literal]);
        }
        if host.is_empty() || host.len() > 253 || !host.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(NetError::Dns(format!("`{}` is not a host name", host.escape_debug()).into()));
        }
        let name = host.to_ascii_lowercase();
        if let Some(known) = self.known(&name) {
            return Ok(known);
        }
        let looked_up = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name.as_str(), 0)));
        let found = looked_up.await.map_err(|_| NetError::Timeout)?.map_err(|e| NetError::Dns(e.into()))?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in found.map(|a| a.ip()) {
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(NetError::Dns(format!("`{name}` has no address").into()));
        }
        self.learn(name, &addresses);
        Ok(addresses)
    }

    fn known(&self, name: &str) -> Option<Vec<IpAddr>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(name).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, addresses)| addresses.clone())
    }

    fn learn(&self, name: String, addresses: &[IpAddr]) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CACHED_MAX {
            answers.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if answers.len() >= CACHED_MAX {
            answers.clear();
        }
        answers.insert(name.into(), (Instant::now(), addresses.to_vec()));
    }
}

/// An address written out, IPv6 with or without brackets.
fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Takes `host:port` apart; an IPv6 address must have brackets.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) || port.starts_with('+') {
        return None;
    }
    Some((host, port.parse().ok().filter(|port| *port != 0)?))
}

/// Connects to the first address of `host:port` that answers. Cancel safe.
pub(super) async fn dial(names: &Names, address: &str) -> Result<TcpStream, NetError> {
    let deadline = Instant::now() + DIAL_LIMIT;
    let (host, port) = split(address)
        .ok_or_else(|| NetError::Settings(format!("`{}` is not HOST:PORT", address.escape_debug()).into()))?;
    let addresses = timeout_at(deadline, names.resolve(host)).await.map_err(|_| NetError::Timeout)??;
    let mut failure = NetError::Timeout;
    for (at, ip) in addresses.iter().enumerate() {
        let last = at + 1 == addresses.len();
        let until = if last { deadline } else { deadline.min(Instant::now() + ADDRESS_LIMIT) };
        let to = SocketAddr::new(*ip, port);
        match timeout_at(until, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => {
                tune(&stream).map_err(|e| NetError::Connect(e.into()))?;
                return Ok(stream);
            }
            Ok(Err(e)) => failure = NetError::Connect(io::Error::new(e.kind(), format!("{to}: {e}")).into()),
            Err(_) => failure = NetError::Timeout,
        }
    }
    Err(failure)
}

/// No delay, and a peer that vanished is noticed within about two minutes, idle or not.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &120_000)?;
    Ok(())
}
