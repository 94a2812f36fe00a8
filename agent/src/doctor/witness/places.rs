//! Where the witness listens: sockets of every kind that something may arrive by.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener},
        },
    },
    path::Path,
};

/// One place where something arrives.
pub(super) enum Place {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Stream(UnixListener),
    Datagrams(UnixDatagram),
}

/// Whether this host has no such address.
pub(super) fn is_no_address(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Listeners on one port of all addresses.
pub(super) fn listeners(addresses: &[(IpAddr, [&'static str; 2])]) -> io::Result<(u16, Vec<(&'static str, Place)>)> {
    let mut tries = 0;
    loop {
        let mut made = Vec::new();
        let first = TcpListener::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        let mut first = Some(first);
        let all = addresses.iter().try_for_each(|(ip, [tcp, udp])| -> io::Result<()> {
            let listener = match first.take() {
                Some(listener) => listener,
                None => TcpListener::bind((*ip, port))?,
            };
            listener.set_nonblocking(true)?;
            made.push((*tcp, Place::Tcp(listener)));
            let socket = UdpSocket::bind((*ip, port))?;
            socket.set_nonblocking(true)?;
            made.push((*udp, Place::Udp(socket)));
            Ok(())
        });
        tries += 1;
        match all {
            Ok(()) => return Ok((port, made)),
            // Taken at another address.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 100 => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sockets that every user may connect to, by path and by an abstract name that is the path.
pub(super) fn unix_places(folder: &Path, places: &mut Vec<(&'static str, usize, Place)>) -> io::Result<()> {
    for (file, stream, names) in [
        ("stream", true, ["unix stream", "abstract unix stream"]),
        ("dgram", false, ["unix datagram", "abstract unix datagram"]),
    ] {
        for (name, address) in names.into_iter().zip(unix_addresses(&folder.join(file))?) {
            let place = if stream {
                let listener = UnixListener::bind_addr(&address)?;
                listener.set_nonblocking(true)?;
                Place::Stream(listener)
            } else {
                let socket = UnixDatagram::bind_addr(&address)?;
                socket.set_nonblocking(true)?;
                Place::Datagrams(socket)
            };
            places.push((name, 0, place));
        }
        fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// A path as a unix socket's address, and as an abstract name.
pub(super) fn unix_addresses(path: &Path) -> io::Result<[UnixAddr; 2]> {
    Ok([UnixAddr::from_pathname(path)?, UnixAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())?])
}

/// Sends a text to where a place listens.
pub(super) fn send_to(place: &Place, text: &str) -> io::Result<()> {
    match place {
        Place::Tcp(listener) => TcpStream::connect(listener.local_addr()?)?.write_all(text.as_bytes()),
        Place::Udp(socket) => {
            let address = socket.local_addr()?;
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            UdpSocket::bind((any, 0))?.send_to(text.as_bytes(), address).map(|_| ())
        }
        Place::Stream(listener) => {
            std::os::unix::net::UnixStream::connect_addr(&listener.local_addr()?)?.write_all(text.as_bytes())
        }
        Place::Datagrams(socket) => {
            UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &socket.local_addr()?).map(|_| ())
        }
    }
}
