//! What `[[rule]]` means.

use std::{collections::HashMap, sync::Arc};

use super::{
    At, Checker, Effect, File, Glob, HoldScope, Origin, PolicyError, ProtocolId, Required, Reviewer, RuleSpec,
    Upstreams, Verb, When, file,
};

impl Checker<'_> {
    pub(super) fn rules(&mut self, file: &File) -> Vec<RuleSpec> {
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let mut rules = Vec::new();
        for At { value: rule, .. } in &file.rule {
            let line = self.source.position(rule.name.span.start).0;
            if let Some(first) = lines.insert(&rule.name.value, line) {
                let name = &rule.name.value;
                self.hinted(
                    &rule.name.span,
                    format!("two rules are named `{name}`"),
                    format!("the other is on line {first}"),
                );
            }
            rules.push(self.rule(rule));
        }
        rules
    }

    fn rule(&mut self, rule: &file::Rule) -> RuleSpec {
        self.sentence(&rule.name, "the rule's name");
        let name = rule.name.value.as_str();
        if matches!(name, "implicit" | "default" | "databases")
            || name.starts_with("tier:")
            || name.starts_with("autonomy:")
        {
            self.hinted(
                &rule.name.span,
                format!("the name `{name}` is taken"),
                "Portcullis names its own rules like this",
            );
        }
        if let Some(reason) = &rule.reason {
            self.sentence(reason, "the reason");
        }
        self.hold_keys(rule);
        let upstreams = self.named_upstreams(rule.upstream.as_ref());
        let protocol = rule.protocol.as_ref().and_then(|protocol| self.protocol(protocol));
        self.tier(rule, upstreams.as_deref());
        let verbs =
            self.filled(&rule.verbs, "verbs").map(|verbs| verbs.iter().map(|verb| verb.value).collect::<Vec<_>>());
        let spoken = self.spoken(upstreams.as_deref(), protocol);
        let when = rule.when.as_ref().and_then(|text| self.when(text, &spoken));
        let targets = self.filled(&rule.targets, "targets").map(|list| self.targets(list, verbs.as_deref(), &spoken));
        let except = self.filled(&rule.except, "except").map(|list| self.targets(list, verbs.as_deref(), &spoken));
        let reviewers: Arc<[Reviewer]> =
            self.filled(&rule.reviewers, "reviewers").unwrap_or_default().iter().map(|r| r.value.clone()).collect();
        RuleSpec {
            name: name.into(),
            origin: Origin::File,
            upstreams,
            protocol,
            verbs,
            targets,
            except: except.unwrap_or_default(),
            when,
            effect: rule.effect,
            reason: rule.reason.as_ref().map(|reason| reason.value.as_str().into()),
            reviewers,
            required: match rule.required.as_ref().map(|required| required.value) {
                Some(Required::Two) => 2,
                Some(Required::One) | None => 1,
            },
            expires: rule.expires.as_ref().map(|expires| expires.value.0),
            scope: rule.scope.as_ref().map_or(HoldScope::Command, |scope| scope.value),
            dry_run: rule.dry_run.as_ref().map(|dry_run| dry_run.value),
            tier: rule.tier.as_ref().map(|tier| tier.value),
        }
    }

    /// Keys that only a hold can have.
    fn hold_keys(&mut self, rule: &file::Rule) {
        let holds = rule.effect == Effect::Hold;
        let keys = [
            ("reviewers", rule.reviewers.as_ref().map(|key| &key.span)),
            ("required", rule.required.as_ref().map(|key| &key.span)),
            ("expires", rule.expires.as_ref().map(|key| &key.span)),
            ("scope", rule.scope.as_ref().map(|key| &key.span)),
            ("dry_run", rule.dry_run.as_ref().map(|key| &key.span)),
        ];
        for (key, span) in keys {
            if let Some(span) = span.filter(|_| !holds) {
                let effect = rule.effect.as_str();
                self.hinted(
                    span,
                    format!("`{key}` needs `effect = \"hold\"`"),
                    format!("the effect here is `{effect}`"),
                );
            }
        }
        let changes = |verb: &At<Verb>| verb.value.changes();
        if let Some(scope) = rule.scope.as_ref().filter(|scope| scope.value == HoldScope::SessionReads)
            && rule.verbs.as_ref().is_none_or(|verbs| verbs.value.iter().any(changes))
        {
            self.hinted(&scope.span, "`session-reads` is for rules about reads", "name verbs that change nothing");
        }
    }

    /// A rule that names a tier must be about upstreams of that tier.
    fn tier(&mut self, rule: &file::Rule, upstreams: Option<&[Arc<str>]>) {
        let Some(At { span, value: tier }) = &rule.tier else { return };
        let about = |name: &str| upstreams.is_none_or(|names| names.iter().any(|other| **other == *name));
        let others: Vec<Arc<str>> = match upstreams {
            Some(_) => {
                let wrong = self.upstreams.iter().filter(|u| about(&u.name) && u.tier != Some(*tier));
                wrong.map(|upstream| upstream.name.clone()).collect()
            }
            None if self.known == Upstreams::SomeLost || self.upstreams.iter().any(|u| u.tier == Some(*tier)) => return,
            None => {
                self.hinted(span, format!("no upstream has the tier `{}`", tier.as_str()), "leave the key out");
                return;
            }
        };
        for other in others {
            let message = format!("upstream `{other}` does not have the tier `{}`", tier.as_str());
            self.hinted(span, message, "a rule names a tier to stand in its place");
        }
    }

    /// The protocols of the upstreams that a rule is about.
    fn spoken(&self, upstreams: Option<&[Arc<str>]>, protocol: Option<ProtocolId>) -> Vec<ProtocolId> {
        let about = |name: &str| upstreams.is_none_or(|names| names.iter().any(|other| **other == *name));
        let covered = self.upstreams.iter().filter(|upstream| about(&upstream.name));
        let mut spoken: Vec<ProtocolId> = covered.map(|upstream| upstream.protocol).collect();
        spoken.retain(|spoken| protocol.is_none_or(|wanted| wanted == *spoken));
        spoken.dedup();
        spoken
    }

    /// Patterns over targets. One that could never match is an error: in an `except` it would open a hole.
    fn targets(&mut self, patterns: &[At<String>], verbs: Option<&[Verb]>, spoken: &[ProtocolId]) -> Vec<Glob> {
        match spoken {
            [] | [ProtocolId::Postgres] => self.names(patterns, verbs),
            [ProtocolId::Http] => patterns.iter().filter_map(|pattern| self.route(pattern)).collect(),
            [ProtocolId::Llm] => patterns.iter().filter_map(|pattern| self.model_or_route(pattern)).collect(),
            _ => {
                let span = patterns.first().map_or(0..0, |first| first.span.clone());
                let help = "name an `upstream` or a `protocol`: targets are written in the protocol's way";
                self.hinted(&span, "this rule is about upstreams of several protocols", help);
                Vec::new()
            }
        }
    }

    /// A pattern over `model:NAME` or `METHOD /path`.
    fn model_or_route(&mut self, pattern: &At<String>) -> Option<Glob> {
        if pattern.value.starts_with("model:") {
            return self.glob(pattern, '/', "target pattern");
        }
        self.route(pattern)
    }

    /// A pattern over `METHOD /path`.
    pub(super) fn route(&mut self, pattern: &At<String>) -> Option<Glob> {
        let At { span, value: text } = pattern;
        if text == "**" {
            return self.globbed(pattern, Glob::route(text), "target pattern");
        }
        let Some((method, path)) = text.split_once(' ').filter(|(_, path)| path.starts_with(['/', '*'])) else {
            let help =
                if text.starts_with('/') { format!("write `* {text}`") } else { "such as `GET /orders/*`".into() };
            self.hinted(span, "a target is `METHOD /path`", help);
            return None;
        };
        if method.bytes().any(|b| b.is_ascii_lowercase()) {
            let help = format!("write `{} {path}`", method.to_ascii_uppercase());
            self.hinted(span, "methods are written in capitals", help);
            return None;
        }
        if path.contains(['?', '#', '\\', ' ', ';']) || !path.is_ascii() {
            let help = "a path is judged without its query; other characters are percent-encoded, as in `/a%20b`";
            self.hinted(span, "no path that is judged has such characters", help);
            return None;
        }
        self.globbed(pattern, Glob::route(text), "target pattern")
    }

    /// Patterns over names of SQL.
    fn names(&mut self, patterns: &[At<String>], verbs: Option<&[Verb]>) -> Vec<Glob> {
        let named = |verb: &Verb| matches!(verb, Verb::Connect | Verb::Session);
        let relations = verbs.is_none_or(|verbs| !verbs.iter().any(named));
        let mut globs = Vec::new();
        for pattern in patterns {
            let Some(glob) = self.glob(pattern, '.', "target pattern") else { continue };
            let text = &pattern.value;
            match glob.segments() {
                Some(1) if relations && !glob.names_kind() => {
                    let help = format!("write `public.{text}`, or `*.{text}` for every schema");
                    self.hinted(&pattern.span, "a target is `schema.name`, and this has one segment", help);
                }
                Some(3..) => {
                    let help = "columns are hidden with [[mask]]; quote a name that has a dot";
                    self.hinted(&pattern.span, "a target is `schema.name`, and this has more segments", help);
                }
                _ => globs.push(glob),
            }
        }
        globs
    }

    fn when(&mut self, when: &At<String>, spoken: &[ProtocolId]) -> Option<Arc<When>> {
        match When::new(&when.value) {
            Ok(compiled) => {
                // Facts that are not there would leave it unanswered, and what refuses then refuses all.
                let stray =
                    spoken.iter().find(|spoken| compiled.about.iter().any(|about| !has_facts(**spoken, *about)));
                if let Some(stray) = stray {
                    let text = format!("this asks for facts that commands of `{stray}` do not have");
                    self.hinted(&when.span, text, "name an `upstream` or a `protocol` that has them");
                }
                Some(Arc::new(compiled))
            }
            Err(error) => {
                let span = self.source.inside(when.span.clone(), &when.value, error.at);
                let found = PolicyError::at(self.source, span, format!("bad `when`: {}", error.message));
                self.errors.push(found.maybe_help(error.help));
                None
            }
        }
    }
}

/// Whether commands of a protocol have the facts of another: those to models are requests of HTTP, too.
fn has_facts(spoken: ProtocolId, about: ProtocolId) -> bool {
    spoken == about || (about == ProtocolId::Http && spoken.is_http())
}
