//! Prepared statements, portals and cursors of one connection, as the server has them.
//!
//! A name is only forgotten or replaced when the server has confirmed it: a client that could make us believe that a
//! name means something milder than it does could run what it was never allowed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;

use super::{
    codec::{Field, Format},
    mask::Plan,
};
use crate::{
    action::{Action, Facts, Part, Target, Verb},
    mask::MaskSet,
    policy::Remembered,
    sql::{StatementInfo, StatementKind},
    wire::Charge,
};

/// What is known about a prepared statement.
#[derive(Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: Arc<str>,
    /// The text without literals.
    pub shape: Arc<str>,
    /// What it would do, under the names of `epoch`.
    pub action: Action,
    /// What it is.
    pub statements: Arc<[StatementInfo]>,
    /// What the hash of a command covers of it.
    pub essence: Bytes,
    /// When its names were resolved.
    pub epoch: u64,
    /// Types of its parameters, as far as it declares them.
    pub types: Box<[u32]>,
    /// Its parameters and result columns, once described.
    pub described: Described,
    /// The masks that `action` and `barred` were told under.
    pub masks: Arc<MaskSet>,
    /// Why it may not run, whatever the rules say.
    pub barred: Option<(&'static str, String)>,
    /// Which of its computed columns are hidden, and whether it may reach a masked one, under the masks that this was asked for.
    pub computed: Memo<(Arc<MaskSet>, (Computed, bool))>,
    /// What the policy says of `action`.
    pub decided: Remembered,
    /// What its last rows were masked by.
    pub last: Memo<Arc<Planned>>,
    /// Its memory.
    pub charge: Charge,
}

/// Bytes that a prepared statement may take: its text, and about seven times as much for what is known about it.
pub fn weight(sql: &str, essence: &[u8]) -> usize {
    sql.len() * 8 + essence.len()
}

/// Which columns of a result that are no table's are hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Computed {
    /// None.
    Shown,
    /// All.
    Hidden,
    /// Each by itself.
    Each(Arc<[ComputedColumn]>),
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputedColumn {
    /// Its name, where the statement gives it one.
    pub name: Option<Arc<str>>,
    /// Whether it derives from what is masked, or may.
    pub hidden: bool,
}

impl Computed {
    /// Where columns cannot be told apart.
    pub fn coarse(hidden: bool) -> Self {
        if hidden { Self::Hidden } else { Self::Shown }
    }

    /// Whether a column of the result is hidden. A result of another form than was expected is hidden.
    pub fn hides(&self, at: usize, fields: &[Field]) -> bool {
        match self {
            Self::Shown => false,
            Self::Hidden => true,
            Self::Each(columns) => match (columns.get(at), fields.get(at)) {
                (Some(column), Some(field)) if columns.len() == fields.len() => {
                    column.hidden || column.name.as_deref().is_some_and(|name| *name != *field.name)
                }
                _ => true,
            },
        }
    }
}

/// The plan of a statement's rows, and all that it follows from.
#[derive(Debug)]
pub struct Planned {
    /// The masks.
    pub masks: Arc<MaskSet>,
    /// The catalogue and what is in flux: see [`super::names::NameState::epoch`].
    pub epoch: u64,
    /// Which computed columns were hidden.
    pub computed: Computed,
    /// The columns as described.
    pub fields: Arc<[Field]>,
    /// Their formats.
    pub formats: Vec<Format>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// Names of the columns.
    pub names: Arc<[Arc<str>]>,
}

/// Something that is worked out again only where what it follows from has changed.
#[derive(Debug)]
pub struct Memo<T>(Mutex<Option<T>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Memo<T> {
    /// What was worked out last, if it still `fits`, else it anew.
    pub fn get(&self, fits: impl FnOnce(&T) -> bool, anew: impl FnOnce() -> T) -> T {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(value) if fits(value) => value.clone(),
            _ => last.insert(anew()).clone(),
        }
    }
}

/// The columns of a result, once the server has told them.
#[derive(Debug, Default)]
pub struct Described(Mutex<Option<Told>>, OnceLock<Box<[u32]>>);

#[derive(Debug)]
struct Told {
    bytes: Box<[u8]>,
    fields: Arc<[Field]>,
}

impl Described {
    /// Remembers the columns and the bytes that told them; none if it returns no rows.
    pub fn set(&self, told: &[u8], fields: Arc<[Field]>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told { bytes: told.into(), fields });
    }

    /// Remembers the types of the parameters.
    pub fn set_types(&self, types: Box<[u32]>) {
        let _ = self.1.set(types);
    }

    /// The types of the parameters.
    pub fn types(&self) -> Option<&[u32]> {
        self.1.get().map(|types| &**types)
    }

    /// Whether the same was told before.
    pub fn knows(&self, told: &[u8]) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|known| *known.bytes == *told)
    }

    /// The columns.
    pub fn fields(&self) -> Option<Arc<[Field]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|told| Arc::clone(&told.fields))
    }
}

/// A portal that Bind made.
#[derive(Debug)]
pub struct Portal {
    /// Its statement.
    pub statement: Arc<Prepared>,
    /// Formats of its result columns.
    pub formats: Vec<Format>,
    /// What the hash of a command covers of its Bind.
    pub essence: Bytes,
    /// The statement and its parameters, for people.
    pub text: Arc<str>,
    /// The statement's action with its parameters, where the policy asks for them.
    pub action: Option<Action>,
    /// Whether Execute was permitted on it already.
    pub running: std::sync::atomic::AtomicBool,
    /// A description was asked for, by the client or by us.
    pub described: std::sync::atomic::AtomicBool,
    /// Its memory.
    #[expect(dead_code, reason = "given back when dropped")]
    pub charge: Charge,
}

impl Portal {
    /// What it would do, and where the decision about that is remembered: bound parameters, where the policy asks for them,
    /// come once.
    pub fn judged(&self) -> (&Action, Option<&Remembered>) {
        match &self.action {
            Some(action) => (action, None),
            None => (&self.statement.action, Some(&self.statement.decided)),
        }
    }
}

/// Everything that has a name.
#[derive(Debug, Default)]
pub struct Registry {
    /// Statements, by Parse or PREPARE: one namespace at the server.
    pub statements: HashMap<String, Arc<Prepared>>,
    /// Portals, by Bind.
    pub portals: HashMap<String, Arc<Portal>>,
    /// Cursors, by DECLARE, with whether their rows may derive from masked columns.
    pub cursors: HashMap<String, Arc<Prepared>>,
}

impl Registry {
    /// The action of a command together with what it runs by name: EXECUTE, and FETCH from a portal.
    pub fn complete(&self, action: &Action, statements: &[StatementInfo]) -> Action {
        let mut whole = action.clone();
        for statement in statements {
            match &statement.kind {
                StatementKind::ExecutePrepared { name } => match self.statements.get(name) {
                    Some(prepared) => append(&mut whole, &prepared.action),
                    None => unknown(&mut whole, "sql:execute of an unknown statement"),
                },
                StatementKind::Fetch { cursor } | StatementKind::Move { cursor } => {
                    if let Some(portal) = self.portals.get(cursor) {
                        append(&mut whole, &portal.statement.action);
                    } else if let Some(declared) = self.cursors.get(cursor) {
                        append(&mut whole, &declared.action);
                    } else {
                        unknown(&mut whole, "sql:fetch from an unknown cursor");
                    }
                }
                _ => {}
            }
        }
        whole
    }

    /// The statements that a command runs by name, for mask planning.
    pub fn named<'a>(&'a self, statements: &'a [StatementInfo]) -> impl Iterator<Item = &'a Arc<Prepared>> {
        statements.iter().filter_map(|statement| match &statement.kind {
            StatementKind::ExecutePrepared { name } => self.statements.get(name),
            StatementKind::Fetch { cursor } => {
                self.portals.get(cursor).map(|p| &p.statement).or_else(|| self.cursors.get(cursor))
            }
            _ => None,
        })
    }

    /// Notes a PREPARE or DECLARE that goes upstream but is not confirmed: if the name is taken, it may keep its old meaning, so it
    /// gets both.
    pub fn merge_statement(&mut self, name: String, new: Prepared) {
        merge(&mut self.statements, name, new);
    }

    /// The same for a cursor.
    pub fn merge_cursor(&mut self, name: String, new: Prepared) {
        merge(&mut self.cursors, name, new);
    }

    /// Follows a single statement that the server has confirmed.
    pub fn confirmed(&mut self, statement: &StatementInfo) {
        match &statement.kind {
            StatementKind::Deallocate { name: Some(name) } => {
                self.statements.remove(name);
            }
            StatementKind::Deallocate { name: None } => self.statements.clear(),
            StatementKind::CloseCursor { cursor: Some(cursor) } => {
                self.portals.remove(cursor);
                self.cursors.remove(cursor);
            }
            StatementKind::CloseCursor { cursor: None } => {
                self.portals.clear();
                self.cursors.clear();
            }
            StatementKind::Discard { what: crate::sql::Discard::All } => *self = Self::default(),
            _ => {}
        }
    }

    /// The server is outside of any transaction: cursors and portals without HOLD are gone. What is left unfetched of
    /// one WITH HOLD is refused afterwards only if its name is not found, so names stay.
    pub fn size(&self) -> usize {
        self.statements.len().max(self.portals.len()).max(self.cursors.len())
    }
}

fn merge(map: &mut HashMap<String, Arc<Prepared>>, name: String, mut new: Prepared) {
    if let Some(old) = map.get(&name) {
        append(&mut new.action, &old.action);
        new.statements = new.statements.iter().chain(&*old.statements).cloned().collect();
    }
    map.insert(name, Arc::new(new));
}

fn unknown(action: &mut Action, what: &'static str) {
    append(action, &Action::opaque(action.protocol, Target::new(what)));
}

/// Appends the parts and facts of `other`. Parts without facts get facts of their own, so that each part belongs to
/// exactly one statement.
pub fn append(action: &mut Action, other: &Action) {
    let shift = action.parts.len();
    let parts: Vec<Part> = other.parts.to_vec();
    let Facts::Sql(facts) = &action.facts else {
        action.parts.extend(parts);
        return;
    };
    let mut all = facts.to_vec();
    match &other.facts {
        Facts::Sql(others) => all.extend(others.iter().map(|facts| {
            let mut facts = facts.clone();
            facts.parts = facts.parts.start + shift..facts.parts.end + shift;
            facts
        })),
        _ if parts.iter().any(|(verb, _)| *verb == Verb::Unknown) => {
            // No facts: a `when` must not be able to allow it by another statement's.
            let facts = crate::action::SqlFacts { parts: shift..shift + parts.len(), ..Default::default() };
            all.push(facts);
        }
        _ => {}
    }
    action.parts.extend(parts);
    action.facts = Facts::Sql(all.into());
}
