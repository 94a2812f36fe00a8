//! Holds on the record: each change is appended before it takes effect.

use std::sync::Arc;

use crate::{
    hold::{GrantState, HoldChange, HoldView, Journal, JournalError},
    identity::Sessions,
    record::{Event, EventBody, Recorder},
};

/// Writes changes of holds and grants to the record.
pub(super) struct HoldJournal {
    pub(super) recorder: Recorder,
    pub(super) sessions: Sessions,
}

impl Journal for HoldJournal {
    fn note(&self, change: &HoldChange) -> Result<(), JournalError> {
        let event = match change {
            HoldChange::Hold { view, by, reason } => self.hold(view, view.state.as_str(), by.clone(), reason.clone()),
            HoldChange::Estimated { view } => {
                let note = view.estimate.as_ref().map(|estimate| estimate.note.clone());
                self.hold(view, "estimated", None, note)
            }
            HoldChange::Grant { view, state, by } => {
                let state = match state {
                    GrantState::Opened => "opened",
                    GrantState::Used => "used",
                    GrantState::Expired => "expired",
                    GrantState::Revoked => "revoked",
                    GrantState::SessionEnded => "ended with its session",
                };
                let by = by.as_ref().map_or(String::new(), |name| format!(" by {name}"));
                let what = format!("grant {} {state}{by} ({})", view.id, view.rule);
                self.event(&view.workload, &view.session, 0, Some(&view.upstream), EventBody::Daemon { what })
            }
        };
        self.recorder.append(event).map(drop).map_err(|error| JournalError(Box::new(error)))
    }
}

impl HoldJournal {
    fn hold(&self, view: &HoldView, state: &str, reviewer: Option<String>, reason: Option<String>) -> Event {
        let body = EventBody::Hold {
            id: view.id.clone(),
            seq: view.seq,
            state: state.into(),
            command: view.command.clone(),
            hash: view.hash.clone(),
            rule: view.rule.clone(),
            reviewer,
            reason,
            estimated_rows: view.estimate.as_ref().and_then(|estimate| estimate.rows),
        };
        self.event(&view.workload, &view.session, view.connection_id, Some(&view.upstream), body)
    }

    fn event(
        &self,
        workload: &Arc<str>,
        session: &Arc<str>,
        connection_id: u64,
        upstream: Option<&Arc<str>>,
        body: EventBody,
    ) -> Event {
        let known = self.sessions.get(session);
        Event {
            timestamp: String::new(),
            tenant: known.as_ref().and_then(|session| session.tenant.clone()),
            workload: workload.clone(),
            session_id: session.clone(),
            connection_id,
            trace_id: known.map(|session| session.trace_id.clone()),
            upstream: upstream.cloned(),
            body,
        }
    }
}
