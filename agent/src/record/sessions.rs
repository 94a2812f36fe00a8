//! What each session did, in a line.

use std::{collections::HashMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Event, EventBody, Progress, RecordError, Recorded, read};

/// A session as the record tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// Its id.
    pub id: Arc<str>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Tenant of the workload.
    pub tenant: Option<Arc<str>>,
    /// Why it ran.
    pub intent: Option<Arc<str>>,
    /// Who started it; empty where its beginning is not in the record any more.
    pub operator: String,
    /// Command line.
    pub command: Vec<String>,
    /// Time of its first event, RFC 3339.
    pub started: String,
    /// Time of its last event, RFC 3339.
    pub last: String,
    /// Why it ended; `None` where it did not, or the record does not say.
    pub ended: Option<Arc<str>>,
    /// Connections that were allowed.
    pub connections: u64,
    /// Commands that were decided.
    pub commands: u64,
    /// Of those, how many were forwarded.
    pub forwarded: u64,
    /// Of those, how many waited for a reviewer.
    pub held: u64,
    /// Commands and connections that were not let through.
    pub refused: u64,
    /// Rows that came back.
    pub rows: u64,
    /// Values that were masked.
    pub masked: u64,
}

/// Every session of a log, oldest first. Reads the whole log: `progress` is told before each segment.
pub fn sessions(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Vec<SessionSummary>, RecordError> {
    let numbers = read::segment_numbers(dir)?;
    let (first, of) = (numbers.first().copied().unwrap_or(1), numbers.len() as u64);
    let mut summaries = Summaries::default();
    let mut events = read::events(dir)?;
    let mut told = None;
    while let Some(event) = events.next() {
        summaries.add(&event?.event);
        let segment = events.segment() - first;
        if told != Some(segment) {
            told = Some(segment);
            progress(Progress { segment, of });
        }
    }
    Ok(summaries.finish())
}

/// The events of one session, oldest first.
pub fn session_events(
    dir: &Path,
    session: &str,
) -> Result<impl Iterator<Item = Result<Recorded, RecordError>> + use<>, RecordError> {
    let session: Arc<str> = session.into();
    let of_session = move |item: &Result<Recorded, RecordError>| {
        item.as_ref().map_or(true, |recorded| recorded.event.session_id == session)
    };
    Ok(read::events(dir)?.filter(of_session))
}

#[derive(Default)]
struct Summaries {
    order: Vec<SessionSummary>,
    index: HashMap<Arc<str>, usize>,
}

impl Summaries {
    fn add(&mut self, event: &Event) {
        if event.session_id.is_empty() {
            return;
        }
        let index = *self.index.entry(event.session_id.clone()).or_insert_with(|| {
            self.order.push(SessionSummary {
                id: event.session_id.clone(),
                workload: event.workload.clone(),
                tenant: event.tenant.clone(),
                started: event.timestamp.clone(),
                ..SessionSummary::default()
            });
            self.order.len() - 1
        });
        let summary = &mut self.order[index];
        summary.last.clone_from(&event.timestamp);
        match &event.body {
            EventBody::SessionStart { intent, command, operator, .. } => {
                summary.intent.clone_from(intent);
                summary.command.clone_from(command);
                summary.operator.clone_from(operator);
            }
            EventBody::SessionEnd { why } => summary.ended = Some(why.clone()),
            EventBody::Connect { decision, .. } => match decision.passed() {
                true => summary.connections += 1,
                false => summary.refused += 1,
            },
            EventBody::Command { decision, hold, .. } => {
                summary.commands += 1;
                summary.held += u64::from(hold.is_some());
                match decision.passed() {
                    true => summary.forwarded += 1,
                    false => summary.refused += 1,
                }
            }
            EventBody::Result { rows, masked, .. } => {
                summary.rows += rows;
                summary.masked += masked.count;
            }
            EventBody::Refused { .. } => summary.refused += 1,
            _ => {}
        }
    }

    fn finish(self) -> Vec<SessionSummary> {
        self.order
    }
}
