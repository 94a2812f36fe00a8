//! A corpus of attacks: what each must be seen as, and what it must meet under one policy (`attacks.toml`).
//!
//! Beside them stand harmless commands that look alike, so that refusing everything is no way to pass.

use std::collections::BTreeSet;

use portcullis::{
    action::{Action, ProcessFacts, ProtocolId, Resource, Subject},
    policy::{Effect, Policy, PolicySet},
    sql::{classify, fuzz},
};

const ATTACKS: &str = include_str!("attacks.txt");
const POLICY: &str = include_str!("attacks.toml");

/// One case of the file: `== name`, `-> effect`, parts after `=> ` one a line, and the command.
pub struct Attack {
    pub name: &'static str,
    effect: &'static str,
    parts: Vec<&'static str>,
    pub command: String,
}

/// The cases. `<U+000D>` in a command stands for that character, so that none depends on how the file is stored.
pub fn all() -> Vec<Attack> {
    let attack = |block: &'static str| {
        let (name, rest) = block.split_once('\n').expect("a name");
        let mut attack = Attack { name, effect: "", parts: Vec::new(), command: String::new() };
        let mut lines = rest.trim_end_matches('\n').split('\n');
        let first = loop {
            let line = lines.next().expect("a command");
            match (line.strip_prefix("-> "), line.strip_prefix("=> ")) {
                (Some(effect), _) => attack.effect = effect,
                (_, Some(part)) => attack.parts.push(part),
                _ => break line,
            }
        };
        let command = std::iter::once(first).chain(lines).collect::<Vec<_>>().join("\n");
        attack.command = decode(&command);
        attack
    };
    ATTACKS.split("\n== ").skip(1).map(attack).collect()
}

fn decode(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<U+") {
        let (digits, behind) = after.split_once('>').expect("<U+...>");
        let code = u32::from_str_radix(digits, 16).expect("hexadecimal digits");
        out.push_str(before);
        out.push(char::from_u32(code).expect("a character"));
        rest = behind;
    }
    out + rest
}

fn policy() -> std::sync::Arc<Policy> {
    let set = PolicySet::from_texts([("attacks.toml", POLICY)]);
    let set = set.unwrap_or_else(|errors| panic!("{:#?}", errors.lines().collect::<Vec<_>>()));
    set.by_workload("bot").expect("the bot's policy").clone()
}

fn effect(policy: &Policy, action: &Action) -> Effect {
    let who = Subject {
        workload: "bot".into(),
        tenant: None,
        session: "attack".into(),
        cgroup: 0,
        intent: None,
        trace_id: "00000000000000000000000000000000".into(),
        ends_at: None,
        process: ProcessFacts::default(),
    };
    let to = Resource {
        upstream: "shop".into(),
        protocol: ProtocolId::Postgres,
        address: "localhost:5432".into(),
        database: Some("shop".into()),
    };
    policy.decide(&who, &to, action).effect()
}

#[test]
fn attacks_are_seen_for_what_they_are() {
    let policy = policy();
    let attacks = all();
    let mut failed = Vec::new();
    for Attack { name, effect: expected, parts, command } in &attacks {
        let action = classify(command, &fuzz::Fixed).action;
        let found: Vec<String> = action.parts.iter().map(|(verb, target)| format!("{verb} {target}")).collect();
        let missing = parts.iter().find(|part| match part.strip_prefix("not ") {
            Some(absent) => found.iter().any(|f| f == absent),
            None => !found.iter().any(|f| f == *part || (part.ends_with(' ') && f.starts_with(*part))),
        });
        if let Some(part) = missing {
            failed.push(format!("{name}: no `{part}` in {found:?}\n{command}"));
        }
        let met = effect(&policy, &action).as_str();
        if met != *expected {
            failed.push(format!("{name}: meets {met}, not {expected}, with {found:?}\n{command}"));
        }
        fuzz::classification(command);
    }
    println!("attacks {}, missed {}", attacks.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn each_attack_is_another_and_not_all_are_refused() {
    let attacks = all();
    let distinct = |of: fn(&Attack) -> &str| attacks.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(|a| a.name), attacks.len(), "two cases of one name");
    assert_eq!(distinct(|a| a.command.as_str()), attacks.len(), "two cases of one command");
    let meeting = |effect: &str| attacks.iter().filter(|a| a.effect == effect).count();
    let counts = ["allow", "notify", "hold", "suggest", "deny"].map(|effect| (effect, meeting(effect)));
    println!("{counts:?}");
    assert_eq!(counts.iter().map(|(_, n)| n).sum::<usize>(), attacks.len(), "every case has an effect");
    assert!(attacks.len() - meeting("allow") >= 300 && meeting("allow") >= 60, "{counts:?}");
    assert!(counts.iter().all(|(_, n)| *n >= 5), "{counts:?}");
}
