//! Decisions, table by table.

use std::sync::Arc;

use smallvec::SmallVec;

use super::*;
use crate::action::{
    Action, Clarity, Facts, Part, ProcessFacts, ProtocolId, Resource, SqlFacts, Subject, Target, Verb,
};

mod attacks;
mod errors;
mod properties;

const HEAD: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "db"
protocol = "postgres"
address = "db:5432"
"#;

fn load(text: &str) -> Arc<Policy> {
    match PolicySet::from_texts([("bot.toml", text)]) {
        Ok(set) => set.policies()[0].clone(),
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

/// A policy of the usual head and these rules.
fn policy(rules: &str) -> Arc<Policy> {
    load(&format!("{HEAD}{rules}"))
}

fn tiered(tier: &str, rules: &str) -> Arc<Policy> {
    load(&format!("{HEAD}tier = \"{tier}\"\n{rules}"))
}

fn with_autonomy(autonomy: &str, rest: &str) -> Arc<Policy> {
    load(&format!("{HEAD}{rest}").replace("\"autonomous\"", &format!("\"{autonomy}\"")))
}

fn who() -> Subject {
    Subject {
        workload: "bot".into(),
        tenant: None,
        session: "s".into(),
        cgroup: 1,
        intent: Some("test".into()),
        trace_id: "t".into(),
        ends_at: None,
        process: ProcessFacts::default(),
    }
}

fn to() -> Resource {
    Resource {
        upstream: "db".into(),
        protocol: ProtocolId::Postgres,
        address: "db:5432".into(),
        database: Some("shop".into()),
    }
}

fn verb(name: &str) -> Verb {
    *Verb::ALL.iter().find(|verb| verb.as_str() == name).unwrap_or_else(|| panic!("no verb {name}"))
}

/// `read public.a, write public.b` as an action of one statement.
fn action(parts: &str) -> Action {
    let part = |text: &str| -> Part {
        let (name, target) = text.trim().split_once(' ').expect("verb and target");
        (verb(name), Target::new(target))
    };
    let parts: SmallVec<[Part; 2]> = parts.split(',').filter(|p| !p.trim().is_empty()).map(part).collect();
    let sql = SqlFacts { parts: 0..parts.len(), statements: 1, ..SqlFacts::default() };
    Action { protocol: ProtocolId::Postgres, parts, clarity: Clarity::Parsed, facts: Facts::Sql([sql].into()) }
}

fn with_facts(parts: &str, facts: SqlFacts) -> Action {
    let mut action = action(parts);
    action.facts = Facts::Sql([SqlFacts { parts: 0..action.parts.len(), ..facts }].into());
    action
}

/// `effect rule`.
fn said(policy: &Policy, action: &Action) -> String {
    let decision = policy.decide(&who(), &to(), action);
    let explanation = policy.explain(&who(), &to(), action);
    assert_eq!((explanation.effect, &explanation.rule), (decision.effect(), decision.rule()));
    format!("{} {}", decision.effect().as_str(), decision.rule())
}

fn table(policy: &Policy, rows: &[(&str, &str)]) {
    for (parts, want) in rows {
        assert_eq!(said(policy, &action(parts)), *want, "{parts}\n{}", policy.explain(&who(), &to(), &action(parts)));
    }
}

#[test]
fn nothing_matches_means_deny() {
    table(
        &policy(""),
        &[
            ("read public.orders", "deny default"),
            ("write public.orders", "deny default"),
            ("unknown sql:opaque", "deny default"),
            ("connect db", "allow implicit"),
            ("session transaction", "allow implicit"),
            ("session transaction, read public.a", "deny default"),
            ("", "allow implicit"),
        ],
    );
}
