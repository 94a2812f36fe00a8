//! Credentials: where they come from, and how long they live here.
//!
//! [`Secrets::lease`] fetches a credential for one login and caches nothing but tokens that have an end (`oauth2`), so a
//! rotated secret is used at the next login. Values are kept in types that are wiped and that no `Debug` shows. Every value that was ever leased also
//! becomes a mask ([`Secrets::known`]), so that a backend which gives one back does not tell it to an agent; old ones
//! stay, because a rotated password may still be valid somewhere. Failure is closed: without a credential there is no
//! login, and what the agent is told is the same for every cause.

mod aws;
mod exec;
pub mod file;
mod oauth2;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use oauth2::{DialError, Dialer, Renewal, Stream, TokenFault};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::{
    mask::KnownSecrets,
    policy::{CredentialRef, CredentialSource, Inject, OAuth2Spec},
};

/// How many values are kept as masks; beyond it the oldest goes.
const KNOWN_MAX: usize = 1024;
/// Of a private key in PEM, the shortest line that tells it (what is shorter is its end), and how many are looked for.
const KEY_LINE_MIN: usize = 24;
const KEY_LINES_MAX: usize = 64;
/// The longest secret value, in bytes.
const VALUE_MAX: usize = 64 * 1024;

/// Opens a file of a credential for a daemon whose user may not. May block.
pub type Opener = dyn Fn(&Path) -> std::io::Result<std::fs::File> + Send + Sync;

/// A credential for one login.
#[derive(Debug)]
pub struct Lease {
    /// Login name: the source's own, or else the policy's.
    pub user: Option<String>,
    /// Password; `None` where the upstream trusts the name or the client certificate.
    pub password: Option<SecretString>,
    /// What goes with temporary keys of AWS.
    pub session_token: Option<SecretString>,
    /// Until when it is used; `None` for as long as the login that it was fetched for.
    pub until: Option<Instant>,
}

impl Lease {
    /// Of a secret without an end that is known.
    fn lasting(user: Option<String>, password: Option<SecretString>) -> Self {
        Self { user, password, session_token: None, until: None }
    }

    /// Whether it is another's in nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Option<SecretString>, b: &Option<SecretString>| match (a, b) {
            (Some(a), Some(b)) => a.expose_secret() == b.expose_secret(),
            (a, b) => a.is_none() && b.is_none(),
        };
        self.user == other.user
            && same(&self.password, &other.password)
            && same(&self.session_token, &other.session_token)
    }

    /// Whether it can be used now.
    pub fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| until > Instant::now())
    }
}

/// Something that gives out credentials.
pub trait SecretSource: Send + Sync {
    /// Fetches the credential for one login. Cancel safe: a dropped future leaves nothing running.
    fn lease<'a>(&'a self, credential: &'a CredentialRef) -> BoxFuture<'a, Result<Lease, SecretError>>;
}

/// No credential. What is displayed may be shown to an agent and says nothing; [`SecretError::detail`] is for the
/// operator, and has no secret in it either.
#[derive(Debug, thiserror::Error)]
#[error("the credential for this upstream is not available")]
pub struct SecretError {
    upstream: Arc<str>,
    #[source]
    cause: SecretFault,
}

impl SecretError {
    fn new(credential: &CredentialRef, cause: SecretFault) -> Self {
        Self { upstream: credential.upstream.clone(), cause }
    }

    /// What happened and what to do about it, for the operator's log only.
    pub fn detail(&self) -> String {
        let mut text = format!("credential of upstream `{}`: {}", self.upstream, self.cause);
        let mut cause = std::error::Error::source(&self.cause);
        while let Some(deeper) = cause {
            text.push_str(&format!(": {deeper}"));
            cause = deeper.source();
        }
        text
    }

    /// The cause, for the operator only.
    pub fn fault(&self) -> &SecretFault {
        &self.cause
    }
}

/// Why there is no credential. For the operator: it names paths and programs, never a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFault {
    /// A relative path, and no folder to look in.
    #[error(
        "`{}` is relative, and $CREDENTIALS_DIRECTORY is not set; use LoadCredential= in the unit, or an absolute path",
        path.display()
    )]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// A relative path that leaves its folder.
    #[error("`{}` must not have `..` in it", path.display())]
    Escapes {
        /// The path.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The daemon's user may not read the file.
    #[error("`{}` cannot be read by the daemon's user (uid {uid}); run: chown {uid} {}", path.display(), path.display())]
    Forbidden {
        /// The path.
        path: PathBuf,
        /// The user.
        uid: u32,
    },
    /// The path is not that of a regular file.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Others than owner and group could read the file, or others than the owner could change it.
    #[error("`{}` has mode {mode:04o}, which lets others read or change it; run: chmod 0600 {}", path.display(), path.display())]
    Exposed {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody who is neither root nor the daemon's user.
    #[error("`{}` belongs to uid {owner}, who could change it; it must belong to root or to the daemon's user", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Nothing there.
    #[error("the secret is empty")]
    Empty,
    /// Over 64 KiB.
    #[error("the secret is longer than {VALUE_MAX} bytes")]
    TooLong,
    /// The value has a NUL byte or is not UTF-8.
    #[error("the secret is not text: it has a NUL byte or is not UTF-8")]
    NotText,
    /// The answer looks like JSON and is not `{"user": ..., "password": ...}`.
    #[error(
        "the answer starts with `{{` but is not JSON of the form {{\"user\": \"...\", \"password\": \"...\"}}: \
         wrong at line {line}, column {column}"
    )]
    NotJson {
        /// Line of the first mistake, from 1.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// The program could not be started.
    #[error("cannot run `{program}`")]
    Start {
        /// The program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The program's path is not absolute, so it would depend on a search path.
    #[error("`{program}` must be an absolute path")]
    NotAbsolute {
        /// The program.
        program: String,
    },
    /// The program failed.
    #[error("`{program}` ended with {status}{}", said(stderr))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The start of what it wrote to standard error.
        stderr: String,
    },
    /// There is a secret access key, and nothing says whose.
    #[error(
        "nothing names the access key's id: write it as `user`, or let the source give JSON with `AccessKeyId` and \
         `SecretAccessKey`"
    )]
    NoKeyId,
    /// The answer looks like JSON and is not that of a `credential_process` of AWS.
    #[error(
        "the answer starts with `{{` but is not JSON with `AccessKeyId` and `SecretAccessKey`: wrong at line {line}, \
         column {column}"
    )]
    NotAwsJson {
        /// Line of the first mistake, from 1.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// An authorization server gave out no token.
    #[error(transparent)]
    Token(Arc<TokenFault>),
    /// The program took too long and was killed.
    #[error("`{program}` did not end within {} ms and was killed", limit.as_millis())]
    TimedOut {
        /// The program.
        program: String,
        /// Its time limit.
        limit: std::time::Duration,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" and said: {stderr}") }
}

/// The daemon's credentials: picks the source, and remembers what must be masked.
pub struct Secrets {
    file: file::FileSource,
    exec: exec::ExecSource,
    tokens: oauth2::Tokens,
    known: Arc<Known>,
}

/// Every value that must be masked.
struct Known {
    values: Mutex<Values>,
    masks: ArcSwap<KnownSecrets>,
}

/// Values leased so far, with the number of their last lease.
#[derive(Default)]
struct Values {
    leases: u64,
    by_value: Vec<(u64, SecretString)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// `directory` is where relative paths of `file` credentials are looked up: `$CREDENTIALS_DIRECTORY`.
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self {
            file: file::FileSource::new(directory),
            exec: exec::ExecSource,
            tokens: oauth2::Tokens::default(),
            known: Arc::new(Known { values: Mutex::default(), masks: ArcSwap::from_pointee(KnownSecrets::empty()) }),
        }
    }

    /// Has tokens fetched by way of `dialer`. Without one, there are none.
    pub fn dialing(self, dialer: Arc<dyn Dialer>) -> Self {
        Self { tokens: self.tokens.dialing(dialer), ..self }
    }

    /// Keeps refresh tokens that a server has replaced in a folder, which is made when the first one is. Without one, they
    /// end with this process.
    pub fn keeping(self, directory: PathBuf) -> Self {
        Self { tokens: self.tokens.keeping(directory), ..self }
    }

    /// Has another open the files that the daemon's user may not read.
    pub fn opened_by(self, opener: Arc<Opener>) -> Self {
        Self { file: self.file.opened_by(opener), ..self }
    }

    /// Fetches the credential for one login.
    pub async fn lease(&self, credential: &CredentialRef) -> Result<Lease, SecretError> {
        match &credential.source {
            CredentialSource::None => Ok(Lease::lasting(credential.user.clone(), None)),
            CredentialSource::OAuth2(spec) => self.token(credential, spec).await,
            CredentialSource::File { .. } => self.fetched(&self.file, credential).await,
            CredentialSource::Exec { .. } => self.fetched(&self.exec, credential).await,
        }
    }

    /// Says that an upstream did not take a credential. The next lease is another one, if there may be another.
    pub async fn rejected(&self, credential: &CredentialRef, lease: &Lease) -> Renewal {
        match (&credential.source, &lease.password) {
            (CredentialSource::OAuth2(spec), Some(token)) => self.tokens.rejected(spec, token).await,
            (_, Some(_)) => Renewal::Expected,
            (_, None) => Renewal::Useless,
        }
    }

    async fn fetched(&self, source: &dyn SecretSource, credential: &CredentialRef) -> Result<Lease, SecretError> {
        let mut lease = source.lease(credential).await?;
        if let Inject::SigV4(_) = &credential.inject {
            aws::read(&mut lease).map_err(|fault| SecretError::new(credential, fault))?;
        }
        if let Some(token) = &credential.session_token {
            let part = CredentialRef::plain(Arc::clone(&credential.upstream), token.clone());
            lease.session_token = self.part(&part).await?;
        }
        lease.password.iter().chain(&lease.session_token).for_each(|value| self.known.learn(value));
        Ok(lease)
    }

    async fn token(&self, credential: &CredentialRef, spec: &OAuth2Spec) -> Result<Lease, SecretError> {
        let failed = |fault| SecretError::new(credential, SecretFault::Token(fault));
        let token = match self.tokens.find(spec).await.map_err(failed)? {
            oauth2::Found::Token(token) => token,
            oauth2::Found::Turn(turn) => {
                let mut parts = [&spec.client_secret, &spec.refresh_token].map(|_| None);
                for (part, source) in parts.iter_mut().zip([&spec.client_secret, &spec.refresh_token]) {
                    if let Some(source) = source {
                        let source = CredentialRef::plain(Arc::clone(&credential.upstream), source.clone());
                        *part = self.part(&source).await?;
                        part.iter().for_each(|value| self.known.learn(value));
                    }
                }
                let [client, refresh] = parts;
                let secrets = oauth2::Secrets { client, refresh };
                self.tokens.fetch(turn, spec, secrets, Arc::clone(&self.known)).await.map_err(failed)?
            }
        };
        self.known.learn(&token.value);
        Ok(Lease { until: Some(token.until), ..Lease::lasting(None, Some(token.value)) })
    }

    /// A secret that is a part of a credential.
    async fn part(&self, part: &CredentialRef) -> Result<Option<SecretString>, SecretError> {
        let lease = match &part.source {
            CredentialSource::File { .. } => self.file.lease(part).await?,
            CredentialSource::Exec { .. } => self.exec.lease(part).await?,
            CredentialSource::None | CredentialSource::OAuth2(_) => {
                return Err(SecretError::new(part, SecretFault::Empty));
            }
        };
        Ok(lease.password)
    }

    /// Every value leased so far, as a mask. Take it anew for each answer: it grows.
    pub fn known(&self) -> Arc<KnownSecrets> {
        thread_local! {
            /// What is known to all threads, and the same with a reference count of this one's own.
            static KNOWN: RefCell<Option<[Arc<KnownSecrets>; 2]>> = const { RefCell::new(None) };
        }
        let all = self.known.masks.load();
        KNOWN.with_borrow_mut(|known| match known {
            Some([of, own]) if Arc::ptr_eq(of, &all) => Arc::clone(own),
            _ => {
                let own = Arc::new(KnownSecrets::clone(&all));
                *known = Some([Arc::clone(&all), Arc::clone(&own)]);
                own
            }
        })
    }
}

/// What a value is known by: all of it, but of a certificate with its key the key alone.
fn telling(value: &SecretString) -> Vec<SecretString> {
    let text = value.expose_secret();
    let Some((_, after)) = text.split_once("PRIVATE KEY-----") else { return vec![value.clone()] };
    // Line by line, however they are joined where they come back. The rest is certificates.
    let lines = after.lines().skip(1).take_while(|line| !line.starts_with("-----")).map(str::trim);
    lines.filter(|line| line.len() >= KEY_LINE_MIN).take(KEY_LINES_MAX).map(SecretString::from).collect()
}

impl Known {
    fn learn(&self, value: &SecretString) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.leases += 1;
        let mut is_new = false;
        for value in telling(value) {
            is_new |= values.learn(value);
        }
        if is_new {
            let known = KnownSecrets::new(values.by_value.iter().map(|(_, v)| v.expose_secret().as_bytes()));
            self.masks.store(Arc::new(known));
        }
    }
}

impl Values {
    /// Whether it is a new one.
    fn learn(&mut self, value: SecretString) -> bool {
        let now = self.leases;
        if let Some(known) = self.by_value.iter_mut().find(|(_, v)| v.expose_secret() == value.expose_secret()) {
            known.0 = now;
            return false;
        }
        if self.by_value.len() >= KNOWN_MAX
            && let Some(oldest) = (0..self.by_value.len()).min_by_key(|at| self.by_value[*at].0)
        {
            self.by_value.swap_remove(oldest);
        }
        self.by_value.push((now, value));
        true
    }
}

impl SecretSource for Secrets {
    fn lease<'a>(&'a self, credential: &'a CredentialRef) -> BoxFuture<'a, Result<Lease, SecretError>> {
        Box::pin(Secrets::lease(self, credential))
    }
}

/// Reads a file that must be as private as a credential's: a client certificate's key. Blocks.
pub(crate) fn read_private(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, SecretFault> {
    file::read(path.to_owned(), None)
}

/// Takes one trailing newline away and checks that the rest is a usable value.
fn value_of(mut bytes: zeroize::Zeroizing<Vec<u8>>) -> Result<SecretString, SecretFault> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(SecretFault::Empty);
    }
    if bytes.len() > VALUE_MAX {
        return Err(SecretFault::TooLong);
    }
    if bytes.contains(&0) {
        return Err(SecretFault::NotText);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretFault::NotText)?;
    Ok(SecretString::from(text))
}
