//! Unix sockets of the host are reached by the paths of a session's list, and by nothing else. Truth is what came to the
//! socket, not what the client was told.

use std::{
    io,
    os::{
        fd::FromRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
};

use crate::world::{ECONNREFUSED, NOT_JUDGED, World, eventually, kernel_judges_unix};

/// A socket of the host, outside any governed cgroup.
enum Server {
    Stream(UnixListener),
    Datagram(UnixDatagram),
}

impl Server {
    fn stream(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        Self::Stream(listener)
    }

    fn datagram(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self::Datagram(socket)
    }

    fn packets(path: &Path) -> Self {
        let name = text(path).as_bytes();
        // SAFETY: a structure of numbers.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (place, byte) in address.sun_path.iter_mut().zip(name) {
            *place = *byte as libc::c_char;
        }
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the calls take numbers, and an address that is as long as said; the descriptor is new and nobody else's.
        let listener = unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
            assert!(socket >= 0, "{}", io::Error::last_os_error());
            assert_eq!(libc::bind(socket, (&raw const address).cast(), length), 0, "{}", io::Error::last_os_error());
            assert_eq!(libc::listen(socket, 8), 0, "{}", io::Error::last_os_error());
            UnixListener::from_raw_fd(socket)
        };
        listener.set_nonblocking(true).expect("a socket");
        Self::Stream(listener)
    }

    fn abstract_stream(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        Self::Stream(listener)
    }

    fn abstract_datagram(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self::Datagram(socket)
    }

    /// How many connections or datagrams reached it since the last call.
    fn reached(&self) -> usize {
        let next = || -> io::Result<()> {
            match self {
                Self::Stream(listener) => listener.accept().map(drop),
                Self::Datagram(socket) => socket.recv(&mut [0; 8]).map(drop),
            }
        };
        std::iter::from_fn(|| next().ok()).count()
    }
}

struct Host {
    world: World,
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { world: World::new(), folder: tempfile::tempdir().expect("a folder") }
    }

    /// None where the kernel has no hooks for unix sockets: then that is what the product says, and nothing else is wrong.
    /// What it does then is in [`super::confine`], and in the tests of whole daemons.
    fn judged() -> Option<Self> {
        let mut host = Self::new();
        host.world.assert_well();
        kernel_judges_unix().then_some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn list(&mut self, paths: &[&Path]) {
        let id = self.world.id("agents/one");
        let paths: String = paths.iter().map(|path| format!(" {}", path.display())).collect();
        assert_eq!(self.world.tell(&format!("unix {id}{paths}")), "ok");
    }

    fn reach(&self, cgroup: &str, kind: &str, form: &str, name: &str) -> String {
        self.world.act(cgroup, &["unix", kind, form, name]).trim_end().to_owned()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn without_a_list_no_socket_of_the_host_is_reached() {
    let Some(host) = Host::judged() else { return };
    let [stream, datagram, packets] = ["stream", "datagram", "packets"].map(|name| host.path(name));
    let name = format!("portcullis-test-{}", std::process::id());
    let (by_stream, by_datagram) = (format!("@{name}-s"), format!("@{name}-d"));
    let tries = [
        ("stream", text(&stream), Server::stream(&stream)),
        ("dgram", text(&datagram), Server::datagram(&datagram)),
        ("send", text(&datagram), Server::datagram(&host.path("other"))),
        ("seqpacket", text(&packets), Server::packets(&packets)),
        ("stream", &by_stream, Server::abstract_stream(&by_stream[1..])),
        ("dgram", &by_datagram, Server::abstract_datagram(&by_datagram[1..])),
    ];
    for (kind, name, server) in &tries {
        let name = if *kind == "send" { text(&host.path("other")).to_owned() } else { (*name).to_owned() };
        for cgroup in ["agents/one", "agents/two", "agents"] {
            for form in ["exact", "dirty"] {
                assert_eq!(host.reach(cgroup, kind, form, &name), ECONNREFUSED, "{kind} {form} {name} in {cgroup}");
            }
        }
        assert_eq!(server.reached(), 0, "{kind} {name}");
        // The same attempt reaches it where nothing governs.
        assert_eq!(host.reach("free", kind, "exact", &name), "ok", "{kind} {name}");
        assert_eq!(server.reached(), 1, "{kind} {name}");
    }
    // A name of no bytes: the kernel refuses it by itself.
    assert!(host.reach("agents/one", "send", "two", "").starts_with("error"));
}

#[test]
fn pairs_of_a_process_are_its_own_business() {
    let host = Host::new();
    assert_eq!(host.world.act("agents/one", &["unix-pairs"]).trim_end(), "ok");
}

#[test]
fn a_listed_path_is_reached_in_every_form_and_only_by_its_session() {
    let Some(mut host) = Host::judged() else { return };
    host.world.allow("two");
    for kind in ["stream", "dgram", "send", "seqpacket"] {
        let path = host.path(kind);
        let server = match kind {
            "stream" => Server::stream(&path),
            "seqpacket" => Server::packets(&path),
            _ => Server::datagram(&path),
        };
        host.list(&[&host.path("something-else"), &path]);
        for form in ["exact", "padded", "dirty"] {
            assert_eq!(host.reach("agents/one", kind, form, text(&path)), "ok", "{kind} {form}");
            assert_eq!(server.reached(), 1, "{kind} {form}");
            assert_eq!(host.reach("agents/two", kind, form, text(&path)), ECONNREFUSED, "another session's list");
        }
        assert_eq!(server.reached(), 0);
        host.list(&[]);
        assert_eq!(host.reach("agents/one", kind, "exact", text(&path)), ECONNREFUSED, "taken from the list");
        assert_eq!(server.reached(), 0);
    }
}

#[test]
fn only_the_exact_path_counts() {
    let Some(mut host) = Host::judged() else { return };
    let listed = host.path("socket");
    host.list(&[&listed]);
    let folder = text(host.folder.path());
    for name in ["socke", "socket2", "socket.", "SOCKET", "socket/x", "./socket", "../socket"] {
        let path = PathBuf::from(format!("{folder}/{name}"));
        let server = (!name.contains('/')).then(|| Server::stream(&path));
        for form in ["exact", "padded", "dirty"] {
            assert_eq!(host.reach("agents/one", "stream", form, text(&path)), ECONNREFUSED, "{form} {name}");
        }
        assert_eq!(server.map_or(0, |server| server.reached()), 0, "{name}");
    }
    let relative = text(&listed).trim_start_matches('/').to_owned();
    assert_eq!(host.reach("agents/one", "stream", "exact", &relative), ECONNREFUSED);
    assert_eq!(host.reach("agents/one", "stream", "exact", &format!("@{}", text(&listed))), ECONNREFUSED, "abstract");
}

#[test]
fn the_longest_path_needs_no_nul() {
    let Some(mut host) = Host::judged() else { return };
    let folder = text(host.folder.path()).to_owned();
    let whole = format!("{folder}/{}", "p".repeat(108 - folder.len() - 1));
    let almost = &whole[..107];
    // The library makes no address of 108 bytes, so the last one is a link in the folder.
    let server = Server::stream(&host.path("real"));
    std::os::unix::fs::symlink(host.path("real"), &whole).expect("a link");
    std::os::unix::fs::symlink(host.path("real"), almost).expect("a link");
    assert_eq!(host.reach("free", "stream", "exact", &whole), "ok", "the kernel takes 108 bytes");
    assert_eq!(server.reached(), 1);
    assert_eq!(host.reach("agents/one", "stream", "exact", &whole), ECONNREFUSED);
    host.list(&[Path::new(&whole)]);
    assert_eq!(host.reach("agents/one", "stream", "exact", &whole), "ok");
    assert_eq!(server.reached(), 1);
    assert_eq!(host.reach("agents/one", "stream", "exact", almost), ECONNREFUSED, "a prefix of it");
    host.list(&[Path::new(almost)]);
    assert_eq!(host.reach("agents/one", "stream", "exact", &whole), ECONNREFUSED, "one byte more than what is listed");
    assert_eq!(host.reach("agents/one", "stream", "exact", almost), "ok");
    assert_eq!(server.reached(), 1);
    // Longer ones cannot be listed.
    let id = host.world.id("agents/one");
    assert!(host.world.tell(&format!("unix {id} {whole}p")).contains("cannot be the path of a unix socket"));
    assert!(host.world.tell(&format!("unix {id} relative")).contains("cannot be the path of a unix socket"));
}

#[test]
fn the_list_ends_with_the_session_and_with_the_daemon_that_gave_it() {
    let Some(mut host) = Host::judged() else { return };
    let path = host.path("socket");
    let server = Server::stream(&path);
    host.list(&[&path]);
    host.world.kill_enforcer();
    let refused = eventually(|| host.reach("agents/one", "stream", "exact", text(&path)) == ECONNREFUSED);
    assert!(refused, "nobody is there to end the session");
    server.reached();
    host.world.start();
    host.world.govern();
    assert_eq!(host.reach("agents/one", "stream", "exact", text(&path)), ECONNREFUSED, "forgotten by the next daemon");
    host.world.allow("one");
    assert_eq!(host.reach("agents/one", "stream", "exact", text(&path)), ECONNREFUSED, "not listed any more");
    host.list(&[&path]);
    assert_eq!(host.reach("agents/one", "stream", "exact", text(&path)), "ok");
    let id = host.world.id("agents/one");
    assert_eq!(host.world.tell(&format!("forget {id}")), "ok");
    assert_eq!(host.world.tell(&format!("unix {id} {}", path.display())), "ok", "no session, no list");
    assert_eq!(host.reach("agents/one", "stream", "exact", text(&path)), ECONNREFUSED);
    host.world.allow("one");
    assert_eq!(host.reach("agents/one", "stream", "exact", text(&path)), ECONNREFUSED);
    assert_eq!(server.reached(), 1, "the one that was listed");
}

#[test]
fn a_kernel_that_cannot_is_named_and_enforces_the_rest() {
    let mut world = World::bare();
    // Without its types, the kernel does not tell where it keeps a name.
    world.start_after("mount -t tmpfs none /sys/kernel/btf");
    world.govern();
    world.allow("one");
    let problems = world.tell("verify");
    assert!(problems.contains(NOT_JUDGED), "{problems}");
    assert!(problems.contains("/sys/kernel/btf/vmlinux"), "{problems}");
    assert!(world.act("agents/one", &["connect", "192.0.2.1:1"]).starts_with("ok 192.0.2.1:1 192.0.2.1:1 "));
    assert_eq!(world.act("agents/two", &["connect", "192.0.2.1:1"]), ECONNREFUSED);
    // Nor does a list open or close anything.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = Server::stream(&path);
    assert_eq!(world.act("agents/one", &["unix", "stream", "exact", text(&path)]).trim_end(), "ok");
    assert_eq!(server.reached(), 1);
}

#[test]
fn a_folder_of_its_own_is_reached_by_paths_that_stay_in_it() {
    let Some(mut host) = Host::judged() else { return };
    host.world.allow("two");
    let (inside, beside) = (host.path("mine"), host.path("mine2"));
    for folder in [inside.join("deep"), beside.clone()] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let outside = Server::stream(&host.path("outside"));
    let beside = (Server::stream(&beside.join("s")), text(&beside.join("s")).to_owned());
    let own =
        ["s", "deep/s", "..s", "s..", "...", "deep/.s.PGSQL.1"].map(|name| (Server::stream(&inside.join(name)), name));
    let (id, folder) = (host.world.id("agents/one"), format!("{}/", text(&inside)));
    let reach = |host: &Host, cgroup: &str, path: &str| -> Vec<String> {
        ["exact", "padded", "dirty"].map(|form| host.reach(cgroup, "stream", form, path)).into()
    };
    assert_eq!(reach(&host, "agents/one", &format!("{folder}s")), [ECONNREFUSED; 3]);
    for bad in [text(&inside), &folder[1..], &format!("{folder}../"), ""] {
        assert!(host.world.tell(&format!("folder {id} {bad}")) != "ok", "{bad}");
    }
    assert_eq!(host.world.tell(&format!("folder {id} {folder}")), "ok");
    for (server, name) in &own {
        assert_eq!(reach(&host, "agents/one", &format!("{folder}{name}")), ["ok"; 3], "{name}");
        assert_eq!(server.reached(), 3, "{name}");
        assert_eq!(reach(&host, "agents/two", &format!("{folder}{name}")), [ECONNREFUSED; 3], "another session's");
    }
    assert_eq!(host.reach("agents/one", "send", "exact", &format!("{folder}nobody")), "error 2", "it is looked for");
    let up = text(host.folder.path()).to_owned();
    for out in ["../outside", "deep/../../outside", "deep/../s", "../mine/s", "./../outside", "//../outside", ".."] {
        assert_eq!(reach(&host, "agents/one", &format!("{folder}{out}")), [ECONNREFUSED; 3], "{out}");
    }
    for path in [&beside.1, &format!("{up}/outside"), &format!("{up}//mine/s"), &format!("{up}/./mine/s")] {
        assert_eq!(reach(&host, "agents/one", path), [ECONNREFUSED; 3], "{path}");
    }
    // A list comes and goes beside it.
    host.list(&[&host.path("outside")]);
    assert_eq!(host.reach("agents/one", "stream", "exact", &format!("{up}/outside")), "ok");
    host.list(&[]);
    assert_eq!(host.reach("agents/one", "stream", "exact", &format!("{up}/outside")), ECONNREFUSED);
    assert_eq!(host.reach("agents/one", "stream", "exact", &format!("{folder}s")), "ok");
    assert_eq!(outside.reached(), 1, "when it was listed");
    assert_eq!(beside.0.reached(), 0);
    assert_eq!(host.world.tell(&format!("forget {id}")), "ok");
    host.world.allow("one");
    assert_eq!(reach(&host, "agents/one", &format!("{folder}s")), [ECONNREFUSED; 3], "it ended with the session");
}
