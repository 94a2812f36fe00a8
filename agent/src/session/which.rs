//! Which of several upstreams at one address a client wants: it says so in its TLS handshake, or in its first request.
//!
//! Services behind one front share addresses. The name is only looked at, not believed: the upstream's protocol checks each
//! request against it again. A client that says nothing gets the first of them, whose protocol refuses what is for another.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{BoxIo, Network, house::bare_name, network::Asked};
use crate::policy::UpstreamSpec;

/// Longest beginning that is read for a name, in bytes.
const FIRST: usize = 32 << 10;
/// How long a client may take to say it.
const TIME: Duration = Duration::from_secs(60);
/// Most header fields of a first request.
const FIELDS: usize = 128;

/// An upstream, and by which of its addresses.
pub(super) type Found = (Arc<UpstreamSpec>, Arc<str>);

/// The one that the client wants, and its stream as if nothing had been read of it.
pub(super) async fn choose(
    network: &dyn Network,
    found: Vec<Found>,
    origin: SocketAddr,
    io: BoxIo,
    ended: &CancellationToken,
) -> Option<(Found, BoxIo)> {
    let told_apart = found.len() > 1 && found.iter().all(|(spec, _)| spec.protocol.is_http());
    let mut found = found.into_iter();
    if !told_apart {
        return found.next().map(|first| (first, io));
    }
    let (name, io) = name(network, io, ended).await;
    let all: Vec<Found> = found.collect();
    let wanted = |host: &str| match &name {
        Some(name) => host == name,
        // Clients send no name for an address (RFC 6066 section 3).
        None => host.parse::<IpAddr>().is_ok_and(|ip| ip == origin.ip().to_canonical()),
    };
    let by_name = all.iter().find_map(|(spec, _)| {
        let mut here = spec.addresses.iter().filter_map(|address| Some((address, address.rsplit_once(':')?)));
        let (address, _) = here.find(|(_, (host, port))| {
            port.parse() == Ok(origin.port()) && wanted(&bare_name(host.trim_start_matches('[').trim_end_matches(']')))
        })?;
        Some((Arc::clone(spec), Arc::from(address.as_str())))
    });
    by_name.or_else(|| all.first().cloned()).map(|found| (found, io))
}

/// The name that a client asks for first.
async fn name(network: &dyn Network, mut io: BoxIo, ended: &CancellationToken) -> (Option<String>, BoxIo) {
    let mut first = BytesMut::with_capacity(2048);
    let read = async {
        while first.len() < FIRST {
            match asked(network, &first) {
                Asked::More => {}
                Asked::For(name) => return name,
            }
            if !io.read_buf(&mut first).await.is_ok_and(|count| count > 0) {
                break;
            }
        }
        None
    };
    let name = tokio::select! {
        biased;
        () = ended.cancelled() => None,
        name = tokio::time::timeout(TIME, read) => name.unwrap_or_default(),
    };
    let name = name.map(|name| bare_name(&name));
    (name, Box::new(Prefixed { first, io }))
}

fn asked(network: &dyn Network, first: &[u8]) -> Asked {
    // A TLS record of the handshake (RFC 8446 section 5.1). No method begins with this byte.
    match first.first() {
        None => Asked::More,
        Some(22) => network.asked_name(first),
        Some(_) => host(first),
    }
}

/// The host of a request's head.
fn host(head: &[u8]) -> Asked {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => Asked::More,
        Ok(httparse::Status::Complete(_)) => {
            let host = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
            let text = host.and_then(|host| std::str::from_utf8(host.value).ok()).map(str::trim);
            Asked::For(text.map(|text| match text.strip_prefix('[') {
                Some(rest) => rest.split(']').next().unwrap_or_default().to_owned(),
                None => text.rsplit_once(':').map_or(text, |(host, _)| host).to_owned(),
            }))
        }
        Err(_) => Asked::For(None),
    }
}

/// A stream of which the first bytes were read already.
struct Prefixed {
    first: BytesMut,
    io: BoxIo,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_host() {
        let name = |head: &str| match host(head.as_bytes()) {
            Asked::More => "more".to_owned(),
            Asked::For(name) => name.unwrap_or_default(),
        };
        assert_eq!(name("GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n"), "a.example");
        assert_eq!(name("GET / HTTP/1.1\r\nhOST: [::1]:80\r\n\r\n"), "::1");
        assert_eq!(name("GET / HTTP/1.1\r\nHost: a.exa"), "more");
        assert_eq!(name("GET / HTTP/1.0\r\n\r\n"), "");
        assert_eq!(name("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "");
    }
}
