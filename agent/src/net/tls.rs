//! TLS toward upstreams, with libpq's modes, and toward governed clients.
//!
//! `require` checks nothing, unless a CA is given: then it is `verify-ca`, as in libpq. Unlike libpq, a name is looked
//! for only among a certificate's subject alternative names, never in its common name. A certificate that is itself in
//! the given CA file is trusted as it stands, which is how self-signed servers are pinned. Nothing is resumed, so each
//! connection is checked anew.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use futures_util::future::BoxFuture;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs as aws, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject},
    server::{Acceptor, ParsedCertificate},
    sign::{CertifiedKey, SingleCertAndKey},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsConnector};
use x509_parser::{parse_x509_certificate, signature_algorithm::SignatureAlgorithm};
use zeroize::Zeroize;

use super::ca::RuntimeCa;
use crate::{
    policy::{TlsMode, TlsSpec},
    secrets,
    session::{Alpn, Asked, BoxIo, Hello, NetError, Secured},
};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long files that a policy names are not read again.
const FRESH: Duration = Duration::from_secs(60);
const CONFIGS_MAX: usize = 64;
/// Longest file of certificates, in bytes.
const PEM_MAX: u64 = 4 << 20;

/// The one implementation of cryptography, never a process-wide default.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws::default_provider())
}

/// Reads a governed client's first message. Cancel safe in that the stream is lost.
pub(super) async fn read_hello(ca: &Arc<RuntimeCa>, io: BoxIo) -> Result<Box<dyn Hello>, NetError> {
    let read = timeout(HANDSHAKE_LIMIT, LazyConfigAcceptor::new(Acceptor::default(), io)).await;
    let start = read.map_err(|_| NetError::Timeout)?.map_err(|e| NetError::Tls(e.into()))?;
    let offered = start.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
    let server_name = start.client_hello().server_name().map(str::to_owned);
    Ok(Box::new(Begun { ca: Arc::clone(ca), server_name, offered, start }))
}

/// The name that the beginning of a handshake asks for.
pub(super) fn asked_name(mut first: &[u8]) -> Asked {
    let mut acceptor = Acceptor::default();
    while !first.is_empty() {
        if acceptor.read_tls(&mut first).is_err() {
            return Asked::For(None);
        }
    }
    match acceptor.accept() {
        Ok(None) => Asked::More,
        Ok(Some(accepted)) => Asked::For(accepted.client_hello().server_name().map(str::to_owned)),
        Err(_) => Asked::For(None),
    }
}

/// A handshake that a client began.
struct Begun {
    ca: Arc<RuntimeCa>,
    server_name: Option<String>,
    offered: Vec<Vec<u8>>,
    start: StartHandshake<BoxIo>,
}

impl Hello for Begun {
    fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    fn offers(&self, protocol: Alpn) -> bool {
        self.offered.iter().any(|offered| offered == protocol)
    }

    fn accept(self: Box<Self>, names: &[String], protocol: Option<Alpn>) -> BoxFuture<'_, Result<BoxIo, NetError>> {
        Box::pin(async move {
            let asked = self.server_name.as_deref();
            let config = self.ca.server_config(names, asked, protocol).map_err(|e| NetError::Settings(e.into()))?;
            let accepted = timeout(HANDSHAKE_LIMIT, self.start.into_stream(config)).await;
            let stream = accepted.map_err(|_| NetError::Timeout)?.map_err(|e| NetError::Tls(e.into()))?;
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

/// TLS as a client, with configurations kept for a minute.
#[derive(Default)]
pub(super) struct Client {
    configs: Mutex<Vec<(TlsSpec, Instant, Arc<ClientConfig>)>>,
}

impl Client {
    /// Cancel safe in that the stream is lost.
    pub(super) async fn secure(
        &self,
        io: BoxIo,
        host: &str,
        spec: &TlsSpec,
        protocols: &[Alpn],
        certificate: Option<&SecretString>,
    ) -> Result<Secured, NetError> {
        let name = server_name(host)?;
        let mut config = self.config(spec).await?;
        if let Some(pem) = certificate {
            // For this connection only: what is kept has none.
            Arc::make_mut(&mut config).client_auth_cert_resolver = Arc::new(shown(pem)?);
        }
        if !protocols.is_empty() {
            // What is costly in it is shared.
            Arc::make_mut(&mut config).alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        }
        let connected = timeout(HANDSHAKE_LIMIT, TlsConnector::from(config).connect(name, io)).await;
        let stream = connected.map_err(|_| NetError::Timeout)?.map_err(|e| NetError::Tls(e.into()))?;
        let (_, session) = stream.get_ref();
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let endpoint_hash = leaf.and_then(|leaf| endpoint_hash(leaf));
        let protocol = session.alpn_protocol().map(<[u8]>::to_vec);
        Ok(Secured { io: Box::new(stream), endpoint_hash, protocol })
    }

    async fn config(&self, spec: &TlsSpec) -> Result<Arc<ClientConfig>, NetError> {
        {
            let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
            configs.retain(|(_, at, _)| at.elapsed() < FRESH);
            if let Some((.., config)) = configs.iter().find(|(known, ..)| known == spec) {
                return Ok(config.clone());
            }
        }
        let wanted = spec.clone();
        // Reads files.
        let made = tokio::task::spawn_blocking(move || client_config(&wanted)).await;
        let config = Arc::new(made.map_err(|e| NetError::Settings(e.into()))??);
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if configs.len() >= CONFIGS_MAX {
            configs.remove(0);
        }
        configs.push((spec.clone(), Instant::now(), config.clone()));
        Ok(config)
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, NetError> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    // A dot at the end makes a name absolute and is no part of it.
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    ServerName::try_from(bare.to_owned()).map_err(|e| NetError::Settings(e.into()))
}

fn client_config(spec: &TlsSpec) -> Result<ClientConfig, NetError> {
    let provider = provider();
    let check = match (spec.mode, &spec.ca) {
        (TlsMode::Disable, _) => return Err(NetError::Settings("TLS was asked for where it is disabled".into())),
        (TlsMode::Require, None) => Check::Nothing,
        (TlsMode::Require | TlsMode::VerifyCa, ca) => Check::Chain(Trust::load(ca.as_deref())?),
        (TlsMode::VerifyFull, ca) => Check::ChainAndName(Trust::load(ca.as_deref())?),
    };
    let signing = provider.key_provider;
    let verifier = Arc::new(Verifier { provider: provider.clone(), check });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| NetError::Settings(e.into()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &spec.client {
        None => builder.with_no_client_auth(),
        Some((chain, key_file)) => {
            let bytes = secrets::read_private(key_file).map_err(|e| NetError::Settings(e.into()))?;
            let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| unusable(key_file, &e))?;
            let signer = signing.load_private_key(key).map_err(|e| unusable(key_file, &e))?;
            let certified = CertifiedKey::new(certificates(chain)?, signer);
            // Only the upstream judges our certificate: one of X.509 version 1, which the library cannot read, is as good.
            if matches!(certified.keys_match(), Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch))) {
                return Err(unusable(chain, &"the key is of another certificate"));
            }
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What a client shows: certificates, and the key of the first, in one text of PEM. What cannot be used is told without a
/// word of it.
fn shown(pem: &SecretString) -> Result<SingleCertAndKey, NetError> {
    let failed = |why: &str| NetError::Credential(format!("the client certificate cannot be used: {why}").into());
    let text = pem.expose_secret().as_bytes();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|_| failed("its PEM cannot be read"))?;
    let leaf = chain.first().ok_or_else(|| failed("there is no certificate in its PEM"))?;
    in_time(leaf, UnixTime::now()).map_err(|error| failed(&error.to_string()))?;
    let mut key = PrivateKeyDer::from_pem_slice(text).map_err(|_| failed("there is no key in its PEM"))?;
    let signer = aws::sign::any_supported_type(&key);
    key.zeroize();
    let signer = signer.map_err(|_| failed("its key is of no kind that TLS has"))?;
    // By itself: the library does not read certificates of X.509 version 1, of which this is as true.
    let is_its = |own: SubjectPublicKeyInfoDer<'_>| {
        parse_x509_certificate(leaf).is_ok_and(|(_, leaf)| leaf.public_key().raw == own.as_ref())
    };
    if signer.public_key().is_some_and(|own| !is_its(own)) {
        return Err(failed("the key is of another certificate"));
    }
    Ok(SingleCertAndKey::from(CertifiedKey::new(chain, signer)))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> NetError {
    NetError::Settings(format!("cannot use `{}`: {why}", path.display()).into())
}

/// All certificates of a PEM file; one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let read = || {
        let mut bytes = Vec::new();
        let mut file = io::Read::take(std::fs::File::open(path)?, PEM_MAX);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    let bytes = read().map_err(|e| unusable(path, &e))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|e| unusable(path, &e))?;
    if certificates.is_empty() { Err(unusable(path, &"it has no certificate")) } else { Ok(certificates) }
}

/// Whom to trust.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The certificates of a CA file, each trusted as it stands too.
    pinned: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn load(ca: Option<&Path>) -> Result<Self, NetError> {
        let mut roots = RootCertStore::empty();
        let Some(path) = ca else {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(NetError::Settings("this host has no trusted roots; name a `ca` file".into()));
            }
            return Ok(Self { roots, pinned: Vec::new() });
        };
        let pinned = certificates(path)?;
        // A certificate that cannot be a root (version 1, say) can still be the server's own.
        roots.add_parsable_certificates(pinned.iter().cloned());
        Ok(Self { roots, pinned })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<(), rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned.as_ref() == leaf.as_ref()) {
            return in_time(leaf, now);
        }
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
    }
}

fn in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).map_err(|_| CertificateError::Expired)?;
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[derive(Debug)]
enum Check {
    Nothing,
    Chain(Trust),
    ChainAndName(Trust),
}

/// What is checked of a server. That it has the certificate's key always is.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    check: Check,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            Check::Nothing => {}
            Check::Chain(trust) => trust.verify(leaf, intermediates, now, &self.provider)?,
            Check::ChainAndName(trust) => {
                trust.verify(leaf, intermediates, now, &self.provider)?;
                verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `tls-server-end-point` (RFC 5929 section 4.1): the certificate hashed by the hash function of its own signature,
/// MD5 and SHA-1 replaced by SHA-256. Where the signature has no single hash function (Ed25519), there is none.
pub(super) fn endpoint_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let signature = &parsed.signature_algorithm;
    let algorithm = match SignatureAlgorithm::try_from(signature) {
        Ok(SignatureAlgorithm::RSASSA_PSS(params)) => by_hash(&params.hash_algorithm_oid().to_id_string())?,
        _ => by_signature(&signature.algorithm.to_id_string())?,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

fn by_signature(oid: &str) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => &digest::SHA256,
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &digest::SHA224,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    })
}

fn by_hash(oid: &str) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        // MD5, SHA-1, SHA-256.
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "2.16.840.1.101.3.4.2.4" => &digest::SHA224,
        "2.16.840.1.101.3.4.2.2" => &digest::SHA384,
        "2.16.840.1.101.3.4.2.3" => &digest::SHA512,
        _ => return None,
    })
}
