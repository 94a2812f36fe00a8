//! `follow`, and an event as one line.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{CliError, Exit, args::Form, print};
use crate::{
    control::{
        client::{ClientError, ask},
        proto::Request,
    },
    record::{DecisionNote, Event, EventBody},
};

pub(super) fn follow(socket: &Path, form: Form) -> Result<Exit, CliError> {
    let mut out = io::stdout();
    for item in ask(socket, &Request::Follow {})? {
        let item = item?;
        if form.json {
            writeln!(out, "{}", item.get())?;
        } else {
            let event: Event = serde_json::from_str(item.get()).map_err(ClientError::Garbled)?;
            writeln!(out, "{}", line(&event))?;
        }
        out.flush()?;
    }
    Ok(Exit::Ok)
}

/// An event as one clean line: time, workload, what happened.
pub(super) fn line(event: &Event) -> String {
    let time = event.timestamp.get(11..19).unwrap_or(&event.timestamp);
    let who = if event.workload.is_empty() { "-" } else { &event.workload };
    let what = match &event.body {
        EventBody::SessionStart { intent, command, operator, .. } => format!(
            "session {} by {operator}: {}{}",
            event.session_id,
            command.join(" "),
            intent.as_ref().map_or(String::new(), |intent| format!(" ({intent})"))
        ),
        EventBody::SessionEnd { why } => format!("session {} ended: {why}", event.session_id),
        EventBody::Connect { address, database, process, decision, .. } => format!(
            "{} {} connects to {}{}{}",
            decision.effect,
            process.comm,
            event.upstream.as_deref().unwrap_or(address),
            database.as_ref().map_or(String::new(), |name| format!("/{name}")),
            note(decision)
        ),
        EventBody::Disconnect { why, bytes_in, bytes_out } => {
            format!("disconnect: {why} ({bytes_in} bytes in, {bytes_out} out)")
        }
        EventBody::Command { command, decision, waited_ms, .. } => format!(
            "{} {}{}{}",
            decision.effect,
            print::shorten(command, 200),
            note(decision),
            waited_ms.map_or(String::new(), |ms| format!(" after {} ms", ms))
        ),
        EventBody::Hold { id, state, command, reviewer, reason, .. } => format!(
            "hold {id} {state}{}{}: {}",
            reviewer.as_ref().map_or(String::new(), |name| format!(" by {name}")),
            reason.as_ref().map_or(String::new(), |text| format!(" ({text})")),
            print::shorten(command, 120)
        ),
        EventBody::Result { result, rows, masked, duration_us, .. } => format!(
            "  -> {result}, {rows} rows{}, {}.{:03} ms",
            if masked.count > 0 { format!(", {} masked", masked.count) } else { String::new() },
            duration_us / 1000,
            duration_us % 1000
        ),
        EventBody::Turn { turn, injection, .. } => format!(
            "turn {} of {}{}: {}",
            turn.id,
            turn.model,
            if injection.is_empty() { String::new() } else { format!(" [INJECTION? {}]", injection.join(", ")) },
            print::shorten(turn.prompt.as_deref().unwrap_or("(nothing said by a user)"), 120)
        ),
        EventBody::Answer { turn, stop, calls, usage, .. } => format!(
            "  -> turn {turn}: {}, {} tokens in, {} out{}",
            stop.as_deref().unwrap_or("ended"),
            usage.input,
            usage.output,
            calls.iter().map(|call| format!(", calls {}", call.name)).collect::<String>()
        ),
        EventBody::Refused { what, process } if process.pid == 0 => format!("refused: {what}"),
        EventBody::Refused { what, process } => format!("refused {} (pid {}): {what}", process.comm, process.pid),
        EventBody::Daemon { what } => format!("daemon: {what}"),
    };
    print::one_line(&format!("{time} {who} {what}"))
}

fn note(decision: &DecisionNote) -> String {
    let mut out = format!(" [{}", decision.rule);
    if !decision.reviewers.is_empty() {
        out.push_str(&format!(", by {}", decision.reviewers.join(" and ")));
    }
    if let Some(reason) = &decision.reason {
        out.push_str(&format!(": {reason}"));
    }
    out.push(']');
    out
}
