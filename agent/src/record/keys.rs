//! The key that signs: Ed25519 (RFC 8032), made at the first start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};

use super::{RecordError, error::io_error};

/// PKCS #8, mode 0600.
const KEY: &str = "signing.key";
/// 64 lower-case hexadecimal digits and a newline, for whoever checks.
pub(super) const PUBLIC: &str = "signing.pub";

/// Bytes of a signature.
pub(super) const SIGNATURE: usize = 64;

/// Signs heads, seals and prunings.
pub(super) struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// Who a log was signed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl Signer {
    /// Reads the key of a log, or makes one where there is neither key nor log.
    pub(super) fn open(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(KEY);
        let der = match fs::read(&path) {
            Ok(der) => der,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.join(PUBLIC).exists() => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                    .map_err(|_| RecordError::Key("could not be made"))?;
                write_whole(dir, KEY, made.as_ref())?;
                made.as_ref().to_vec()
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| RecordError::Key("is damaged"))?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| RecordError::Key("is damaged"))?;
        let public = PublicKey(public);
        if dir.join(PUBLIC).exists() {
            if PublicKey::read(dir)? != public {
                return Err(RecordError::Key("does not belong to signing.pub"));
            }
        } else {
            write_whole(dir, PUBLIC, public.text().as_bytes())?;
        }
        Ok(Self { pair, public })
    }

    pub(super) fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE] {
        let mut out = [0; SIGNATURE];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }
}

impl PublicKey {
    /// Reads the key beside a log. Only the one spelling that is written is accepted.
    pub fn read(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(PUBLIC);
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        let key = text.strip_suffix(b"\n").and_then(|hex| data_encoding::HEXLOWER.decode(hex).ok());
        key.and_then(|key| key.try_into().ok()).map(Self).ok_or(RecordError::Key("signing.pub is damaged"))
    }

    fn text(self) -> String {
        format!("{}\n", data_encoding::HEXLOWER.encode(&self.0))
    }

    pub(super) fn verify(self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

/// Writes a file whole or not at all, mode 0600, and syncs it and its folder.
pub(super) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(io_error("write", &path))
}
