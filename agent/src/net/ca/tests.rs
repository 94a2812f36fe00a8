use std::process::{Command, Stdio};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConnection,
    pki_types::{ServerName, UnixTime},
    time_provider::TimeProvider,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn scope(hosts: &[&str]) -> Scope {
    let mut scope = Scope::default();
    scope.extend(hosts.iter().copied());
    scope
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A clock that a test moves.
#[derive(Clone, Debug)]
struct Hand(Arc<Mutex<SystemTime>>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(SystemTime::now())))
    }

    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn ca(&self, lifetime: Duration, scope: &Scope) -> RuntimeCa {
        let this = self.clone();
        RuntimeCa::with_clock(lifetime, scope, Arc::new(move || this.now())).unwrap()
    }
}

impl TimeProvider for Hand {
    fn current_time(&self) -> Option<UnixTime> {
        self.now().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// What webpki says of a server at a time, and what that shows.
fn verify(
    hand: &Hand,
    roots: &[CertificateDer<'static>],
    config: Arc<ServerConfig>,
    host: &str,
) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).unwrap());
    let client = ClientConfig::builder_with_details(super::super::tls::provider(), Arc::new(hand.clone()));
    let client = client.with_safe_default_protocol_versions().unwrap().with_root_certificates(store);
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client.with_no_client_auth()), name).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &*bytes).unwrap();
        server.process_new_packets().unwrap();
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        let mut rest = &*bytes;
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(client.peer_certificates().unwrap().iter().map(|shown| shown.clone().into_owned()).collect())
}

#[test]
fn an_authority_is_good_for_its_names_alone() {
    let hand = Hand::new();
    for (hosts, inside, outside) in [
        (
            &["db.example", "10.0.0.1", "[fd00::1]"][..],
            &["db.example", "x.db.example", "10.0.0.1", "fd00::1"][..],
            &["xdb.example", "example", "other.example", "10.0.0.2", "fd00::2"][..],
        ),
        // A kind of which the policies have none.
        (&["db.example"], &["db.example"], &["10.0.0.1", "fd00::1", "127.0.0.1"]),
        (&["10.0.0.1"], &["10.0.0.1"], &["db.example", "localhost", "::1"]),
        (&["::1"], &["::1"], &["127.0.0.1", "a.example"]),
        (&[], &[], &["db.example", "localhost", "10.0.0.1", "::1"]),
        (&["LocalHost", "under_score.Example."], &["localhost", "under_score.example"], &["a.example"]),
    ] {
        let ca = hand.ca(DAY, &scope(hosts));
        let roots = ca.certificates();
        for name in inside {
            let config = ca.server_config(&texts(&[name]), Some(name), None).unwrap();
            verify(&hand, &roots, config, name).unwrap_or_else(|error| panic!("{hosts:?} {name}: {error}"));
        }
        for name in outside {
            let refused = ca.server_config(&texts(&[name]), Some(name), None);
            assert!(matches!(refused, Err(CaError::Outside)), "{hosts:?} {name}");
            let error = verify(&hand, &roots, ca.forge(&[name]), name).expect_err(name).to_string();
            assert!(error.contains("NameConstraintViolation"), "{hosts:?} {name}: {error}");
            // Beside one that is within.
            if let Some(good) = inside.first() {
                assert!(verify(&hand, &roots, ca.forge(&[good, name]), good).is_err(), "{hosts:?} {name}");
            }
        }
    }
}

#[test]
fn too_many_names_are_not_stated() {
    let hand = Hand::new();
    let hosts: Vec<String> = (0..1000).map(|number| format!("n{number}.example")).collect();
    let mut many = Scope::default();
    many.extend(hosts.iter().map(String::as_str));
    let ca = hand.ca(DAY, &many);
    assert!(many.is_stated() && !many.covers("other.example"));
    let name = texts(&["n999.example"]);
    verify(&hand, &ca.certificates(), ca.server_config(&name, None, None).unwrap(), "n999.example").unwrap();
    many.extend(["more.example"]);
    assert!(!many.is_stated() && many.covers("other.example") && many.to_string().contains("any name"));
    ca.tend(&many).unwrap();
    let config = ca.server_config(&texts(&["other.example"]), None, None).unwrap();
    verify(&hand, &ca.certificates(), config, "other.example").unwrap();
    // And fewer again: what is limited does not include what is not.
    assert!(many.includes(&scope(&["a"])) && !scope(&["a"]).includes(&many));
}

#[test]
fn new_names_get_an_authority_of_their_own_and_old_ones_keep_theirs() {
    let hand = Hand::new();
    let ca = hand.ca(10 * DAY, &scope(&["a.example", "10.0.0.1"]));
    let before = ca.certificates();
    ca.tend(&scope(&["a.example"])).unwrap();
    assert_eq!(ca.certificates(), before, "fewer names");
    ca.tend(&scope(&["a.example", "b.example", "10.0.0.1"])).unwrap();
    let after = ca.certificates();
    assert!(after.len() == 2 && after[..1] == before[..]);
    let names = texts(&["a.example", "b.example", "10.0.0.1"]);
    // Who asks for what was there before may have read the files before.
    for (asked, host) in [(Some("a.example"), "a.example"), (Some("A.example."), "a.example"), (None, "10.0.0.1")] {
        let shown = verify(&hand, &before, ca.server_config(&names, asked, None).unwrap(), host).unwrap();
        assert_eq!(shown[1], after[0]);
    }
    let config = |asked| ca.server_config(&names, asked, None).unwrap();
    assert!(verify(&hand, &before, config(Some("b.example")), "b.example").is_err());
    for host in ["a.example", "b.example", "10.0.0.1"] {
        verify(&hand, &after, config(Some(host).filter(|host| host.contains("example"))), host).unwrap();
    }
    // A leaf for the name that was asked for has no other, and no address.
    assert!(verify(&hand, &after, config(Some("b.example")), "a.example").is_err());
    assert!(verify(&hand, &after, config(Some("b.example")), "10.0.0.1").is_err());
    // A name that is none of the upstream's, and no address to come by: for all of them.
    assert_eq!(verify(&hand, &after, config(Some("x.example")), "b.example").unwrap()[1], after[1]);
    let by_name = ca.server_config(&names[..2], None, None).unwrap();
    assert_eq!(verify(&hand, &after, by_name, "b.example").unwrap()[1], after[1]);
    // However often policies bring new names.
    for number in 0..40 {
        let name = format!("n{number}.example");
        ca.tend(&scope(&["a.example", &name])).unwrap();
        verify(&hand, &ca.certificates(), ca.server_config(std::slice::from_ref(&name), None, None).unwrap(), &name)
            .unwrap();
    }
    assert_eq!(ca.certificates().len(), AUTHORITIES_MAX);
}

#[test]
fn authorities_follow_each_other() {
    let hand = Hand::new();
    let all = scope(&["a.example"]);
    let ca = hand.ca(30 * DAY, &all);
    let names = texts(&["a.example"]);
    let shown = |roots: &[CertificateDer<'static>]| {
        verify(&hand, roots, ca.server_config(&names, Some("a.example"), None).unwrap(), "a.example")
    };
    let first = ca.certificates();
    let mut kept = Vec::new();
    for day in 1..=90 {
        hand.pass(DAY);
        ca.tend(&all).unwrap();
        let now = ca.certificates();
        let (published, signs) = match day {
            1..=14 => (1, 0),
            // The successor is published at half of its life, and signs when nine tenths are over.
            15..=26 => (2, 0),
            27..=29 => (2, 1),
            // The first is taken out when it has ended, and the second is at its own half.
            30 => (2, 0),
            _ => (now.len(), usize::MAX),
        };
        assert_eq!(now.len(), published, "day {day}");
        let chain = shown(&now).unwrap();
        if signs != usize::MAX {
            assert_eq!(chain[1], now[signs], "day {day}");
        }
        assert!(now.len() <= 2, "day {day}");
        // Who read the files up to twelve days ago still takes what is shown.
        kept.push(now);
        shown(&kept[kept.len().saturating_sub(12)]).unwrap_or_else(|error| panic!("day {day}: {error}"));
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let (_, issuer) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
        assert!(leaf.validity().not_after <= issuer.validity().not_after, "day {day}");
        assert!(leaf.validity().not_before >= issuer.validity().not_before, "day {day}");
        assert_eq!(ca.certificates().contains(&first[0]), day < 30, "day {day}");
        assert!(shown(&first).is_ok() == (day < 27), "day {day}");
    }
    // A machine that slept for years.
    hand.pass(1000 * DAY);
    assert!(matches!(ca.server_config(&names, None, None), Err(CaError::Outside)));
    ca.tend(&all).unwrap();
    assert_eq!(ca.certificates().len(), 1);
    shown(&ca.certificates()).unwrap();
}

#[test]
fn leaves_go_with_their_authority() {
    let hand = Hand::new();
    let all = scope(&["a", "b"]);
    let ca = hand.ca(2 * DAY, &all);
    let config = |names: &[&str]| ca.server_config(&texts(names), None, None).unwrap();
    let first = config(&["a", "b"]);
    assert!(Arc::ptr_eq(&first, &config(&["B", "a", "a"])) && !Arc::ptr_eq(&first, &config(&["a"])));
    hand.pass(DAY);
    ca.tend(&all).unwrap();
    assert!(Arc::ptr_eq(&first, &config(&["a", "b"])));
    hand.pass(DAY);
    ca.tend(&all).unwrap();
    assert!(ca.lock().leaves.is_empty() && !Arc::ptr_eq(&first, &config(&["a", "b"])));
}

/// Clients that are not ours: OpenSSL, and Python by it.
#[tokio::test]
async fn other_clients_keep_to_the_names() {
    let dir = tempfile::tempdir().unwrap();
    let ca = RuntimeCa::new(DAY, &scope(&["db.example", "127.0.0.1"])).unwrap();
    std::fs::write(dir.path().join("ca.pem"), ca.certificates_pem()).unwrap();
    let honest = ca.server_config(&texts(&["db.example", "127.0.0.1"]), None, None).unwrap();
    for (config, host, accepted) in [
        (honest.clone(), "db.example", true),
        (honest.clone(), "127.0.0.1", true),
        (honest, "other.example", false),
        (ca.forge(&["other.example"]), "other.example", false),
        (ca.forge(&["127.0.0.2"]), "127.0.0.2", false),
        (ca.forge(&["db.example", "other.example"]), "db.example", false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut stream) = TlsAcceptor::from(config.clone()).accept(stream).await {
                    let _ = stream.write_all(b"x").await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        let mut openssl = Command::new("openssl");
        let connect = format!("127.0.0.1:{port}");
        openssl.args(["s_client", "-connect", &connect, "-CAfile", "ca.pem", "-verify_return_error", "-x509_strict"]);
        match host.parse::<IpAddr>() {
            Ok(_) => openssl.args(["-verify_ip", host]),
            Err(_) => openssl.args(["-verify_hostname", host, "-servername", host]),
        };
        let mut python = Command::new("python3");
        let script = format!(
            "import socket, ssl\nc = ssl.create_default_context(cafile='ca.pem')\n\
             s = c.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='{host}')\n\
             print('Verify return code: 0 (ok)' if s.recv(1) == b'x' else 'nothing')"
        );
        python.args(["-c", &script]);
        for mut client in [openssl, python] {
            client.current_dir(dir.path()).stdin(Stdio::null());
            let output = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
            let said = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned()).concat();
            assert_eq!(said.contains("Verify return code: 0 (ok)"), accepted, "{host}: {said}");
        }
        peer.await.unwrap();
    }
}
