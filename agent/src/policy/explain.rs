//! Why an action meets the answer that it meets: every rule, and whether it matched.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{
    Decision, Effect, HoldScope, HoldSpec, Origin, Policy, Reviewer, RuleSpec,
    compiled::{Judge, Match, Miss},
    duration,
};
use crate::action::{Action, Resource, Subject, Target, Verb, glob::Scanned};

/// The answer to an action, and how each rule took part. Its `Display` is for people.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The workload of the policy.
    pub workload: Arc<str>,
    /// The upstream asked about.
    pub upstream: Arc<str>,
    /// The answer.
    pub effect: Effect,
    /// The rule that decided; `default` where none matched.
    pub rule: Arc<str>,
    /// The sentence that the agent is shown, where it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// How a hold would wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldExplanation>,
    /// Each part of the action. Empty where the answer needed no rules.
    pub parts: Vec<PartExplanation>,
}

/// How a hold would wait.
#[derive(Clone, Debug, Serialize)]
pub struct HoldExplanation {
    /// Who may decide; empty means those of the daemon's settings.
    pub reviewers: Vec<Reviewer>,
    /// How many distinct reviewers.
    pub required: u8,
    /// How long it waits.
    pub expires: String,
    /// How long an approval reaches.
    pub scope: HoldScope,
    /// Whether a change is tried and rolled back while it waits.
    pub dry_run: bool,
}

/// One (verb, target) pair.
#[derive(Clone, Debug, Serialize)]
pub struct PartExplanation {
    /// What it does.
    pub verb: Verb,
    /// To what.
    pub target: Target,
    /// Every rule of the policy, from strict to lax.
    pub rules: Vec<RuleExplanation>,
}

/// A rule and a part.
#[derive(Clone, Debug, Serialize)]
pub struct RuleExplanation {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Where the rule comes from.
    pub origin: Origin,
    /// What it asks for.
    pub effect: Effect,
    /// Whether it matched.
    pub matched: bool,
    /// How, or why not.
    pub why: String,
}

impl Policy {
    /// Judges an action as [`Policy::decide`] does, and says how each rule took part.
    pub fn explain(&self, who: &Subject, to: &Resource, what: &Action) -> Explanation {
        let decision = self.decide(who, to, what);
        let parts = match Judge::new(self, who, to, what) {
            Ok(mut judge) => (0..what.parts.len()).map(|part| self.explain_part(&mut judge, to, what, part)).collect(),
            Err(_) => Vec::new(),
        };
        let reason = match &decision {
            Decision::Allow(_) => None,
            Decision::Hold(HoldSpec { reason, .. }) | Decision::Suggest(reason) | Decision::Deny(reason) => {
                Some(reason)
            }
        };
        Explanation {
            workload: self.workload().name.clone(),
            upstream: to.upstream.clone(),
            effect: decision.effect(),
            rule: decision.rule().clone(),
            reason: reason.map(|reason| reason.text.clone()),
            hold: match &decision {
                Decision::Hold(spec) => Some(HoldExplanation {
                    reviewers: spec.reviewers.to_vec(),
                    required: spec.required,
                    expires: duration::format(spec.expires),
                    scope: spec.scope,
                    dry_run: spec.dry_run,
                }),
                _ => None,
            },
            parts,
        }
    }

    fn explain_part(&self, judge: &mut Judge<'_>, to: &Resource, what: &Action, part: usize) -> PartExplanation {
        let (verb, target) = &what.parts[part];
        let scanned = Scanned::new(target.as_str(), what.protocol.separator());
        let tier = self.upstream(&to.upstream).and_then(|upstream| upstream.tier);
        let mut outcomes: Vec<(&RuleSpec, Match)> = Vec::new();
        for (rule, place) in self.rules.iter().zip(0..) {
            let matched = if !rule.covers(&to.upstream, what.protocol) || rule.tier.is_some_and(|t| Some(t) != tier) {
                Match::No(Miss::Upstream)
            } else if !rule.is_about(*verb) {
                Match::No(Miss::Verb)
            } else {
                judge.matches(place, part, &scanned)
            };
            outcomes.push((rule, matched));
        }
        if outcomes.iter().any(|(_, matched)| *matched == Match::InPlaceOfTier) {
            for (rule, matched) in &mut outcomes {
                if rule.origin == Origin::Tier && !matches!(matched, Match::No(_)) {
                    *matched = Match::No(Miss::Overridden);
                }
            }
        }
        let granted = outcomes.iter().any(|(_, matched)| matches!(matched, Match::Yes | Match::InPlaceOfTier));
        let said = |(rule, matched): (&RuleSpec, Match)| RuleExplanation {
            rule: rule.name.clone(),
            origin: rule.origin,
            effect: rule.effect,
            matched: !matches!(matched, Match::No(_)),
            why: words(matched).to_owned(),
        };
        let mut rules: Vec<_> = outcomes.into_iter().map(said).collect();
        rules.extend(self.floor.as_ref().map(|floor| {
            RuleExplanation {
                matched: granted && verb.changes(),
                why: match (verb.changes(), granted) {
                    (false, _) => "the verb changes nothing",
                    (true, false) => "no other rule matches, and this one lets nothing through by itself",
                    (true, true) => "raises what other rules let through",
                }
                .to_owned(),
                ..said((floor, Match::Raises))
            }
        }));
        PartExplanation { verb: *verb, target: target.clone(), rules }
    }
}

fn words(matched: Match) -> &'static str {
    match matched {
        Match::Yes => "matches",
        Match::InPlaceOfTier => "matches, in place of the tier",
        Match::Raises => "could match: counts against letting it through, never for it",
        Match::No(Miss::Upstream) => "is about other upstreams",
        Match::No(Miss::Verb) => "is about other verbs",
        Match::No(Miss::Unknown) => "does not name `unknown`",
        Match::No(Miss::Target) => "is about other targets",
        Match::No(Miss::Except) => "the target is, or could be, in `except`",
        Match::No(Miss::WhenFalse) => "`when` is false",
        Match::No(Miss::WhenUnanswered) => "`when` cannot be evaluated, so it permits nothing",
        Match::No(Miss::Overridden) => "a rule that names the tier stands in its place",
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by rule `{}`", self.effect.as_str(), self.rule)?;
        if let Some(reason) = self.reason.as_ref().filter(|reason| **reason != self.rule) {
            write!(f, ": {reason}")?;
        }
        if let Some(hold) = &self.hold {
            let reviewers: Vec<String> = hold.reviewers.iter().map(Reviewer::to_string).collect();
            let reviewers = if reviewers.is_empty() { "any reviewer".to_owned() } else { reviewers.join(", ") };
            write!(f, "\n  waits {} for {} of {reviewers}", hold.expires, hold.required)?;
            if hold.scope == HoldScope::SessionReads {
                write!(f, ", once for all reads of the session")?;
            }
            if hold.dry_run {
                write!(f, ", with a dry run")?;
            }
        }
        for part in &self.parts {
            write!(f, "\n{} {}", part.verb, part.target)?;
            for rule in &part.rules {
                let mark = if rule.matched { '+' } else { '-' };
                write!(f, "\n  {mark} {:<7} {}: {}", rule.effect.as_str(), rule.rule, rule.why)?;
            }
        }
        Ok(())
    }
}
