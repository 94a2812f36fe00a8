//! The certificate authority that governed clients trust: made anew by each daemon, limited to the names of its policies,
//! and replaced in time.
//!
//! Keys exist in this process's memory only. A client that is given the certificates trusts whatever the enforcer poses as,
//! within those names, and nobody else gains anything by it: no key can be stolen from a file, and all die with the daemon.
//!
//! There may be several authorities at once. Clients read the file of certificates when they please, and keep what they
//! have read: so the oldest that may vouch for a name does, as long as it can. A further one is made when policies bring
//! names that the newest may not vouch for, and for all names when the newest is at half of its life; it is published
//! before it signs. [`RuntimeCa::tend`] does that, and whoever calls it publishes what came of it.

mod scope;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::session::Alpn;

pub use scope::Scope;

/// Clocks of clients may run behind.
const SKEW: Duration = Duration::from_secs(3600);
const LEAF_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
const LEAVES_MAX: usize = 256;
/// Names in one leaf.
const NAMES_MAX: usize = 64;
/// Authorities at once. Where policies bring new names so often that there would be more, the oldest goes.
const AUTHORITIES_MAX: usize = 16;

/// The time of day. Tests have one of their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// An authority could not be made, or could not make a leaf.
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
    /// No authority may vouch for the name.
    #[error("the policies in force do not have this name")]
    Outside,
}

/// Every authority that clients trust now.
pub struct RuntimeCa {
    lifetime: Duration,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many there were.
    made: u64,
    /// The oldest first; the newest may vouch for all names in force.
    authorities: Vec<Authority>,
    leaves: HashMap<For, Leaf>,
}

/// The authority's number, names, sorted, and the protocol that is chosen within TLS.
type For = (u64, Vec<String>, Option<Alpn>);

struct Leaf {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

/// One of them, ECDSA P-256.
struct Authority {
    number: u64,
    scope: Scope,
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    begins: SystemTime,
    /// When its successor is made.
    half: SystemTime,
    /// Until when it signs, if there is another that can.
    signs_until: SystemTime,
    ends: SystemTime,
}

/// What can be told of the authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFacts {
    /// How many clients trust.
    pub count: usize,
    /// What the newest may vouch for.
    pub scope: Scope,
    /// When the newest ends.
    pub ends: SystemTime,
}

impl std::fmt::Debug for RuntimeCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeCa").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl RuntimeCa {
    /// Begins with one authority for the names of `scope`. Each is valid from an hour before it was made to `lifetime`
    /// after (ten years at most); leaves never outlive it.
    pub fn new(lifetime: Duration, scope: &Scope) -> Result<Self, CaError> {
        Self::with_clock(lifetime, scope, Arc::new(SystemTime::now))
    }

    /// The same by another clock.
    pub fn with_clock(lifetime: Duration, scope: &Scope, clock: Clock) -> Result<Self, CaError> {
        let this = Self { lifetime: lifetime.min(LIFETIME_MAX), clock, state: Mutex::default() };
        this.tend(scope)?;
        Ok(this)
    }

    /// Does what the time and these names, those in force from now on, ask for: lets go of authorities that have ended,
    /// and makes another. To be called before such names come into force, and every minute. What is trusted may be
    /// another set then: see [`RuntimeCa::certificates`].
    pub fn tend(&self, scope: &Scope) -> Result<(), CaError> {
        let now = (self.clock)();
        let mut state = self.lock();
        let newest = state.authorities.last();
        if newest.is_none_or(|newest| !newest.scope.includes(scope) || newest.half <= now) {
            state.made += 1;
            let authority = Authority::new(state.made, scope.clone(), now, self.lifetime)?;
            state.authorities.push(authority);
            if state.authorities.len() > AUTHORITIES_MAX {
                state.authorities.remove(0);
            }
        }
        state.authorities.retain(|authority| now < authority.ends);
        let State { authorities, leaves, .. } = &mut *state;
        leaves.retain(|(number, ..), _| authorities.iter().any(|authority| authority.number == *number));
        Ok(())
    }

    /// The certificates for clients to trust, the oldest first.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.lock().authorities.iter().map(|authority| authority.certificate.der().clone()).collect()
    }

    /// The same as PEM.
    pub fn certificates_pem(&self) -> String {
        self.lock().authorities.iter().map(|authority| authority.certificate.pem()).collect()
    }

    /// For people.
    pub fn facts(&self) -> Option<CaFacts> {
        let state = self.lock();
        let newest = state.authorities.last()?;
        Some(CaFacts { count: state.authorities.len(), scope: newest.scope.clone(), ends: newest.ends })
    }

    /// A server configuration with a leaf for the name that is `asked` for; where none of these names and addresses is, for
    /// all of them that the authority which signs it may vouch for. It is the oldest that may for what is looked for. The leaf
    /// chooses `protocol` within TLS. Leaves are kept and replaced in time.
    pub fn server_config(
        &self,
        names: &[String],
        asked: Option<&str>,
        protocol: Option<Alpn>,
    ) -> Result<Arc<ServerConfig>, CaError> {
        let mut names: Vec<String> = names.iter().map(|name| scope::bare(name)).collect();
        names.sort_unstable();
        names.dedup();
        let fits = |n: &String| !n.is_empty() && n.len() <= 253 && n.bytes().all(|b| b.is_ascii_graphic());
        if names.is_empty() || names.len() > NAMES_MAX || !names.iter().all(fits) {
            return Err(CaError::Names);
        }
        let asked = asked.map(scope::bare);
        if asked.as_ref().is_some_and(|asked| names.contains(asked)) {
            // Alone: BoringSSL knows no limits of addresses, and refuses one that is beside the name.
            names.retain(|name| Some(name) == asked.as_ref());
        }
        let wanted = wanted(&names, asked.is_some());
        let now = (self.clock)();
        // The lock is held while a leaf is made (well under a millisecond), so that one is made once.
        let mut state = self.lock();
        let State { authorities, leaves, .. } = &mut *state;
        let able = |authority: &&Authority| wanted.iter().all(|name| authority.scope.covers(name));
        let authority = authorities.iter().filter(able).find(|authority| now < authority.signs_until);
        let last = || authorities.iter().rev().filter(able).find(|authority| now < authority.ends);
        let authority = authority.or_else(last).ok_or(CaError::Outside)?;
        names.retain(|name| authority.scope.covers(name));
        let key = (authority.number, names, protocol);
        if let Some(leaf) = leaves.get(&key).filter(|leaf| now < leaf.renew_at) {
            return Ok(leaf.config.clone());
        }
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        let ends = (now + LEAF_VALIDITY).min(authority.ends);
        let mut config = authority.issue(&key.1, now, ends)?;
        config.alpn_protocols = protocol.iter().map(|protocol| protocol.to_vec()).collect();
        let config = Arc::new(config);
        let lives = ends.duration_since(now).unwrap_or_default();
        leaves.insert(key, Leaf { config: config.clone(), renew_at: now + lives * 3 / 4 });
        Ok(config)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client will look for in the leaf. Who gives no name came by an address, if there is one.
fn wanted(names: &[String], asks: bool) -> Vec<String> {
    let is_address = |name: &&String| !asks && name.parse::<IpAddr>().is_ok();
    let addresses: Vec<String> = names.iter().filter(is_address).cloned().collect();
    if addresses.is_empty() { names.to_vec() } else { addresses }
}

impl Authority {
    fn new(number: u64, scope: Scope, now: SystemTime, lifetime: Duration) -> Result<Self, CaError> {
        let mut params = CertificateParams::new(Vec::new())?;
        let (begins, ends) = (now - SKEW, now + lifetime);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // Some clients tell issuers apart by their names alone.
        let id: String = blake3::hash(key.public_key_raw()).to_hex().chars().take(8).collect();
        params.distinguished_name.push(DnType::CommonName, format!("Portcullis runtime CA {id}"));
        params.not_before = begins.into();
        params.not_after = ends.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.name_constraints = scope.constraints();
        let certificate = params.self_signed(&key)?;
        // A client whose clock is a little fast still takes what is signed last.
        let (half, signs_until) = (now + lifetime / 2, now + lifetime / 10 * 9);
        Ok(Self { number, scope, issuer: Issuer::new(params, key), certificate, begins, half, signs_until, ends })
    }

    fn issue(&self, names: &[String], now: SystemTime, ends: SystemTime) -> Result<ServerConfig, CaError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "Portcullis enforcer");
        params.not_before = (now - SKEW).max(self.begins).into();
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

#[cfg(test)]
impl RuntimeCa {
    /// A chain for names that no authority is asked about: what somebody could make who had the oldest one's key.
    pub(super) fn forge(&self, names: &[&str]) -> Arc<ServerConfig> {
        let (state, now) = (self.lock(), (self.clock)());
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let authority = state.authorities.first().expect("one");
        Arc::new(authority.issue(&names, now, authority.ends).expect("a leaf"))
    }
}
