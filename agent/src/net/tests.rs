use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::TlsMode;

const DAY: Duration = Duration::from_secs(86_400);

fn net() -> Net {
    Net::new(Arc::new(RuntimeCa::new(DAY, &Scope::default()).unwrap()))
}

/// A CA, and the leaves it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: vec![certificate.der().clone(), self.der.clone()], pem: certificate.pem(), key }
    }
}

fn self_signed(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Leaf { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
}

fn server(leaf: &Leaf, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
    Arc::new(builder.with_single_cert(leaf.chain.clone(), key).unwrap())
}

/// A handshake over a pipe, and a byte each way, so that what the server thinks of it is known too.
async fn connect(net: &Net, config: Arc<ServerConfig>, host: &str, spec: &TlsSpec) -> Result<Secured, NetError> {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let peer = tokio::spawn(async move {
        let mut stream = TlsAcceptor::from(config).accept(theirs).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(&byte).await?;
        stream.flush().await
    });
    let mut secured = net.secure(Box::new(ours), host, spec, &[], None).await?;
    let mut byte = [42];
    let echo = async {
        secured.io.write_all(&byte).await?;
        secured.io.flush().await?;
        secured.io.read_exact(&mut byte).await
    };
    echo.await.map_err(|e| NetError::Tls(e.into()))?;
    peer.await.unwrap().unwrap();
    Ok(secured)
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

fn spec(mode: TlsMode, ca: Option<&Path>) -> TlsSpec {
    TlsSpec { mode, ca: ca.map(Path::to_owned), client: None }
}

fn cause(error: &NetError) -> String {
    let mut text = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!("{error}; "));
        source = error.source();
    }
    text
}

#[tokio::test]
async fn each_mode_checks_what_libpq_checks() {
    let files = Files::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let ca = files.write("ca.pem", &ours.pem);
    let past = |p: &mut CertificateParams| {
        p.not_before = (SystemTime::now() - 2 * DAY).into();
        p.not_after = (SystemTime::now() - DAY).into();
    };
    let future = |p: &mut CertificateParams| p.not_before = (SystemTime::now() + DAY).into();
    let leaves = [
        ("good", ours.leaf(&["db.example", "10.1.2.3"], |_| {})),
        ("name", ours.leaf(&["other.example"], |_| {})),
        ("expired", ours.leaf(&["db.example"], past)),
        ("early", ours.leaf(&["db.example"], future)),
        ("issuer", other.leaf(&["db.example"], |_| {})),
        ("self-signed", self_signed(&["db.example"], |_| {})),
        // A client's certificate must not pose as a server's.
        (
            "purpose",
            ours.leaf(&["db.example"], |p| {
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
        // A leaf signed by a leaf, which is no CA.
        ("no-ca", {
            let params = CertificateParams::new(vec!["mid.example".to_owned()]).unwrap();
            let key = KeyPair::generate().unwrap();
            let mid = params.signed_by(&key, &ours.issuer).unwrap();
            let fake = Authority { issuer: Issuer::new(params, key), pem: mid.pem(), der: mid.der().clone() };
            fake.leaf(&["db.example"], |_| {})
        }),
    ];
    for (what, leaf) in &leaves {
        for (mode, with_ca, accepted) in [
            (TlsMode::Require, None, true),
            // With a CA, libpq's `require` is its `verify-ca`.
            (TlsMode::Require, Some(&ca), matches!(*what, "good" | "name")),
            (TlsMode::VerifyCa, Some(&ca), matches!(*what, "good" | "name")),
            (TlsMode::VerifyFull, Some(&ca), *what == "good"),
        ] {
            let spec = spec(mode, with_ca.map(PathBuf::as_path));
            let result = connect(&net(), server(leaf, None), "db.example", &spec).await;
            assert_eq!(result.is_ok(), accepted, "{what} {mode:?} {with_ca:?}: {result:?}");
            if let Err(error) = result {
                assert!(matches!(error, NetError::Tls(_)), "{what} {mode:?} {error:?}");
                assert_eq!(error.to_string(), "no trusted TLS connection could be made");
            }
        }
    }
}

#[tokio::test]
async fn names_are_compared_whole() {
    let files = Files::new();
    let authority = Authority::new("ours");
    let spec = spec(TlsMode::VerifyFull, Some(&files.write("ca.pem", &authority.pem)));
    let leaf = authority.leaf(&["db.example", "*.wild.example", "10.1.2.3", "fd00::7"], |_| {});
    for (host, accepted) in [
        ("db.example", true),
        ("DB.Example", true),
        ("db.example.", true),
        ("a.wild.example", true),
        ("10.1.2.3", true),
        ("fd00::7", true),
        ("[fd00::7]", true),
        ("xdb.example", false),
        ("db.example.evil.org", false),
        ("wild.example", false),
        ("a.b.wild.example", false),
        ("10.1.2.4", false),
        ("fd00::8", false),
    ] {
        let result = connect(&net(), server(&leaf, None), host, &spec).await;
        assert_eq!(result.is_ok(), accepted, "{host}: {result:?}");
    }
    for host in ["", "db example", "db\0.example"] {
        let error = connect(&net(), server(&leaf, None), host, &spec).await.unwrap_err();
        assert!(matches!(error, NetError::Settings(_)), "{host:?} {error:?}");
    }
}

#[tokio::test]
async fn a_certificate_in_the_ca_file_is_pinned() {
    let files = Files::new();
    // As `openssl req -x509` makes them: a CA and a server at once.
    let ca = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for (what, leaf) in [("ca", self_signed(&["db.example"], ca)), ("leaf", self_signed(&["db.example"], |_| {}))] {
        let pinned = files.write("pin.pem", &leaf.pem);
        for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
            let result = connect(&net(), server(&leaf, None), "db.example", &spec(mode, Some(&pinned))).await;
            assert!(result.is_ok(), "{what} {mode:?} {result:?}");
        }
        let full = spec(TlsMode::VerifyFull, Some(&pinned));
        assert!(connect(&net(), server(&leaf, None), "other.example", &full).await.is_err(), "{what}");
        let same_name = self_signed(&["db.example"], ca);
        assert!(connect(&net(), server(&same_name, None), "db.example", &full).await.is_err(), "{what}");
    }
    let expired = self_signed(&["db.example"], |p| {
        p.not_before = (SystemTime::now() - 2 * DAY).into();
        p.not_after = (SystemTime::now() - DAY).into();
    });
    let pinned = files.write("pin.pem", &expired.pem);
    let error = connect(&net(), server(&expired, None), "db.example", &spec(TlsMode::VerifyCa, Some(&pinned))).await;
    assert!(cause(&error.unwrap_err()).to_lowercase().contains("expired"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let files = Files::new();
    let authority = Authority::new("ours");
    let leaf = authority.leaf(&["db.example"], |_| {});
    let ca = files.write("ca.pem", &authority.pem);
    let client = authority.leaf(&["client"], |p| {
        p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let stranger = Authority::new("other").leaf(&["client"], |_| {});
    let full = |files: Option<(PathBuf, PathBuf)>| TlsSpec { client: files, ..spec(TlsMode::VerifyFull, Some(&ca)) };
    let config = || server(&leaf, Some(&authority));
    let pair = |leaf: &Leaf, name: &str| {
        Some((
            files.write(&format!("{name}.crt"), &leaf.pem),
            files.write(&format!("{name}.key"), leaf.key.serialize_pem()),
        ))
    };
    assert!(connect(&net(), config(), "db.example", &full(None)).await.is_err());
    let known = pair(&client, "known");
    connect(&net(), config(), "db.example", &full(known.clone())).await.unwrap();
    assert!(connect(&net(), config(), "db.example", &full(pair(&stranger, "stranger"))).await.is_err());
    let (crt, key) = known.unwrap();
    let settings = async |crt: &Path, key: &Path| {
        let spec = full(Some((crt.to_owned(), key.to_owned())));
        let error = connect(&net(), config(), "db.example", &spec).await.unwrap_err();
        assert!(matches!(error, NetError::Settings(_)), "{error:?}");
        assert_eq!(error.to_string(), "the upstream's settings cannot be used");
        cause(&error)
    };
    assert!(settings(&crt, &files.write("wrong.key", stranger.key.serialize_pem())).await.contains("known.crt"));
    assert!(settings(&crt, &files.write("bad.key", "no key")).await.contains("bad.key"));
    assert!(settings(&files.write("none.crt", ""), &key).await.contains("no certificate"));
    assert!(settings(&files.0.path().join("absent"), &key).await.contains("No such file"));
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(settings(&crt, &key).await.contains("chmod 0600"));
}

#[tokio::test]
async fn settings_that_verify_nothing_are_refused() {
    let files = Files::new();
    let leaf = self_signed(&["db.example"], |_| {});
    for spec in [
        spec(TlsMode::Disable, None),
        spec(TlsMode::VerifyFull, Some(&files.write("empty.pem", ""))),
        spec(
            TlsMode::VerifyFull,
            Some(&files.write("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----")),
        ),
        spec(TlsMode::Require, Some(Path::new("/no/such/file"))),
    ] {
        let error = connect(&net(), server(&leaf, None), "db.example", &spec).await.unwrap_err();
        assert!(matches!(error, NetError::Settings(_)), "{spec:?} {error:?}");
    }
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_refused() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", b"\x15\x03\x01\x00\x02\x02\x28", &[0x16; 4096]] {
        let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        let result = net().secure(Box::new(ours), "db.example", &spec(TlsMode::Require, None), &[], None).await;
        assert!(matches!(result, Err(NetError::Tls(_))), "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let (net, require) = (net(), spec(TlsMode::Require, None));
    assert!(matches!(net.secure(Box::new(ours), "db.example", &require, &[], None).await, Err(NetError::Timeout)));
    let (ours, _theirs) = tokio::io::duplex(1024);
    assert!(matches!(net.accept_tls(Box::new(ours), &["a".into()]).await, Err(NetError::Timeout)));
}

// --- Channel binding ---

fn openssl(dir: &Path, arguments: &str) -> Vec<u8> {
    let output = Command::new("openssl").current_dir(dir).args(arguments.split(' ')).output().expect("openssl");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn the_endpoint_hash_is_that_of_openssl() {
    let files = Files::new();
    let dir = files.0.path();
    openssl(dir, "genrsa -out rsa.key 2048");
    openssl(dir, "ecparam -name prime256v1 -genkey -noout -out ec.key");
    openssl(dir, "genpkey -algorithm ed25519 -out ed.key");
    for (key, signature, hash) in [
        ("rsa", "-md5", Some("sha256")),
        ("rsa", "-sha1", Some("sha256")),
        ("rsa", "-sha224", Some("sha224")),
        ("rsa", "-sha256", Some("sha256")),
        ("rsa", "-sha384", Some("sha384")),
        ("rsa", "-sha512", Some("sha512")),
        ("ec", "-sha1", Some("sha256")),
        ("ec", "-sha256", Some("sha256")),
        ("ec", "-sha384", Some("sha384")),
        ("ec", "-sha512", Some("sha512")),
        ("rsa", "-sha256 -sigopt rsa_padding_mode:pss", Some("sha256")),
        ("rsa", "-sha384 -sigopt rsa_padding_mode:pss", Some("sha384")),
        ("rsa", "-sha512 -sigopt rsa_padding_mode:pss", Some("sha512")),
        ("rsa", "-sha1 -sigopt rsa_padding_mode:pss", Some("sha256")),
        ("ed", "-sha256", None),
    ] {
        openssl(
            dir,
            &format!("req -x509 -new -key {key}.key {signature} -subj /CN=db -days 2 -outform DER -out c.der"),
        );
        let der = std::fs::read(dir.join("c.der")).unwrap();
        let expected = hash.map(|hash| openssl(dir, &format!("dgst -{hash} -binary c.der")));
        assert_eq!(tls::endpoint_hash(&der), expected, "{key} {signature}");
    }
    assert_eq!(tls::endpoint_hash(b""), None);
    assert_eq!(tls::endpoint_hash(&[0x30; 64]), None);
}

#[tokio::test]
async fn the_endpoint_hash_is_that_of_the_certificate_shown() {
    let files = Files::new();
    let authority = Authority::new("ours");
    let leaf = authority.leaf(&["db.example"], |_| {});
    let spec = spec(TlsMode::VerifyFull, Some(&files.write("ca.pem", &authority.pem)));
    let secured = connect(&net(), server(&leaf, None), "db.example", &spec).await.unwrap();
    files.write("leaf.der", &leaf.chain[0]);
    assert_eq!(secured.endpoint_hash, Some(openssl(files.0.path(), "dgst -sha256 -binary leaf.der")));
}

/// What a client sends first, as our own does it.
async fn hello(host: &str) -> Vec<u8> {
    let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
    let (net, host) = (net(), host.to_owned());
    let client = tokio::spawn(async move {
        let _ = net.secure(Box::new(ours), &host, &spec(TlsMode::Require, None), &[b"h2"], None).await;
    });
    let mut first = vec![0; 16 * 1024];
    let length = theirs.read(&mut first).await.unwrap();
    client.abort();
    first.truncate(length);
    first
}

#[tokio::test]
async fn the_name_in_a_handshake_is_found_once_all_of_it_is_there() {
    let net = net();
    for (host, name) in [("db.example", Some("db.example")), ("127.0.0.1", None)] {
        let whole = hello(host).await;
        for cut in 0..whole.len() {
            assert_eq!(net.asked_name(&whole[..cut]), Asked::More, "{cut} of {}", whole.len());
        }
        assert_eq!(net.asked_name(&whole), Asked::For(name.map(str::to_owned)));
        // What comes behind it is not looked at.
        assert_eq!(net.asked_name(&[&whole[..], b"more"].concat()), Asked::For(name.map(str::to_owned)));
        // In several records, as some clients send it.
        let body = &whole[5..];
        let split: Vec<u8> =
            body.chunks(7).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat()).collect();
        assert_eq!(net.asked_name(&split), Asked::For(name.map(str::to_owned)));
        // Nonsense is no name, and nothing is waited for.
        let mut broken = whole.clone();
        broken[5] = 99;
        assert_eq!(net.asked_name(&broken), Asked::For(None));
    }
}

// --- The runtime CA ---

async fn through_ca(ca: &Arc<RuntimeCa>, names: &[&str], host: &str, spec: &TlsSpec) -> Result<(), NetError> {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let net = Net::new(ca.clone());
    let (server, client) =
        tokio::join!(net.accept_tls(Box::new(theirs), &names), net.secure(Box::new(ours), host, spec, &[], None));
    let (mut server, mut client) = (server?, client?.io);
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"hello");
    Ok(())
}

#[tokio::test]
async fn clients_that_trust_the_runtime_ca_accept_its_leaves() {
    let files = Files::new();
    let mut scope = Scope::default();
    scope.extend(["orders.db.internal", "a.example", "b.example", "127.0.0.1", "localhost", "::1"]);
    let ca = Arc::new(RuntimeCa::new(DAY, &scope).unwrap());
    let path = files.write("ca.pem", ca.certificates_pem());
    let full = spec(TlsMode::VerifyFull, Some(&path));
    for (names, host) in [
        (&["orders.db.internal"][..], "orders.db.internal"),
        (&["b.example", "A.example"], "a.example"),
        (&["127.0.0.1", "localhost"], "127.0.0.1"),
        (&["::1"], "::1"),
        (&["[::1]"], "::1"),
    ] {
        through_ca(&ca, names, host, &full).await.unwrap();
    }
    assert!(through_ca(&ca, &["a.example"], "b.example", &full).await.is_err());
    let another = Arc::new(RuntimeCa::new(DAY, &scope).unwrap());
    assert!(through_ca(&another, &["a.example"], "a.example", &full).await.is_err());
    for names in [&[][..], &[""], &["a b"], &["\u{fc}.example"]] {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        assert!(matches!(ca.server_config(&names, None, None), Err(ca::CaError::Names)), "{names:?}");
    }
}

// --- Names and dialing ---

#[test]
fn addresses_are_taken_apart_strictly() {
    for (address, parts) in [
        ("db:5432", Some(("db", 5432))),
        ("10.0.0.1:1", Some(("10.0.0.1", 1))),
        ("[::1]:65535", Some(("[::1]", 65535))),
        ("::1:5432", None),
        ("[::1]", None),
        ("db", None),
        ("db:", None),
        (":5432", None),
        ("db:0", None),
        ("db:65536", None),
        ("db:+1", None),
        ("db:-1", None),
        ("db:5432 ", None),
    ] {
        assert_eq!(dial::split(address), parts, "{address}");
    }
}

#[tokio::test]
async fn literals_are_resolved_without_asking() {
    let net = net();
    for (host, address) in [("10.1.2.3", "10.1.2.3"), ("::1", "::1"), ("[fd00::7]", "fd00::7")] {
        assert_eq!(net.resolve(host).await.unwrap(), [address.parse::<IpAddr>().unwrap()]);
    }
    assert!(net.resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    assert!(net.resolve("LOCALHOST").await.unwrap().iter().all(IpAddr::is_loopback));
    for host in ["", "a b", "a\0b", "no-such-name.invalid", &"a".repeat(300)] {
        let error = net.resolve(host).await.unwrap_err();
        assert!(matches!(error, NetError::Dns(_) | NetError::Timeout), "{host:?} {error:?}");
    }
}

#[tokio::test]
async fn dialing_reaches_a_listener_or_says_why_not() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    // `localhost` may have an IPv6 address first, at which nobody listens.
    for host in ["127.0.0.1", "localhost"] {
        let net = net();
        let address = format!("{host}:{}", address.port());
        let (dialed, accepted) = tokio::join!(net.dial(&address), listener.accept());
        let (mut dialed, mut accepted) = (dialed.expect(host), accepted.unwrap().0);
        dialed.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    }
    drop(listener);
    let error = net().dial(&address.to_string()).await.err().unwrap();
    assert!(matches!(error, NetError::Connect(_)), "{error:?}");
    assert!(cause(&error).contains(&address.to_string()) && !error.to_string().contains("127.0.0.1"));
    assert!(matches!(net().dial("no port").await.err(), Some(NetError::Settings(_))));
}

// --- The listener ---

#[tokio::test]
async fn the_listener_keeps_its_bound_and_takes_up_again() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (hand_over, mut arrivals) = mpsc::unbounded_channel();
    let serving = tokio::spawn(listener::serve(listener, 2, stop.clone(), move |stream, peer: SocketAddr, place| {
        assert!(peer.ip().is_loopback());
        hand_over.send((stream, place)).unwrap();
    }));
    let connect = || tokio::net::TcpStream::connect(address);
    let (_one, _two) = (connect().await.unwrap(), connect().await.unwrap());
    let (first, second) = (arrivals.recv().await.unwrap(), arrivals.recv().await.unwrap());
    // The third is closed without having been handed over.
    let mut third = connect().await.unwrap();
    assert!(matches!(third.read(&mut [0]).await, Ok(0) | Err(_)));
    assert!(arrivals.try_recv().is_err());
    drop(first);
    let _fourth = connect().await.unwrap();
    let fourth = arrivals.recv().await.unwrap();
    drop((second, fourth));
    stop.cancel();
    serving.await.unwrap().unwrap();
    // Whoever has the port now, it is not this listener.
    drop(connect().await);
    assert!(arrivals.recv().await.is_none());
}
