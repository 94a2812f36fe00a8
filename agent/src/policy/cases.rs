//! Decision cases as data: `FILE.cases.toml` beside a policy says what commands must meet.
//!
//! Classification is the caller's: the SQL module is not this one's to know.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Effect, Explanation, Policy, UpstreamSpec,
    error::{PolicyError, PolicyErrors, Source, did_you_mean},
    file::At,
    read::read,
};
use crate::action::{Action, ProcessFacts, Resource, Subject};

/// The decision cases of one file.
#[derive(Debug)]
pub struct Cases {
    source: Source,
    cases: Vec<At<Case>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CasesFile {
    /// What commands must meet.
    #[serde(default)]
    case: Vec<At<Case>>,
}

/// One command, and what it must meet.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Case {
    /// A sentence for people.
    name: String,
    /// Which upstream. Default: the policy's only one.
    upstream: Option<At<String>>,
    /// Which database.
    database: Option<String>,
    /// Why the session runs.
    intent: Option<String>,
    /// The command, as the agent sends it: SQL, or `METHOD /path` with header fields on further lines, and a body behind
    /// an empty one.
    command: String,
    /// The effect that it must meet.
    expect: Effect,
    /// The rule that must decide. Default: any.
    rule: Option<At<String>>,
}

/// How cases went. Its `Display` names each that failed, and ends with a count.
#[derive(Debug, Serialize)]
pub struct CasesReport {
    /// Name of the file with the cases.
    pub file: Arc<str>,
    /// Each case, in the file's order.
    pub results: Vec<CaseResult>,
}

/// How one case went.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// The case's name.
    pub name: String,
    /// Its line in the file.
    pub line: usize,
    /// The effect that was expected.
    pub expected: Effect,
    /// The rule that was expected, if the case names one.
    pub expected_rule: Option<String>,
    /// Whether it went as expected.
    pub passed: bool,
    /// What it met, and why.
    pub explanation: Explanation,
}

impl Cases {
    /// The file of a policy's cases: `bot.cases.toml` for `bot.toml`.
    pub fn path_for(policy: &Path) -> PathBuf {
        policy.with_extension("cases.toml")
    }

    /// Reads a file of cases.
    ///
    /// # Errors
    /// Everything that is wrong with the file; one without cases is wrong.
    pub fn load(path: &Path) -> Result<Self, PolicyErrors> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| PolicyErrors::new(vec![PolicyError::file(path, format!("cannot be read: {error}"))]))?;
        Self::from_text(&path.to_string_lossy(), &text)
    }

    /// Reads cases from a text under the name of its file.
    ///
    /// # Errors
    /// As [`Cases::load`].
    pub fn from_text(name: &str, text: &str) -> Result<Self, PolicyErrors> {
        let source = Source { name: name.into(), text: text.into() };
        let found = read::<CasesFile>(&source);
        match found.document {
            Some(file) if found.errors.is_empty() && !file.case.is_empty() => Ok(Self { source, cases: file.case }),
            Some(_) if found.errors.is_empty() => {
                Err(PolicyErrors::new(vec![PolicyError::at(&source, 0..0, "there is no [[case]] in this file")]))
            }
            _ => Err(PolicyErrors::new(found.errors)),
        }
    }

    /// Judges each command under the policy, classified by `classify`.
    ///
    /// # Errors
    /// Cases that name an upstream or a rule which the policy does not have, or no upstream where it has several.
    pub fn run(
        &self,
        policy: &Policy,
        classify: impl Fn(&UpstreamSpec, &str) -> Action,
    ) -> Result<CasesReport, PolicyErrors> {
        let mut errors = Vec::new();
        let mut results = Vec::new();
        for case in &self.cases {
            match self.resource(policy, case) {
                Ok((to, upstream)) => {
                    results.push(self.judge(policy, case, &to, classify(&upstream, &case.value.command)));
                }
                Err(error) => errors.push(error),
            }
            errors.extend(self.unknown_rule(policy, &case.value));
        }
        if !errors.is_empty() {
            return Err(PolicyErrors::new(errors));
        }
        Ok(CasesReport { file: self.source.name.clone(), results })
    }

    fn judge(&self, policy: &Policy, case: &At<Case>, to: &Resource, action: Action) -> CaseResult {
        let At { span, value: case } = case;
        let who = Subject {
            workload: policy.workload().name.clone(),
            tenant: policy.workload().tenant.clone(),
            session: "case".into(),
            cgroup: 0,
            intent: case.intent.as_deref().map(Into::into),
            trace_id: "00000000000000000000000000000000".into(),
            ends_at: None,
            process: ProcessFacts::default(),
        };
        let explanation = policy.explain(&who, to, &action);
        let rule_fits = case.rule.as_ref().is_none_or(|rule| *rule.value == *explanation.rule);
        CaseResult {
            name: case.name.clone(),
            line: self.source.position(span.start).0,
            expected: case.expect,
            expected_rule: case.rule.as_ref().map(|rule| rule.value.clone()),
            passed: explanation.effect == case.expect && rule_fits,
            explanation,
        }
    }

    fn resource(&self, policy: &Policy, case: &At<Case>) -> Result<(Resource, Arc<UpstreamSpec>), PolicyError> {
        let upstream = match (&case.value.upstream, policy.upstreams()) {
            (Some(name), all) => policy.upstream(&name.value).ok_or_else(|| {
                let help = did_you_mean(&name.value, all.iter().map(|upstream| &*upstream.name));
                let message = format!("unknown upstream `{}`", name.value);
                PolicyError::at(&self.source, name.span.clone(), message).maybe_help(help)
            })?,
            (None, [only]) => only,
            (None, _) => {
                let message = "this case needs an `upstream`: the policy does not have exactly one";
                return Err(PolicyError::at(&self.source, case.span.clone(), message));
            }
        };
        // Where a case names no database, the upstream's first listed one, so that the list does not decide.
        let database = case.value.database.as_ref().or(upstream.databases.first());
        let to = Resource {
            upstream: upstream.name.clone(),
            protocol: upstream.protocol,
            address: upstream.addresses.first().map(String::as_str).unwrap_or_default().into(),
            database: database.map(|database| database.as_str().into()),
        };
        Ok((to, Arc::clone(upstream)))
    }

    fn unknown_rule(&self, policy: &Policy, case: &Case) -> Option<PolicyError> {
        let rule = case.rule.as_ref()?;
        let rules = policy.expanded();
        let known = || rules.iter().map(|rule| &*rule.name).chain(["default", "databases"]);
        if known().any(|known| *known == *rule.value) {
            return None;
        }
        let message = format!("the policy has no rule `{}`", rule.value);
        let help = did_you_mean(&rule.value, known());
        Some(PolicyError::at(&self.source, rule.span.clone(), message).maybe_help(help))
    }
}

impl CasesReport {
    /// How many went as expected.
    pub fn passed(&self) -> usize {
        self.results.iter().filter(|result| result.passed).count()
    }

    /// How many did not.
    pub fn failed(&self) -> usize {
        self.results.len() - self.passed()
    }
}

impl fmt::Display for CasesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in self.results.iter().filter(|result| !result.passed) {
            write!(f, "{}:{}: {}: expected {}", self.file, result.line, result.name, result.expected.as_str())?;
            if let Some(rule) = &result.expected_rule {
                write!(f, " by rule `{rule}`")?;
            }
            writeln!(f, ", got {}", result.explanation.to_string().replace('\n', "\n  "))?;
        }
        write!(f, "{}: {} passed, {} failed", self.file, self.passed(), self.failed())
    }
}
