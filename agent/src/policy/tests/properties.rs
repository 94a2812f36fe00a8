//! What holds for every policy.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Generated {
    effect: &'static str,
    keys: String,
}

impl Generated {
    fn named(&self, name: usize) -> String {
        format!("[[rule]]\nname = \"r{name}\"\neffect = \"{}\"\n{}", self.effect, self.keys)
    }
}

const VERBS: &[&str] = &["connect", "read", "write", "delete", "execute", "session", "unknown"];
const TARGETS: &[&str] = &["public.a", "public.b", "hr.a", "?.a", "hr.?", "fn:public.a", "sql:opaque"];
const GLOBS: &[&str] = &["public.*", "public.a", "hr.*", "*.a", "**", "fn:public.*", "**.b"];
const WHENS: &[&str] =
    &["sql.has_where", "!sql.has_where", "sql.tables[0] == 'x'", "upstream == 'db'", "session.intent == 'none'"];

/// `tier` is the tier that a rule may name.
fn rule(tier: Option<&'static str>) -> impl Strategy<Value = Generated> {
    let list = |words: &'static [&'static str]| prop::option::of(prop::sample::subsequence(words, 1..3));
    (
        prop::sample::select(&["allow", "allow", "notify", "hold", "suggest", "deny"][..]),
        list(VERBS),
        list(GLOBS),
        list(GLOBS),
        prop::option::weighted(0.3, prop::sample::select(WHENS)),
        (any::<bool>(), 0..3usize, prop::option::weighted(0.4, Just(()))),
    )
        .prop_map(move |(effect, verbs, targets, except, when, (two, reviewers, named))| {
            let mut keys = String::new();
            let lists = [("verbs", verbs), ("targets", targets), ("except", except)];
            for (key, list) in lists.into_iter().filter_map(|(key, list)| Some((key, list?))) {
                keys += &format!("{key} = {list:?}\n");
            }
            if let Some(when) = when {
                keys += &format!("when = \"{when}\"\n");
            }
            if let Some(tier) = tier.filter(|_| named.is_some()) {
                keys += &format!("tier = \"{tier}\"\n");
            }
            if effect == "hold" {
                keys += if two { "required = \"two\"\n" } else { "expires = \"1h\"\n" };
                keys += ["", "dry_run = true\n", "dry_run = false\n"][reviewers];
                keys += ["", "reviewers = [\"user:a\"]\n", "reviewers = [\"user:a\", \"user:b\"]\n"][reviewers];
            }
            Generated { effect, keys }
        })
}

fn actions() -> impl Strategy<Value = Action> {
    let part = (prop::sample::select(VERBS), prop::sample::select(TARGETS));
    (prop::collection::vec(part, 0..4), any::<bool>(), 0..3usize).prop_map(|(parts, has_where, facts)| {
        let text: Vec<String> = parts.iter().map(|(verb, target)| format!("{verb} {target}")).collect();
        let sql = SqlFacts { has_where, tables: vec![Target::new("x")], ..SqlFacts::default() };
        let mut action = with_facts(&text.join(","), sql);
        if facts == 0 {
            action.facts = Facts::None;
        }
        action
    })
}

const TIERS: &[&str] = &["", "tier = \"production-read\"", "tier = \"production-write\"", "tier = \"staging\""];

fn build(autonomy: &str, tier: &str, rules: &[Generated]) -> Arc<Policy> {
    let rules: String = rules.iter().enumerate().map(|(i, rule)| rule.named(i)).collect();
    with_autonomy(autonomy, &format!("{tier}\n{rules}"))
}

fn judge(policy: &Policy, action: &Action) -> Decision {
    policy.decide(&who(), &to(), action)
}

/// Strictness beyond the effect: more reviewers, fewer people, less time and reach.
fn at_least_as_strict(new: &Decision, old: &Decision) -> bool {
    match (new, old) {
        (Decision::Hold(new), Decision::Hold(old)) => {
            let fewer = old.reviewers.is_empty()
                || !new.reviewers.is_empty() && new.reviewers.iter().all(|reviewer| old.reviewers.contains(reviewer));
            let shorter = new.expires <= old.expires || old.expires == DEFAULT_EXPIRES;
            let reach = new.scope == HoldScope::Command || old.scope == HoldScope::SessionReads;
            new.required >= old.required && fewer && shorter && reach
        }
        (new, old) => new.effect() >= old.effect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_order_of_rules_and_parts_never_matters(
        rules in prop::collection::vec(rule(Some("production-read")), 0..6),
        autonomy in prop::sample::select(&["suggest", "confirm", "notify", "autonomous"][..]),
        actions in prop::collection::vec(actions(), 8),
        seed in any::<prop::sample::Index>(),
    ) {
        let texts: Vec<String> = rules.iter().enumerate().map(|(i, rule)| rule.named(i)).collect();
        let mut turned = texts.clone();
        turned.reverse();
        if !turned.is_empty() {
            let by = seed.index(turned.len());
            turned.rotate_left(by);
        }
        let tier = "tier = \"production-read\"\n";
        let one = with_autonomy(autonomy, &format!("{tier}{}", texts.concat()));
        let other = with_autonomy(autonomy, &format!("{tier}{}", turned.concat()));
        for action in &actions {
            let decision = judge(&one, action);
            prop_assert_eq!(&decision, &judge(&other, action));
            // Parts in another order, of one statement.
            let mut reversed = action.clone();
            reversed.parts.reverse();
            prop_assert_eq!(&decision, &judge(&one, &reversed));
            // Parts twice over.
            let mut doubled = action.clone();
            doubled.parts.extend(action.parts.clone());
            if let Facts::Sql(facts) = &action.facts {
                doubled.facts = Facts::Sql(facts.iter().cloned().map(|f| SqlFacts { parts: 0..doubled.parts.len(), ..f }).collect());
            }
            prop_assert_eq!(&decision, &judge(&one, &doubled));
        }
    }

    /// What no rule answered is refused already; whatever else was answered is never answered more laxly for one more
    /// rule, of any effect. Only a rule that names a tier may be laxer than that tier.
    #[test]
    fn one_more_rule_never_makes_a_decision_laxer(
        rules in prop::collection::vec(rule(Some("production-read")), 0..5),
        more in rule(None),
        place in 0..6usize,
        autonomy in prop::sample::select(&["suggest", "confirm", "notify", "autonomous"][..]),
        actions in prop::collection::vec(actions(), 8),
    ) {
        let tier = "tier = \"production-read\"";
        let before = build(autonomy, tier, &rules);
        let mut grown: Vec<String> = rules.iter().enumerate().map(|(i, rule)| rule.named(i)).collect();
        grown.insert(place.min(rules.len()), more.named(99));
        let after = with_autonomy(autonomy, &format!("{tier}\n{}", grown.concat()));
        for action in &actions {
            let (old, new) = (judge(&before, action), judge(&after, action));
            let unanswered = &**old.rule() == "default";
            prop_assert!(
                unanswered || at_least_as_strict(&new, &old),
                "{:?}\n{:?}\n{:?}", action.parts, old, new
            );
            if more.effect == "deny" {
                prop_assert!(new.effect() >= old.effect());
            }
        }
    }

    #[test]
    fn more_autonomy_is_never_stricter_and_opens_nothing(
        rules in prop::collection::vec(rule(None), 0..5),
        tier in prop::sample::select(TIERS),
        actions in prop::collection::vec(actions(), 8),
    ) {
        let policies = ["suggest", "confirm", "notify", "autonomous"].map(|autonomy| build(autonomy, tier, &rules));
        for action in &actions {
            let effects: Vec<Effect> = policies.iter().map(|policy| judge(policy, action).effect()).collect();
            prop_assert!(effects.is_sorted_by(|a, b| a >= b), "{:?} {:?}", action.parts, effects);
            prop_assert_eq!(effects[0] == Effect::Deny, effects[3] == Effect::Deny, "{:?}", action.parts);
        }
    }

    #[test]
    fn an_action_is_never_laxer_than_any_of_its_parts(
        rules in prop::collection::vec(rule(None), 0..6),
        tier in prop::sample::select(TIERS),
        action in actions(),
    ) {
        let policy = build("confirm", tier, &rules);
        let whole = judge(&policy, &action);
        for part in &action.parts {
            let mut single = action.clone();
            single.parts = smallvec::smallvec![part.clone()];
            let single = judge(&policy, &single);
            prop_assert!(whole.effect() >= single.effect(), "{:?}: {:?} {:?}", part, whole, single);
        }
    }
}
