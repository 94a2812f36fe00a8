//! What an agent would try with names, parts and facts.

use super::*;

const RULES: &str = r#"
[[rule]]
name = "public"
verbs = ["read", "execute"]
targets = ["public.*"]
except = ["public.payroll"]
effect = "allow"
[[rule]]
name = "no hr"
targets = ["hr.*", "**.salaries"]
effect = "deny"
"#;

#[test]
fn names_do_not_cross_segments() {
    table(
        &policy(RULES),
        &[
            ("read public.orders", "allow public"),
            ("read public.\"hr.people\"", "allow public"),
            ("read public.a.b", "deny default"),
            ("read \"public.orders\"", "deny default"),
            ("read \"public\".orders", "allow public"),
            ("read \"Public\".orders", "deny default"),
            ("read public.\"payroll\"", "deny default"),
            ("read public.payroll", "deny default"),
            ("read public.\"Payroll\"", "allow public"),
            ("read public.\"payroll \"", "allow public"),
            ("execute fn:public.orders", "deny default"),
            ("read hr.people", "deny no hr"),
            ("read \"hr\".\"people\"", "deny no hr"),
            ("read public.\"salaries\"", "deny no hr"),
            ("read public.\"x.salaries\"", "allow public"),
            ("read a.b.salaries", "deny no hr"),
        ],
    );
}

#[test]
fn unresolved_names_are_never_let_through() {
    table(
        &policy(RULES),
        &[
            ("read ?.orders", "deny no hr"),
            ("read ?.payroll", "deny no hr"),
            ("read public.?", "deny no hr"),
            ("read ?.?", "deny no hr"),
            ("execute fn:?.f", "deny default"),
            ("read \"?\".orders", "deny default"),
            ("read public.orders, read ?.x", "deny no hr"),
        ],
    );
    let wide = "[[rule]]\nname = \"wide\"\ntargets = [\"**\"]\nexcept = [\"public.payroll\"]\nverbs = [\"read\"]\neffect = \"allow\"\n";
    table(
        &policy(wide),
        &[
            ("read ?.orders", "allow wide"),
            // It could be public.payroll.
            ("read ?.payroll", "deny default"),
            ("read public.?", "deny default"),
            ("read other.?", "allow wide"),
        ],
    );
    // A hold that might be meant adds to a permission and is none itself.
    let hold = "[[rule]]\nname = \"wait\"\ntargets = [\"public.*\"]\nverbs = [\"read\"]\neffect = \"hold\"\n";
    table(&policy(hold), &[("read public.a", "hold wait"), ("read ?.a", "deny default")]);
    let both = format!("{hold}[[rule]]\nname = \"any\"\ntargets = [\"**\"]\nverbs = [\"read\"]\neffect = \"allow\"\n");
    table(&policy(&both), &[("read ?.a", "hold wait"), ("read other.a", "allow any")]);
    // So does a refusal whose exception might be meant.
    let deny = "[[rule]]\nname = \"no\"\nexcept = [\"public.ok\"]\nverbs = [\"read\"]\neffect = \"deny\"\n[[rule]]\nname = \"any\"\nverbs = [\"read\"]\neffect = \"allow\"\n";
    table(&policy(deny), &[("read public.ok", "allow any"), ("read ?.ok", "deny no"), ("read public.x", "deny no")]);
    let suggest = deny.replace("\"deny\"", "\"suggest\"");
    table(&policy(&suggest), &[("read ?.ok", "suggest no"), ("read public.ok", "allow any")]);
}

#[test]
fn one_bad_part_among_many_is_found_wherever_it_is() {
    let policy = policy(RULES);
    for place in [0, 1, 57, 999] {
        let mut parts: Vec<String> = (0..1000).map(|i| format!("read public.t{i}")).collect();
        assert_eq!(said(&policy, &action(&parts.join(","))), "allow public");
        parts[place] = "read hr.people".into();
        assert_eq!(said(&policy, &action(&parts.join(","))), "deny no hr", "{place}");
        parts[place] = "read public.payroll".into();
        assert_eq!(said(&policy, &action(&parts.join(","))), "deny default", "{place}");
        parts[place] = "unknown sql:opaque".into();
        assert_eq!(said(&policy, &action(&parts.join(","))), "deny default", "{place}");
    }
}

#[test]
fn opaque_needs_unknown_even_where_a_protocol_forgot_it() {
    let policy = policy("[[rule]]\nname = \"all\"\neffect = \"allow\"\n");
    let mut forgot = action("read public.a");
    forgot.clarity = Clarity::Opaque;
    assert_eq!(said(&policy, &forgot), "deny default");
    let mut nothing = action("");
    nothing.clarity = Clarity::Opaque;
    assert_eq!(said(&policy, &nothing), "deny default");
    assert_eq!(said(&policy, &Action::opaque(ProtocolId::Postgres, Target::new("sql:opaque"))), "deny default");
}

#[test]
fn facts_in_disorder_are_no_facts() {
    let policy =
        policy("[[rule]]\nname = \"bounded\"\nverbs = [\"delete\"]\nwhen = \"sql.has_where\"\neffect = \"allow\"\n");
    let facts = |parts, has_where| SqlFacts { parts, has_where, ..SqlFacts::default() };
    let said_with = |facts: Vec<SqlFacts>| {
        let mut action = action("delete public.a, delete public.b");
        action.facts = Facts::Sql(facts.into());
        said(&policy, &action)
    };
    assert_eq!(said_with(vec![facts(0..1, true), facts(1..2, true)]), "allow bounded");
    assert_eq!(said_with(vec![facts(0..1, true), facts(1..1, false), facts(1..2, true)]), "allow bounded");
    assert_eq!(said_with(vec![facts(0..1, true), facts(1..2, false)]), "deny default");
    for broken in [
        vec![facts(1..2, true), facts(0..1, true)],
        vec![facts(0..0, true)],
        vec![facts(5..9, true)],
        vec![facts(0..1, true)],
        vec![],
    ] {
        assert_eq!(said_with(broken.clone()), "deny default", "{broken:?}");
    }
}

#[test]
fn hostile_facts_stay_data() {
    let policy = policy(
        "[[rule]]\nname = \"mine\"\nverbs = [\"read\"]\nwhen = \"sql.text == 'select 1' && session.intent == 'ok'\"\neffect = \"allow\"\n",
    );
    for text in ["select 1' || true || '", "select 1\0", "SELECT 1", "select 1 ", "\u{202e}select 1"] {
        let action = with_facts("read public.a", SqlFacts { text: text.into(), ..SqlFacts::default() });
        let who = Subject { intent: Some("ok".into()), ..who() };
        assert_eq!(policy.decide(&who, &to(), &action).effect(), Effect::Deny, "{text:?}");
    }
    let action = with_facts("read public.a", SqlFacts { text: "select 1".into(), ..SqlFacts::default() });
    assert_eq!(said(&policy, &action), "deny default");
    let who = Subject { intent: Some("ok".into()), ..who() };
    assert_eq!(policy.decide(&who, &to(), &action).effect(), Effect::Allow);
}
