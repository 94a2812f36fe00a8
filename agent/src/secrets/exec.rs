//! Credentials from a program: `pass show`, a cloud CLI, a script of the operator's.

use std::{os::unix::process::CommandExt, process::Stdio, time::Duration};

use futures_util::future::BoxFuture;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use secrecy::SecretString;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};
use zeroize::Zeroizing;

use super::{Lease, SecretError, SecretFault, SecretSource, VALUE_MAX, value_of};
use crate::policy::{CredentialRef, CredentialSource, Inject};

/// All that the program sees of an environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Room for a value and its JSON around it.
const STDOUT_MAX: usize = 2 * VALUE_MAX;
const STDERR_MAX: usize = 1024;

/// Runs the program without a shell, in a process group of its own that is killed when it takes too long, when the
/// answer is there, and when nobody waits for it any more.
pub(super) struct ExecSource;

impl SecretSource for ExecSource {
    fn lease<'a>(&'a self, credential: &'a CredentialRef) -> BoxFuture<'a, Result<Lease, SecretError>> {
        Box::pin(async move {
            let CredentialSource::Exec { argv, timeout } = &credential.source else {
                return Err(SecretError::new(credential, SecretFault::Empty));
            };
            let answer = match credential.inject {
                // Its JSON is another.
                Inject::SigV4(_) => run(argv, *timeout).await.and_then(value_of).map(|value| (None, value)),
                _ => run(argv, *timeout).await.and_then(parse),
            };
            let (user, password) = answer.map_err(|fault| SecretError::new(credential, fault))?;
            Ok(Lease::lasting(user.or_else(|| credential.user.clone()), Some(password)))
        })
    }
}

async fn run(argv: &[String], limit: Duration) -> Result<Zeroizing<Vec<u8>>, SecretFault> {
    let (program, arguments) = argv.split_first().ok_or(SecretFault::NotAbsolute { program: String::new() })?;
    let program = program.clone();
    if !program.starts_with('/') {
        return Err(SecretFault::NotAbsolute { program });
    }
    let mut command = std::process::Command::new(&program);
    command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = Command::from(command).kill_on_drop(true).spawn();
    let mut child = match child {
        Ok(child) => Group::new(child),
        Err(source) => return Err(SecretFault::Start { program, source }),
    };
    match tokio::time::timeout(limit, child.answer(&program)).await {
        Ok(answer) => answer,
        Err(_) => Err(SecretFault::TimedOut { program, limit }),
    }
}

/// A child and its process group, which does not outlive this value.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    fn new(child: Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Self { child, leader }
    }

    async fn answer(&mut self, program: &str) -> Result<Zeroizing<Vec<u8>>, SecretFault> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (out, err) = tokio::join!(read(stdout, STDOUT_MAX), read(stderr, STDERR_MAX));
        let failed = |source| SecretFault::Start { program: program.to_owned(), source };
        let status = self.child.wait().await.map_err(failed)?;
        let (out, err) = (out.map_err(failed)?, err.map_err(failed)?);
        if !status.success() {
            let stderr = String::from_utf8_lossy(&err.bytes).trim().replace(char::is_control, " ");
            return Err(SecretFault::Failed { program: program.to_owned(), status, stderr });
        }
        if out.cut { Err(SecretFault::TooLong) } else { Ok(out.bytes) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Members that the leader left behind hold its group id. With none left and the leader reaped an instant ago, the
        // id is free, but ids are given out in turn and this one was just used. The leader itself is reaped by the
        // runtime (`kill_on_drop`).
        if let Some(leader) = self.leader {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

struct Output {
    bytes: Zeroizing<Vec<u8>>,
    /// There was more.
    cut: bool,
}

/// Reads to the end and keeps the first `max` bytes, so that the program is not blocked by what it says too much.
async fn read(from: Option<impl AsyncRead + Unpin>, max: usize) -> std::io::Result<Output> {
    let mut output = Output { bytes: Zeroizing::new(Vec::with_capacity(max)), cut: false };
    let Some(mut from) = from else { return Ok(output) };
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let n = from.read(&mut piece[..]).await?;
        if n == 0 {
            return Ok(output);
        }
        let room = max - output.bytes.len();
        output.bytes.extend_from_slice(&piece[..n.min(room)]);
        output.cut |= n > room;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    user: Option<String>,
    password: String,
}

/// Text is the password, JSON may name the user too. What starts with `{` is JSON, so that a mistake in it does not
/// become a password.
fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<(Option<String>, SecretString), SecretFault> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Ok((None, value_of(bytes)?));
    }
    // The error's own text may quote what it stumbled over.
    let mut answer: Answer =
        serde_json::from_slice(&bytes).map_err(|e| SecretFault::NotJson { line: e.line(), column: e.column() })?;
    let password = Zeroizing::new(std::mem::take(&mut answer.password).into_bytes());
    if password.is_empty() {
        return Err(SecretFault::Empty);
    }
    if password.len() > VALUE_MAX {
        return Err(SecretFault::TooLong);
    }
    let text = std::str::from_utf8(&password).map_err(|_| SecretFault::NotText)?;
    if text.contains('\0') || answer.user.as_ref().is_some_and(|u| u.contains('\0')) {
        return Err(SecretFault::NotText);
    }
    Ok((answer.user.take(), SecretString::from(text)))
}
