//! What the gate said: forwarding, refusing, waiting, and following what a command changes in the session.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;

use super::{
    Relay, Stop, Wait,
    client::Then,
    pending::{Copying, Expect, Op, Tally},
};
use crate::{
    action::Action,
    protocol::postgres::{
        deny::{self, Message},
        prepared::{Computed, Described, Memo, Prepared, weight},
    },
    session::{Begun, HoldNotice, Permit, Refusal},
    sql::{self, StatementInfo, StatementKind},
};

impl Relay {
    pub(super) fn begun(&mut self, begun: Begun, then: Then) -> Result<(), Stop> {
        match begun {
            Begun::Ready(answer) => self.answered(answer, then),
            Begun::Wait { hold, answer } => {
                if let Some(notice) = hold {
                    self.announce(&notice);
                    self.estimate(&notice, &then);
                }
                self.wait = Some(Wait::Gate { answer, then: Box::new(then) });
                Ok(())
            }
        }
    }

    fn announce(&mut self, notice: &HoldNotice) {
        let who = if notice.reviewers.is_empty() { "a reviewer".to_owned() } else { notice.reviewers.join(", ") };
        let mut message = Message::notice(format!("held for approval: {} (hold {})", notice.reason, notice.id));
        message.detail = Some(format!("Waiting for {who}; expires in {} s.", notice.expires.as_secs()));
        message.hint = Some(format!("A reviewer runs: portcullis approve {}", notice.id));
        self.tell(message.encode());
    }

    /// Asks the planner how many rows the command would touch, on a connection of its own, for the reviewer.
    fn estimate(&self, notice: &HoldNotice, then: &Then) {
        let sql = match then {
            Then::Query { sql, statements, .. } if statements.len() == 1 => Arc::clone(sql),
            _ => return,
        };
        let (catalogs, cx, id) = (Arc::clone(&self.catalogs), Arc::clone(&self.cx), Arc::clone(&notice.id));
        tokio::spawn(async move {
            let rows = catalogs.estimate(&cx, &sql).await;
            let note = match rows {
                Some(_) => "rows that the planner expects",
                None => "the planner could not be asked",
            };
            cx.house.holds.set_estimate(&id, rows, note);
        });
    }

    pub(super) fn answered(&mut self, answer: Result<Permit, Refusal>, then: Then) -> Result<(), Stop> {
        // The pipeline failed while this waited: the upstream skips it, and so nothing of it may go.
        if self.skipping && then.in_pipeline() {
            return Ok(());
        }
        let permit = match answer {
            Ok(permit) => permit,
            Err(refusal) => {
                self.refuse(refusal, then.in_pipeline());
                return Ok(());
            }
        };
        match then {
            Then::Query { statements, sql, action } => self.forward_query(permit, statements, &sql, action)?,
            Then::Parse { name, prepared } => {
                self.upstream_queue().forward(permit);
                let previous = self.registry.statements.insert(name.clone(), prepared);
                self.owed.push_back(Expect::Parse { name, previous });
            }
            Then::Bind { name, portal } => {
                self.upstream_queue().forward(permit);
                let previous = self.registry.portals.insert(name.clone(), Arc::new(portal));
                self.owed.push_back(Expect::Bind { name, previous });
            }
            Then::Execute { portal } => {
                portal.running.store(true, Ordering::Relaxed);
                let statement = Arc::clone(&portal.statement);
                self.remember(&statement.statements, &statement.sql, &statement.action)?;
                let computed = self.computed_prepared(&statement);
                let op = Self::op(&permit, Arc::clone(&statement.statements), computed);
                self.upstream_queue().forward(permit);
                self.owed.push_back(Expect::Execute { op: Box::new(op), portal });
            }
            Then::Function => {
                let op = Self::op(&permit, Arc::from([]), (Computed::Hidden, self.masker.masks.has_columns()));
                self.upstream_queue().forward(permit);
                self.owed.push_back(Expect::Function(Box::new(op)));
            }
        }
        Ok(())
    }

    fn forward_query(
        &mut self,
        permit: Permit,
        statements: Arc<[StatementInfo]>,
        sql: &Arc<str>,
        action: Action,
    ) -> Result<(), Stop> {
        self.remember(&statements, sql, &action)?;
        let computed = self.computed(&statements, &action);
        let mut op = Self::op(&permit, statements, computed);
        op.judged = Some(action);
        self.upstream_queue().forward(permit);
        self.owed.push_back(Expect::Query(Box::new(op)));
        Ok(())
    }

    /// Follows what a command changes in the session: path, prepared statements, cursors.
    fn remember(&mut self, statements: &[StatementInfo], sql: &Arc<str>, action: &Action) -> Result<(), Stop> {
        for statement in statements.iter().filter(|statement| !statement.reshape.is_empty()) {
            self.changes.begin(&statement.reshape.split().1);
        }
        self.names.follow(statements);
        // Harmless and constant calls are no such part.
        if action.parts.iter().any(|(_, target)| target.as_str() == "fn:pg_catalog.set_config") {
            self.names.lose();
        }
        for statement in statements {
            let (name, inner, cursor) = match &statement.kind {
                StatementKind::Prepare { name, inner } => (name, inner, false),
                StatementKind::DeclareCursor { name, inner } => (name, inner, true),
                _ => continue,
            };
            let text = sql.get(inner.clone()).unwrap_or(sql);
            let named = if cursor { &self.registry.cursors } else { &self.registry.statements };
            // It gets the meaning that the name has, too; see `merge_statement`.
            let taken = named.get(name).map_or(0, |taken| taken.charge.bytes());
            let prepared = Prepared {
                sql: text.into(),
                shape: sql::shape(text).into(),
                // The whole command's action: never less than the inner statement's.
                action: action.clone(),
                statements: sql::classify(text, &self.names.names()).statements.into(),
                types: Box::default(),
                essence: Bytes::copy_from_slice(text.as_bytes()),
                epoch: self.names.epoch(),
                described: Described::default(),
                computed: Memo::default(),
                barred: None,
                masks: Arc::clone(&self.masker.masks),
                last: Memo::default(),
                charge: self.cx.memory.charge(weight(sql, text.as_bytes()) + taken)?,
            };
            if cursor {
                self.registry.merge_cursor(name.clone(), prepared);
            } else {
                self.registry.merge_statement(name.clone(), prepared);
            }
        }
        Ok(())
    }

    fn op(permit: &Permit, statements: Arc<[StatementInfo]>, (computed, touches): (Computed, bool)) -> Op {
        let copies: VecDeque<_> = statements
            .iter()
            .filter_map(|statement| match &statement.kind {
                StatementKind::Copy(copy) => Some(copy.clone()),
                _ => None,
            })
            .collect();
        Op {
            seq: permit.seq(),
            since: Instant::now(),
            judged: None,
            computed,
            touches,
            statements,
            copies,
            copying: Copying::No,
            data: permit.data_right(),
            plan: None,
            tally: Tally::default(),
        }
    }

    /// Makes the upstream refuse in this place, and remembers what to tell the client then.
    pub(super) fn refuse(&mut self, refusal: Refusal, in_pipeline: bool) {
        if in_pipeline {
            self.inert(deny::refuse_extended());
            self.owed.push_back(Expect::Refused(refusal));
            self.skipping = true;
        } else {
            self.inert(deny::refuse_query());
            self.owed.push_back(Expect::RefusedQuery(refusal));
        }
    }
}
