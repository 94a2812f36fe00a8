//! Dry runs: a change of rows runs in a transaction of our own that is rolled back, so that a reviewer sees what it would do.
//!
//! A rollback undoes rows and nothing else. So only what is nothing but rows runs: no trigger, rule or foreign table may
//! come into play, and no default, constraint, index, policy or view may call what is not known to be harmless. What
//! follows from keys (ON DELETE CASCADE) counts. In doubt there is none, and the reviewer is told why.
//!
//! It waits a second for locks and runs five at most; until then it holds the locks of its rows.

use std::{sync::Arc, time::Duration};

use super::{
    catalog::{Catalog, Relation},
    codec::{Field, Frame},
    estimate::Trial,
    hidden::Definition,
    login::LoginError,
    mask::{self, Rule},
    query::{self, Bound, Own, columns, literal, quoted},
};
use crate::{
    action::Verb,
    hold::{Estimate, Sample, SampleRow},
    mask::Hits,
    session::ConnectionCx,
    sql::{self, Change, ChangeKind},
    wire::Rewrite,
};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rows that a reviewer is shown.
const SAMPLE: usize = 5;
/// Columns of them, beside the key.
const COLUMNS: usize = 32;

/// Why there is no dry run, in a few words for the reviewer.
#[derive(Debug, thiserror::Error)]
pub enum NoDryRun {
    /// It may do more than change rows.
    #[error("{0}")]
    Unsafe(String),
    /// The server refused it, or could not be asked.
    #[error("{}", told(.0))]
    Failed(#[from] LoginError),
    /// It took too long.
    #[error("it took too long")]
    Slow,
}

/// Messages of the server may hold values; those on broken constraints (class 23) name only what is broken.
fn told(error: &LoginError) -> String {
    match error {
        LoginError::Server { code, message } if code.starts_with("23") => format!("it failed: {message}"),
        LoginError::Server { code, .. } if code == "55P03" => "it would have waited for a lock".into(),
        LoginError::Server { code, .. } if code == "57014" => "it took too long".into(),
        LoginError::Server { code, .. } => format!("it failed with SQLSTATE {code}"),
        other => other.to_string(),
    }
}

/// Runs a change and takes it back.
pub async fn run(cx: &ConnectionCx, trial: &Trial) -> Result<Estimate, NoDryRun> {
    let Some(change) = sql::change(&trial.sql) else {
        return Err(NoDryRun::Unsafe("it is no plain INSERT, UPDATE, DELETE or MERGE".into()));
    };
    let tried = async {
        match rehearse(cx, trial, &change, true).await {
            Err(NoDryRun::Failed(error)) if is_about_reading(&error) => rehearse(cx, trial, &change, false).await,
            tried => tried,
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.unwrap_or(Err(NoDryRun::Slow))
}

/// Whether it may go without its rows being shown: they may be changed but not read (42501), or are too large.
fn is_about_reading(error: &LoginError) -> bool {
    matches!(error, LoginError::Server { code, .. } if code == "42501") || matches!(error, LoginError::Protocol(_))
}

async fn rehearse(cx: &ConnectionCx, trial: &Trial, change: &Change, show: bool) -> Result<Estimate, NoDryRun> {
    let settings = [
        ("statement_timeout", "5000"),
        ("lock_timeout", "1000"),
        ("idle_in_transaction_session_timeout", "10000"),
        ("search_path", ""),
    ];
    let mut own = Own::connect(cx, &settings).await?;
    own.simple("BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE").await?;
    is_harmless(&mut own, trial, change).await?;
    let shown = if show { Shown::of(&mut own, trial, change).await? } else { None };
    let sql = match &shown {
        Some(shown) => format!("{} RETURNING {}", trial.sql, shown.list(&change.called)).into(),
        None => Arc::clone(&trial.sql),
    };
    own.simple(&format!("SET LOCAL search_path = {}; SAVEPOINT tried", trial.search_path())).await?;
    let mut tried = Tried::default();
    let rows = tried.run(&mut own, trial.bound(&sql)).await?;
    own.simple("ROLLBACK TO SAVEPOINT tried; SET LOCAL search_path = ''").await?;
    let sample = match shown {
        Some(shown) if tried.is_of(&shown) => Some(shown.sample(&mut own, trial, change.kind, &tried).await?),
        _ => None,
    };
    own.simple("ROLLBACK").await?;
    Ok(Estimate { rows: Some(rows), note: "counted in a dry run, which was rolled back".into(), counted: true, sample })
}

/// What running it told.
#[derive(Default)]
struct Tried {
    fields: Vec<Field>,
    rows: Vec<Frame>,
}

impl Tried {
    /// How many rows it changed.
    async fn run(&mut self, own: &mut Own, statement: Bound<'_>) -> Result<u64, NoDryRun> {
        let told = own
            .bound(statement, |_, frame| {
                if self.rows.len() < SAMPLE {
                    self.rows.push(frame.clone());
                }
                Ok(())
            })
            .await?;
        self.fields = told.fields;
        let count = told.tag.rsplit(' ').next().and_then(|count| count.parse().ok());
        count.ok_or_else(|| LoginError::Protocol("a change without a count".into()).into())
    }

    /// Whether its rows are those that were asked for.
    fn is_of(&self, shown: &Shown<'_>) -> bool {
        self.fields.len() == shown.columns.len() && self.fields.iter().all(|field| field.table == shown.relation.oid)
    }
}

/// The columns that a reviewer sees.
struct Shown<'a> {
    relation: &'a Relation,
    columns: Vec<&'a str>,
    /// Which of them are the primary key.
    key: Vec<usize>,
}

impl<'a> Shown<'a> {
    /// `None` where rows cannot be shown: MERGE, or rows that are returned already.
    async fn of(own: &mut Own, trial: &'a Trial, change: &Change) -> Result<Option<Self>, NoDryRun> {
        if change.returns || change.kind == ChangeKind::Merge {
            return Ok(None);
        }
        let changed = trial.relations.iter().filter(|(_, changed)| *changed);
        let named = changed.filter_map(|(oid, _)| trial.catalog.by_oid(*oid));
        let fits = |relation: &&Relation| {
            *relation.name == *change.table && change.schema.as_deref().is_none_or(|schema| schema == &*relation.schema)
        };
        let found: Vec<&Relation> = named.filter(fits).collect();
        let [relation] = found[..] else { return Ok(None) };
        let primary = format!(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
             AND a.attnum = ANY (i.indkey) WHERE i.indisprimary AND i.indrelid = {}",
            relation.oid
        );
        let mut columns: Vec<&str> = relation.attributes.iter().take(COLUMNS).map(|a| &*a.name).collect();
        let mut key = Vec::new();
        for row in own.simple(&primary).await? {
            let [name] = query::columns(row)?;
            let Some(attribute) = relation.attributes.iter().find(|attribute| *attribute.name == *name) else {
                return Ok(None);
            };
            let at = columns.iter().position(|column| **column == *name).unwrap_or_else(|| {
                columns.push(&attribute.name);
                columns.len() - 1
            });
            key.push(at);
        }
        Ok(Some(Self { relation, columns, key }))
    }

    fn list(&self, table: &str) -> String {
        let columns = self.columns.iter().map(|column| format!("{}.{}", quoted(table), quoted(column)));
        columns.collect::<Vec<_>>().join(", ")
    }

    async fn sample(&self, own: &mut Own, trial: &Trial, kind: ChangeKind, tried: &Tried) -> Result<Sample, NoDryRun> {
        let mut rows = Vec::new();
        for frame in &tried.rows {
            let row = Some(masked(trial, &tried.fields, frame)?);
            rows.push(match kind {
                ChangeKind::Delete => SampleRow { before: row, after: None },
                _ => SampleRow { before: self.before(own, trial, frame).await?, after: row },
            });
        }
        Ok(Sample { columns: self.columns.iter().map(|column| (*column).to_owned()).collect(), rows })
    }

    /// The row of the same key, as the transaction saw it before.
    async fn before(
        &self,
        own: &mut Own,
        trial: &Trial,
        after: &Frame,
    ) -> Result<Option<Vec<Option<String>>>, NoDryRun> {
        let values = query::row(after.body()).map_err(|e| LoginError::Protocol(e.to_string()))?;
        let same = self.key.iter().map(|at| {
            let value = values.get(*at)?.as_deref()?;
            Some(format!("t.{} = {}", quoted(self.columns[*at]), literal(value)))
        });
        let Some(same) = same.collect::<Option<Vec<_>>>().filter(|same| !same.is_empty()) else { return Ok(None) };
        let select = format!(
            "SELECT {} FROM {}.{} t WHERE {}",
            self.list("t"),
            quoted(&self.relation.schema),
            quoted(&self.relation.name),
            same.join(" AND ")
        );
        let mut found = None;
        own.simple_each(&select, |fields, frame| {
            found = Some(masked(trial, fields, frame)?);
            Ok(())
        })
        .await?;
        Ok(found)
    }
}

/// A row as the agent would see it.
fn masked(trial: &Trial, fields: &[Field], frame: &Frame) -> Result<Vec<Option<String>>, LoginError> {
    let hidden = trial.catalog.column_masks(&trial.masker.masks);
    let rule = |table, attribute| hidden.get(table, attribute).cloned().unwrap_or(Rule::Scan);
    let plan = mask::plan(fields, rule, |_| Rule::Hide("column:computed".into()));
    let rewritten = trial.masker.row(&plan, frame.body(), &mut Hits::default());
    Ok(match rewritten.map_err(|e| LoginError::Protocol(e.to_string()))? {
        Rewrite::Replace(bytes) => mask::sample(Some(&plan), &bytes),
        _ => mask::sample(Some(&plan), frame.bytes()),
    })
}

/// Refuses what may do more than change rows.
async fn is_harmless(own: &mut Own, trial: &Trial, change: &Change) -> Result<(), NoDryRun> {
    for row in own.simple(&obstacles(trial, change)).await? {
        let [what, expression] = columns(row)?;
        if expression.is_empty() {
            return Err(NoDryRun::Unsafe(what));
        }
        if let Some(called) = calls(&trial.catalog, &expression) {
            return Err(NoDryRun::Unsafe(format!("{what} calls {called}")));
        }
    }
    Ok(())
}

/// What an expression or query of the server's would do beyond reading.
fn calls(catalog: &Catalog, expression: &str) -> Option<String> {
    let text = if expression.trim_start().to_ascii_lowercase().starts_with("select") {
        expression.trim_end_matches(';').to_owned()
    } else {
        format!("SELECT {expression}")
    };
    let action = sql::classify(&text, &Definition(catalog)).action;
    let more = action.parts.iter().find(|(verb, target)| match verb {
        Verb::Read => false,
        Verb::Session => target.as_str() != "sql:constant",
        _ => true,
    });
    more.map(|(_, target)| target.as_str().to_owned())
}

/// Everything that comes into play: what stands in the way, with no expression, or an expression that will be evaluated.
/// Names are those of the catalogues of PostgreSQL 12 and later.
fn obstacles(trial: &Trial, change: &Change) -> String {
    let seeds: Vec<String> = trial.relations.iter().map(|(oid, changed)| format!("({oid}::oid, {changed})")).collect();
    let (seeds, defaults) = (seeds.join(", "), change.defaults);
    format!(
        "WITH RECURSIVE step (source, target, change) AS (
             SELECT inhparent, inhrelid, false FROM pg_inherits
             UNION ALL SELECT confrelid, conrelid, true FROM pg_constraint
                 WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
             UNION ALL SELECT w.ev_class, d.refobjid, false FROM pg_rewrite w JOIN pg_depend d
                 ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
         ), reach (oid, changed) AS (
             VALUES {seeds}
             UNION SELECT s.target, r.changed FROM reach r JOIN step s ON s.source = r.oid AND (r.changed OR NOT s.change)
         ), reached AS (
             SELECT c.oid, c.relkind, c.relrowsecurity, c.relnamespace, r.changed, c.oid::regclass::text AS name
             FROM (SELECT oid, bool_or(changed) AS changed FROM reach GROUP BY oid) r JOIN pg_class c ON c.oid = r.oid
         ), kinds (oid) AS (
             SELECT a.atttypid FROM pg_attribute a JOIN reached r ON a.attrelid = r.oid AND r.changed
                 WHERE a.attnum > 0 AND NOT a.attisdropped
             UNION SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END
                 FROM kinds k JOIN pg_type t ON t.oid = k.oid WHERE t.typtype = 'd' OR t.typelem <> 0
         )
         SELECT name || ' is a foreign table', NULL FROM reached WHERE relkind = 'f'
         UNION ALL SELECT r.name || ' has the trigger ' || quote_ident(t.tgname), NULL
             FROM reached r JOIN pg_trigger t ON t.tgrelid = r.oid
             WHERE r.changed AND NOT t.tgisinternal AND t.tgenabled <> 'D'
         UNION ALL SELECT r.name || ' has the rule ' || quote_ident(w.rulename), NULL
             FROM reached r JOIN pg_rewrite w ON w.ev_class = r.oid
             WHERE r.changed AND w.rulename <> '_RETURN' AND w.ev_enabled <> 'D'
         UNION ALL SELECT r.name || ' numbers its rows', NULL
             FROM reached r JOIN pg_attribute a ON a.attrelid = r.oid WHERE r.changed AND {defaults} AND a.attidentity <> ''
         UNION ALL SELECT 'a type of a column (' || t.oid::regtype || ') is made of others', NULL
             FROM kinds k JOIN pg_type t ON t.oid = k.oid WHERE t.typtype = 'c'
         UNION ALL SELECT 'a conversion to ' || t.oid::regtype || ' calls ' || c.castfunc::regproc, NULL
             FROM kinds k JOIN pg_type t ON t.oid = k.oid JOIN pg_cast c ON t.oid IN (c.castsource, c.casttarget)
             JOIN pg_proc p ON p.oid = c.castfunc JOIN pg_language l ON l.oid = p.prolang
             WHERE c.castcontext <> 'e' AND l.lanname NOT IN ('internal', 'c')
         UNION ALL SELECT 'a default of ' || r.name, pg_get_expr(d.adbin, d.adrelid)
             FROM reached r JOIN pg_attrdef d ON d.adrelid = r.oid
             JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
             WHERE r.changed AND ({defaults} OR a.attgenerated <> '' OR EXISTS (SELECT 1 FROM pg_constraint k
                 WHERE k.conrelid = r.oid AND k.contype = 'f' AND 'd' IN (k.confdeltype, k.confupdtype)))
         UNION ALL SELECT 'the partitioning of ' || r.name, pg_get_expr(p.partexprs, p.partrelid)
             FROM reached r JOIN pg_partitioned_table p ON p.partrelid = r.oid WHERE r.changed AND p.partexprs IS NOT NULL
         UNION ALL SELECT 'a constraint of ' || r.name, pg_get_expr(k.conbin, k.conrelid)
             FROM reached r JOIN pg_constraint k ON k.conrelid = r.oid WHERE r.changed AND k.conbin IS NOT NULL
         UNION ALL SELECT 'the type ' || t.oid::regtype, pg_get_expr(k.conbin, 0)
             FROM kinds JOIN pg_type t ON t.oid = kinds.oid JOIN pg_constraint k ON k.contypid = t.oid
             WHERE k.conbin IS NOT NULL
         UNION ALL SELECT 'the type ' || t.oid::regtype, pg_get_expr(t.typdefaultbin, 0)
             FROM kinds JOIN pg_type t ON t.oid = kinds.oid WHERE {defaults} AND t.typtype = 'd' AND t.typdefaultbin IS NOT NULL
         UNION ALL SELECT 'an index of ' || r.name, pg_get_expr(i.indexprs, i.indrelid)
             FROM reached r JOIN pg_index i ON i.indrelid = r.oid WHERE r.changed AND i.indexprs IS NOT NULL
         UNION ALL SELECT 'an index of ' || r.name, pg_get_expr(i.indpred, i.indrelid)
             FROM reached r JOIN pg_index i ON i.indrelid = r.oid WHERE r.changed AND i.indpred IS NOT NULL
         UNION ALL SELECT 'a policy of ' || r.name, pg_get_expr(p.polqual, p.polrelid)
             FROM reached r JOIN pg_policy p ON p.polrelid = r.oid WHERE r.relrowsecurity AND p.polqual IS NOT NULL
         UNION ALL SELECT 'a policy of ' || r.name, pg_get_expr(p.polwithcheck, p.polrelid)
             FROM reached r JOIN pg_policy p ON p.polrelid = r.oid WHERE r.relrowsecurity AND p.polwithcheck IS NOT NULL
         UNION ALL SELECT 'the view ' || r.name, pg_get_viewdef(r.oid)
             FROM reached r WHERE r.relkind = 'v'
             AND r.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
    )
}
