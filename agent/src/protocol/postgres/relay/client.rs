//! Frames from the client: what each would do, and what goes upstream in its place if it may not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Relay, Stop, Wait,
    command::{describe_parameters, empty_prepared, keep, malformed, missing, portal_command, unresolved},
    origin::Barred,
    pending::{Asker, Copying, Expect},
    texts::Meaning,
};
use crate::{
    action::{Action, Params, ProtocolId, Target, Verb},
    policy::Remembered,
    protocol::postgres::{
        catalog::AGE,
        codec::{self, Bind, Execute, Frame, Malformed, Named, Parse, put, put_cstr},
        names::NameState,
        params,
        prepared::{Described, Memo, Portal, Prepared, weight},
    },
    session::{Begun, Command, Inert, Lasting, SessionError, Standing},
    sql::{self, Classified, Reshape, SettingRule, StatementInfo, StatementKind, setting_rule},
    wire::OverBudget,
};

/// A catalogue younger than this is not fetched again for a name that did not resolve.
const FRESH: Duration = Duration::from_secs(2);

/// What to do when the gate permits.
pub(super) enum Then {
    /// A simple Query.
    Query { statements: Arc<[StatementInfo]>, sql: Arc<str>, action: Action },
    /// Parse of a statement.
    Parse { name: String, prepared: Arc<Prepared> },
    /// Bind of a portal.
    Bind { name: String, portal: Portal },
    /// Execute of a portal.
    Execute { portal: Arc<Portal> },
    /// FunctionCall.
    Function,
}

impl Then {
    pub(super) fn in_pipeline(&self) -> bool {
        matches!(self, Self::Parse { .. } | Self::Bind { .. } | Self::Execute { .. })
    }
}

impl Relay {
    pub(super) fn client_frame(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.skipping && !matches!(frame.tag(), b'S' | b'X' | b'Q' | b'F') {
            return Ok(());
        }
        match frame.tag() {
            b'd' | b'c' | b'f' => self.copy_data(frame),
            b'H' | b'S' if self.copy_running() => {
                // The upstream ignores these during COPY FROM STDIN, and so do we.
                malformed(frame.reader().all().map_err(Into::into))
            }
            _ if self.copy_running() => Err(SessionError::Client("a command came in the middle of COPY data".into())),
            _ => self.command_frame(frame),
        }
    }

    /// Looks at a frame again after the catalogue was renewed.
    pub(super) fn client_frame_again(&mut self, frame: Frame) -> Result<(), Stop> {
        self.mask_by_now();
        if self.skipping && matches!(frame.tag(), b'P' | b'B') { Ok(()) } else { self.command_frame(frame) }
    }

    fn command_frame(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.registry.size() >= self.cx.limits().prepared && !matches!(frame.tag(), b'C' | b'S' | b'H' | b'X') {
            return Err(SessionError::Client("too many prepared statements, portals or cursors".into()));
        }
        match frame.tag() {
            b'Q' => self.query(frame),
            b'P' => self.parse(frame),
            b'B' => self.bind(frame),
            b'D' => self.describe(&frame),
            b'E' => self.execute(frame),
            b'C' => self.close(&frame),
            b'F' => self.function(frame),
            b'H' => {
                malformed(frame.reader().all().map_err(Into::into))?;
                self.inert(frame.into_bytes());
                Ok(())
            }
            b'S' => {
                malformed(frame.reader().all().map_err(Into::into))?;
                self.skipping = false;
                self.inert(frame.into_bytes());
                self.owed.push_back(Expect::Sync);
                Ok(())
            }
            b'X' => {
                self.leaving = true;
                self.inert(frame.into_bytes());
                Ok(())
            }
            tag => Err(SessionError::Client(format!("a frame of unknown type {:?} came", char::from(tag)))),
        }
    }

    pub(super) fn inert(&mut self, bytes: Bytes) {
        self.upstream_queue().forward_inert(Inert::new(bytes));
    }

    // --- classification

    /// Classifies a text; `None` means that the frame waits for a newer catalogue.
    fn classify(&mut self, sql: &str, frame: &Frame) -> Option<Meaning> {
        let read_for = self.read_for;
        if self.waits_for_reading(frame) {
            return None;
        }
        let epoch = self.names.epoch();
        let meaning = self.texts.get(sql, epoch).unwrap_or_else(|| {
            let mut classified = sql::classify(sql, &self.names.names());
            if classified.statements.len() > 1 {
                self.amid(sql, &mut classified);
            }
            let meaning = Meaning::new(sql, classified);
            self.texts.keep(sql, epoch, &meaning, &self.cx.memory);
            meaning
        });
        let recheck = unresolved(&meaning.action) || self.names.needs_recheck();
        if recheck && !read_for && self.names.catalog().age() > FRESH {
            self.wait = Some(Wait::Catalog { refreshed: self.reading(FRESH), frame: frame.clone() });
            return None;
        }
        Some(meaning)
    }

    /// Whether a frame that resolves names must wait until the catalogue was read again.
    fn waits_for_reading(&mut self, frame: &Frame) -> bool {
        self.observe();
        let wait = !std::mem::take(&mut self.read_for) && self.catalogs.is_due();
        if wait {
            self.wait = Some(Wait::Catalog { refreshed: self.reading(AGE), frame: frame.clone() });
        }
        wait
    }

    /// Judges several statements of one text again, if what names mean may change on the way.
    fn amid(&self, sql: &str, classified: &mut Classified) {
        let mut reshape = Reshape::default();
        let mut settles = !classified.statements.iter().any(NameState::affects_path);
        // Judged with less certainty, a statement may touch more names.
        for round in 0.. {
            for statement in &classified.statements {
                settles &= !reshape.merge(&statement.reshape);
            }
            if settles {
                return;
            }
            if round > 3 {
                reshape.lose();
            }
            *classified = sql::classify(sql, &self.names.amid(&classified.statements, &reshape));
            settles = true;
        }
    }

    /// Why a command may not run, whatever a rule says.
    fn barred(&self, statements: &[StatementInfo], action: &Action) -> Option<Barred> {
        let pinned = Self::pinned(statements).map(|why| ("pinned settings", why));
        pinned.or_else(|| self.barred_by_masks(statements, action))
    }

    /// Settings that change how text is read or who runs it.
    fn pinned(statements: &[StatementInfo]) -> Option<String> {
        statements.iter().find_map(|statement| match &statement.kind {
            StatementKind::Set { name, value, .. } => match setting_rule(name) {
                SettingRule::Free | SettingRule::SearchPath => None,
                SettingRule::Pinned(allowed) => {
                    let fits = value.as_deref().is_some_and(|values| {
                        !values.is_empty() && values.iter().all(|v| allowed.iter().any(|a| a.eq_ignore_ascii_case(v)))
                    });
                    (!fits).then(|| format!("setting \"{name}\" is pinned to {}", allowed.join(" or ")))
                }
                SettingRule::Refused => Some(format!("setting \"{name}\" may not be changed")),
            },
            _ => None,
        })
    }

    // --- simple query

    fn query(&mut self, frame: Frame) -> Result<(), Stop> {
        let sql = match codec::query(frame.body()) {
            Ok(sql) => sql,
            Err(Malformed::Encoding) => return self.unreadable(frame),
            Err(error) => return Err(SessionError::Client(error.to_string())),
        };
        let Some(Meaning { action, statements, shape }) = self.classify(sql, &frame) else { return Ok(()) };
        let action = self.whole_action(&action, &statements);
        let barred = self.barred(&statements, &action);
        let text: Arc<str> = sql.into();
        let command = Command {
            hash: *blake3::hash(frame.bytes()).as_bytes(),
            shape: shape.into(),
            text: Arc::clone(&text),
            lasting: self.lasting(&action, &statements),
            action: action.clone(),
            bytes: frame.into_bytes(),
            standing: Standing::New,
        };
        let begun = match barred {
            Some((rule, why)) => self.gate.refuse_by_protocol(command, rule, why),
            None => self.gate.begin(command),
        };
        self.begun(begun, Then::Query { statements, sql: text, action })
    }

    /// A command whose text is not UTF-8: nobody can judge it.
    fn unreadable(&mut self, frame: Frame) -> Result<(), Stop> {
        let text: Arc<str> = String::from_utf8_lossy(frame.body()).trim_end_matches('\0').into();
        let in_pipeline = frame.tag() != b'Q';
        let command = Command {
            hash: *blake3::hash(frame.bytes()).as_bytes(),
            shape: Arc::clone(&text).into(),
            text,
            action: Action::opaque(ProtocolId::Postgres, Target::new("sql:not-utf8")),
            bytes: frame.into_bytes(),
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        };
        let begun = self.gate.refuse_by_protocol(command, "encoding", Malformed::Encoding.to_string());
        match begun {
            Begun::Ready(Err(refusal)) => self.refuse(refusal, in_pipeline),
            Begun::Wait { answer, .. } => {
                let then = if in_pipeline {
                    Then::Parse { name: String::new(), prepared: Arc::new(empty_prepared()) }
                } else {
                    Then::Function
                };
                self.wait = Some(Wait::Gate { answer, then: Box::new(then) });
            }
            Begun::Ready(Ok(_)) => return Err(SessionError::Enforcer("an unreadable command was permitted".into())),
        }
        Ok(())
    }

    // --- extended query

    fn parse(&mut self, frame: Frame) -> Result<(), Stop> {
        let parse = match Parse::read(frame.body()) {
            Ok(parse) => parse,
            Err(Malformed::Encoding) => return self.unreadable(frame),
            Err(error) => return Err(SessionError::Client(error.to_string())),
        };
        let Some(Meaning { action, statements, shape }) = self.classify(parse.sql, &frame) else { return Ok(()) };
        let action = self.whole_action(&action, &statements);
        let action = if self.cx.asks_params() { params::with(&action, &Params::Pending) } else { action };
        let prepared = Prepared {
            types: parse.types.into(),
            sql: parse.sql.into(),
            shape,
            barred: self.barred(&statements, &action),
            masks: Arc::clone(&self.masker.masks),
            action,
            statements,
            essence: keep(&frame, parse.essence),
            epoch: self.names.epoch(),
            described: Described::default(),
            computed: Memo::default(),
            decided: Remembered::default(),
            last: Memo::default(),
            charge: self.cx.memory.charge(weight(parse.sql, parse.essence))?,
        };
        let name = parse.name.to_owned();
        let command = |bytes: Bytes| Command {
            action: prepared.action.clone(),
            hash: *blake3::hash(&bytes).as_bytes(),
            text: Arc::clone(&prepared.sql),
            shape: Arc::clone(&prepared.shape).into(),
            bytes,
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        };
        let bytes = frame.into_bytes();
        let begun = match prepared.barred.clone() {
            Some((rule, why)) => self.gate.refuse_by_protocol(command(bytes), rule, why),
            None => self.gate.prepare(&prepared.action, Some(&prepared.decided), bytes, command),
        };
        self.begun(begun, Then::Parse { name, prepared: Arc::new(prepared) })
    }

    fn bind(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.waits_for_reading(&frame) {
            return Ok(());
        }
        let bind = match Bind::read(frame.body()) {
            Ok(bind) => bind,
            Err(error) => return Err(SessionError::Client(error.to_string())),
        };
        let Some(statement) = self.registry.statements.get(bind.statement).cloned() else {
            let message = format!("prepared statement \"{}\" does not exist", bind.statement);
            self.refuse(missing(message), true);
            return Ok(());
        };
        let statement = self.current(statement)?;
        let text = if bind.parameters.is_empty() {
            Arc::clone(&statement.sql)
        } else {
            format!("{}\n-- {}", statement.sql, describe_parameters(&bind)).into()
        };
        let action = self.cx.asks_params().then(|| {
            let types = statement.described.types().unwrap_or(&statement.types);
            params::with(&statement.action, &params::read(&bind, types))
        });
        let portal = Portal {
            action,
            formats: bind.formats,
            essence: keep(&frame, bind.essence),
            text,
            running: AtomicBool::new(false),
            described: AtomicBool::new(false),
            statement: Arc::clone(&statement),
            charge: self.cx.memory.charge(bind.essence.len())?,
        };
        let name = bind.portal.to_owned();
        let ((action, last), bytes) = (portal.judged(), frame.into_bytes());
        let begun = match portal.statement.barred.clone() {
            Some((rule, why)) => self.gate.refuse_by_protocol(portal_command(&portal, &[], bytes), rule, why),
            None => self.gate.prepare(action, last, bytes, |bytes| portal_command(&portal, &[], bytes)),
        };
        self.begun(begun, Then::Bind { name, portal })
    }

    /// The statement under the names of now: PostgreSQL, too, looks names up again when `search_path` changed.
    fn current(&self, statement: Arc<Prepared>) -> Result<Arc<Prepared>, OverBudget> {
        if statement.epoch == self.names.epoch() && Arc::ptr_eq(&statement.masks, &self.masker.masks) {
            return Ok(statement);
        }
        let classified = sql::classify(&statement.sql, &self.names.names());
        let mut action = self.whole_action(&classified.action, &classified.statements);
        let barred = self.barred(&classified.statements, &action);
        let described = Described::default();
        if let Some(types) = statement.described.types() {
            described.set_types(types.into());
        }
        // What it meant before still counts: under which names the server planned it is not known for certain.
        crate::protocol::postgres::prepared::append(&mut action, &statement.action);
        Ok(Arc::new(Prepared {
            sql: Arc::clone(&statement.sql),
            shape: Arc::clone(&statement.shape),
            action,
            barred,
            masks: Arc::clone(&self.masker.masks),
            statements: classified.statements.into(),
            types: statement.types.clone(),
            essence: statement.essence.clone(),
            epoch: self.names.epoch(),
            described,
            computed: Memo::default(),
            decided: Remembered::default(),
            last: Memo::default(),
            charge: self.cx.memory.charge(statement.charge.bytes())?,
        }))
    }

    fn describe(&mut self, frame: &Frame) -> Result<(), Stop> {
        let named = malformed(Named::read(frame.body()))?;
        let expect = match named {
            Named::Statement(name) => {
                Expect::DescribeStatement { statement: self.registry.statements.get(name).cloned() }
            }
            Named::Portal(name) => {
                let portal = self.registry.portals.get(name).cloned();
                if let Some(portal) = &portal {
                    portal.described.store(true, Ordering::Relaxed);
                }
                Expect::DescribePortal { portal, asked_by: Asker::Client }
            }
        };
        self.inert(frame.bytes().clone());
        self.owed.push_back(expect);
        Ok(())
    }

    fn execute(&mut self, frame: Frame) -> Result<(), Stop> {
        let execute = malformed(Execute::read(frame.body()))?;
        let Some(portal) = self.registry.portals.get(execute.portal).cloned() else {
            self.refuse(missing(format!("portal \"{}\" does not exist", execute.portal)), true);
            return Ok(());
        };
        let mut command = portal_command(&portal, &execute.max_rows.to_be_bytes(), frame.bytes().clone());
        command.lasting = self.lasting(&command.action, &portal.statement.statements);
        if portal.running.load(Ordering::Relaxed) {
            command.standing = Standing::Continues;
        }
        let begun = match portal.judged() {
            (_, Some(last)) => self.gate.begin_again(command, last),
            (_, None) => self.gate.begin(command),
        };
        // Rows can only be masked by their description, so one is asked for where the client did not.
        if !portal.described.swap(true, Ordering::Relaxed) && portal.statement.described.fields().is_none() {
            let mut out = BytesMut::new();
            put(&mut out, b'D', |b| {
                b.put_u8(b'P');
                put_cstr(b, execute.portal.as_bytes());
            });
            self.inert(out.freeze());
            self.owed.push_back(Expect::DescribePortal { portal: Some(Arc::clone(&portal)), asked_by: Asker::Us });
        }
        self.begun(begun, Then::Execute { portal })
    }

    fn close(&mut self, frame: &Frame) -> Result<(), Stop> {
        let (kind, name) = match malformed(Named::read(frame.body()))? {
            Named::Statement(name) => (b'S', name.to_owned()),
            Named::Portal(name) => (b'P', name.to_owned()),
        };
        self.inert(frame.bytes().clone());
        self.owed.push_back(Expect::Close { kind, name });
        Ok(())
    }

    fn function(&mut self, frame: Frame) -> Result<(), Stop> {
        let oid = malformed(codec::function_call(frame.body()))?;
        let (target, text) = match self.names.catalog().function(oid) {
            Some((schema, name)) => (Target::function(Some(schema), name), format!("function call {schema}.{name}")),
            None => (Target::function(None, &oid.to_string()), format!("function call of oid {oid}")),
        };
        let text: Arc<str> = text.into();
        let command = Command {
            action: Action::single(ProtocolId::Postgres, Verb::Execute, target),
            hash: *blake3::hash(frame.bytes()).as_bytes(),
            shape: Arc::clone(&text).into(),
            text,
            bytes: frame.into_bytes(),
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        };
        let begun = self.gate.begin(command);
        self.begun(begun, Then::Function)
    }

    // --- COPY data

    fn copy_running(&self) -> bool {
        self.owed.front().is_some_and(|expect| match expect {
            Expect::Query(op) | Expect::Execute { op, .. } => matches!(op.copying, Copying::In),
            _ => false,
        })
    }

    fn copy_data(&mut self, frame: Frame) -> Result<(), Stop> {
        let Some(op) = self.owed.front_mut().and_then(Expect::op_mut).filter(|op| matches!(op.copying, Copying::In))
        else {
            // As the upstream does: data that came too late for a COPY that failed.
            return Ok(());
        };
        match frame.tag() {
            b'd' => op.tally.bytes += frame.body().len() as u64,
            _ => op.copying = Copying::InDone,
        }
        let right = op.data;
        self.upstream_queue().forward_data(right, frame.into_bytes());
        Ok(())
    }
}
