//! A checked policy, and the judging of one action: pure, synchronous, and free of allocation where no `when` is asked and the
//! thread has met the rule before.
//!
//! For each part, rules of its upstream and verb are tried from strict to lax; the first match is the part's answer,
//! and the strictest of the parts' answers is the action's. Whatever is in doubt makes refusals match and permissions
//! not match, so the failure mode is a refusal too much.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    Decision, Effect, HoldScope, HoldSpec, Obligations, Reason, Reviewer, UpstreamSpec, WorkloadSpec,
    index::{Candidate, Filter, Index},
    rule::{DEFAULT_EXPIRES, Origin, RuleSpec},
    when::{CelFacts, Stated, Verdict},
};
use crate::action::{
    Action, Body, Clarity, Facts, Glob, MaskSpec, Params, Part, Resource, Subject, Verb, glob::Scanned, near,
};

/// The compiled policy of one workload. Immutable.
#[derive(Debug)]
pub struct Policy {
    pub(super) file: Arc<str>,
    pub(super) workload: WorkloadSpec,
    pub(super) cgroup: Glob,
    pub(super) upstreams: Vec<Arc<UpstreamSpec>>,
    /// Masks of each upstream, in the upstreams' order.
    pub(super) masks: Vec<Vec<MaskSpec>>,
    /// Every rule but the autonomy's, in the order of judging.
    pub(super) rules: Vec<RuleSpec>,
    pub(super) floor: Option<RuleSpec>,
    /// For each upstream, the rules that could match.
    pub(super) index: Vec<Index>,
    pub(super) words: Words,
    pub(super) asks_params: bool,
}

/// Texts that are the same for every decision.
#[derive(Debug)]
pub(super) struct Words {
    implicit: Arc<str>,
    nothing_allows: Reason,
    not_understood: Reason,
    too_complex: Reason,
    not_declared: Reason,
    database: Reason,
    other_workload: Reason,
}

impl Default for Words {
    fn default() -> Self {
        let default: Arc<str> = "default".into();
        let reason = |rule: &Arc<str>, text: &str| Reason { rule: rule.clone(), text: text.into() };
        Self {
            implicit: "implicit".into(),
            nothing_allows: reason(&default, "no rule of the policy allows this"),
            not_understood: reason(&default, "this was not understood, and no rule names `unknown` to let it pass"),
            too_complex: reason(&default, "this is too complex to be judged: say it in smaller commands"),
            not_declared: reason(&default, "the policy does not declare this upstream"),
            database: reason(&"databases".into(), "the policy does not list this database for the upstream"),
            other_workload: reason(&default, "the policy is for another workload"),
        }
    }
}

impl Words {
    /// Why what holds something unknown is refused.
    fn doubt(&self, what: &Action) -> &Reason {
        let complex = what.parts.iter().any(|(_, target)| target.as_str().ends_with(":too complex"));
        if complex { &self.too_complex } else { &self.not_understood }
    }
}

/// Whether a rule matches a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It does not, and why.
    No(Miss),
    /// It adds its strictness, but cannot be what lets the part through.
    Raises,
    /// It matches.
    Yes,
    /// It matches beyond doubt and names the tier: the tier's rules stand aside.
    InPlaceOfTier,
}

/// Why a rule does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    Upstream,
    Verb,
    Unknown,
    Target,
    Except,
    WhenFalse,
    WhenUnanswered,
    Overridden,
}

impl Policy {
    /// The workload that it is for.
    pub fn workload(&self) -> &WorkloadSpec {
        &self.workload
    }

    /// Name of the file it was read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The fixed folder, relative to the cgroup2 root, below which every cgroup of the workload lives.
    pub fn cgroup_parent(&self) -> &str {
        self.cgroup.parent()
    }

    /// Whether a cgroup path, relative to the cgroup2 root and without a leading `/`, is the workload's.
    pub fn matches_cgroup(&self, path: &str) -> bool {
        self.cgroup.matches(path)
    }

    /// Every upstream, in the file's order.
    pub fn upstreams(&self) -> &[Arc<UpstreamSpec>] {
        &self.upstreams
    }

    /// An upstream by name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<UpstreamSpec>> {
        self.place(name).map(|place| &self.upstreams[place])
    }

    /// Masks for an upstream: its own, and those that name no upstream.
    pub fn masks(&self, upstream: &str) -> &[MaskSpec] {
        self.place(upstream).map_or(&[], |place| &self.masks[place])
    }

    /// Every rule, those of tiers, autonomy and the implicit one included. Each prints as TOML.
    pub fn expanded(&self) -> Vec<RuleSpec> {
        let mut rules: Vec<RuleSpec> = self.rules.iter().chain(&self.floor).cloned().collect();
        rules.sort_by_key(|rule| rule.origin);
        rules
    }

    /// Whether any rule asks for bound parameters.
    pub fn asks_params(&self) -> bool {
        self.asks_params
    }

    /// Whether any rule about an upstream asks for the bodies of requests.
    pub fn asks_body(&self, upstream: &UpstreamSpec) -> bool {
        let asks = |rule: &&RuleSpec| rule.when.as_ref().is_some_and(|when| when.asks_body);
        self.rules.iter().filter(asks).any(|rule| rule.covers(&upstream.name, upstream.protocol))
    }

    /// Judges an action. No side effects.
    pub fn decide(&self, who: &Subject, to: &Resource, what: &Action) -> Decision {
        let mut judge = match Judge::new(self, who, to, what) {
            Ok(judge) => judge,
            Err(decided) => return decided,
        };
        let mut answer = Answer::default();
        for part in 0..what.parts.len() {
            judge.part(part, &mut answer);
        }
        answer.decide(self, what)
    }

    /// The rules that could match a verb on an upstream, in the order of judging.
    fn candidates(&self, upstream: usize, verb: Verb) -> &[Candidate] {
        self.index.get(upstream).map_or(&[], |index| index.candidates(verb))
    }

    fn place(&self, upstream: &str) -> Option<usize> {
        self.upstreams.iter().position(|spec| *spec.name == *upstream)
    }
}

/// Judging one action.
pub(super) struct Judge<'a> {
    policy: &'a Policy,
    who: &'a Subject,
    to: &'a Resource,
    what: &'a Action,
    upstream: usize,
    /// What the `when`s of rules said about the statement that `facts` is of.
    verdicts: Vec<(u32, Verdict)>,
    /// The statement last asked about (`None`: a command without facts), and its facts.
    facts: Option<(Option<usize>, CelFacts)>,
}

impl<'a> Judge<'a> {
    /// Answers what needs no rules.
    pub(super) fn new(
        policy: &'a Policy,
        who: &'a Subject,
        to: &'a Resource,
        what: &'a Action,
    ) -> Result<Self, Decision> {
        let words = &policy.words;
        let deny = |reason: &Reason| Err(Decision::Deny(reason.clone()));
        if who.workload != policy.workload.name {
            return deny(&words.other_workload);
        }
        let Some(upstream) = policy.place(&to.upstream) else { return deny(&words.not_declared) };
        let spec = &policy.upstreams[upstream];
        if spec.protocol != to.protocol || spec.protocol != what.protocol {
            return deny(&words.not_declared);
        }
        let listed = |database: &Arc<str>| spec.databases.iter().any(|listed| **listed == **database);
        if !spec.databases.is_empty() && !to.database.as_ref().is_some_and(listed) {
            return deny(&words.database);
        }
        if what.clarity == Clarity::Opaque && !what.parts.iter().any(|(verb, _)| *verb == Verb::Unknown) {
            return deny(words.doubt(what));
        }
        Ok(Self { policy, who, to, what, upstream, verdicts: Vec::new(), facts: None })
    }

    /// Adds the answer for one part.
    fn part(&mut self, part: usize, answer: &mut Answer<'a>) {
        let policy = self.policy;
        let (verb, target) = &self.what.parts[part];
        let target = Scanned::new(target.as_str(), self.what.protocol.separator());
        let candidates = policy.candidates(self.upstream, *verb);
        let filter = Filter::new(&target);
        let in_place = candidates.iter().any(|candidate| {
            candidate.tier.is_some()
                && candidate.passes(filter)
                && self.matches(candidate.place, part, &target) == Match::InPlaceOfTier
        });
        let mut granted = false;
        let mut strictest: Option<(u32, Effect)> = None;
        for candidate in candidates {
            if !candidate.passes(filter) {
                continue;
            }
            let place = candidate.place;
            let rule = &policy.rules[place as usize];
            if strictest.is_some_and(|(_, effect)| granted && rule.effect < effect) {
                break;
            }
            if in_place && rule.origin == Origin::Tier {
                continue;
            }
            match self.matches(place, part, &target) {
                Match::No(_) => continue,
                Match::Raises => {}
                Match::Yes | Match::InPlaceOfTier => granted = true,
            }
            let (_, effect) = *strictest.get_or_insert((place, rule.effect));
            if rule.effect == Effect::Hold && effect == Effect::Hold {
                answer.hold(rule);
            }
            if rule.effect == Effect::Deny {
                break;
            }
        }
        match strictest {
            Some((place, effect)) if granted || effect == Effect::Deny => {
                answer.first = Some(answer.first.map_or(place, |first| first.min(place)));
                if let Some(floor) = policy.floor.as_ref().filter(|floor| verb.changes() && effect < floor.effect) {
                    answer.raised = true;
                    if floor.effect == Effect::Hold {
                        answer.hold(floor);
                    }
                }
            }
            _ => answer.unmatched = true,
        }
    }

    /// Whether a rule of this upstream and verb matches a part.
    pub(super) fn matches(&mut self, place: u32, part: usize, target: &Scanned<'_>) -> Match {
        let rule = &self.policy.rules[place as usize];
        let (verb, _): &Part = &self.what.parts[part];
        let permits = rule.effect <= Effect::Notify;
        // A rule without verbs never lets through what was not understood; a hold of it still adds to others.
        let named = *verb != Verb::Unknown || rule.verbs.is_some() || rule.effect >= Effect::Suggest;
        if !named && permits {
            return Match::No(Miss::Unknown);
        }
        let surely = rule.targets.as_ref().is_none_or(|globs| globs.iter().any(|glob| glob.matches_scanned(target)));
        let perhaps = || rule.targets.as_ref().is_some_and(|globs| globs.iter().any(|glob| glob.could_match(target)));
        if !surely && (permits || !perhaps()) {
            return Match::No(Miss::Target);
        }
        let excepted = |glob: &Glob| if permits { glob.could_match(target) } else { glob.matches_scanned(target) };
        if rule.except.iter().any(excepted) {
            return Match::No(Miss::Except);
        }
        let maybe_excepted = !permits && rule.except.iter().any(|glob| glob.could_match(target));
        let verdict = if rule.when.is_some() { self.when(place, part) } else { Verdict::True };
        match verdict {
            Verdict::False => Match::No(Miss::WhenFalse),
            Verdict::Unanswered if permits => Match::No(Miss::WhenUnanswered),
            _ if !named || !surely || maybe_excepted => Match::Raises,
            Verdict::True if rule.tier.is_some() => Match::InPlaceOfTier,
            _ => Match::Yes,
        }
    }

    /// What the rule's `when` says about the statement that the part belongs to.
    fn when(&mut self, place: u32, part: usize) -> Verdict {
        let Some(when) = &self.policy.rules[place as usize].when else { return Verdict::True };
        let statement = self.statement(part);
        let key = statement.map(|(at, _)| at);
        if self.facts.as_ref().is_none_or(|(of, _)| *of != key) {
            let stated = statement.map(|(_, stated)| stated);
            self.facts = Some((key, CelFacts::new(self.who, self.to, stated)));
            self.verdicts.clear();
        }
        if let Some((_, verdict)) = self.verdicts.iter().find(|(of, _)| *of == place) {
            return *verdict;
        }
        let mut verdict = self.facts.as_ref().map_or(Verdict::Unanswered, |(_, facts)| when.holds(facts));
        let pending = statement.is_some_and(|(_, stated)| match stated {
            Stated::Sql(sql) => when.asks_params && sql.params == Params::Pending,
            Stated::Http(http) => when.asks_body && http.body == Body::Pending,
        });
        if verdict == Verdict::Unanswered && pending {
            // Only whether it could ever run is asked now; it is judged again with what is still to come.
            let permits = self.policy.rules[place as usize].effect <= Effect::Notify;
            verdict = if permits { Verdict::True } else { Verdict::False };
        }
        self.verdicts.push((place, verdict));
        verdict
    }

    /// The statement that a part belongs to. Ranges are in order; where they are not, there are no facts.
    fn statement(&self, part: usize) -> Option<(usize, Stated<'a>)> {
        let what: &'a Action = self.what;
        match &what.facts {
            Facts::None => None,
            Facts::Sql(facts) => {
                let at = facts.partition_point(|facts| facts.parts.end <= part);
                let found = facts.get(at).filter(|facts| facts.parts.contains(&part));
                found.map(|facts| (at, Stated::Sql(facts)))
            }
            Facts::Http(facts) => Some((0, Stated::Http(facts))),
        }
    }
}

/// The strictest answer so far.
#[derive(Default)]
struct Answer<'a> {
    /// The first rule in the order of judging, which is by strictness.
    first: Option<u32>,
    /// There is a part that nothing allows.
    unmatched: bool,
    /// There is a part that autonomy raises.
    raised: bool,
    hold: Option<Holds<'a>>,
}

/// What all matching holds ask for together.
struct Holds<'a> {
    required: u8,
    expires: Option<Duration>,
    scope: HoldScope,
    /// What the rules say that say anything; `false` stays.
    dry_run: Option<bool>,
    /// The rules that name reviewers, one for each different list.
    reviewers: SmallVec<[&'a RuleSpec; 2]>,
}

impl<'a> Answer<'a> {
    fn hold(&mut self, rule: &'a RuleSpec) {
        let holds = self.hold.get_or_insert(Holds {
            required: 1,
            expires: None,
            scope: HoldScope::SessionReads,
            dry_run: None,
            reviewers: SmallVec::new(),
        });
        holds.required = holds.required.max(rule.required);
        holds.expires = [holds.expires, rule.expires].into_iter().flatten().min();
        if let Some(said) = rule.dry_run {
            holds.dry_run = Some(said && holds.dry_run.unwrap_or(true));
        }
        if rule.scope == HoldScope::Command {
            holds.scope = HoldScope::Command;
        }
        if !rule.reviewers.is_empty() && !holds.reviewers.iter().any(|other| other.reviewers == rule.reviewers) {
            holds.reviewers.push(rule);
        }
    }

    fn decide(self, policy: &Policy, what: &Action) -> Decision {
        let words = &policy.words;
        let first = self.first.map(|place| &policy.rules[place as usize]);
        if let Some(rule) = first.filter(|rule| rule.effect == Effect::Deny) {
            return Decision::Deny(rule.explained());
        }
        if self.unmatched {
            let unknown = what.parts.iter().any(|(verb, _)| *verb == Verb::Unknown);
            return Decision::Deny(if unknown { words.doubt(what) } else { &words.nothing_allows }.clone());
        }
        let floor = policy.floor.as_ref().filter(|_| self.raised);
        let Some(rule) = floor.filter(|floor| first.is_none_or(|rule| rule.effect < floor.effect)).or(first) else {
            // An empty query does nothing.
            return Decision::Allow(Obligations { rule: near(&words.implicit), notify: false });
        };
        match (rule.effect, self.hold) {
            (Effect::Allow, _) => Decision::Allow(Obligations { rule: near(&rule.name), notify: false }),
            (Effect::Notify, _) => Decision::Allow(Obligations { rule: near(&rule.name), notify: true }),
            (Effect::Hold, Some(holds)) => holds.decide(rule, what),
            (Effect::Suggest, _) => Decision::Suggest(rule.explained()),
            // A hold always noted what it asks for.
            (Effect::Deny, _) | (Effect::Hold, None) => Decision::Deny(rule.explained()),
        }
    }
}

impl Holds<'_> {
    fn decide(self, rule: &RuleSpec, what: &Action) -> Decision {
        let reviewers: Arc<[Reviewer]> = match &self.reviewers[..] {
            [] => rule.reviewers.clone(),
            [one] => one.reviewers.clone(),
            [first, others @ ..] => {
                let in_all = |r: &&Reviewer| others.iter().all(|other| other.reviewers.contains(r));
                first.reviewers.iter().filter(in_all).cloned().collect()
            }
        };
        if reviewers.is_empty() && !self.reviewers.is_empty() {
            let mut names: Vec<&str> = self.reviewers.iter().map(|rule| &*rule.name).collect();
            names.sort_unstable();
            let text = format!("no reviewer may decide for all of the rules that hold this: {}", names.join("; "));
            return Decision::Deny(Reason { rule: rule.name.clone(), text: text.into() });
        }
        Decision::Hold(HoldSpec {
            reason: rule.explained(),
            reviewers,
            required: self.required,
            expires: self.expires.unwrap_or(DEFAULT_EXPIRES),
            // An approval of a session's reads never reaches what may change something.
            scope: if what.changes() { HoldScope::Command } else { self.scope },
            dry_run: self.dry_run.unwrap_or(false),
        })
    }
}
