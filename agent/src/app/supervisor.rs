//! The process that holds the daemon's sockets and keeps the daemon running.
//!
//! Were the daemon to hold them alone, anybody could take its port while it is dead, and would be sent what its clients
//! say in the seconds before the heartbeat is missed. So where no service manager hands sockets over, this small process
//! makes them, hands them to the daemon it starts, and starts it again when it dies. It opens nothing else and serves
//! nobody. Should it die itself, the kernel ends the daemon with it, and what is pinned refuses.

use std::{
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use miette::{IntoDiagnostic, WrapErr};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::daemon::Ended;
use crate::net::handed::{self, Sockets};

/// A daemon that lived so long was well when it started: it is started again whatever ends it.
const WELL: Duration = Duration::from_secs(5);
/// Shortest and longest wait before it is started again.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Runs daemons one after the other on these sockets, until one ends by itself or we are told to end.
pub(super) fn run(sockets: Sockets) -> miette::Result<Ended> {
    // Where the program lies, not what it is: after an upgrade the new one is started.
    let program = std::env::current_exe().into_diagnostic().wrap_err("where this program lies cannot be told")?;
    let held = sockets.into_descriptors();
    let mut numbers = Vec::new();
    for socket in &held {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).into_diagnostic()?;
        numbers.push(socket.as_raw_fd().to_string());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().into_diagnostic()?;
    runtime.block_on(supervise(&program, &numbers.join(",")))
}

async fn supervise(program: &Path, listeners: &str) -> miette::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    let mut hangup = signal(SignalKind::hangup()).into_diagnostic()?;
    let mut wait = SHORTEST;
    let mut was_well = false;
    loop {
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(handed::VARIABLE, listeners)
            .spawn()
            .into_diagnostic()
            .wrap_err_with(|| format!("{} cannot be started", program.display()))?;
        let mut told_to_end = false;
        let status = loop {
            let told = tokio::select! {
                status = child.wait() => break status.into_diagnostic()?,
                _ = terminate.recv() => Signal::SIGTERM,
                _ = interrupt.recv() => Signal::SIGTERM,
                _ = hangup.recv() => Signal::SIGHUP,
            };
            told_to_end |= told == Signal::SIGTERM;
            pass_on(&child, told);
        };
        was_well |= started.elapsed() >= WELL;
        if told_to_end || status.success() {
            return Ok(Ended::Well);
        }
        // It has said itself what is wrong, and would say so again.
        if status.code() == Some(1) && !was_well {
            return Ok(Ended::Failed);
        }
        wait = if started.elapsed() >= WELL { SHORTEST } else { (wait * 2).min(LONGEST) };
        tracing::error!(died = %how(status), "the daemon died; connections are refused until it is back");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = terminate.recv() => return Ok(Ended::Well),
            _ = interrupt.recv() => return Ok(Ended::Well),
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // It may have ended just now, which `wait` tells next.
    let _ = kill(Pid::from_raw(pid), signal);
}

fn how(status: ExitStatus) -> String {
    match status.signal() {
        Some(number) if status.core_dumped() => format!("signal {number}, with a core"),
        Some(number) => format!("signal {number}"),
        None => format!("status {}", status.code().unwrap_or(-1)),
    }
}
