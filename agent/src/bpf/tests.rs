//! What needs no kernel. The rest is in `tests/enforcement`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use portcullis_ebpf::{RawOrigin, UNIX_PATH_ROOM, UnixPlaces};

use super::*;

fn raw(family: u32, address: [u8; 16], port: u32) -> RawOrigin {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"psql");
    RawOrigin { family, port, address: network_words(address), cgroup_id: 7, pid: 8, uid: 9, comm, netns_cookie: 1 }
}

#[test]
fn an_origin_of_ipv4_is_read() {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&[192, 0, 2, 7]);
    let origin = Origin::from_raw(&raw(portcullis_ebpf::AF_INET, bytes, 5432)).unwrap();
    assert_eq!(origin.address, "192.0.2.7:5432".parse().unwrap());
    assert_eq!((origin.cgroup_id, origin.pid, origin.uid, origin.comm.as_str()), (7, 8, 9, "psql"));
}

#[test]
fn an_origin_of_ipv6_is_read_and_a_mapped_one_stays_mapped() {
    for text in ["[2001:db8::7]:443", "[::ffff:192.0.2.7]:443"] {
        let address: SocketAddrV6 = text.parse().unwrap();
        let origin = Origin::from_raw(&raw(portcullis_ebpf::AF_INET6, address.ip().octets(), 443)).unwrap();
        assert_eq!(origin.address, SocketAddr::V6(address));
    }
}

#[test]
fn an_origin_that_makes_no_sense_is_refused() {
    assert!(matches!(Origin::from_raw(&raw(1, [0; 16], 1)), Err(OriginError::Family(1))));
    assert!(matches!(Origin::from_raw(&raw(2, [0; 16], 65_536)), Err(OriginError::Missing)));
}

#[test]
fn a_question_is_read_as_far_as_it_goes() {
    use portcullis_ebpf::{QUESTION_BYTES, RawQuestion, ToldQuestion};
    let told = |client: &str, client_port, length| {
        let origin = raw(portcullis_ebpf::AF_INET, [192, 0, 2, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 53);
        let client = network_words(client.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let question = RawQuestion { origin, socket_cookie: 5, asked_ns: 1_000, client, client_port, length };
        ToldQuestion(question, [b'q'; QUESTION_BYTES])
    };
    let question = Question::from_raw(&told("::ffff:127.0.0.1", 4711, 40), 3_000).unwrap();
    assert_eq!(question.origin.address, "192.0.2.53:53".parse().unwrap());
    assert_eq!((question.client, question.bytes.len()), ("127.0.0.1:4711".parse().unwrap(), 40));
    assert_eq!(question.age, Duration::from_nanos(2_000));
    let question = Question::from_raw(&told("::1", 4711, QUESTION_BYTES as u32), 0).unwrap();
    assert_eq!((question.client, question.bytes.len()), ("[::1]:4711".parse().unwrap(), QUESTION_BYTES));
    assert_eq!(question.age, Duration::ZERO);
    // What makes no sense is no question.
    for wrong in [told("::1", 65_536, 40), told("::1", 1, QUESTION_BYTES as u32 + 1), told("::1", 1, u32::MAX)] {
        assert!(Question::from_raw(&wrong, 0).is_none());
    }
    let told = ToldQuestion::from_bytes(&[0; size_of::<ToldQuestion>()]).unwrap();
    assert!(Question::from_raw(&told, 0).is_none(), "of no family");
    assert!(ToldQuestion::from_bytes(&[0; 7]).is_none());
}

#[test]
fn every_hook_has_a_name_and_a_place_of_its_own() {
    let all: Vec<_> = hooks::UNIX.iter().chain(&GOVERNED).collect();
    let mut names: Vec<_> = all.iter().map(|hook| hook.name).collect();
    let mut places: Vec<_> = all.iter().map(|hook| hook.attach_type).collect();
    names.sort_unstable();
    names.dedup();
    places.sort_unstable();
    places.dedup();
    assert_eq!((names.len(), places.len()), (all.len(), all.len()));
    // The road is opened last.
    assert!(GOVERNED.iter().rev().take(2).all(|hook| REDIRECTS.contains(&hook.attach_type)));
}

#[test]
fn a_daemon_that_listens_elsewhere_has_pins_elsewhere() {
    let settings = |runtime: &str, pin_dir: Option<&str>| KernelSettings {
        pin_dir: pin_dir.map(Into::into),
        runtime_dir: runtime.into(),
        cgroup_root: "/sys/fs/cgroup".into(),
    };
    assert_ne!(settings("/run/a", None).pin_dir(), settings("/run/b", None).pin_dir());
    assert_eq!(settings("/run/a", Some("/x")).pin_dir(), Path::new("/x"));
}

/// Type information with one structure of 40 bytes, in the format of the kernel's, after a type of every kind.
fn types(structure: &str, fields: &[(&str, u32)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend(text.bytes().chain([0]));
        at
    };
    let mut words = Vec::new();
    for (kind, details) in
        [(1, 1), (2, 0), (3, 3), (6, 4), (8, 0), (12, 0), (13, 4), (14, 1), (15, 6), (17, 1), (19, 6)]
    {
        words.extend([name("other"), kind << 24 | 2, 0]);
        words.extend(std::iter::repeat_n(7, details));
    }
    words.extend([name(structure), 4 << 24 | fields.len() as u32, 40]);
    for (field, bits) in fields {
        words.extend([name(field), 1, *bits]);
    }
    let bytes = 4 * words.len() as u32;
    let mut all = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, bytes, bytes, names.len() as u32].into_iter().chain(words) {
        all.extend(word.to_ne_bytes());
    }
    all.extend(names);
    all
}

#[test]
fn places_are_read_from_the_kernels_types() {
    let context = |address, length| types("bpf_sock_addr_kern", &[("sk", 0), ("uaddr", address), ("uaddrlen", length)]);
    let whole = context(64, 256);
    assert_eq!(unix::read_places(&whole), Some(UnixPlaces { address: 1, length: 4 }));
    assert_eq!(unix::read_places(&context(256, 64)), Some(UnixPlaces { address: 4, length: 1 }));
    // Out of what is read, in the middle of a word, in the middle of a byte, at the start.
    for (address, length) in [(320, 64), (64, 320), (96, 256), (64, 257), (0, 256)] {
        assert_eq!(unix::read_places(&context(address, length)), None, "{address} {length}");
    }
    assert_eq!(unix::read_places(&types("bpf_sock_addr", &[("uaddr", 64), ("uaddrlen", 256)])), None);
    assert_eq!(unix::read_places(&types("bpf_sock_addr_kern", &[("uaddr", 64)])), None);
    for end in 0..whole.len() - 1 {
        assert_eq!(unix::read_places(&whole[..end]), None, "cut at {end}");
    }
    // Any byte may be wrong: it is an answer or none, and no panic.
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut broken = whole.clone();
            broken[at] = byte;
            let _ = unix::read_places(&broken);
        }
    }
}

#[test]
fn the_running_kernels_types_are_read() {
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    assert_eq!(btf::offsets(&types, "list_head", ["prev", "next"]), Some([8, 0]));
    assert_eq!(btf::offsets(&types, "list_head", ["previous"]), None);
    let places = lsm::Needs::read(&types, true).unwrap().places;
    assert_eq!(places.known, 1);
    // A socket's first words are its state, its kind and its flags.
    assert!(places.socket_sock >= 8 && places.socket_file != places.socket_sock, "{places:?}");
}

#[test]
fn fields_are_found_in_what_has_no_name() {
    // struct outer { list; union { struct { ancestors; }; }; named { inside; }; }, each inner one a type of its own.
    let mut names = vec![0];
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend(text.bytes().chain([0]));
        at
    };
    let one = |kind: u32, of: u32, members: &[[u32; 3]]| {
        let mut words = vec![of, kind << 24 | members.len() as u32, 64];
        words.extend(members.iter().flatten());
        words
    };
    let (outer, list, ancestors) = (name("outer"), name("list"), name("ancestors"));
    let (named, inside) = (name("named"), name("inside"));
    let words = [
        one(4, outer, &[[list, 9, 64], [0, 2, 128], [named, 4, 256]]),
        one(5, 0, &[[0, 3, 0]]),
        one(4, 0, &[[ancestors, 9, 32]]),
        one(4, 0, &[[inside, 9, 0]]),
        // One that holds itself has no end.
        one(4, name("endless"), &[[0, 5, 0]]),
    ]
    .concat();
    let bytes = 4 * words.len() as u32;
    let mut all = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, bytes, bytes, names.len() as u32].into_iter().chain(words) {
        all.extend(word.to_ne_bytes());
    }
    all.extend(names);
    assert_eq!(btf::offsets(&all, "outer", ["ancestors", "list"]), Some([20, 8]));
    assert_eq!(btf::offsets(&all, "outer", ["inside"]), None, "it has a name");
    assert_eq!(btf::offsets(&all, "endless", ["list"]), None);
}

#[test]
fn programs_of_the_security_module_are_named_after_their_hooks() {
    let mut names: Vec<_> = lsm::HOOKS.iter().chain(&lsm::PEERS).chain([&lsm::PAGES]).collect();
    assert!(names.iter().all(|name| name.starts_with("lsm_")));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), lsm::HOOKS.len() + lsm::PEERS.len() + 1);
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    for name in names {
        let function = format!("bpf_{name}\0");
        assert!(memchr::memmem::find(&types, function.as_bytes()).is_some(), "the kernel has no hook for {name}");
    }
}

#[test]
fn a_path_that_no_program_looks_up_has_no_key() {
    let longest = format!("/{}", "p".repeat(107));
    let key = unix::key(7, &longest).unwrap();
    assert_eq!((key.cgroup_id, &key.path[..108], &key.path[108..]), (7, longest.as_bytes(), &[0; 4][..]));
    for path in ["", "a", "@a", "\0a", "/a\0b", &format!("{longest}p")] {
        assert!(unix::key(7, path).is_none(), "{path:?}");
    }
}

#[test]
fn a_refusal_is_put_in_words_whatever_the_kernel_wrote() {
    use portcullis_ebpf::{RawRefusal, ToldRefusal};
    let told = |raw: RawRefusal, path: &str| {
        let mut bytes = [0; UNIX_PATH_ROOM];
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        Refusal::from_raw(&ToldRefusal(raw, bytes))
    };
    let what = |raw: RawRefusal, path: &str| told(raw, path).unwrap().what;
    let unix = RawRefusal { reason: Reason::Unix as u32, family: 1, kind: 1, ..RawRefusal::default() };
    assert_eq!(what(unix, "/run/a"), "unix socket /run/a: the policy does not list it");
    assert_eq!(what(unix, ""), "a unix socket without a name: the policy does not list it");
    let packet = RawRefusal { reason: Reason::Ingress as u32, protocol: 2, ..RawRefusal::default() };
    assert_eq!(what(packet, ""), "packet from an unknown address by protocol 2: only the enforcer is heard");
    let option = RawRefusal { reason: Reason::Option as u32, kind: u32::MAX, protocol: 25, ..RawRefusal::default() };
    let foreign =
        |family, protocol| RawRefusal { reason: Reason::Foreign as u32, family, protocol, ..RawRefusal::default() };
    for (raw, words) in [
        (foreign(2, 17), "UDP socket that was made outside of the session"),
        (foreign(1, 0), "unix socket that was made outside of the session"),
        (foreign(17, 3), "socket of address family 17 that was made outside of the session"),
        (foreign(0, 0), "descriptor of another process: what it is of acts in that one's name"),
    ] {
        assert_eq!(what(raw, ""), words);
    }
    assert_eq!(what(option, ""), "socket option 25 of level -1: it may choose another road");
    let mut task = RawRefusal { has_task: 1, pid: 8, uid: 9, left_out: 3, cgroup_id: 7, ..RawRefusal::default() };
    task.comm[..4].copy_from_slice(b"psql");
    let refusal = told(task, "").unwrap();
    let process = refusal.process.unwrap();
    assert_eq!((process.pid, process.uid, &*process.comm, process.exe), (8, 9, "psql", None));
    assert_eq!((refusal.cgroup_id, refusal.left_out, refusal.reason), (7, 3, Reason::Socket));
    for reason in 0..40 {
        let known = Reason::ALL.get(reason as usize).copied();
        let refusal = told(RawRefusal { reason, port: u32::MAX, family: 2, ..RawRefusal::default() }, "");
        assert_eq!(refusal.map(|refusal| refusal.reason), known);
    }
    let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
    assert!(ToldRefusal::from_bytes(&[0; 7]).is_none());
    assert!(ToldRefusal::from_bytes(&[0; size_of::<ToldRefusal>()]).is_some());
}
