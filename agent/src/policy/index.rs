//! Which rules could match a verb on an upstream, and a filter that passes over most of them without touching them.

use super::{Tier, UpstreamSpec, rule::RuleSpec};
use crate::action::{Verb, glob::Scanned};

/// A rule that could match.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Its place among the policy's rules.
    pub(super) place: u32,
    /// The tier that it stands in place of.
    pub(super) tier: Option<Tier>,
    /// First and last bytes that every plain target of its has.
    ends: Ends,
    masks: Ends,
}

/// The first and last eight bytes of a text, where it has so many.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    first: u64,
    last: u64,
}

impl Ends {
    fn of(first: &[u8], last: &[u8]) -> Self {
        let mut ends = [[0; 8]; 2];
        let (head, tail) = (first.len().min(8), last.len().min(8));
        ends[0][..head].copy_from_slice(&first[..head]);
        ends[1][8 - tail..].copy_from_slice(&last[last.len() - tail..]);
        Self { first: u64::from_ne_bytes(ends[0]), last: u64::from_ne_bytes(ends[1]) }
    }
}

/// A target's ends; `None` for one that is not plain, to which the filter does not apply.
#[derive(Clone, Copy)]
pub(super) struct Filter(Option<Ends>);

impl Filter {
    pub(super) fn new(target: &Scanned<'_>) -> Self {
        Self(target.as_plain().map(|text| Ends::of(text.as_bytes(), text.as_bytes())))
    }
}

impl Candidate {
    fn new(place: u32, rule: &RuleSpec) -> Self {
        let targets = rule.targets.as_deref().unwrap_or_default();
        let first = shared(targets.iter().map(|glob| glob.ends().0.as_bytes().to_vec()));
        let last = shared(targets.iter().map(|glob| glob.ends().1.bytes().rev().collect()));
        let last: Vec<u8> = last.into_iter().rev().collect();
        let mask = |text: &[u8]| vec![u8::MAX; text.len()];
        let masks = Ends::of(&mask(&first), &mask(&last));
        Self { place, tier: rule.tier, ends: Ends::of(&first, &last), masks }
    }

    /// Whether the rule's targets can have the target among them.
    pub(super) fn passes(&self, filter: Filter) -> bool {
        filter.0.is_none_or(|target| {
            (target.first ^ self.ends.first) & self.masks.first == 0
                && (target.last ^ self.ends.last) & self.masks.last == 0
        })
    }
}

/// What all of the texts begin with.
fn shared(texts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let common = |mut a: Vec<u8>, b: Vec<u8>| {
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        a.truncate(same);
        a
    };
    texts.reduce(common).unwrap_or_default()
}

/// For each verb, the rules that could match it on an upstream, in the order of judging.
#[derive(Debug)]
pub(super) struct Index(Vec<Box<[Candidate]>>);

impl Index {
    /// `rules` are in the order of judging.
    pub(super) fn new(rules: &[RuleSpec], upstream: &UpstreamSpec) -> Self {
        let places = |verb: &Verb| {
            let fits = |rule: &RuleSpec| {
                rule.covers(&upstream.name, upstream.protocol)
                    && rule.is_about(*verb)
                    && rule.tier.is_none_or(|tier| upstream.tier == Some(tier))
            };
            rules
                .iter()
                .zip(0..)
                .filter(|(rule, _)| fits(rule))
                .map(|(rule, place)| Candidate::new(place, rule))
                .collect()
        };
        debug_assert!(Verb::ALL.iter().enumerate().all(|(i, verb)| *verb as usize == i));
        Self(Verb::ALL.iter().map(places).collect())
    }

    pub(super) fn candidates(&self, verb: Verb) -> &[Candidate] {
        self.0.get(verb as usize).map_or(&[], |candidates| candidates)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{action::Glob, policy::Effect};

    fn rule(targets: &[String]) -> RuleSpec {
        let globs = targets.iter().map(|target| Glob::new(target, '.')).collect::<Result<Vec<_>, _>>();
        RuleSpec { targets: Some(globs.expect("valid")), effect: Effect::Deny, ..crate::policy::rule::implicit() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The filter passes over nothing that could match.
        #[test]
        fn the_filter_loses_nothing(
            targets in prop::collection::vec(r#"(fn:)?([ab]{1,5}|\*|\*\*|a\*b|"[a.B]{1,3}")(\.([ab]{1,9}|\*|\*b|"[a."]"))?"#
                .prop_filter("a valid glob", |pattern| Glob::new(pattern, '.').is_ok()), 1..3),
            text in r#"(fn:)?([ab]{0,9}|\?|"[a.B]{1,3}")(\.([ab]{0,12}|\?|"[a.B]{1,3}"))?"#,
        ) {
            let rule = rule(&targets);
            let scanned = Scanned::new(&text, '.');
            let candidate = Candidate::new(0, &rule);
            if rule.targets.iter().flatten().any(|glob| glob.could_match(&scanned)) {
                prop_assert!(candidate.passes(Filter::new(&scanned)));
            }
        }
    }

    #[test]
    fn the_filter_passes_over_most() {
        for (pattern, no) in [
            ("public.orders", &["public.users", "other.orders", "orders", ""][..]),
            ("closed_20.*", &["public.a", "closed_1.a"]),
            ("*.waits_21", &["public.a", "public.waits_2"]),
        ] {
            let candidate = Candidate::new(0, &rule(&[pattern.to_owned()]));
            for text in no {
                assert!(!candidate.passes(Filter::new(&Scanned::new(text, '.'))), "{pattern} {text}");
            }
        }
    }
}
