//! The certificate authority that governed clients trust, made anew by each daemon.
//!
//! Its key exists in this process's memory only. A client that is given the certificate trusts whatever the enforcer
//! poses as, and nobody else gains anything by it: the key cannot be stolen from a file, and dies with the daemon.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::session::Alpn;

/// Clocks of clients may run behind.
const SKEW: Duration = Duration::from_secs(3600);
const LEAF_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);
const VALIDITY_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
const LEAVES_MAX: usize = 256;
/// Names in one leaf.
const NAMES_MAX: usize = 64;

/// The authority could not be made, or could not make a leaf.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// Key or certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The TLS library did not take the leaf.
    #[error("cannot use the certificate")]
    Use(#[from] rustls::Error),
    /// No name, too many, or one that no certificate can have.
    #[error("a certificate needs 1 to {NAMES_MAX} names of printable ASCII")]
    Names,
    /// The certificate could not be written for clients to find.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Where.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A certificate authority, ECDSA P-256.
pub struct RuntimeCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    ends: SystemTime,
    leaves: Mutex<HashMap<For, Leaf>>,
}

/// Names, sorted, and the protocol that is chosen within TLS.
type For = (Vec<String>, Option<Alpn>);

struct Leaf {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

impl std::fmt::Debug for RuntimeCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeCa").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl RuntimeCa {
    /// Makes an authority that is valid from an hour ago to `validity` from now (ten years at most); leaves never
    /// outlive it.
    pub fn new(validity: Duration) -> Result<Self, CaError> {
        let now = SystemTime::now();
        let ends = now + validity.min(VALIDITY_MAX);
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Portcullis runtime CA");
        params.not_before = (now - SKEW).into();
        params.not_after = ends.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, ends, leaves: Mutex::default() })
    }

    /// The authority's certificate, for clients to trust.
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The same as DER.
    pub fn certificate_der(&self) -> &[u8] {
        self.certificate.der()
    }

    /// Writes the certificate where clients find it: mode 0644, put in place whole, so that no client reads half of it.
    pub fn write_certificate(&self, path: &Path) -> Result<(), CaError> {
        write_public(path, self.certificate_pem().as_bytes())
            .map_err(|source| CaError::Write { path: path.to_owned(), source })
    }

    /// A server configuration with a leaf that is valid for these DNS names and addresses, which chooses `protocol`
    /// within TLS. Leaves are kept and replaced in time.
    pub fn server_config(&self, names: &[String], protocol: Option<Alpn>) -> Result<Arc<ServerConfig>, CaError> {
        let mut names: Vec<String> = names.iter().map(|n| bare(n).to_ascii_lowercase()).collect();
        names.sort_unstable();
        names.dedup();
        let fits = |n: &String| !n.is_empty() && n.len() <= 253 && n.bytes().all(|b| b.is_ascii_graphic());
        if names.is_empty() || names.len() > NAMES_MAX || !names.iter().all(fits) {
            return Err(CaError::Names);
        }
        let key = (names, protocol);
        let now = SystemTime::now();
        // The lock is held while a leaf is made (well under a millisecond), so that one is made once.
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(&key).filter(|leaf| now < leaf.renew_at) {
            return Ok(leaf.config.clone());
        }
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        let ends = (now + LEAF_VALIDITY).min(self.ends);
        let mut config = self.issue(&key.0, now, ends)?;
        config.alpn_protocols = protocol.iter().map(|protocol| protocol.to_vec()).collect();
        let config = Arc::new(config);
        let lives = ends.duration_since(now).unwrap_or_default();
        leaves.insert(key, Leaf { config: config.clone(), renew_at: now + lives * 3 / 4 });
        Ok(config)
    }

    fn issue(&self, names: &[String], now: SystemTime, ends: SystemTime) -> Result<ServerConfig, CaError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "Portcullis enforcer");
        params.not_before = (now - SKEW).into();
        params.not_after = ends.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![leaf.der().clone(), self.certificate.der().clone()];
        Ok(ServerConfig::builder_with_provider(super::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?)
    }
}

fn bare(name: &str) -> &str {
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    inner.filter(|n| n.parse::<IpAddr>().is_ok()).unwrap_or(name)
}

fn write_public(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{
        io::Write,
        os::unix::fs::{OpenOptionsExt, PermissionsExt},
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let _ = std::fs::remove_file(&fresh);
    // `create_new` follows no link that somebody put there.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
    file.write_all(bytes)?;
    // The process's umask may have taken bits away.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&fresh, path)
}
