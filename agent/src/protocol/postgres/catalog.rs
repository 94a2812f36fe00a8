//! The catalogue of one database: what names and object ids mean, read on a connection of our own with the injected
//! credential, so that nothing an agent does in its session can change the answer.
//!
//! It is read when the first connection to a database opens, again after a command that may have changed it, when a
//! name or a table is not found, and when it is old. A backend that refuses leads to a refused login or to names that do
//! not resolve.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{
    flux::Flux,
    hidden::ColumnMasks,
    login::LoginError,
    query::{Own, columns, number},
};
use crate::{mask::MaskSet, session::ConnectionCx};

/// How long reading may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// An older one is read again, whatever is known: others change the schema, too.
pub const AGE: Duration = Duration::from_secs(300);
/// After a failure, how long until it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its number, from 1.
    pub number: i16,
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub type_oid: u32,
}

/// A table, view, or the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its object id.
    pub oid: u32,
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its columns in order, dropped ones left out.
    pub attributes: Vec<Attribute>,
    /// The names of these.
    pub names: Arc<[Arc<str>]>,
}

/// A view, stored or not.
#[derive(Clone, Debug)]
pub struct View {
    /// Its query, with the schema of everything but what is PostgreSQL's own.
    pub definition: String,
    /// The relations in it.
    pub reads: Vec<u32>,
}

/// One reading.
pub struct Catalog {
    relations: HashMap<u32, Relation>,
    by_name: HashMap<Arc<str>, HashMap<Box<str>, u32>>,
    functions: HashMap<Arc<str>, HashSet<Box<str>>>,
    function_names: HashMap<u32, (Arc<str>, Box<str>)>,
    /// Operators that neither the server nor an extension brought.
    operators: HashMap<Arc<str>, HashSet<Box<str>>>,
    /// Types that are not the server's own, each with whether it is nothing but labels.
    types: HashMap<Arc<str>, HashMap<Box<str>, bool>>,
    /// Views, and what is known about them.
    pub(super) views: HashMap<u32, View>,
    /// Tables and those that their rows are among: children and parents.
    pub(super) children: Vec<(u32, u32)>,
    /// Schemas that we may use: others are skipped where a path is searched.
    usable: HashSet<Box<str>>,
    /// Schemas that a new session searches, in order.
    pub search_path: Vec<Arc<str>>,
    /// Who we are there.
    pub current_user: Arc<str>,
    read_at: Instant,
    masks: Mutex<Option<(Arc<MaskSet>, Arc<ColumnMasks>)>>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("relations", &self.relations.len()).finish_non_exhaustive()
    }
}

impl Catalog {
    /// A relation by name.
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Relation> {
        self.relations.get(self.by_name.get(schema)?.get(name)?)
    }

    /// A relation by object id.
    pub fn by_oid(&self, oid: u32) -> Option<&Relation> {
        self.relations.get(&oid)
    }

    /// Whether a relation has a column. System columns (negative) every table has.
    pub fn has_column(&self, oid: u32, number: i16) -> bool {
        self.by_oid(oid).is_some_and(|relation| number < 0 || relation.attributes.iter().any(|a| a.number == number))
    }

    /// Whether a schema has a function of this name, with whatever arguments.
    pub fn has_function(&self, schema: &str, name: &str) -> bool {
        self.functions.get(schema).is_some_and(|names| names.contains(name))
    }

    /// Whether a schema has an operator of this name that somebody made here, for whatever types.
    pub fn has_operator(&self, schema: &str, name: &str) -> bool {
        self.operators.get(schema).is_some_and(|names| names.contains(name))
    }

    /// Whether a schema has a type of this name, which is not the server's own.
    pub fn has_type(&self, schema: &str, name: &str) -> bool {
        self.types.get(schema).is_some_and(|names| names.contains_key(name))
    }

    /// Whether a type is an enumeration to and from which no function converts.
    pub fn is_enumeration(&self, schema: &str, name: &str) -> bool {
        self.types.get(schema).and_then(|names| names.get(name)).is_some_and(|labels| *labels)
    }

    /// Whether a schema is searched: we may use it, and it is there.
    pub fn is_usable(&self, schema: &str) -> bool {
        self.usable.contains(schema)
    }

    /// A function by object id: schema and name.
    pub fn function(&self, oid: u32) -> Option<(&str, &str)> {
        self.function_names.get(&oid).map(|(schema, name)| (&**schema, &**name))
    }

    /// How long ago it was read.
    pub fn age(&self) -> Duration {
        self.read_at.elapsed()
    }

    /// All relations.
    pub(super) fn relations(&self) -> impl Iterator<Item = &Relation> {
        self.relations.values()
    }

    /// Which columns a set of masks hides.
    pub fn column_masks(&self, masks: &Arc<MaskSet>) -> Arc<ColumnMasks> {
        let mut cached = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, found)) = &*cached
            && of.is(masks)
        {
            return Arc::clone(found);
        }
        let found = Arc::new(ColumnMasks::new(self, masks));
        *cached = Some((Arc::clone(masks), Arc::clone(&found)));
        found
    }
}

/// The catalogue of one database, shared by its connections.
#[derive(Debug, Default)]
pub struct Catalogs {
    current: ArcSwapOption<Catalog>,
    stale: AtomicBool,
    reading: tokio::sync::Mutex<()>,
    /// One command at a time is tried for its reviewer.
    pub(super) trying: tokio::sync::Mutex<()>,
    failed: Mutex<Option<Instant>>,
    /// What the last reading may not show.
    pub flux: Arc<Flux>,
}

impl Catalogs {
    /// The last reading.
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.current.load_full()
    }

    /// Something may have changed.
    pub fn invalidate(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Whether something may have changed since the last reading.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Whether it should be read before more is judged by it. Not at once again where that has just failed.
    pub fn is_due(&self) -> bool {
        let due = self.is_stale() || self.current.load().as_ref().is_none_or(|catalog| catalog.age() > AGE);
        due && !self.has_failed()
    }

    fn has_failed(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < RETRY)
    }

    /// The last reading if it is younger than `age` and nothing changed since, or a new one.
    pub async fn read(&self, cx: &ConnectionCx, age: Duration) -> Result<Arc<Catalog>, LoginError> {
        let _one_at_a_time = self.reading.lock().await;
        if let Some(catalog) = self.current()
            && catalog.age() < age
            && !self.is_stale()
        {
            return Ok(catalog);
        }
        self.stale.store(false, Ordering::Release);
        let ended = self.flux.ended();
        let outcome = tokio::time::timeout(PATIENCE, load(cx)).await;
        let outcome = outcome.unwrap_or(Err(LoginError::Network(crate::session::NetError::Timeout)));
        let failed = outcome.is_err().then(Instant::now);
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        match outcome {
            Ok(catalog) => {
                let catalog = Arc::new(catalog);
                // In this order: who finds a change shown must find the reading that shows it.
                self.current.store(Some(Arc::clone(&catalog)));
                self.flux.shown(&ended);
                Ok(catalog)
            }
            Err(error) => {
                self.invalidate();
                Err(error)
            }
        }
    }

    /// As [`Catalogs::read`]; a failure is logged and leaves names unresolved.
    pub async fn refresh(&self, cx: &ConnectionCx, age: Duration) {
        if let Err(error) = self.read(cx, age).await {
            tracing::warn!(upstream = %cx.upstream.name, error = error.detail(), "no catalogue");
        }
    }
}

async fn load(cx: &ConnectionCx) -> Result<Catalog, LoginError> {
    let settings = [("default_transaction_read_only", "on"), ("statement_timeout", "10000"), ("lock_timeout", "2000")];
    let mut own = Own::connect(cx, &settings).await?;
    let mut catalog = Catalog {
        relations: HashMap::new(),
        by_name: HashMap::new(),
        functions: HashMap::new(),
        function_names: HashMap::new(),
        operators: HashMap::new(),
        types: HashMap::new(),
        views: HashMap::new(),
        children: Vec::new(),
        usable: HashSet::from(["pg_temp".into()]),
        search_path: Vec::new(),
        current_user: "".into(),
        read_at: Instant::now(),
        masks: Mutex::new(None),
    };
    for row in own.simple("SELECT pg_catalog.unnest(pg_catalog.current_schemas(false)), current_user").await? {
        let [schema, user] = columns(row)?;
        catalog.search_path.push(schema.as_str().into());
        catalog.current_user = user.as_str().into();
    }
    let usable = "SELECT nspname FROM pg_catalog.pg_namespace WHERE pg_catalog.has_schema_privilege(oid, 'USAGE')";
    for row in own.simple(usable).await? {
        let [schema] = columns(row)?;
        catalog.usable.insert(schema.into());
    }
    let mut schemas: HashMap<String, Arc<str>> = HashMap::new();
    let mut schema_of = |name: String| Arc::clone(schemas.entry(name).or_insert_with_key(|n| n.as_str().into()));
    let relations = "SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','v','m','f','p','S')";
    for row in own.simple(relations).await? {
        let [oid, schema, name] = columns(row)?;
        let (oid, schema) = (number(&oid)?, schema_of(schema));
        catalog.by_name.entry(Arc::clone(&schema)).or_default().insert(name.as_str().into(), oid);
        catalog
            .relations
            .insert(oid, Relation { oid, schema, name: name.into(), attributes: Vec::new(), names: Arc::default() });
    }
    let attributes = "SELECT a.attrelid, a.attnum, a.attname, a.atttypid FROM pg_catalog.pg_attribute a \
        JOIN pg_catalog.pg_class c ON c.oid = a.attrelid WHERE a.attnum > 0 AND NOT a.attisdropped \
        AND c.relkind IN ('r','v','m','f','p') ORDER BY a.attrelid, a.attnum";
    for row in own.simple(attributes).await? {
        let [relation, attnum, name, type_oid] = columns(row)?;
        if let Some(relation) = catalog.relations.get_mut(&number(&relation)?) {
            let attribute = Attribute { number: number(&attnum)?, name: name.into(), type_oid: number(&type_oid)? };
            relation.attributes.push(attribute);
        }
    }
    let functions = "SELECT p.oid, n.nspname, p.proname FROM pg_catalog.pg_proc p \
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace";
    for row in own.simple(functions).await? {
        let [oid, schema, name] = columns(row)?;
        let schema = schema_of(schema);
        catalog.functions.entry(Arc::clone(&schema)).or_default().insert(name.as_str().into());
        catalog.function_names.insert(number(&oid)?, (schema, name.into()));
    }
    let operators = "SELECT DISTINCT n.nspname, o.oprname FROM pg_catalog.pg_operator o \
        JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE n.nspname <> 'pg_catalog' \
        AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.deptype = 'e' AND d.objid = o.oid \
        AND d.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass)";
    for row in own.simple(operators).await? {
        let [schema, name] = columns(row)?;
        catalog.operators.entry(schema_of(schema)).or_default().insert(name.into());
    }
    let types = "SELECT n.nspname, t.typname, t.typtype = 'e' AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_cast c \
        WHERE t.oid IN (c.castsource, c.casttarget) AND c.castfunc <> 0) FROM pg_catalog.pg_type t \
        JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')";
    for row in own.simple(types).await? {
        let [schema, name, labels] = columns(row)?;
        catalog.types.entry(schema_of(schema)).or_default().insert(name.into(), labels == "t");
    }
    for relation in catalog.relations.values_mut() {
        relation.names = relation.attributes.iter().map(|attribute| Arc::clone(&attribute.name)).collect();
    }
    // Without a path, definitions name the schema of everything but what is PostgreSQL's own.
    own.simple("SELECT pg_catalog.set_config('search_path', '', false)").await?;
    let definitions = "SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v','m') AND \
        (n.nspname NOT IN ('pg_catalog', 'information_schema') OR c.relname IN ('pg_stats', 'pg_stats_ext', 'pg_stats_ext_exprs'))";
    for row in own.simple(definitions).await? {
        let [view, definition] = columns(row)?;
        catalog.views.insert(number(&view)?, View { definition, reads: Vec::new() });
    }
    let reads = "SELECT DISTINCT r.ev_class, d.refobjid FROM pg_catalog.pg_depend d \
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid \
        WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.ev_class <> d.refobjid";
    for row in own.simple(reads).await? {
        let [view, relation] = columns(row)?;
        if let Some(view) = catalog.views.get_mut(&number(&view)?) {
            view.reads.push(number(&relation)?);
        }
    }
    for row in own.simple("SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits").await? {
        let [child, parent] = columns(row)?;
        catalog.children.push((number(&child)?, number(&parent)?));
    }
    Ok(catalog)
}
