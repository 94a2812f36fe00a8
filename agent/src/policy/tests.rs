//! Decisions, table by table.

use std::sync::Arc;

use smallvec::SmallVec;

use super::*;
use crate::action::{
    Action, Clarity, Direction, Facts, MaskWith, Part, ProcessFacts, ProtocolId, Resource, SqlFacts, Subject, Target,
    Verb,
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
        Err(errors) => panic!("{:#?}\n{text}", errors.lines().collect::<Vec<_>>()),
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

#[test]
fn the_strictest_match_wins() {
    let policy = policy(
        r#"
[[rule]]
name = "all"
verbs = ["read", "write", "delete", "schema", "execute"]
effect = "allow"
[[rule]]
name = "tell"
verbs = ["write"]
effect = "notify"
[[rule]]
name = "wait"
verbs = ["delete"]
effect = "hold"
[[rule]]
name = "ask"
verbs = ["schema"]
effect = "suggest"
[[rule]]
name = "closed"
targets = ["public.payroll", "hr.**"]
effect = "deny"
reason = "not for bots"
"#,
    );
    table(
        &policy,
        &[
            ("read public.orders", "allow all"),
            ("write public.orders", "notify tell"),
            ("delete public.orders", "hold wait"),
            ("schema public.orders", "suggest ask"),
            ("read public.payroll", "deny closed"),
            ("read hr.people", "deny closed"),
            ("schema hr.people", "deny closed"),
            ("read public.orders, write public.orders", "notify tell"),
            ("write public.orders, delete public.orders, read public.orders", "hold wait"),
            ("schema public.orders, delete public.orders", "suggest ask"),
            ("read public.orders, read public.payroll", "deny closed"),
            ("read public.orders, admin sql:vacuum", "deny default"),
            ("infer public.orders", "deny default"),
        ],
    );
    let decision = policy.decide(&who(), &to(), &action("read hr.a"));
    assert_eq!(decision, Decision::Deny(Reason { rule: "closed".into(), text: "not for bots".into() }));
}

#[test]
fn exceptions_remove_the_rule_for_their_targets_only() {
    let policy = policy(
        r#"
[[rule]]
name = "reads"
verbs = ["read"]
targets = ["public.*"]
except = ["public.payroll", "public.secret_*"]
effect = "allow"
[[rule]]
name = "writes wait"
verbs = ["write"]
except = ["public.scratch"]
effect = "hold"
[[rule]]
name = "scratch"
targets = ["public.scratch"]
verbs = ["write"]
effect = "allow"
"#,
    );
    table(
        &policy,
        &[
            ("read public.orders", "allow reads"),
            ("read public.payroll", "deny default"),
            ("read public.secret_plans", "deny default"),
            ("read public.secrets", "allow reads"),
            ("read other.orders", "deny default"),
            ("write public.orders", "hold writes wait"),
            ("write public.scratch", "allow scratch"),
            ("read public.orders, read public.payroll", "deny default"),
        ],
    );
}

#[test]
fn tiers_expand() {
    table(
        &tiered("development", ""),
        &[
            ("read public.a", "allow tier:development/everything"),
            ("admin sql:vacuum", "allow tier:development/everything"),
            ("session sql:transaction", "allow implicit"),
            ("unknown sql:opaque", "deny default"),
        ],
    );
    table(
        &tiered("staging", ""),
        &[
            ("read public.a", "allow tier:staging/reads"),
            ("write public.a", "notify tier:staging/changes"),
            ("read public.a, execute fn:public.f", "notify tier:staging/changes"),
            ("unknown sql:opaque", "deny default"),
        ],
    );
    table(
        &tiered("production-read", ""),
        &[
            ("connect db", "allow implicit"),
            ("session sql:transaction", "allow implicit"),
            ("read public.a", "hold tier:production-read/first read"),
            ("session sql:transaction, read public.a", "hold tier:production-read/first read"),
            ("write public.a", "deny tier:production-read/changes"),
            ("read public.a, execute fn:public.f", "deny tier:production-read/changes"),
            ("unknown sql:opaque", "deny tier:production-read/changes"),
        ],
    );
    table(
        &tiered("production-write", ""),
        &[
            ("read public.a", "allow tier:production-write/reads"),
            ("write public.a", "hold tier:production-write/each change"),
            ("delete public.a", "hold tier:production-write/delete and schema"),
            ("write public.a, schema public.b", "hold tier:production-write/delete and schema"),
            ("unknown sql:opaque", "deny default"),
        ],
    );
    table(
        &tiered("critical", ""),
        &[
            ("connect db", "deny tier:critical/nothing"),
            ("session sql:transaction", "deny tier:critical/nothing"),
            ("read public.a", "deny tier:critical/nothing"),
        ],
    );
}

fn hold(policy: &Policy, parts: &str) -> HoldSpec {
    match policy.decide(&who(), &to(), &action(parts)) {
        Decision::Hold(spec) => spec,
        other => panic!("{parts}: {other:?}"),
    }
}

#[test]
fn holds_say_who_how_many_how_long_and_how_far() {
    let read = hold(&tiered("production-read", ""), "read public.a, session sql:transaction, read public.b");
    assert_eq!((read.scope, read.required, read.expires), (HoldScope::SessionReads, 1, DEFAULT_EXPIRES));
    assert!(read.reviewers.is_empty());
    let delete = hold(&tiered("production-write", ""), "delete public.a, write public.b");
    assert_eq!((delete.scope, delete.required), (HoldScope::Command, 2));
    let policy = policy(
        r#"
[[rule]]
name = "a"
verbs = ["write"]
effect = "hold"
reviewers = ["group:dba", "user:ann"]
expires = "1h"
[[rule]]
name = "b"
verbs = ["write"]
targets = ["public.b"]
effect = "hold"
required = "two"
reviewers = ["user:ann", "group:ops", "group:dba"]
[[rule]]
name = "c"
verbs = ["write"]
targets = ["public.c"]
effect = "hold"
reviewers = ["user:zoe"]
expires = "5m"
"#,
    );
    let a = hold(&policy, "write public.a");
    assert_eq!((&*a.reason.rule, a.required, a.expires.as_secs()), ("a", 1, 3600));
    let both = hold(&policy, "write public.b");
    assert_eq!((both.required, both.expires.as_secs()), (2, 3600));
    assert_eq!(both.reviewers.to_vec(), [Reviewer::Group("dba".into()), Reviewer::User("ann".into())]);
    // Parts that different people must approve cannot be approved by one of them.
    for parts in ["write public.c", "write public.a, write public.c", "write public.c, write public.b"] {
        match policy.decide(&who(), &to(), &action(parts)) {
            Decision::Deny(reason) => assert!(reason.text.contains("no reviewer may decide"), "{}", reason.text),
            other => panic!("{parts}: {other:?}"),
        }
    }
}

#[test]
fn a_dry_run_is_asked_for_and_may_be_forbidden() {
    let rule = |name: &str, target: &str, key: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nverbs = [\"write\"]\ntargets = [\"{target}\"]\neffect = \"hold\"\n{key}\n"
        )
    };
    let rules = [
        rule("a", "public.*", ""),
        rule("b", "public.b*", "dry_run = true"),
        rule("c", "public.bc", "dry_run = false"),
    ];
    let policy = policy(&rules.concat());
    let cases = [("a", false), ("b", true), ("bc", false)];
    for (table, expected) in cases {
        assert_eq!(hold(&policy, &format!("write public.{table}")).dry_run, expected, "{table}");
    }
    assert!(!hold(&policy, "write public.b, write public.bc").dry_run);
    assert!(policy.explain(&who(), &to(), &action("write public.b")).to_string().contains(", with a dry run"));
}

#[test]
fn an_approval_of_reads_never_reaches_a_change() {
    let policy = with_autonomy(
        "confirm",
        "tier = \"production-read\"\n[[rule]]\nname = \"w\"\nverbs = [\"write\"]\neffect = \"allow\"\ntier = \"production-read\"",
    );
    assert_eq!(hold(&policy, "read public.a").scope, HoldScope::SessionReads);
    assert_eq!(hold(&policy, "write public.a").scope, HoldScope::Command);
    assert_eq!(hold(&policy, "read public.a, write public.a").scope, HoldScope::Command);
    let autonomous = load(&format!(
        "{HEAD}tier = \"production-read\"\n[[rule]]\nname = \"w\"\nverbs = [\"write\"]\neffect = \"allow\"\ntier = \"production-read\""
    ));
    assert_eq!(hold(&autonomous, "read public.a, write public.a").scope, HoldScope::Command);
}

#[test]
fn a_rule_adds_to_a_tier_unless_it_names_it() {
    let rule = |extra: &str| {
        format!(
            "[[rule]]\nname = \"r\"\nverbs = [\"read\", \"write\"]\ntargets = [\"public.*\"]\neffect = \"allow\"\n{extra}\n"
        )
    };
    table(
        &tiered("production-read", &rule("")),
        &[
            ("read public.a", "hold tier:production-read/first read"),
            ("write public.a", "deny tier:production-read/changes"),
        ],
    );
    table(
        &tiered("production-read", &rule("tier = \"production-read\"")),
        &[
            ("read public.a", "allow r"),
            ("write public.a", "allow r"),
            ("read other.a", "hold tier:production-read/first read"),
            ("write other.a", "deny tier:production-read/changes"),
            ("write public.a, write other.a", "deny tier:production-read/changes"),
            ("write public.a, read other.a", "hold tier:production-read/first read"),
            ("delete public.a", "deny tier:production-read/changes"),
            // Nothing that is in doubt stands in a tier's place.
            ("write ?.a", "deny tier:production-read/changes"),
        ],
    );
    let held = "[[rule]]\nname = \"r\"\nverbs = [\"write\"]\ntargets = [\"public.*\"]\neffect = \"hold\"\ntier = \"production-read\"\n";
    table(
        &tiered("production-read", held),
        &[
            ("write public.a", "hold r"),
            ("write ?.a", "deny tier:production-read/changes"),
            ("write public.?", "deny tier:production-read/changes"),
        ],
    );
    // An expression that cannot be evaluated keeps the tier.
    let held = format!("{held}when = \"database == 'x' || session.intent == 'test' && sql.tables[7] == 'a'\"\n");
    table(&tiered("production-read", &held), &[("write public.a", "deny tier:production-read/changes")]);
    // A stricter rule holds against one that names the tier.
    let denied = format!(
        "{}[[rule]]\nname = \"no\"\ntargets = [\"public.b\"]\neffect = \"deny\"\n",
        rule("tier = \"production-read\"")
    );
    table(&tiered("production-read", &denied), &[("read public.b", "deny no"), ("read public.a", "allow r")]);
}

#[test]
fn autonomy_raises_changes_and_lets_nothing_through() {
    let rules = r#"
[[rule]]
name = "all"
verbs = ["read", "write", "execute", "unknown"]
effect = "allow"
[[rule]]
name = "tell"
verbs = ["delete"]
effect = "notify"
[[rule]]
name = "wait"
verbs = ["schema"]
effect = "hold"
expires = "2h"
reviewers = ["group:dba"]
"#;
    let rows = |write: &str, delete: &str, schema: &str| {
        [
            ("read public.a".to_owned(), "allow all".to_owned()),
            ("connect db".into(), "allow implicit".into()),
            ("session sql:transaction".into(), "allow implicit".into()),
            ("write public.a".into(), write.into()),
            ("execute fn:public.f".into(), write.into()),
            ("unknown sql:opaque".into(), write.into()),
            ("read public.a, write public.a".into(), write.into()),
            ("delete public.a".into(), delete.into()),
            ("schema public.a".into(), schema.into()),
            ("admin sql:vacuum".into(), "deny default".into()),
            ("write public.a, admin sql:vacuum".into(), "deny default".into()),
        ]
    };
    for (autonomy, write, delete, schema) in [
        ("autonomous", "allow all", "notify tell", "hold wait"),
        ("notify", "notify autonomy:notify", "notify tell", "hold wait"),
        ("confirm", "hold autonomy:confirm", "hold autonomy:confirm", "hold wait"),
        ("suggest", "suggest autonomy:suggest", "suggest autonomy:suggest", "suggest autonomy:suggest"),
    ] {
        let policy = with_autonomy(autonomy, rules);
        for (parts, want) in rows(write, delete, schema) {
            assert_eq!(said(&policy, &action(&parts)), want, "{autonomy}: {parts}");
        }
    }
    let confirm = with_autonomy("confirm", rules);
    assert_eq!(hold(&confirm, "schema public.a").expires.as_secs(), 7200, "the rule's own wait is kept");
    assert_eq!(&*hold(&confirm, "schema public.a, write public.a").reason.rule, "wait");
    // Autonomy is `confirm` where the file says nothing.
    let silent = load(&format!("{HEAD}{rules}").replace("autonomy = \"autonomous\"\n", ""));
    assert_eq!(said(&silent, &action("write public.a")), "hold autonomy:confirm");
}

#[test]
fn only_a_rule_that_names_unknown_lets_it_pass() {
    let rule = |effect: &str, verbs: &str| format!("[[rule]]\nname = \"r\"\n{verbs}\neffect = \"{effect}\"\n");
    for (effect, verbs, want) in [
        ("allow", "", "deny default"),
        ("notify", "", "deny default"),
        ("hold", "", "deny default"),
        ("suggest", "", "suggest r"),
        ("deny", "", "deny r"),
        ("allow", "verbs = [\"unknown\"]", "allow r"),
        ("hold", "verbs = [\"unknown\", \"read\"]", "hold r"),
        ("allow", "verbs = [\"read\"]", "deny default"),
    ] {
        assert_eq!(said(&policy(&rule(effect, verbs)), &action("unknown sql:opaque")), want, "{effect} {verbs}");
    }
    // A hold of everything still adds to a rule that lets it pass.
    let both = "[[rule]]\nname = \"pass\"\nverbs = [\"unknown\"]\neffect = \"allow\"\n[[rule]]\nname = \"wait\"\neffect = \"hold\"\n";
    assert_eq!(said(&policy(both), &action("unknown sql:opaque")), "hold wait");
    let both = both.replace("\"hold\"", "\"allow\"");
    assert_eq!(said(&policy(&both), &action("unknown sql:opaque")), "allow pass");
}

#[test]
fn expressions_ask_about_the_statement_of_the_part() {
    let policy = policy(
        r#"
[[rule]]
name = "all"
effect = "allow"
[[rule]]
name = "no unbounded change"
when = "sql.verb in ['update', 'delete'] && !sql.has_where"
effect = "deny"
[[rule]]
name = "big reads wait"
verbs = ["read"]
when = "!sql.has_limit && 'public.events' in sql.tables"
effect = "hold"
"#,
    );
    let facts = |verb: &str, has_where, has_limit, parts| SqlFacts {
        verb: verb.into(),
        has_where,
        has_limit,
        parts,
        tables: vec![Target::new("public.events")],
        statements: 1,
        ..SqlFacts::default()
    };
    let one = |parts: &str, verb: &str, has_where, has_limit| {
        said(&policy, &with_facts(parts, facts(verb, has_where, has_limit, 0..0)))
    };
    assert_eq!(one("write public.events", "update", true, false), "allow all");
    assert_eq!(one("write public.events", "update", false, false), "deny no unbounded change");
    assert_eq!(one("delete public.events", "delete", false, true), "deny no unbounded change");
    assert_eq!(one("read public.events", "select", false, false), "hold big reads wait");
    assert_eq!(one("read public.events", "select", false, true), "allow all");
    // Two statements: each part meets its own facts, and the order does not matter.
    for (first, second) in [(0, 1), (1, 0)] {
        let mut action = action("write public.a, write public.b");
        let mut both = [facts("update", true, true, 0..0), facts("update", false, true, 0..0)];
        both.swap(first, second);
        both[0].parts = 0..1;
        both[1].parts = 1..2;
        action.facts = Facts::Sql(both.into());
        assert_eq!(said(&policy, &action), "deny no unbounded change");
    }
}

#[test]
fn what_cannot_be_evaluated_matches_refusals_only() {
    for (effect, want) in [
        ("allow", "deny default"),
        ("notify", "deny default"),
        ("hold", "hold r"),
        ("suggest", "suggest r"),
        ("deny", "deny r"),
    ] {
        let rule = |when: &str| policy(&format!("[[rule]]\nname = \"r\"\nwhen = \"{when}\"\neffect = \"{effect}\"\n"));
        for when in
            ["sql.has_where", "!sql.has_where", "sql.tables[0] == 'a'", "sql.statements / (sql.statements - 1) == 1"]
        {
            let mut none = action("read public.a");
            none.facts = Facts::None;
            assert_eq!(said(&rule(when), &none), want, "{effect} {when}");
        }
        // Facts that do not cover the part are no facts for it.
        let mut uncovered = action("read public.a, read public.b");
        uncovered.facts = Facts::Sql([SqlFacts { parts: 0..1, has_where: true, ..SqlFacts::default() }].into());
        assert_eq!(said(&rule("sql.has_where"), &uncovered), want, "{effect}");
        let mut no_intent = who();
        no_intent.intent = None;
        let decision = rule("session.intent == 'x'").decide(&no_intent, &to(), &action("read public.a"));
        assert_eq!(format!("{} {}", decision.effect().as_str(), decision.rule()), want);
    }
}

#[test]
fn what_is_remembered_is_one_policys() {
    let open = policy("[[rule]]\nname = \"all\"\nverbs = [\"read\"]\neffect = \"allow\"\n");
    let shut = policy("[[rule]]\nname = \"none\"\nverbs = [\"read\"]\neffect = \"deny\"\n");
    let (last, asked) = (Remembered::default(), action("read public.a"));
    for policy in [&open, &open, &shut, &shut, &open] {
        assert_eq!(last.decide(policy, &who(), &to(), &asked), policy.decide(&who(), &to(), &asked));
    }
}

#[test]
fn the_resource_must_be_the_policys() {
    let policy =
        load(&format!("{HEAD}databases = [\"shop\", \"Odd\"]\n[[rule]]\nname = \"all\"\neffect = \"allow\"\n"));
    let judge = |who: &Subject, to: &Resource| {
        let decision = policy.decide(who, to, &action("read public.a"));
        (decision.effect(), decision.rule().to_string())
    };
    assert_eq!(judge(&who(), &to()), (Effect::Allow, "all".into()));
    for database in [Some("postgres"), Some("SHOP"), Some("odd"), Some(""), None] {
        let to = Resource { database: database.map(Into::into), ..to() };
        assert_eq!(judge(&who(), &to), (Effect::Deny, "databases".into()), "{database:?}");
    }
    assert_eq!(judge(&who(), &Resource { upstream: "other".into(), ..to() }), (Effect::Deny, "default".into()));
    assert_eq!(judge(&Subject { workload: "other".into(), ..who() }, &to()), (Effect::Deny, "default".into()));
}

#[test]
fn rules_are_about_their_upstreams() {
    let policy = load(&format!(
        "{HEAD}\n[[upstream]]\nname = \"two\"\nprotocol = \"postgres\"\naddress = [\"two:1\", \"[::1]:2\"]\ntier = \"critical\"\n\
         [[rule]]\nname = \"one only\"\nupstream = \"db\"\nverbs = [\"read\"]\neffect = \"allow\"\n\
         [[rule]]\nname = \"both\"\nupstream = [\"db\", \"two\"]\nprotocol = \"postgres\"\nverbs = [\"write\"]\neffect = \"notify\"\n\
         [[mask]]\ncolumns = [\"*.ssn\"]\nwith = \"null\"\n\
         [[mask]]\nupstream = \"two\"\ncolumns = [\"email\", \"public.t.c\", \"**.x\"]\ndetect = [\"iban\"]\nwith = \"hash\"\n"
    ));
    assert_eq!(said(&policy, &action("read public.a")), "allow one only");
    assert_eq!(said(&policy, &action("write public.a")), "notify both");
    let two = Resource { upstream: "two".into(), ..to() };
    assert_eq!(policy.decide(&who(), &two, &action("read public.a")).effect(), Effect::Deny);
    assert_eq!(policy.masks("db").len(), 1);
    assert_eq!(policy.masks("db")[0].columns, ["**.*.ssn"]);
    assert_eq!(policy.masks("two")[1].columns, ["**.email", "public.t.c", "**.x"]);
    assert!(policy.masks("nowhere").is_empty());
    assert_eq!(policy.upstream("two").expect("declared").addresses, ["two:1", "[::1]:2"]);
}

#[test]
fn masks_of_requests_are_for_http_and_routes_have_verbs() {
    let http = format!("{HEAD}\n[[upstream]]\nname = \"api\"\nprotocol = \"http\"\naddress = \"api:443\"\n");
    let both = "[[mask]]\ndetect = [\"email\"]\nwith = \"redact\"\n\
         [[mask]]\ndirection = \"request\"\ndetect = [\"email\"]\nwith = \"hash\"\n";
    let policy = load(&format!("{http}{both}"));
    assert_eq!(policy.masks("db").len(), 1, "what postgres is sent is not masked");
    let ways: Vec<_> = policy.masks("api").iter().map(|mask| (mask.direction, mask.with)).collect();
    assert_eq!(ways, [(Direction::Response, MaskWith::Redact), (Direction::Request, MaskWith::Hash)]);
    for (more, said) in [
        (
            "[[mask]]\nupstream = \"db\"\ndirection = \"request\"\ndetect = [\"email\"]\nwith = \"hash\"\n",
            "`direction` is for upstreams of the protocol `http`",
        ),
        (
            "[[mask]]\nupstream = \"db\"\ndirection = \"request\"\ncolumns = [\"a.b\"]\nwith = \"hash\"\n",
            "a request has no columns",
        ),
        ("[[upstream.route]]\ntargets = [\"POST /x\"]\nverb = \"connect\"\n", "no request does `connect`"),
        ("[[upstream.route]]\ntargets = [\"/x\"]\nverb = \"read\"\n", "a target is `METHOD /path`"),
        ("[[upstream.route]]\ntargets = []\nverb = \"read\"\n", "a route needs a target"),
    ] {
        let errors = PolicySet::from_texts([("a.toml", &*format!("{http}{more}"))]).expect_err("refused");
        let lines: Vec<_> = errors.lines().map(|line| format!("{line:?}")).collect();
        assert!(lines.iter().any(|line| line.contains(said)), "{more}: {lines:?}");
    }
    let text = format!("{HEAD}[[upstream.route]]\ntargets = [\"POST /x\"]\nverb = \"read\"\n");
    let errors = PolicySet::from_texts([("a.toml", &*text)]).expect_err("refused");
    assert!(errors.to_string().contains("only requests of HTTP have routes"), "{errors}");
}

#[test]
fn sets_find_policies_by_workload_and_cgroup() {
    let other = HEAD.replace("\"bot\"", "\"other\"").replace("/bot/", "/other/");
    let set = PolicySet::from_texts([("a.toml", HEAD), ("b.toml", &other)]).expect("valid");
    assert_eq!(set.policies().len(), 2);
    assert_eq!(&*set.by_workload("other").expect("there").workload().name, "other");
    assert_eq!(&*set.by_cgroup("portcullis.slice/bot/s1").expect("there").workload().name, "bot");
    for path in
        ["portcullis.slice/bot", "portcullis.slice/bot/a/b", "portcullis.slice", "", "x/portcullis.slice/bot/s1"]
    {
        assert!(set.by_cgroup(path).is_none(), "{path}");
    }
    assert_eq!(set.policies()[0].cgroup_parent(), "portcullis.slice/bot");
    let again = PolicySet::from_texts([("x/a.toml", HEAD), ("x/b.toml", &other)]).expect("valid");
    assert_eq!(set.hash(), again.hash());
    let changed = PolicySet::from_texts([("a.toml", HEAD), ("b.toml", &format!("{other}\n"))]).expect("valid");
    assert_ne!(set.hash(), changed.hash());
}

#[test]
fn folders_load_without_cases_and_hidden_files() {
    let dir = tempfile::tempdir().expect("temp dir");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("bot.toml", HEAD);
    write("bot.cases.toml", "not a policy");
    write(".bot.toml.swp.toml", "not a policy");
    write("README", "not a policy");
    let set = PolicySet::load(dir.path()).expect("valid");
    assert_eq!(set.policies().len(), 1);
    write("broken.toml", "[workload");
    assert!(PolicySet::load(dir.path()).is_err(), "one broken file refuses the set");
    assert!(PolicySet::load(&dir.path().join("missing")).is_err());
}

#[test]
fn expanded_rules_are_policy() {
    let text = format!(
        "{HEAD}tier = \"production-read\"\n[[rule]]\nname = \"r\"\nverbs = [\"read\"]\ntargets = [\"public.*\"]\nexcept = [\"public.\\\"A b\\\"\"]\nwhen = \"sql.has_where\"\neffect = \"hold\"\nrequired = \"two\"\nreviewers = [\"group:dba\"]\nexpires = \"1h30m\"\n"
    );
    let policy = with_autonomy("confirm", text.strip_prefix(HEAD).expect("head"));
    let printed: Vec<String> = policy.expanded().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(printed.join("\n"));
    // Under names that are free, what was printed loads and decides alike.
    let rules = printed.join("\n").replace("name = \"tier:", "name = \"t:").replace("name = \"implicit", "name = \"i");
    let rules = rules.split("# from the workload's").next().unwrap_or_default().to_owned()
        + rules.split_once("# part of").map_or("", |(_, rest)| rest.split_once('\n').map_or("", |(_, rest)| rest));
    let again = with_autonomy("confirm", &rules);
    for parts in ["read public.a", "read other.a", "write public.a", "connect db", "unknown sql:opaque"] {
        let [a, b] = [&policy, &again].map(|policy| policy.decide(&who(), &to(), &action(parts)).effect());
        assert_eq!(a, b, "{parts}");
    }
}

#[test]
fn explanations_name_every_rule() {
    let policy = with_autonomy(
        "confirm",
        "tier = \"production-read\"\n[[rule]]\nname = \"reads\"\nverbs = [\"read\"]\ntargets = [\"public.*\"]\nexcept = [\"public.payroll\"]\neffect = \"allow\"\n\
         [[rule]]\nname = \"big\"\nwhen = \"!sql.has_limit\"\neffect = \"hold\"\nreviewers = [\"group:dba\"]\n",
    );
    insta::assert_snapshot!(policy.explain(&who(), &to(), &action("read public.a, write public.b")));
    let json = serde_json::to_value(policy.explain(&who(), &to(), &action("read public.payroll"))).expect("plain data");
    assert_eq!(json["effect"], "hold");
    assert_eq!(json["hold"]["reviewers"][0], "group:dba");
    assert_eq!(json["parts"][0]["rules"].as_array().map(Vec::len), Some(6));
}

#[test]
fn the_schema_knows_the_format() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    let keys = |of: &str| -> Vec<String> {
        schema["$defs"][of]["properties"].as_object().expect(of).keys().cloned().collect()
    };
    for key in ["when", "except", "reviewers", "required", "tier", "scope", "dry_run"] {
        assert!(keys("Rule").iter().any(|k| k == key), "{key}");
    }
    assert!(keys("Upstream").contains(&"client_tls".to_owned()));
}

#[test]
fn cases_report_what_differs() {
    let policy = tiered("production-read", "[[rule]]\nname = \"r\"\nverbs = [\"write\"]\neffect = \"hold\"\n");
    let cases = cases::Cases::from_text(
        "bot.cases.toml",
        r#"
[[case]]
name = "reads wait"
command = "read public.a"
expect = "hold"
rule = "tier:production-read/first read"

[[case]]
name = "wrong effect"
upstream = "db"
command = "write public.a"
expect = "hold"

[[case]]
name = "wrong rule"
command = "write public.a"
expect = "deny"
rule = "r"
"#,
    )
    .expect("valid");
    let report = cases.run(&policy, |_, text| action(text)).expect("runs");
    assert_eq!((report.passed(), report.failed()), (1, 2));
    insta::assert_snapshot!(report);
    let bad = "[[case]]\nname = \"x\"\nupstream = \"bd\"\ncommand = \"\"\nexpect = \"deny\"\nrule = \"tier:production-read/frist read\"";
    let errors = cases::Cases::from_text("c", bad)
        .expect("valid")
        .run(&policy, |_, text| action(text))
        .expect_err("unknown names");
    insta::assert_snapshot!(errors.lines().collect::<Vec<_>>().join("\n"));
    assert!(cases::Cases::from_text("c", "").is_err(), "no cases test nothing");
    assert!(cases::Cases::from_text("c", "[[case]]\nname = 1").is_err());
}

#[test]
fn what_asks_for_facts_of_commands_is_not_about_connections() {
    let rule = |rest: &str| policy(&format!("[[rule]]\nname = \"r\"\neffect = \"deny\"\n{rest}\n"));
    let connect = |to: &Resource| Action::single(to.protocol, Verb::Connect, Target::new("db:5432"));
    let connects = |policy: &Policy| policy.decide(&who(), &to(), &connect(&to())).effect();
    assert_eq!(connects(&rule("when = \"sql.verb == 'update'\"")), Effect::Allow);
    assert_eq!(connects(&rule("when = \"upstream == 'db'\"")), Effect::Deny);
    // Where it names the verb, it is: and has no answer, so that it refuses.
    assert_eq!(connects(&rule("verbs = [\"connect\"]\nwhen = \"sql.verb == 'update'\"")), Effect::Deny);
    for file in ["analyst", "api-bot", "developer", "migration-bot", "support-bot"] {
        let path = format!("{}/../policies/{file}.toml", env!("CARGO_MANIFEST_DIR"));
        let set = PolicySet::load_file(path.as_ref()).expect("an example");
        for policy in set.policies() {
            for upstream in policy.upstreams() {
                let who = Subject { workload: policy.workload().name.clone(), ..who() };
                let to = Resource {
                    upstream: upstream.name.clone(),
                    protocol: upstream.protocol,
                    database: upstream.databases.first().map(|database| database.as_str().into()),
                    ..to()
                };
                let decision = policy.decide(&who, &to, &connect(&to));
                assert_eq!(decision.effect(), Effect::Allow, "{file}: {decision:?}");
            }
        }
    }
}
