//! Credentials in files, those of systemd (`LoadCredential=`) included.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Lease, SecretError, SecretFault, SecretSource, VALUE_MAX, value_of};
use crate::policy::{CredentialRef, CredentialSource};

/// The whole file is the password, one trailing newline excepted.
pub(super) struct FileSource {
    directory: Option<PathBuf>,
}

impl FileSource {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    fn resolve(&self, path: &Path) -> Result<PathBuf, SecretFault> {
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        if path.components().any(|c| c == Component::ParentDir || c.as_os_str() == OsStr::new("")) {
            return Err(SecretFault::Escapes { path: path.to_owned() });
        }
        match &self.directory {
            Some(directory) if directory.is_absolute() => Ok(directory.join(path)),
            _ => Err(SecretFault::NoDirectory { path: path.to_owned() }),
        }
    }
}

impl SecretSource for FileSource {
    fn lease<'a>(&'a self, credential: &'a CredentialRef) -> BoxFuture<'a, Result<Lease, SecretError>> {
        Box::pin(async move {
            let CredentialSource::File { path } = &credential.source else {
                return Err(SecretError::new(credential, SecretFault::Empty));
            };
            let read = async {
                let path = self.resolve(path)?;
                // A file may be on a slow or hung file system, which must not stop other sessions.
                let read = tokio::task::spawn_blocking(move || read(path));
                value_of(read.await.map_err(|_| SecretFault::Empty)??)
            };
            let password = read.await.map_err(|fault| SecretError::new(credential, fault))?;
            Ok(Lease { user: credential.user.clone(), password: Some(password) })
        })
    }
}

pub(super) fn read(path: PathBuf) -> Result<Zeroizing<Vec<u8>>, SecretFault> {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&path);
    let mut file = match opened {
        Ok(file) => file,
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
