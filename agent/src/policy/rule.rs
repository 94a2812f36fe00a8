//! Rules after their file was checked, and the presets that stand for some.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Autonomy, Effect, HoldScope, Reason, Reviewer, Tier, duration, when::When};
use crate::action::{Glob, Inference, ProtocolId, Verb};

/// How long a command waits where no rule says.
pub const DEFAULT_EXPIRES: Duration = Duration::from_secs(15 * 60);

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The policy file.
    File,
    /// The preset of an upstream's tier.
    Tier,
    /// The masks of an upstream: what may be inferred from columns that are hidden.
    Masks,
    /// The workload's autonomy: raises what other rules let through, and lets nothing through by itself.
    Autonomy,
    /// Every policy: connections to the upstreams it declares.
    Implicit,
}

/// One rule, checked. Serializes as a `[[rule]]` of a policy file.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    /// Its name; unique in a policy.
    pub name: Arc<str>,
    /// Where it comes from.
    pub origin: Origin,
    /// Upstreams that it is about; `None` means every one.
    pub upstreams: Option<Vec<Arc<str>>>,
    /// Protocol that it is about.
    pub protocol: Option<ProtocolId>,
    /// Verbs that it names; `None` means every one, but then `unknown` is never let through by it.
    pub verbs: Option<Vec<Verb>>,
    /// Targets; `None` means every one.
    pub targets: Option<Vec<Glob>>,
    /// Targets that it leaves alone.
    pub except: Vec<Glob>,
    pub(super) when: Option<Arc<When>>,
    /// What it asks for.
    pub effect: Effect,
    /// One sentence for whoever is refused or held.
    pub reason: Option<Arc<str>>,
    /// Who may decide; empty means those of the daemon's settings.
    pub reviewers: Arc<[Reviewer]>,
    /// How many distinct reviewers.
    pub required: u8,
    /// How long a command waits, if the rule says so.
    pub expires: Option<Duration>,
    /// How long an approval reaches.
    pub scope: HoldScope,
    /// Whether a change is tried and rolled back while it waits, if the rule says so.
    pub dry_run: Option<bool>,
    /// The tier that it stands in place of, where it matches.
    pub tier: Option<Tier>,
}

impl RuleSpec {
    fn preset(origin: Origin, name: String, verbs: &[Verb], effect: Effect, reason: &str) -> Self {
        Self {
            name: name.into(),
            origin,
            upstreams: None,
            protocol: None,
            verbs: Some(verbs.to_vec()),
            targets: None,
            except: Vec::new(),
            when: None,
            effect,
            reason: Some(reason.into()),
            reviewers: Arc::default(),
            required: 1,
            expires: None,
            scope: HoldScope::Command,
            dry_run: None,
            tier: None,
        }
    }

    /// The text of its `when`.
    pub fn when(&self) -> Option<&str> {
        self.when.as_ref().map(|when| when.as_str())
    }

    /// Its name, and its reason or else its name, for whoever it stops.
    pub(super) fn explained(&self) -> Reason {
        let text = self.reason.as_ref().unwrap_or(&self.name);
        Reason { rule: self.name.clone(), text: text.clone() }
    }

    /// Whether it is about the upstream and protocol.
    pub(super) fn covers(&self, upstream: &str, protocol: ProtocolId) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.upstreams.as_ref().is_none_or(|names| names.iter().any(|name| **name == *upstream))
    }

    /// Whether it is about a verb. Where it names none, one that asks for facts of commands is not about the opening of a
    /// connection, which has none.
    pub(super) fn is_about(&self, verb: Verb) -> bool {
        match &self.verbs {
            Some(verbs) => verbs.contains(&verb),
            None => verb != Verb::Connect || self.when.as_ref().is_none_or(|when| when.about.is_empty()),
        }
    }

    /// The order of judging: strict before lax, the file's rules before presets, those that explain themselves first.
    pub(super) fn order(&self) -> impl Ord + use<'_> {
        (std::cmp::Reverse(self.effect), self.origin, self.reason.is_none(), &self.name)
    }
}

impl Serialize for RuleSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let texts = |globs: &[Glob]| globs.iter().map(|glob| glob.as_str().to_owned()).collect::<Vec<_>>();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        if let Some(upstreams) = &self.upstreams {
            map.serialize_entry("upstream", upstreams)?;
        }
        if let Some(protocol) = self.protocol {
            map.serialize_entry("protocol", &protocol)?;
        }
        if let Some(verbs) = &self.verbs {
            map.serialize_entry("verbs", verbs)?;
        }
        if let Some(targets) = &self.targets {
            map.serialize_entry("targets", &texts(targets))?;
        }
        if !self.except.is_empty() {
            map.serialize_entry("except", &texts(&self.except))?;
        }
        if let Some(when) = self.when() {
            map.serialize_entry("when", when)?;
        }
        map.serialize_entry("effect", &self.effect)?;
        if let Some(reason) = &self.reason {
            map.serialize_entry("reason", reason)?;
        }
        if self.effect == Effect::Hold {
            if !self.reviewers.is_empty() {
                map.serialize_entry("reviewers", &self.reviewers)?;
            }
            map.serialize_entry("required", if self.required == 2 { "two" } else { "one" })?;
            map.serialize_entry("expires", &duration::format(self.expires.unwrap_or(DEFAULT_EXPIRES)))?;
            map.serialize_entry("scope", &self.scope)?;
            if let Some(dry_run) = self.dry_run {
                map.serialize_entry("dry_run", &dry_run)?;
            }
        }
        if let Some(tier) = self.tier {
            map.serialize_entry("tier", &tier)?;
        }
        map.end()
    }
}

/// As a `[[rule]]` of a policy file, with its origin as a comment.
impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::File => {}
            Origin::Tier => writeln!(f, "# from the upstream's tier")?,
            Origin::Autonomy => {
                writeln!(f, "# from the workload's autonomy; only raises what other rules let through")?
            }
            Origin::Masks => writeln!(f, "# from the masks of the upstream's columns")?,
            Origin::Implicit => writeln!(f, "# part of every policy")?,
        }
        writeln!(f, "[[rule]]")?;
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

use Verb::{Admin, Connect, Delete, Execute, Infer, Read, Schema, Session, Unknown, Write};

impl Tier {
    /// The name that policies use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Staging => "staging",
            Self::ProductionRead => "production-read",
            Self::ProductionWrite => "production-write",
            Self::Critical => "critical",
        }
    }

    /// The rules that the tier stands for, for one upstream.
    pub(super) fn rules(self, upstream: &Arc<str>) -> Vec<RuleSpec> {
        let rule = |name: &str, verbs: &[Verb], effect, reason: &str| {
            let name = format!("tier:{}/{name}", self.as_str());
            RuleSpec {
                upstreams: Some(vec![upstream.clone()]),
                ..RuleSpec::preset(Origin::Tier, name, verbs, effect, reason)
            }
        };
        match self {
            Self::Development => vec![rule(
                "everything",
                &[Read, Write, Delete, Schema, Admin, Execute, Infer],
                Effect::Allow,
                "a development upstream",
            )],
            Self::Staging => vec![
                rule("reads", &[Read, Infer], Effect::Allow, "a staging upstream"),
                rule(
                    "changes",
                    &[Write, Delete, Schema, Admin, Execute],
                    Effect::Notify,
                    "changes of a staging upstream are reported",
                ),
            ],
            Self::ProductionRead => vec![
                RuleSpec {
                    scope: HoldScope::SessionReads,
                    ..rule(
                        "first read",
                        &[Read, Infer],
                        Effect::Hold,
                        "the first read of a session on a production upstream needs an approval",
                    )
                },
                rule(
                    "changes",
                    &[Write, Delete, Schema, Admin, Execute, Unknown],
                    Effect::Deny,
                    "this production upstream may only be read",
                ),
            ],
            Self::ProductionWrite => vec![
                rule("reads", &[Read, Infer], Effect::Allow, "reads of a production upstream"),
                rule(
                    "each change",
                    &[Write, Execute],
                    Effect::Hold,
                    "each change of a production upstream needs an approval",
                ),
                RuleSpec {
                    required: 2,
                    ..rule(
                        "delete and schema",
                        &[Delete, Schema, Admin],
                        Effect::Hold,
                        "two people must approve what removes data or changes its shape in production",
                    )
                },
            ],
            Self::Critical => vec![rule("nothing", Verb::ALL, Effect::Deny, "this upstream is closed to agents")],
        }
    }
}

impl Autonomy {
    /// The name that policies use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Suggest => "suggest",
            Self::Confirm => "confirm",
            Self::Notify => "notify",
            Self::Autonomous => "autonomous",
        }
    }

    /// The rule that raises changes which other rules let through.
    pub(super) fn floor(self) -> Option<RuleSpec> {
        let (effect, reason) = match self {
            Self::Suggest => (Effect::Suggest, "this workload may only suggest changes"),
            Self::Confirm => (Effect::Hold, "each change of this workload needs an approval"),
            Self::Notify => (Effect::Notify, "each change of this workload is reported"),
            Self::Autonomous => return None,
        };
        let verbs: Vec<Verb> = Verb::ALL.iter().copied().filter(|verb| verb.changes()).collect();
        Some(RuleSpec::preset(Origin::Autonomy, format!("autonomy:{}", self.as_str()), &verbs, effect, reason))
    }
}

/// What becomes of commands that tell of an upstream's masked columns without returning them.
pub(super) fn inference(upstream: &Arc<str>, with: Inference) -> RuleSpec {
    let effect = match with {
        Inference::Allow => Effect::Allow,
        Inference::Hold => Effect::Hold,
        Inference::Deny => Effect::Deny,
    };
    let reason = "it tells of a masked column without returning it";
    let rule = RuleSpec::preset(Origin::Masks, format!("inference:{upstream}"), &[Verb::Infer], effect, reason);
    RuleSpec { upstreams: Some(vec![Arc::clone(upstream)]), ..rule }
}

/// The rule that every policy has.
pub(super) fn implicit() -> RuleSpec {
    let reason = "the policy declares this upstream";
    RuleSpec::preset(Origin::Implicit, "implicit".into(), &[Connect, Session], Effect::Allow, reason)
}
