//! What a confined process has left, and that ordinary programs run all the same.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    process::{Command, Output},
};

use crate::world::PROBE;

const NOBODY: &str = "65534";
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const EAFNOSUPPORT: i32 = 97;

fn confined(user: &str, command: &[&str]) -> Output {
    confine_by("confined", user, command)
}

fn confine_by(how: &str, user: &str, command: &[&str]) -> Output {
    Command::new(PROBE).args([how, user]).args(command).current_dir("/").output().expect("the probe")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {status}")).trim()
}

#[test]
fn another_user_has_no_capability_left_and_cannot_gain_one() {
    let status = text(&confined(NOBODY, &["cat", "/proc/self/status"]));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(0), "{set}");
    }
    assert_eq!(field(&status, "Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&status, "Gid:"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&status, "Groups:"), "65534");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
}

#[test]
fn root_keeps_none_of_the_capabilities_that_undo_hooks() {
    let status = text(&confined("-", &["cat", "/proc/self/status"]));
    // linux/capability.h: DAC_READ_SEARCH, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT,
    // SYS_RESOURCE, MKNOD, SETFCAP, MAC_OVERRIDE, MAC_ADMIN, PERFMON, BPF, CHECKPOINT_RESTORE
    let forbidden =
        [2, 12, 13, 16, 17, 19, 21, 22, 24, 27, 31, 32, 33, 38, 39, 40].iter().fold(0_u64, |all, bit| all | 1 << bit);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let kept = u64::from_str_radix(field(&status, set), 16).expect("a number");
        assert_eq!(kept & forbidden, 0, "{set}");
    }
}

#[test]
fn inherited_descriptors_do_not_reach_the_command() {
    let secret = std::fs::File::open("/proc/version").expect("proc is mounted");
    // A descriptor without close-on-exec: a duplicate made by the shell.
    let script = format!("exec 9</proc/self/fd/{0} {1} confined {NOBODY} ls /proc/self/fd", secret.as_raw_fd(), PROBE);
    // The shell itself must have it, so it is opened there by name.
    let script = script.replace(&format!("/proc/self/fd/{}", secret.as_raw_fd()), "/proc/version");
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash");
    // 3 is the folder that ls reads.
    assert_eq!(text(&output).split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn a_socket_as_standard_input_is_not_taken_where_it_is_a_road() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let tcp = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (datagrams, _peer) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
    let (stream, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
    for (input, road) in [
        (OwnedFd::from(tcp), Some("a network socket")),
        (OwnedFd::from(udp), Some("a network socket")),
        (OwnedFd::from(datagrams), Some("a unix socket of datagrams")),
        (OwnedFd::from(stream), None),
    ] {
        let mut command = Command::new(PROBE);
        let output = command.args(["confined", NOBODY, "echo", "ran"]).stdin(input).output().expect("the probe");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout == b"ran\n", road.is_none(), "{said}");
        assert!(said.contains(road.unwrap_or("")), "{said}");
    }
}

#[test]
fn dangerous_system_calls_are_refused_also_in_disguise() {
    // Where any user may enter, whatever the modes above the target folder are.
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let probe = folder.path().join("probe");
    fs::copy(PROBE, &probe).expect("a copy of the probe");
    for user in ["-", NOBODY] {
        let answers = text(&confined(user, &[probe.to_str().expect("text"), "act", "system-calls"]));
        for line in answers.lines() {
            let (name, errno) = line.split_once(": ").expect("an answer");
            let wanted = match name {
                "io_uring_setup" | "clone3" | "x32 socket" => ENOSYS,
                "getpid" | "socket unix" => 0,
                name if name.contains("socket") => EAFNOSUPPORT,
                _ => EPERM,
            };
            assert_eq!(errno, wanted.to_string(), "{name} as {user}");
        }
        assert!(answers.lines().count() >= 25, "{answers}");
    }
}

#[test]
fn only_internet_and_unix_sockets_are_made() {
    let made = text(&confined("-", &[PROBE, "act", "sockets"]));
    let families: std::collections::BTreeSet<_> = made.split_whitespace().filter_map(|s| s.split('/').next()).collect();
    assert_eq!(families.into_iter().collect::<Vec<_>>(), ["1", "10", "2"]);
}

#[test]
fn where_no_hook_judges_unix_sockets_only_pairs_that_stay_together_are_made() {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    };
    let name = format!("portcullis-test-pairs-{}", std::process::id());
    let outside = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("a socket");
    outside.set_nonblocking(true).expect("a socket");
    let script = "import errno, socket, sys\n\
        for flags in 0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK:\n\
        \x20for kind in range(16):\n\
        \x20 for make, pair in (socket.socket, False), (socket.socketpair, True):\n\
        \x20  try: made = make(socket.AF_UNIX, kind | flags); code = 0\n\
        \x20  except OSError as e: code = e.errno\n\
        \x20  stays = pair and kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)\n\
        \x20  assert code == (0 if stays else errno.EAFNOSUPPORT), (kind, flags, pair, code)\n\
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM):\n\
        \x20try: end.connect('\\0' + sys.argv[1]); raise SystemExit('connected elsewhere')\n\
        \x20except OSError as e: assert e.errno == errno.EISCONN, e\n\
        print('ok')";
    for user in ["-", NOBODY] {
        let output = confine_by("confined-without-hooks", user, &["/usr/bin/python3", "-c", script, &name]);
        assert_eq!(text(&output), "ok\n", "{output:?}");
    }
    assert!(outside.accept().is_err(), "somebody came");
}

#[test]
fn ordinary_programs_run() {
    for (how, user) in ["confined", "confined-without-hooks"].into_iter().flat_map(|how| [(how, "-"), (how, NOBODY)]) {
        for command in [
            &["bash", "-c", "a=$(echo x | cat); (sleep 0 & wait); echo ok $a"][..],
            &[
                "python3",
                "-c",
                "import subprocess, threading, socket, ssl\nt = threading.Thread(target=int); t.start(); t.join()\nassert subprocess.run(['true']).returncode == 0\nsocket.socket(); a, b = socket.socketpair(); print('ok')",
            ],
            &["node", "-e", "require('child_process').execFileSync('true'); setTimeout(() => console.log('ok'), 1)"],
            &["git", "-c", "core.pager=cat", "--version"],
            &["psql", "--version"],
        ] {
            let output = confine_by(how, user, command);
            let text = text(&output);
            assert!(
                text.starts_with("ok") || text.contains("version") || text.contains("PostgreSQL"),
                "{command:?}: {output:?}"
            );
        }
    }
}
