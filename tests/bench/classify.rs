//! What it costs to read a statement and decide it, which happens once for a prepared one, and to decide it again, which
//! happens at each binding and execution; beside copying its text.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis::{
    action::{ProcessFacts, ProtocolId, Resource, Subject},
    policy::{Decision, PolicySet, Remembered},
    sql::{Names, classify},
};

use crate::median;

const POLICY: &str = include_str!("policy.toml");
const ROUNDS: usize = 9;
const TIMES: u32 = 4000;

/// The statements of pgbench's own script, as it prepares them, and one that is larger than most.
const STATEMENTS: [(&str, &str); 6] = [
    ("select, a row by key", "SELECT abalance FROM pgbench_accounts WHERE aid = $1"),
    ("update, accounts", "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2"),
    ("update, tellers", "UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2"),
    ("update, branches", "UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2"),
    (
        "insert, history",
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)",
    ),
    (
        "join, group and order",
        "SELECT b.bid, count(*), sum(a.abalance) FROM pgbench_accounts a JOIN pgbench_branches b ON a.bid = b.bid \
         WHERE a.aid > $1 AND b.filler IS NULL GROUP BY b.bid ORDER BY 3 DESC LIMIT 20",
    ),
];

/// What a connection knows of its database once the catalogue was read: as there, names are looked up and shared.
struct Known {
    public: Arc<str>,
    catalog: Arc<str>,
    tables: HashMap<&'static str, Arc<[Arc<str>]>>,
}

impl Known {
    fn new() -> Self {
        let tables = [
            ("pgbench_accounts", &["aid", "bid", "abalance", "filler"][..]),
            ("pgbench_branches", &["bid", "bbalance", "filler"]),
            ("pgbench_tellers", &["tid", "bid", "tbalance", "filler"]),
            ("pgbench_history", &["tid", "bid", "aid", "delta", "mtime", "filler"]),
        ];
        let columns = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        Self {
            public: "public".into(),
            catalog: "pg_catalog".into(),
            tables: tables.into_iter().map(|(table, names)| (table, columns(names))).collect(),
        }
    }
}

impl Names for Known {
    fn relation_schema(&self, _schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        self.tables.contains_key(name).then(|| Arc::clone(&self.public))
    }

    fn function_schema(&self, _schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        matches!(name, "count" | "sum").then(|| Arc::clone(&self.catalog))
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.public))
    }

    fn columns(&self, _schema: &str, name: &str) -> Option<Arc<[Arc<str>]>> {
        self.tables.get(name).cloned()
    }

    fn operator_schema(&self, _operator: &str) -> Option<Arc<str>> {
        Some(Arc::clone(&self.catalog))
    }
}

/// Measures and prints.
pub fn run() -> Result<()> {
    let policy = POLICY.replace("{slice}", "portcullis.slice").replace("{port}", "9");
    let set = PolicySet::from_texts([("bot.toml", policy)]).map_err(|error| anyhow::anyhow!("{error}"))?;
    let policy = set.by_workload("bot").context("no policy")?;
    let who = Subject {
        workload: "bot".into(),
        tenant: None,
        session: "s".into(),
        cgroup: 1,
        intent: None,
        trace_id: "t".into(),
        ends_at: None,
        process: ProcessFacts::default(),
    };
    let to = Resource {
        upstream: "shop".into(),
        protocol: ProtocolId::Postgres,
        address: "127.0.0.1:9".into(),
        database: Some("shop".into()),
    };
    let known = Known::new();
    println!("median of {ROUNDS} rounds of {TIMES}, microseconds\n");
    println!("{:22} {:>16} {:>13} {:>10} {:>15}", "", "read and decide", "decide again", "copy", "ratio to a copy");
    for (name, text) in STATEMENTS {
        let classified = classify(text, &known);
        let outputs = classified.statements.iter().filter_map(|statement| statement.lineage.outputs.as_ref());
        ensure!(outputs.flatten().all(|output| !output.sources.unknown), "{name}: not every value is known");
        let read = classified.action;
        ensure!(!matches!(policy.decide(&who, &to, &read), Decision::Deny(_)), "{name} is refused");
        let last = Remembered::default();
        let mut copy = Vec::with_capacity(text.len());
        let (mut whole, mut again, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            whole.push(time(|| drop(black_box(policy.decide(&who, &to, &classify(black_box(text), &known).action)))));
            again.push(time(|| drop(black_box(last.decide(policy, &who, &to, black_box(&read))))));
            copied.push(time(|| {
                copy.clear();
                copy.extend_from_slice(black_box(text.as_bytes()));
                black_box(&copy);
            }));
        }
        let [whole, again, copied] = [whole, again, copied].map(median);
        println!("{name:22} {whole:16.2} {again:13.2} {copied:10.3} {:15.0}", whole / copied);
    }
    Ok(())
}

fn time(mut run: impl FnMut()) -> f64 {
    let begun = Instant::now();
    (0..TIMES).for_each(|_| run());
    begun.elapsed().as_secs_f64() / f64::from(TIMES) / Duration::from_micros(1).as_secs_f64()
}
