//! Whom governed clients trust, as they read it: a bundle of PEM, and a store of PKCS#12 for Java. Both hold the same
//! certificates, and no key. They are made at the daemon's start, with its authority, and put in place whole.

use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::Path};

use miette::{IntoDiagnostic, WrapErr};
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};

use crate::{config::Settings, launch::environment::STORE_PASSWORD, net::RuntimeCa};

/// Rounds for the keys of the store's encryption and checksum. What it holds is public, and each start of a JVM pays
/// for them: the least that RFC 8018, section 4.2, recommends.
const ROUNDS: u32 = 1000;

/// Writes both: the host's roots and the daemon's own authority.
pub(super) fn write(settings: &Settings, ca: &RuntimeCa) -> miette::Result<()> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a system certificate cannot be read");
    }
    let mut roots: Vec<&[u8]> = found.certs.iter().map(AsRef::as_ref).collect();
    roots.push(ca.certificate_der());
    let (bundle, store) = forms(&roots)?;
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
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::set_permissions(&temporary, Permissions::from_mode(0o644)))
        .and_then(|()| std::fs::rename(&temporary, path))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot write {}", path.display()))
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
    use std::time::Duration;

    use p12_keystore::Pkcs12Archive;
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;

    #[test]
    fn both_forms_hold_the_same_certificates_each_trusted() {
        let authorities = [(); 3].map(|()| RuntimeCa::new(Duration::from_secs(3600)).unwrap());
        let mut given: Vec<&[u8]> = authorities.iter().map(RuntimeCa::certificate_der).collect();
        // Of the same name all of them, and one that is no certificate.
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
}
