//! Whom governed clients trust, as they read it: a bundle of PEM, and a store of PKCS#12 for Java. Both hold the same
//! certificates, and no key. They are made at the daemon's start and whenever its authorities change, and put in place
//! whole.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use miette::{IntoDiagnostic, WrapErr};
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};

use rustls::pki_types::CertificateDer;

use crate::{
    config::Settings,
    control::proto::CaStatus,
    launch::environment::STORE_PASSWORD,
    net::{RuntimeCa, Scope},
    policy::PolicySet,
    session::House,
};

/// Rounds for the keys of the store's encryption and checksum. What it holds is public, and each start of a JVM pays
/// for them: the least that RFC 8018, section 4.2, recommends.
const ROUNDS: u32 = 1000;

/// Time between looks at the clock: authorities live for hours at least.
const TEND_EVERY: Duration = Duration::from_secs(60);

/// The daemon's authorities, and the files in which clients find them.
pub(super) struct Trust {
    ca: Arc<RuntimeCa>,
    settings: Arc<Settings>,
    published: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    authorities: Vec<CertificateDer<'static>>,
    problem: Option<String>,
}

impl Trust {
    /// Makes the first authority, and the files.
    ///
    /// # Errors
    /// Clients would have nobody to trust.
    pub(super) fn begin(settings: &Arc<Settings>, policies: &PolicySet) -> miette::Result<Self> {
        let ca = Arc::new(RuntimeCa::new(settings.ca.lifetime, &Scope::of(policies)).into_diagnostic()?);
        let this = Self { ca, settings: settings.clone(), published: Mutex::default() };
        this.publish()?;
        Ok(this)
    }

    /// The authorities.
    pub(super) fn ca(&self) -> &Arc<RuntimeCa> {
        &self.ca
    }

    /// Has authorities for all names of these policies, and none that have ended. Reads and writes files.
    ///
    /// # Errors
    /// Clients cannot read of them.
    pub(super) fn tend(&self, policies: &PolicySet) -> miette::Result<()> {
        self.ca.tend(&Scope::of(policies)).into_diagnostic().and_then(|()| self.publish())
    }

    /// For `status`.
    pub(super) fn status(&self) -> Option<CaStatus> {
        let facts = self.ca.facts()?;
        let ends = jiff::Timestamp::try_from(facts.ends).ok();
        Some(CaStatus {
            scope: facts.scope.to_string(),
            is_limited: facts.scope.is_stated(),
            count: facts.count,
            ends_at: ends.map_or_else(String::new, |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            problem: self.lock().problem.clone(),
        })
    }

    /// Writes the files if they are not of these authorities: the host's roots, and our own.
    fn publish(&self) -> miette::Result<()> {
        let mut published = self.lock();
        let authorities = self.ca.certificates();
        if published.authorities == authorities {
            return Ok(());
        }
        let written = write(&self.settings, &self.ca.certificates_pem(), &authorities);
        published.problem = written.as_ref().err().map(|error| format!("clients cannot read whom to trust: {error}"));
        written?;
        published.authorities = authorities;
        if let Some(facts) = self.ca.facts() {
            let until = jiff::Timestamp::try_from(facts.ends).map_or_else(|_| String::new(), |at| at.to_string());
            tracing::info!(count = facts.count, until, "clients trust the certificate authority for {}", facts.scope);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has authorities follow each other in time, for ever.
pub(super) async fn keep(trust: Arc<Trust>, house: Arc<House>) {
    let mut tick = tokio::time::interval(TEND_EVERY);
    loop {
        tick.tick().await;
        let (trust, policies) = (trust.clone(), house.policies.load_full());
        let tended = tokio::task::spawn_blocking(move || trust.tend(&policies)).await;
        if let Ok(Err(error)) = tended {
            tracing::error!(%error, "the certificate authority that clients trust cannot be kept up");
        }
    }
}

fn write(settings: &Settings, pem: &str, authorities: &[CertificateDer<'static>]) -> miette::Result<()> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a system certificate cannot be read");
    }
    let roots: Vec<&[u8]> = found.certs.iter().chain(authorities).map(AsRef::as_ref).collect();
    let (bundle, store) = forms(&roots)?;
    // It was made for the daemon alone.
    std::fs::set_permissions(settings.trust_dir(), Permissions::from_mode(0o755))
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be opened to clients", settings.trust_dir().display()))?;
    put(&settings.ca_file(), pem.as_bytes())?;
    put(&settings.bundle_file(), bundle.as_bytes())?;
    put(&settings.trust_store_file(), &store)
}

/// The two forms of these certificates, DER. One that is none is in neither.
fn forms(certificates: &[&[u8]]) -> miette::Result<(String, Vec<u8>)> {
    let mut bundle = String::new();
    let mut store = KeyStore::new();
    for (number, der) in certificates.iter().enumerate() {
        match Certificate::from_der(der) {
            Ok(certificate) => {
                // Aliases need only differ: of names, two certificates may have the same.
                store.add_entry(&format!("root-{number}"), KeyStoreEntry::Certificate(certificate));
                bundle.push_str(&pem_block(der));
            }
            Err(error) => tracing::warn!(%error, "a system certificate is left out"),
        }
    }
    let writer = store.writer(STORE_PASSWORD).encryption_iterations(ROUNDS).mac_iterations(ROUNDS);
    let store = writer.write().into_diagnostic().wrap_err("no trust store for Java can be made")?;
    Ok((bundle, store))
}

/// Readable by all, and never seen half written.
fn put(path: &Path, bytes: &[u8]) -> miette::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let written = || {
        let _ = std::fs::remove_file(temporary);
        // Follows no link.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(temporary)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        std::fs::rename(temporary, path)
    };
    written().into_diagnostic().wrap_err_with(|| format!("cannot write {}", path.display()))
}

/// RFC 7468.
fn pem_block(der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII.
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use p12_keystore::Pkcs12Archive;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn both_forms_hold_the_same_certificates_each_trusted() {
        let authority = |()| RuntimeCa::new(Duration::from_secs(3600), &Scope::default()).unwrap().certificates();
        let authorities = [(); 3].map(authority).concat();
        let mut given: Vec<&[u8]> = authorities.iter().map(AsRef::as_ref).collect();
        // And one that is no certificate.
        given.insert(1, b"\x30\x03no!");
        let (bundle, store) = forms(&given).unwrap();
        given.remove(1);
        let pem: Vec<_> = CertificateDer::pem_slice_iter(bundle.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(pem.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>(), given);
        let archive = Pkcs12Archive::from_pkcs12(&store, STORE_PASSWORD).unwrap();
        assert!(archive.keys.is_empty() && archive.secrets.is_empty());
        // Java takes for an anchor what is marked as one.
        assert!(archive.certs.iter().all(|bag| bag.trusted && bag.friendly_name.is_some()));
        let mut stored: Vec<_> = archive.certs.iter().map(|bag| bag.cert.as_der().to_vec()).collect();
        let mut given: Vec<_> = given.into_iter().map(<[u8]>::to_vec).collect();
        stored.sort();
        given.sort();
        assert_eq!(stored, given);
    }

    #[test]
    fn the_files_follow_the_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Arc::new(Settings { runtime_dir: dir.path().to_owned(), ..Settings::default() });
        std::fs::create_dir(settings.trust_dir()).unwrap();
        let with = |hosts: &str| {
            let text = format!(
                "[workload]\nname = \"bot\"\ncgroup = \"a/*\"\n[[upstream]]\nname = \"api\"\nprotocol = \"http\"\n\
                 address = [{hosts}]\n"
            );
            PolicySet::from_texts([("bot.toml", text)]).unwrap()
        };
        let trust = Trust::begin(&settings, &with("\"a.example:443\"")).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let count = || read(&settings.ca_file()).matches("BEGIN CERTIFICATE").count();
        assert_eq!((count(), trust.status().unwrap().count), (1, 1));
        let first = read(&settings.ca_file());
        trust.tend(&with("\"a.example:443\", \"x.a.example:443\"")).unwrap();
        assert_eq!(read(&settings.ca_file()), first, "that name was within");
        trust.tend(&with("\"a.example:443\", \"b.example:443\", \"10.0.0.1:443\"")).unwrap();
        assert!(
            count() == 2
                && read(&settings.ca_file()).starts_with(&first)
                && read(&settings.bundle_file()).contains(&first)
        );
        assert!(!read(&settings.ca_file()).contains("PRIVATE"));
        let status = trust.status().unwrap();
        assert_eq!(status.scope, "2 names and 1 address of the policies");
        assert!(status.is_limited && status.problem.is_none());
        for file in [settings.ca_file(), settings.bundle_file(), settings.trust_store_file()] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o644);
        }
        assert_eq!(std::fs::read_dir(settings.trust_dir()).unwrap().count(), 3);
        // What cannot be published is not forgotten: it is tried again.
        std::fs::remove_dir_all(settings.trust_dir()).unwrap();
        let more = with("\"c.example:443\"");
        assert!(trust.tend(&more).is_err() && trust.status().unwrap().problem.is_some());
        std::fs::create_dir(settings.trust_dir()).unwrap();
        trust.tend(&more).unwrap();
        assert!(count() == 3 && trust.status().unwrap().problem.is_none());
    }
}
