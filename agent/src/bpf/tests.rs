//! What needs no kernel. The rest is in `tests/enforcement`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

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
fn every_hook_has_a_name_and_a_place_of_its_own() {
    let mut names: Vec<_> = GOVERNED.iter().map(|hook| hook.name).collect();
    let mut places: Vec<_> = GOVERNED.iter().map(|hook| hook.attach_type).collect();
    names.sort_unstable();
    names.dedup();
    places.sort_unstable();
    places.dedup();
    assert_eq!((names.len(), places.len()), (GOVERNED.len(), GOVERNED.len()));
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
