//! Rows from the upstream: their descriptions, and the masks that follow from these.

use std::{sync::Arc, time::Duration};

use super::{
    Known, Relay, Stop,
    pending::{Asker, Expect, Op},
    server::unexpected,
};
use crate::{
    action::{Action, Target, Verb},
    protocol::postgres::{
        codec::{self, Field, Frame, format_of},
        mask::{self, Passed, Plan, Rule},
        prepared::{Computed, Planned, Portal},
    },
    session::SessionError,
    wire::Rewrite,
};

impl Relay {
    /// RowDescription or NoData: binds the masks of the rows that follow.
    pub(super) fn described(&mut self, frame: Frame, known: Known) -> Result<(), Stop> {
        let told = frame.bytes().clone();
        if let Some(Expect::DescribePortal { portal: Some(portal), asked_by }) = self.owed.front()
            && portal.statement.described.knows(&told)
        {
            // The same as for the last portal of the statement.
            let asker = *asked_by;
            self.owed.pop_front();
            if asker == Asker::Client {
                self.pass(frame);
            }
            return Ok(());
        }
        let fields: Arc<[Field]> = if frame.tag() == b'T' {
            codec::row_description(frame.body()).map_err(|e| SessionError::Upstream(e.to_string()))?.into()
        } else {
            Arc::from([])
        };
        if known == Known::NotYet && self.masker.masks.has_columns() && self.must_refresh(&fields) {
            self.upstream_wait = Some((self.reading(Duration::ZERO), frame));
            return Ok(());
        }
        let plan_for_query = match self.owed.front() {
            Some(Expect::Query(op)) if frame.tag() == b'T' => {
                op.judged.as_ref().map(|judged| self.plan(&fields, &op.computed, judged))
            }
            _ => None,
        };
        match self.owed.front_mut() {
            Some(Expect::Query(op)) if frame.tag() == b'T' => {
                op.plan = plan_for_query.map(Arc::new);
                op.tally.columns.get_or_insert_with(|| fields.iter().map(|f| f.name.as_str().into()).collect());
                self.pass(frame);
            }
            Some(Expect::DescribeStatement { statement }) => {
                if let Some(statement) = statement {
                    statement.described.set(&told, fields);
                }
                self.owed.pop_front();
                self.pass(frame);
            }
            Some(Expect::DescribePortal { portal, asked_by }) => {
                if let Some(portal) = portal {
                    portal.statement.described.set(&told, fields);
                }
                let asker = *asked_by;
                self.owed.pop_front();
                if asker == Asker::Client {
                    self.pass(frame);
                }
            }
            _ => return Err(unexpected(frame.tag())),
        }
        Ok(())
    }

    /// A column that the catalogue does not know yet.
    fn must_refresh(&self, fields: &[Field]) -> bool {
        let catalog = self.names.catalog();
        catalog.age() > Duration::from_millis(200)
            && fields.iter().any(|field| field.table != 0 && !catalog.has_column(field.table, field.attribute))
    }

    /// How rows are masked. Columns of a table that was not judged, because its name came to mean another one in
    /// between, are hidden.
    fn plan(&self, fields: &[Field], computed: &Computed, judged: &Action) -> Plan {
        let mut plan = self.plan_of_masks(fields, computed);
        let unjudged = |field: &Field| field.table != 0 && !self.is_judged(field.table, judged);
        for (column, _) in plan.columns.iter_mut().zip(fields).filter(|(_, field)| unjudged(field)) {
            column.rule = Rule::Hide("column:unjudged".into());
        }
        plan
    }

    fn is_judged(&self, table: u32, judged: &Action) -> bool {
        // Unknown to us, it is new: the masks decide.
        let Some(relation) = self.names.catalog().by_oid(table) else { return true };
        let schema = if relation.schema.starts_with("pg_temp_") { "pg_temp" } else { &relation.schema };
        let target = Target::relation(Some(schema), &relation.name);
        let unresolved = Target::relation(None, &relation.name);
        judged.parts.iter().any(|(verb, t)| *verb == Verb::Unknown || *t == target || *t == unresolved)
            || self.names.is_in_flux(schema, &relation.name)
    }

    fn plan_of_masks(&self, fields: &[Field], computed: &Computed) -> Plan {
        let masks = &self.masker.masks;
        if !masks.has_columns() {
            return mask::plan(fields, |_, _| Rule::Scan, |_| Rule::Scan);
        }
        let catalog = self.names.catalog();
        let by_column = catalog.column_masks(masks);
        let hidden: Rule = Rule::Hide("column:unresolved".into());
        let computed = |at| if computed.hides(at, fields) { Rule::Hide("column:computed".into()) } else { Rule::Scan };
        let rule = |table, attribute| match by_column.get(table, attribute) {
            Some(rule) => rule.clone(),
            None if catalog.has_column(table, attribute) => Rule::Scan,
            // A whole row.
            None if attribute == 0 && catalog.by_oid(table).is_some() => {
                if by_column.touches(table) {
                    hidden.clone()
                } else {
                    Rule::Scan
                }
            }
            None => hidden.clone(),
        };
        mask::plan(fields, rule, computed)
    }

    /// The plan of the rows of an Execute: the statement's columns in the portal's formats.
    fn plan_of_execute(&mut self) -> Result<(), Stop> {
        let planned = match self.owed.front() {
            Some(Expect::Execute { op, portal }) if op.plan.is_none() => self.planned(portal, &op.computed)?,
            _ => return Ok(()),
        };
        if let Some(op) = self.owed.front_mut().and_then(Expect::op_mut) {
            op.plan = Some(Arc::clone(&planned.plan));
            op.tally.columns = Some(Arc::clone(&planned.names));
        }
        Ok(())
    }

    fn planned(&self, portal: &Portal, computed: &Computed) -> Result<Arc<Planned>, Stop> {
        let (statement, masks, epoch) = (&portal.statement, &self.masker.masks, self.names.epoch());
        let fields = statement.described.fields();
        let fields = fields.ok_or_else(|| SessionError::Upstream("rows came without a description".into()))?;
        if fields.iter().enumerate().any(|(i, _)| format_of(&portal.formats, i).is_none()) {
            return Err(unexpected(b'D'));
        }
        let fits = |last: &Arc<Planned>| {
            Arc::ptr_eq(&last.masks, masks)
                && last.epoch == epoch
                && last.computed == *computed
                && Arc::ptr_eq(&last.fields, &fields)
                && last.formats == portal.formats
        };
        Ok(statement.last.get(fits, || {
            let mut plan = self.plan(&fields, computed, &statement.action);
            for (i, column) in plan.columns.iter_mut().enumerate() {
                column.format = format_of(&portal.formats, i).unwrap_or(column.format);
            }
            Arc::new(Planned {
                masks: Arc::clone(masks),
                epoch,
                computed: computed.clone(),
                fields: Arc::clone(&fields),
                formats: portal.formats.clone(),
                plan: Arc::new(plan),
                names: fields.iter().map(|f| f.name.as_str().into()).collect(),
            })
        }))
    }

    /// Passes the rows that have come, in one piece, where nothing could change them but a known secret, and they hold
    /// none. What is left at the start of the input must be looked at by itself.
    pub(super) fn pass_rows(&mut self) -> Result<(), Stop> {
        self.plan_of_execute()?;
        let Self { owed, masker, client, upstream, cx, .. } = self;
        let Some(Op { plan: Some(plan), tally, .. }) = owed.front_mut().and_then(Expect::op_mut) else { return Ok(()) };
        if tally.sample.len() < cx.limits().sample_rows {
            return Ok(());
        }
        match masker.pass(plan, &mut upstream.input, cx.limits().response) {
            Passed::None => {}
            Passed::Rows(rows, bytes) => {
                tally.rows += rows;
                tally.bytes += bytes.len() as u64;
                client.output.push(bytes);
            }
            Passed::Doubtful(rows) => {
                // All of them, so that none is searched twice in this way.
                for _ in 0..rows {
                    self.upstream_one()?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn data_row(&mut self, frame: Frame) -> Result<(), Stop> {
        self.plan_of_execute()?;
        let Self { owed, masker, client, cx, .. } = self;
        let op = owed.front_mut().and_then(Expect::op_mut).ok_or_else(|| unexpected(b'D'))?;
        let Op { plan: Some(plan), tally, .. } = op else {
            return Err(SessionError::Upstream("rows came without a description".into()));
        };
        let rewritten = if masker.is_idle() {
            Rewrite::Pass
        } else {
            masker
                .row(plan, frame.body(), &mut tally.hits)
                .map_err(|_| SessionError::Upstream("a row does not fit its description".into()))?
        };
        let bytes = match rewritten {
            Rewrite::Pass => frame.into_bytes(),
            Rewrite::Replace(bytes) => bytes,
            Rewrite::Drop => return Ok(()),
        };
        tally.rows += 1;
        tally.bytes += bytes.len() as u64;
        if tally.sample.len() < cx.limits().sample_rows {
            tally.sample.push(mask::sample(Some(plan), &bytes));
        }
        client.output.push(bytes);
        Ok(())
    }
}
