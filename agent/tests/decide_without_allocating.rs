//! `decide()` allocates nothing for rules without `when`, however many there are.
#![expect(unsafe_code, reason = "a counting allocator must implement GlobalAlloc; it only forwards to the system's")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use portcullis::{
    action::{Action, Clarity, Facts, ProcessFacts, ProtocolId, Resource, SqlFacts, Subject, Target, Verb},
    policy::{Effect, PolicySet},
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: both calls are the system allocator's with the same arguments; counting touches only a plain thread local.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `System.alloc` above with this layout.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn policy_of_200_rules() -> String {
    let mut text = String::from(
        "[workload]\nname = \"bot\"\ncgroup = \"a/bot/*\"\nautonomy = \"autonomous\"\n\
         [[upstream]]\nname = \"db\"\nprotocol = \"postgres\"\naddress = \"db:1\"\n",
    );
    let verbs = ["[\"read\"]", "[\"read\", \"write\"]", "[\"delete\"]", "[\"read\", \"schema\", \"execute\"]"];
    for i in 0..200 {
        let (effect, target) = match i % 10 {
            0 => ("deny", format!("closed_{i}.*")),
            1 => ("hold", format!("*.waits_{i}")),
            2 => ("notify", format!("**.told_{i}")),
            _ => ("allow", format!("public.t{i}*")),
        };
        let verbs = verbs[i % verbs.len()];
        text +=
            &format!("[[rule]]\nname = \"r{i}\"\nverbs = {verbs}\ntargets = [\"{target}\"]\neffect = \"{effect}\"\n");
    }
    text + "[[rule]]\nname = \"all\"\nverbs = [\"read\", \"write\"]\ntargets = [\"public.*\"]\neffect = \"allow\"\n"
}

#[test]
fn rules_without_when_allocate_nothing() {
    let set = PolicySet::from_texts([("bot.toml", policy_of_200_rules())]).expect("valid");
    let policy = &set.policies()[0];
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
        upstream: "db".into(),
        protocol: ProtocolId::Postgres,
        address: "db:1".into(),
        database: Some("shop".into()),
    };
    for (parts, effect) in [
        (vec![(Verb::Read, "public.orders")], Effect::Allow),
        (vec![(Verb::Read, "public.\"Odd name\""), (Verb::Write, "public.b"), (Verb::Session, "sql:x")], Effect::Allow),
        (vec![(Verb::Write, "public.waits_21")], Effect::Hold),
        (vec![(Verb::Read, "public.a"), (Verb::Read, "closed_20.a")], Effect::Deny),
        (vec![(Verb::Read, "nowhere.a")], Effect::Deny),
        (vec![(Verb::Read, "?.a")], Effect::Deny),
    ] {
        let action = Action {
            protocol: ProtocolId::Postgres,
            parts: parts.iter().map(|(verb, target)| (*verb, Target::new(*target))).collect(),
            clarity: Clarity::Parsed,
            facts: Facts::Sql([SqlFacts { parts: 0..parts.len(), ..SqlFacts::default() }].into()),
        };
        // A thread allocates for the name of a rule that it meets first.
        drop(policy.decide(&who, &to, &action));
        let before = ALLOCATIONS.get();
        let decision = black_box(policy.decide(&who, &to, &action));
        let allocated = ALLOCATIONS.get() - before;
        assert_eq!((decision.effect(), allocated), (effect, 0), "{parts:?} {decision:?}");
    }
    let before = ALLOCATIONS.get();
    drop(black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");
}
