//! Frames from the upstream: matched with what is owed, masked, passed.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Known, Relay, Stop,
    pending::{Copying, Expect, Op},
};
use crate::{
    mask::Hits,
    protocol::postgres::{
        catalog::Attribute,
        codec::{Format, Frame, put, put_cstr},
        copy::{CopyColumns, CopyMasker},
        deny::{self, Message},
        mask::{Column, Rule},
        message::Quotes,
        names::TransactionEnd,
        prepared::{Computed, ComputedColumn},
    },
    session::{Refusal, SessionError},
    sql::{CopyDirection, CopyInfo, CopySource, Discard, Names, StatementKind},
    wire::Rewrite,
};

impl Relay {
    pub(super) fn upstream_frame(&mut self, frame: Frame) -> Result<(), Stop> {
        match frame.tag() {
            b'D' => self.data_row(frame),
            b'd' => self.copy_out(frame),
            b'C' => self.complete(frame),
            b'Z' => self.ready(frame),
            b'1' | b'2' | b'3' => self.acknowledged(frame),
            b'T' | b'n' => self.described(frame, Known::NotYet),
            b't' => self.parameters(frame),
            b'E' => self.error(frame),
            b'N' => {
                self.pass_text(&frame);
                Ok(())
            }
            b'A' => self.notification(frame),
            b'S' => self.parameter(frame),
            b'I' | b's' => self.execute_ended(frame),
            b'G' | b'H' => self.copy_starts(frame),
            b'c' => self.copy_ends(frame),
            b'V' => self.function_result(frame),
            tag => Err(unexpected(tag)),
        }
    }

    pub(super) fn pass(&mut self, frame: Frame) {
        self.client.output.push(frame.into_bytes());
    }

    /// ParameterDescription: the types that the server chose.
    fn parameters(&mut self, frame: Frame) -> Result<(), Stop> {
        let Some(Expect::DescribeStatement { statement }) = self.owed.front() else { return Err(unexpected(b't')) };
        let mut r = frame.reader();
        let types = r.count(4).and_then(|n| (0..n).map(|_| r.u32()).collect()).map_err(|_| unexpected(b't'))?;
        if let Some(statement) = statement {
            statement.described.set_types(types);
        }
        self.pass(frame);
        Ok(())
    }

    pub(super) fn current_op(&mut self, tag: u8) -> Result<&mut Op, Stop> {
        self.owed.front_mut().and_then(Expect::op_mut).ok_or_else(|| unexpected(tag))
    }

    // --- ends

    fn complete(&mut self, frame: Frame) -> Result<(), Stop> {
        let mut r = frame.reader();
        let tag = r.cstr().ok().filter(|_| r.rest().is_empty()).and_then(|t| std::str::from_utf8(t).ok());
        let tag = tag.ok_or_else(|| unexpected(b'C'))?.to_owned();
        match tag.as_str() {
            "COMMIT" => self.ending = TransactionEnd::Committed,
            "ROLLBACK" => self.ending = TransactionEnd::RolledBack,
            _ => {}
        }
        let op = self.current_op(b'C')?;
        op.note(&tag);
        op.plan = None;
        op.copying = Copying::No;
        // COPY and changes tell their rows only here.
        if op.tally.rows == 0
            && let Some(n) = tag.rsplit(' ').next().and_then(|n| n.parse().ok())
        {
            op.tally.rows = n;
        }
        let statements = Arc::clone(&op.statements);
        if let [statement] = &*statements {
            self.registry.confirmed(statement);
            if matches!(statement.kind, StatementKind::Discard { what: Discard::All | Discard::Temporary }) {
                self.names.discarded();
            }
        }
        self.execute_ended(frame)
    }

    /// CommandComplete, EmptyQueryResponse or PortalSuspended: ends an Execute, and one statement of a Query.
    fn execute_ended(&mut self, frame: Frame) -> Result<(), Stop> {
        let tag = frame.tag();
        match self.owed.front_mut() {
            Some(Expect::Query(op)) if tag != b's' => {
                if tag == b'I' {
                    op.note("empty");
                }
            }
            Some(Expect::Execute { op, .. }) => {
                match tag {
                    b'I' => op.note("empty"),
                    b's' => op.note("suspended"),
                    _ => {}
                }
                if let Some(done) = self.owed.pop_front() {
                    self.record_end(done);
                }
            }
            _ => return Err(unexpected(tag)),
        }
        self.pass(frame);
        Ok(())
    }

    fn ready(&mut self, frame: Frame) -> Result<(), Stop> {
        let [status @ (b'I' | b'T' | b'E')] = *frame.body() else { return Err(unexpected(b'Z')) };
        match self.owed.pop_front() {
            Some(expect) if expect.ends_at_ready() => self.record_end(expect),
            _ => return Err(unexpected(b'Z')),
        }
        self.status = status;
        if status == b'I' {
            // What changed in the transaction is visible to others only now.
            if self.owed.is_empty() && self.changes.end() {
                self.catalogs.invalidate();
            }
            self.names.transaction_ended(self.ending);
            self.ending = TransactionEnd::Committed;
        }
        if self.owed.is_empty() {
            self.names.settled();
        }
        self.pass(frame);
        Ok(())
    }

    fn acknowledged(&mut self, frame: Frame) -> Result<(), Stop> {
        match (frame.tag(), self.owed.pop_front()) {
            (b'1', Some(Expect::Parse { .. })) | (b'2', Some(Expect::Bind { .. })) => {}
            (b'3', Some(Expect::Close { kind: b'S', name })) => {
                self.registry.statements.remove(&name);
            }
            (b'3', Some(Expect::Close { name, .. })) => {
                self.registry.portals.remove(&name);
                self.registry.cursors.remove(&name);
            }
            (tag, _) => return Err(unexpected(tag)),
        }
        self.pass(frame);
        Ok(())
    }

    // --- errors and messages

    fn error(&mut self, frame: Frame) -> Result<(), Stop> {
        self.names.failed();
        match self.owed.front_mut() {
            // A Query's, also when it is one that we made fail.
            Some(Expect::Query(op) | Expect::Function(op)) => {
                op.tally.failed = true;
                op.copying = Copying::No;
                op.copies.clear();
                op.plan = None;
                self.pass_error(&frame);
            }
            Some(Expect::RefusedQuery(refusal)) => {
                let message = refused(refusal);
                self.tell(message.encode());
            }
            Some(Expect::Sync) | None => self.pass_error(&frame),
            Some(_) => self.pipeline_failed(&frame),
        }
        Ok(())
    }

    /// The upstream skips to Sync: so does what it owes.
    fn pipeline_failed(&mut self, frame: &Frame) {
        let mut first = true;
        while let Some(expect) = self.owed.pop_front() {
            if matches!(expect, Expect::Sync) {
                self.owed.push_front(expect);
                return;
            }
            self.undo(&expect);
            match expect {
                Expect::Refused(refusal) if first => {
                    let message = refused(&refusal);
                    self.tell(message.encode());
                }
                Expect::Execute { mut op, .. } => {
                    op.tally.failed = true;
                    if first {
                        let note = self.pass_text(frame);
                        op.note(&note);
                    } else {
                        op.note("skipped");
                    }
                    self.record_result(*op);
                }
                _ if first => self.pass_error(frame),
                _ => {}
            }
            first = false;
        }
        // No Sync has come yet: everything up to it is void, and so is what waits.
        self.skipping = true;
        self.wait.take_if(|wait| matches!(wait, super::Wait::Gate { then, .. } if then.in_pipeline()));
    }

    /// A name keeps the meaning it had where the upstream did not take the new one.
    fn undo(&mut self, expect: &Expect) {
        match expect {
            Expect::Parse { name, previous: Some(previous) } => {
                self.registry.statements.insert(name.clone(), Arc::clone(previous));
            }
            Expect::Parse { name, previous: None } => {
                self.registry.statements.remove(name);
            }
            Expect::Bind { name, previous: Some(previous) } => {
                self.registry.portals.insert(name.clone(), Arc::clone(previous));
            }
            Expect::Bind { name, previous: None } => {
                self.registry.portals.remove(name);
            }
            Expect::DescribePortal { portal: Some(portal), .. } => portal.described.store(false, Ordering::Relaxed),
            _ => {}
        }
    }

    fn pass_error(&mut self, frame: &Frame) {
        let note = self.pass_text(frame);
        if let Some(op) = self.owed.front_mut().and_then(Expect::op_mut) {
            op.note(&note);
        }
    }

    /// Passes an error or notice, masked; returns what the record may say of it.
    fn pass_text(&mut self, frame: &Frame) -> String {
        let mut hits = Hits::default();
        let touches = self.owed.front_mut().and_then(Expect::op_mut).is_some_and(|op| op.touches);
        let quotes = if touches { Quotes::Hidden } else { Quotes::Harmless };
        let bytes = match self.masker.message(frame.tag(), frame.body(), quotes, &mut hits) {
            Rewrite::Pass | Rewrite::Drop => frame.bytes().clone(),
            Rewrite::Replace(bytes) => bytes,
        };
        let note = error_note(&bytes[5..]);
        self.tell(bytes);
        if let Some(op) = self.owed.front_mut().and_then(Expect::op_mut) {
            op.tally.hits.merge(&hits);
        }
        note
    }

    fn notification(&mut self, frame: Frame) -> Result<(), Stop> {
        let mut r = frame.reader();
        let parts = (|| Some((r.u32().ok()?, r.cstr().ok()?, r.cstr().ok()?)))();
        let (pid, channel, payload) = parts.ok_or_else(|| unexpected(b'A'))?;
        let mut hits = Hits::default();
        match self.masker.text(payload, &mut hits) {
            None => self.pass(frame),
            Some(masked) => {
                let mut out = bytes::BytesMut::new();
                put(&mut out, b'A', |b| {
                    b.extend_from_slice(&pid.to_be_bytes());
                    put_cstr(b, channel);
                    put_cstr(b, &masked);
                });
                self.tell(out.freeze());
            }
        }
        Ok(())
    }

    /// ParameterStatus: how text is read must stay as it is judged.
    fn parameter(&mut self, frame: Frame) -> Result<(), Stop> {
        let mut r = frame.reader();
        let (Ok(name), Ok(value)) = (r.cstr(), r.cstr()) else { return Err(unexpected(b'S')) };
        if !crate::protocol::postgres::safe_parameter(name, value) {
            return Err(SessionError::Upstream("the upstream changed how it reads text".into()));
        }
        self.pass(frame);
        Ok(())
    }

    // --- COPY and functions

    fn copy_starts(&mut self, frame: Frame) -> Result<(), Stop> {
        let direction = if frame.tag() == b'G' { CopyDirection::In } else { CopyDirection::Out };
        let op = self.current_op(frame.tag())?;
        let copy = op.copies.pop_front().filter(|copy| copy.direction == direction);
        let copy = copy.ok_or_else(|| SessionError::Upstream("a COPY began that was not asked for".into()))?;
        let computed = op.computed.clone();
        let copying = match direction {
            CopyDirection::In => Copying::In,
            CopyDirection::Out => {
                let columns = self.copy_columns(&copy, &computed);
                Copying::Out(Box::new(CopyMasker::new(&copy, columns)))
            }
        };
        self.current_op(frame.tag())?.copying = copying;
        self.pass(frame);
        Ok(())
    }

    /// The columns of a COPY: of a table those of the catalogue. Of a query they are not told by the upstream, so that it
    /// is the query's lineage that counts, or else all are hidden if one of them could be masked.
    fn copy_columns(&self, copy: &CopyInfo, computed: &Computed) -> CopyColumns {
        let masks = &self.masker.masks;
        let scan = || CopyColumns::All(Column { rule: Rule::Scan, type_oid: 25, format: Format::Text });
        let hidden = || Column { rule: Rule::Hide("column:unresolved".into()), type_oid: 25, format: Format::Text };
        if !masks.has_columns() {
            return scan();
        }
        let CopySource::Table { schema, name, columns } = &copy.source else {
            let column = |column: &ComputedColumn| Column {
                rule: if column.hidden { Rule::Hide("column:computed".into()) } else { Rule::Scan },
                ..hidden()
            };
            return match computed {
                Computed::Shown => scan(),
                Computed::Hidden => CopyColumns::All(hidden()),
                Computed::Each(columns) => CopyColumns::Each(columns.iter().map(column).collect()),
            };
        };
        let catalog = self.names.catalog();
        let found = Names::relation_schema(&self.names.names(), schema.as_deref(), name);
        let Some(relation) = found.and_then(|schema| catalog.relation(&schema, name)) else {
            return CopyColumns::All(hidden());
        };
        let by_column = catalog.column_masks(masks);
        let column = |attribute: &Attribute| Column {
            rule: by_column.get(relation.oid, attribute.number).cloned().unwrap_or(Rule::Scan),
            type_oid: attribute.type_oid,
            format: Format::Text,
        };
        let named = |name: &String| relation.attributes.iter().find(|a| *a.name == **name).map_or_else(hidden, column);
        CopyColumns::Each(if columns.is_empty() {
            relation.attributes.iter().map(column).collect()
        } else {
            columns.iter().map(named).collect()
        })
    }

    fn copy_out(&mut self, frame: Frame) -> Result<(), Stop> {
        let masker = self.masker.clone();
        let op = self.current_op(b'd')?;
        let Copying::Out(copy) = &mut op.copying else { return Err(unexpected(b'd')) };
        let rewritten = copy
            .data(&masker, frame.body(), &mut op.tally.hits)
            .map_err(|error| SessionError::Upstream(error.to_string()))?;
        op.tally.rows += 1;
        let bytes = match rewritten {
            Rewrite::Pass => frame.into_bytes(),
            Rewrite::Replace(bytes) => bytes,
            Rewrite::Drop => return Ok(()),
        };
        op.tally.bytes += bytes.len() as u64;
        self.client.output.push(bytes);
        Ok(())
    }

    fn copy_ends(&mut self, frame: Frame) -> Result<(), Stop> {
        let op = self.current_op(b'c')?;
        match std::mem::take(&mut op.copying) {
            Copying::Out(copy) if copy.is_whole() => {}
            _ => return Err(unexpected(b'c')),
        }
        self.pass(frame);
        Ok(())
    }

    fn function_result(&mut self, frame: Frame) -> Result<(), Stop> {
        if !matches!(self.owed.front(), Some(Expect::Function(_))) {
            return Err(unexpected(b'V'));
        }
        let mut r = frame.reader();
        let value = r.value().map_err(|_| unexpected(b'V'))?;
        let mut hits = Hits::default();
        // Its type is not told: anything found, or anything at all where columns are masked, makes it NULL.
        let hide = self.masker.masks.has_columns() || value.is_some_and(|v| self.masker.text(v, &mut hits).is_some());
        let op = self.current_op(b'V')?;
        op.note("function");
        op.tally.hits.merge(&hits);
        if value.is_some() && hide {
            let mut out = bytes::BytesMut::new();
            put(&mut out, b'V', |b| b.extend_from_slice(&(-1i32).to_be_bytes()));
            self.tell(out.freeze());
        } else {
            self.pass(frame);
        }
        Ok(())
    }
}

pub(super) fn unexpected(tag: u8) -> Stop {
    SessionError::Upstream(format!("a frame of type {:?} came out of order", char::from(tag)))
}

/// A refusal as the client sees it.
fn refused(refusal: &Refusal) -> Message {
    let code = match &*refusal.rule {
        "protocol" => "26000",
        "cancelled" => "57014",
        _ => deny::REFUSED,
    };
    let mut message = Message::error(code, refusal.message.clone());
    message.hint.clone_from(&refusal.hint);
    message
}

/// SQLSTATE and message of an error, for the record.
fn error_note(body: &[u8]) -> String {
    let fields = deny::fields(body).unwrap_or_default();
    let field = |kind| fields.iter().find(|(k, _)| *k == kind).map(|(_, text)| String::from_utf8_lossy(text));
    format!("{} {}", field(b'C').unwrap_or_default(), field(b'M').unwrap_or_default())
}
