//! `held`, `approve`, `deny`, `grants`.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    CliError, Exit,
    args::Form,
    json_line, listing,
    print::{self, Field, Tone},
};
use crate::{
    control::{
        client::{ClientError, ask, ask_all, ask_one},
        proto::{Decided, Request},
    },
    hold::{GrantScope, GrantView, HoldState, HoldView, Sample},
};

/// As much of a command as a table shows. What is cut is counted, and `held ID` shows all of it.
const COMMAND_SHOWN: usize = 240;
const HEADER: &[&str] = &["ID", "WHO", "UPSTREAM", "COMMAND", "ROWS", "LEFT"];
const NOTHING: &str = "Nothing waits for a reviewer.";

pub(super) fn held(socket: &Path, id: Option<&str>, watch: bool, form: Form) -> Result<Exit, CliError> {
    if watch {
        return self::watch(socket, form);
    }
    let holds: Vec<HoldView> = ask_all(socket, &Request::Held { watch: false })?;
    let Some(id) = id else {
        return listing(&holds, form, HEADER, |hold| row(hold, Timestamp::now()), NOTHING);
    };
    let wanted = id.to_ascii_lowercase();
    let Some(hold) = holds.iter().find(|hold| *hold.id == *wanted) else {
        let help = "`portcullis held` lists those that wait".to_owned();
        return Err(CliError::Plain(Exit::Failed, format!("no hold has the id `{id}`"), Some(help)));
    };
    if form.json {
        json_line(hold)?;
    } else {
        io::stdout().write_all(detail(hold, Timestamp::now()).as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// Each item is the whole list.
fn watch(socket: &Path, form: Form) -> Result<Exit, CliError> {
    for item in ask(socket, &Request::Held { watch: true })? {
        let holds: Vec<HoldView> = serde_json::from_str(item?.get()).map_err(ClientError::Garbled)?;
        if form.json {
            json_line(&holds)?;
            continue;
        }
        let mut out = io::stdout();
        if out.is_terminal() {
            // Home, and clear to the end: the list stays in place.
            write!(out, "\x1b[H\x1b[2J")?;
        } else {
            writeln!(out, "-- {}", Timestamp::now().strftime("%H:%M:%S"))?;
        }
        print::show(HEADER, holds.iter().map(|hold| row(hold, Timestamp::now())).collect(), NOTHING)?;
        out.flush()?;
    }
    Ok(Exit::Ok)
}

/// A hold in a table.
pub(super) fn row(hold: &HoldView, now: Timestamp) -> Vec<Field> {
    let left = print::span(hold.expires_at.duration_since(now).as_secs());
    let state = match hold.state {
        HoldState::Withdrawn => Field::toned(format!("{left} (client gone)"), Tone::Warn),
        HoldState::Approved => Field::toned(format!("{left} (1 of {})", hold.required), Tone::Warn),
        _ => left.into(),
    };
    let rows = hold.estimate.as_ref().and_then(|e| e.rows).map_or("?".to_owned(), |rows| rows.to_string());
    vec![
        Field::toned(&*hold.id, Tone::Key),
        format!("{} {}", hold.workload, hold.process.comm).into(),
        (&*hold.upstream).into(),
        print::shorten(&hold.command, COMMAND_SHOWN).into(),
        rows.into(),
        state,
    ]
}

/// A hold in full: what a reviewer should read before deciding.
pub(super) fn detail(hold: &HoldView, now: Timestamp) -> String {
    let who = format!(
        "{} (pid {}, uid {}{})",
        hold.process.comm,
        hold.process.pid,
        hold.process.uid,
        hold.process.exe.as_ref().map_or(String::new(), |exe| format!(", {exe}"))
    );
    let action: Vec<String> = hold.action.iter().map(|(verb, target)| format!("{verb} {target}")).collect();
    let reviewers =
        if hold.reviewers.is_empty() { "the daemon's reviewers".to_owned() } else { hold.reviewers.join(", ") };
    let approvals: Vec<&str> = hold.approvals.iter().map(|a| a.reviewer.as_str()).collect();
    let estimate = hold.estimate.as_ref().map_or("not known".to_owned(), |e| match e.rows {
        Some(rows) => format!("{rows} rows; {}", e.note),
        None => e.note.clone(),
    });
    let why = match &hold.turns[..] {
        [] => "no conversation with a model".to_owned(),
        [turn] => turn.to_string(),
        turns => format!("one of: {}", turns.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    };
    let facts = [
        ("hold", hold.id.to_string()),
        ("state", hold.state.as_str().to_owned()),
        ("workload", hold.workload.to_string()),
        ("session", hold.session.to_string()),
        ("process", who),
        ("intent", hold.intent.as_deref().unwrap_or("none given").to_owned()),
        ("prompt", why),
        ("upstream", format!("{}{}", hold.upstream, hold.database.as_ref().map_or(String::new(), |d| format!("/{d}")))),
        ("action", action.join(", ")),
        ("estimate", estimate),
        ("rule", format!("{}: {}", hold.rule, hold.reason)),
        ("reviewers", format!("{reviewers}; {} must approve", hold.required)),
        ("approved by", if approvals.is_empty() { "nobody yet".to_owned() } else { approvals.join(", ") }),
        ("expires", format!("in {}", print::span(hold.expires_at.duration_since(now).as_secs()))),
        ("blake3", hold.hash.clone()),
    ];
    let mut out = String::new();
    for (name, value) in facts {
        out.push_str(&format!("{name:<12} {}\n", print::one_line(&value)));
    }
    if let Some((sample, all)) = hold.estimate.as_ref().and_then(|e| Some((e.sample.as_ref()?, e.rows?))) {
        out.push_str(&sampled(sample, all));
    }
    out.push_str("command:\n");
    for line in print::lines(&hold.command).lines() {
        out.push_str(&format!("    {line}\n"));
    }
    out
}

/// Rows of a dry run as a difference: `-` as they are, `+` as they would be. Of a change, columns that stay are left out
/// after the first line.
fn sampled(sample: &Sample, all: u64) -> String {
    let line = |sign: char, row: &[Option<String>], only: &dyn Fn(usize) -> bool| {
        let values = sample.columns.iter().zip(row).enumerate().filter(|(at, _)| only(*at));
        let values = values.map(|(_, (name, value))| format!("{name}={}", value.as_deref().unwrap_or("NULL")));
        format!("  {sign} {}\n", print::one_line(&values.collect::<Vec<_>>().join("  ")))
    };
    let mut out = format!("dry run: {} of {all} rows\n", sample.rows.len());
    for row in &sample.rows {
        if let Some(before) = &row.before {
            out.push_str(&line('-', before, &|_| true));
        }
        if let Some(after) = &row.after {
            let differs = |at: usize| row.before.as_ref().is_none_or(|before| before.get(at) != after.get(at));
            out.push_str(&line('+', after, &differs));
        }
    }
    out
}

pub(super) fn approve(
    socket: &Path,
    id: String,
    grant: Option<Duration>,
    reason: Option<String>,
    form: Form,
) -> Result<Exit, CliError> {
    decided(socket, &Request::Approve { id, grant_seconds: grant.map(|d| d.as_secs().max(1)), reason }, form)
}

pub(super) fn deny(socket: &Path, id: String, reason: Option<String>, form: Form) -> Result<Exit, CliError> {
    decided(socket, &Request::Deny { id, reason }, form)
}

pub(super) fn revoke(socket: &Path, id: String, form: Form) -> Result<Exit, CliError> {
    decided(socket, &Request::Revoke { id }, form)
}

fn decided(socket: &Path, request: &Request, form: Form) -> Result<Exit, CliError> {
    let decided: Decided = ask_one(socket, request)?;
    if form.json {
        json_line(&decided)?;
    } else {
        writeln!(io::stdout(), "{}", print::one_line(&decided.message))?;
    }
    Ok(Exit::Ok)
}

pub(super) fn grants(socket: &Path, form: Form) -> Result<Exit, CliError> {
    let grants: Vec<GrantView> = ask_all(socket, &Request::Grants {})?;
    let row = |grant: &GrantView| -> Vec<Field> {
        let left = grant.expires_at.map(|at| print::span(at.duration_since(Timestamp::now()).as_secs()));
        vec![
            Field::toned(&*grant.id, Tone::Key),
            format!("{} {}", grant.workload, grant.session).into(),
            (&*grant.upstream).into(),
            scope(grant).into(),
            grant.reviewers.join(", ").into(),
            grant.uses.to_string().into(),
            left.as_deref().unwrap_or("session").into(),
        ]
    };
    let header = &["ID", "WHO", "UPSTREAM", "WHAT", "BY", "USES", "LEFT"];
    listing(&grants, form, header, row, "No grant is open.")
}

fn scope(grant: &GrantView) -> String {
    match &grant.scope {
        GrantScope::Shape { shape } => print::shorten(shape, COMMAND_SHOWN),
        GrantScope::SessionReads => "all reads of the session".into(),
        GrantScope::OneTime { .. } => "one retry, same bytes".into(),
    }
}
