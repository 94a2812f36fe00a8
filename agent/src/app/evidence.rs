//! Reading the record back: for the daemon's answers, and for the command line where it may read the folder itself.

use std::{collections::BTreeMap, path::Path};

use crate::{
    control::proto::{SessionRow, Verified},
    record::{self, Event, RecordError, SessionSummary},
};

/// Checks a whole record.
pub(super) fn verify(dir: &Path) -> Result<Verified, RecordError> {
    let report = record::verify(dir)?;
    Ok(Verified {
        intact: report.problem.is_none(),
        events: report.events,
        segments: report.segments,
        public_key: report.public_key,
        problem: report.problem.map(|p| format!("{} at byte {}: {}", p.file, p.offset, p.what)),
    })
}

/// Every session of a record, oldest first. One that has no end on record is `open`: live, or of a daemon that died.
pub(super) fn sessions(dir: &Path) -> Result<Vec<SessionRow>, RecordError> {
    Ok(record::sessions(dir, &mut |_| {})?.into_iter().map(row).collect())
}

/// The events of the session whose id begins with `prefix`. `Ok(Err(ids))` where that is none or several.
pub(super) fn session_events(dir: &Path, prefix: &str) -> Result<Result<Vec<Event>, Vec<String>>, RecordError> {
    let wanted = prefix.to_ascii_lowercase();
    let mut found: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for recorded in record::read::events(dir)? {
        let event = recorded?.event;
        if !wanted.is_empty() && event.session_id.to_ascii_lowercase().starts_with(&wanted) {
            found.entry(event.session_id.to_string()).or_default().push((*event).clone());
        }
    }
    if found.len() == 1 {
        return Ok(Ok(found.into_values().flatten().collect()));
    }
    Ok(Err(found.into_keys().collect()))
}

fn row(summary: SessionSummary) -> SessionRow {
    SessionRow {
        session: summary.id.to_string(),
        workload: summary.workload.to_string(),
        ends_at: summary.ended.as_ref().map(|_| summary.last),
        state: summary.ended.as_deref().unwrap_or("open").to_owned(),
        started_at: summary.started,
        intent: summary.intent.as_deref().map(str::to_owned),
        operator: summary.operator,
        command: summary.command,
        commands: summary.commands,
        refused: summary.refused,
        held: summary.held,
    }
}
