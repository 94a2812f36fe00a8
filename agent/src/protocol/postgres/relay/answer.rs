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
    action::{Action, Target, Verb},
    hold::Estimate,
    policy::Remembered,
    protocol::postgres::{
        deny::{self, Message},
        estimate::{self, Trial},
        prepared::{Computed, Described, Memo, Portal, Prepared, weight},
    },
    session::{Begun, HoldNotice, Permit, Refusal},
    sql::{self, Names, StatementInfo, StatementKind},
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

    /// Finds out what the command would do, on a connection of its own, for the reviewer.
    fn estimate(&self, notice: &HoldNotice, then: &Then) {
        let trial = match then {
            Then::Query { sql, statements, .. } => self.trial(notice, sql, statements, None),
            Then::Execute { portal } => {
                let statement = &portal.statement;
                self.trial(notice, &statement.sql, &statement.statements, Some(portal))
            }
            _ => return,
        };
        let (catalogs, cx, id) = (Arc::clone(&self.catalogs), Arc::clone(&self.cx), Arc::clone(&notice.id));
        let trial = match trial {
            Ok(trial) => trial,
            Err(why) => {
                let unknown = Estimate { rows: None, note: why.into(), counted: false, sample: None };
                return cx.house.holds.set_estimate(&id, unknown);
            }
        };
        tokio::spawn(async move {
            let _one_at_a_time = catalogs.trying.lock().await;
            cx.house.holds.set_estimate(&id, estimate::estimate(&cx, &trial).await);
        });
    }

    /// The command as it can be tried, or why not.
    fn trial(
        &self,
        notice: &HoldNotice,
        sql: &Arc<str>,
        statements: &[StatementInfo],
        portal: Option<&Portal>,
    ) -> Result<Trial, &'static str> {
        let [statement] = statements else { return Err("several statements at once are not estimated") };
        if !matches!(statement.kind, StatementKind::Query | StatementKind::Change) {
            return Err("only queries and changes of rows are estimated");
        }
        let of_rows = |verb: &Verb| matches!(verb, Verb::Read | Verb::Write | Verb::Delete | Verb::Infer);
        let parts = &notice.request.action;
        if !parts.iter().all(|(verb, _)| of_rows(verb)) {
            return Err("not estimated: it does more than read and change rows");
        }
        let path = self.names.settled_path().ok_or("not estimated: its search_path is not known for certain")?;
        let (names, catalog) = (self.names.names(), self.names.catalog());
        let relation = |(schema, name): &(Option<String>, String)| {
            let schema = names.relation_schema(schema.as_deref(), name)?;
            let relation = catalog.relation(&schema, name).filter(|_| !self.names.is_in_flux(&schema, name))?;
            let target = Target::relation(Some(&schema), name);
            let changed = parts.iter().any(|(verb, other)| verb.changes() && *other == target);
            Some((relation.oid, changed))
        };
        let relations = statement.mentions.relations.iter().map(relation).collect::<Option<Vec<_>>>();
        let parameters = portal.map_or(Ok([0; 4].into()), |portal| estimate::parameters(&portal.essence));
        let types = portal.map(|portal| &portal.statement).map(|statement| statement.types.clone());
        Ok(Trial {
            sql: sql.get(statement.span.clone()).unwrap_or(sql).into(),
            types: types.unwrap_or_default(),
            parameters: parameters.map_err(|_| "not estimated: its parameters cannot be read")?,
            path: Arc::clone(path),
            relations: relations.ok_or("not estimated: which tables it means is not known for certain")?,
            in_transaction: self.status != b'I',
            dry_run: notice.request.spec.dry_run,
            catalog: Arc::clone(catalog),
            masker: self.masker.clone(),
        })
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
                decided: Remembered::default(),
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
