//! Credentials in files, those of systemd (`LoadCredential=`) included.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Lease, Opener, SecretError, SecretFault, SecretSource, VALUE_MAX, value_of};
use crate::policy::{CredentialRef, CredentialSource};

/// The whole file is the password, one trailing newline excepted.
pub(super) struct FileSource {
    directory: Option<PathBuf>,
    opener: Option<Arc<Opener>>,
}

impl FileSource {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, opener: None }
    }

    pub(super) fn opened_by(self, opener: Arc<Opener>) -> Self {
        Self { opener: Some(opener), ..self }
    }
}

/// Where a credential's file is; relative ones are in `directory`.
///
/// # Errors
/// It is relative and leads out of there, or there is none.
pub fn resolve(directory: Option<&Path>, path: &Path) -> Result<PathBuf, SecretFault> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if path.components().any(|c| c == Component::ParentDir || c.as_os_str() == OsStr::new("")) {
        return Err(SecretFault::Escapes { path: path.to_owned() });
    }
    match directory {
        Some(directory) if directory.is_absolute() => Ok(directory.join(path)),
        _ => Err(SecretFault::NoDirectory { path: path.to_owned() }),
    }
}

/// Opens a credential's file: for reading, without waiting for anybody.
///
/// # Errors
/// The kernel refuses.
pub fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

impl SecretSource for FileSource {
    fn lease<'a>(&'a self, credential: &'a CredentialRef) -> BoxFuture<'a, Result<Lease, SecretError>> {
        Box::pin(async move {
            let CredentialSource::File { path } = &credential.source else {
                return Err(SecretError::new(credential, SecretFault::Empty));
            };
            let read = async {
                let (path, opener) = (resolve(self.directory.as_deref(), path)?, self.opener.clone());
                // A file may be on a slow or hung file system, which must not stop other sessions.
                let read = tokio::task::spawn_blocking(move || read(path, opener.as_deref()));
                value_of(read.await.map_err(|_| SecretFault::Empty)??)
            };
            let password = read.await.map_err(|fault| SecretError::new(credential, fault))?;
            Ok(Lease::lasting(credential.user.clone(), Some(password)))
        })
    }
}

pub(super) fn read(path: PathBuf, opener: Option<&Opener>) -> Result<Zeroizing<Vec<u8>>, SecretFault> {
    let forbidden = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let opened = match (open(&path), opener) {
        (Err(error), Some(opener)) if forbidden(&error) => opener(&path),
        (opened, _) => opened,
    };
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if forbidden(&error) => {
            return Err(SecretFault::Forbidden { path, uid: nix::unistd::geteuid().as_raw() });
        }
        Err(source) => return Err(SecretFault::Read { path, source }),
    };
    check(&file, &path)?;
    // All the room at once, because a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(vec![0; VALUE_MAX + 3]);
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(SecretFault::Read { path, source }),
        }
    }
    if len == bytes.len() {
        return Err(SecretFault::TooLong);
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// The opened file is checked, not its path, which might meanwhile name another.
fn check(file: &File, path: &Path) -> Result<(), SecretFault> {
    let path = || path.to_owned();
    let meta = file.metadata().map_err(|source| SecretFault::Read { path: path(), source })?;
    if !meta.is_file() {
        return Err(SecretFault::NotAFile { path: path() });
    }
    let mode = meta.mode() & 0o7777;
    // Reading by the file's group is a usual way to give a daemon a file of root's.
    if mode & 0o027 != 0 {
        return Err(SecretFault::Exposed { path: path(), mode });
    }
    let owner = meta.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(SecretFault::Owner { path: path(), owner });
    }
    Ok(())
}
