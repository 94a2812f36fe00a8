//! `status`, `reload`, `quarantine`.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{CliError, Exit, args::Form, json_line, print};
use crate::control::{
    client::{ask_all, ask_one},
    proto::{Request, StatusView},
};

pub(super) fn status(socket: &Path, form: Form) -> Result<Exit, CliError> {
    let status: StatusView = ask_one(socket, &Request::Status {})?;
    if form.json {
        json_line(&status)?;
    } else {
        io::stdout().write_all(text(&status).as_bytes())?;
    }
    // So that a monitor can tell by the exit code alone.
    Ok(if status.problems.is_empty() && status.policy.refused.is_none() { Exit::Ok } else { Exit::Failed })
}

pub(super) fn text(status: &StatusView) -> String {
    let policy = &status.policy;
    let facts = [
        ("daemon", format!("{}, pid {}, up {}", status.version, status.pid, print::span(status.uptime_seconds as i64))),
        ("listens on", status.listen.join(", ")),
        ("policies", format!("{} ({:.12}), loaded {}", policy.workloads.join(", "), policy.hash, policy.loaded_at)),
        ("governs", status.governed.join(", ")),
        ("sessions", format!("{} with {} connections", status.sessions, status.connections)),
        ("waiting", format!("{} commands", status.holds)),
        ("recorded", format!("{} events", status.recorded)),
        ("refused", refused(status)),
        ("authority", status.ca.as_ref().map_or_else(String::new, ToString::to_string)),
    ];
    let mut out = String::new();
    for (name, value) in facts {
        out.push_str(&format!("{name:<11} {}\n", print::one_line(&value)));
    }
    if let Some(refused) = &policy.refused {
        out.push_str("\nA newer policy set was refused; the one above stays in force:\n");
        out.push_str(&print::lines(refused));
        out.push('\n');
    }
    for problem in &status.problems {
        out.push_str(&format!("problem     {}\n", print::one_line(problem)));
    }
    out
}

/// What the kernel refused, by reason; reasons that never came are left out.
fn refused(status: &StatusView) -> String {
    let reasons = status.refused.iter().filter(|(_, count)| **count > 0);
    let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
    if reasons.is_empty() { "nothing".into() } else { format!("by the kernel: {}", reasons.join(", ")) }
}

/// A request whose items are sentences.
pub(super) fn plain(socket: &Path, request: &Request) -> Result<Exit, CliError> {
    for sentence in ask_all::<String>(socket, request)? {
        writeln!(io::stdout(), "{}", print::one_line(&sentence))?;
    }
    Ok(Exit::Ok)
}
