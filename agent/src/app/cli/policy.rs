//! `policy check|show|explain|test|schema`. All of it works on files alone, so that it runs in an editor or in CI.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::{CliError, Exit, Place, args::Form, args::PolicyAction, json_line, must_exist, print};
use crate::{
    action::{Action, ProcessFacts, ProtocolId, Resource, Subject},
    policy::{self, Effect, Policy, PolicyErrors, PolicySet, UpstreamSpec, cases::Cases},
    protocol::{http, llm},
    sql::{self, Names},
};

pub(super) fn policy(place: &Place, action: PolicyAction) -> Result<Exit, CliError> {
    match action {
        PolicyAction::Check { paths, form } => check(&or_settings(place, paths)?, form),
        PolicyAction::Show { workload, expanded, policies, form } => {
            let set = load(&folder(place, policies)?)?;
            show(&set, workload.as_deref(), if expanded { Rules::Expanded } else { Rules::AsWritten }, form)
        }
        PolicyAction::Explain { workload, upstream, database, intent, policies, form, command } => {
            let set = load(&folder(place, policies)?)?;
            let question = Question { workload, upstream, database, intent, command };
            explain(&set, &question, form)
        }
        PolicyAction::Test { paths, form } => test(&or_settings(place, paths)?, form),
        PolicyAction::Schema => {
            let text = serde_json::to_string_pretty(&policy::schema()).map_err(io::Error::other)?;
            writeln!(io::stdout(), "{text}")?;
            Ok(Exit::Ok)
        }
    }
}

enum Rules {
    AsWritten,
    Expanded,
}

struct Question {
    workload: String,
    upstream: String,
    database: Option<String>,
    intent: Option<String>,
    command: String,
}

fn folder(place: &Place, named: Option<PathBuf>) -> Result<PathBuf, CliError> {
    named.map_or_else(|| Ok(place.settings()?.policy_dir), Ok)
}

fn or_settings(place: &Place, paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, CliError> {
    if paths.is_empty() { Ok(vec![place.settings()?.policy_dir]) } else { Ok(paths) }
}

/// A folder as a set, or one file.
fn read(path: &Path) -> Result<PolicySet, PolicyErrors> {
    if path.is_dir() { PolicySet::load(path) } else { PolicySet::load_file(path) }
}

fn load(path: &Path) -> Result<PolicySet, CliError> {
    must_exist(path)?;
    read(path).map_err(|errors| CliError::Report(errors.into()))
}

#[derive(Serialize)]
struct Checked {
    path: String,
    valid: bool,
    workloads: Vec<String>,
    errors: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    help: Option<String>,
}

fn check(paths: &[PathBuf], form: Form) -> Result<Exit, CliError> {
    let mut exit = Exit::Ok;
    for path in paths {
        must_exist(path)?;
        let name = path.display().to_string();
        let checked = match read(path) {
            Ok(set) => {
                let workloads: Vec<String> = set.policies().iter().map(|p| p.workload().name.to_string()).collect();
                if !form.json {
                    writeln!(io::stdout(), "{}: ok ({})", print::one_line(&name), workloads.join(", "))?;
                }
                Checked { path: name, valid: true, workloads, errors: Vec::new() }
            }
            Err(errors) => {
                exit = Exit::Failed;
                let found = errors
                    .errors()
                    .iter()
                    .map(|error| Finding {
                        file: error.file_name().to_owned(),
                        line: error.position().map(|(line, _)| line),
                        column: error.position().map(|(_, column)| column),
                        message: error.message().to_owned(),
                        help: error.hint().map(str::to_owned),
                    })
                    .collect();
                if !form.json {
                    writeln!(io::stderr(), "{}", super::render(&errors.into()))?;
                }
                Checked { path: name, valid: false, workloads: Vec::new(), errors: found }
            }
        };
        if form.json {
            json_line(&checked)?;
        }
    }
    Ok(exit)
}

fn show(set: &PolicySet, workload: Option<&str>, rules: Rules, form: Form) -> Result<Exit, CliError> {
    let chosen: Vec<&Arc<Policy>> = match workload {
        Some(name) => vec![by_name(set, name)?],
        None => set.policies().iter().collect(),
    };
    let mut out = io::stdout();
    for policy in chosen {
        let mut shown = policy.expanded();
        if matches!(rules, Rules::AsWritten) {
            shown.retain(|rule| rule.origin == policy::Origin::File);
        }
        if form.json {
            json_line(
                &serde_json::json!({ "workload": policy.workload().name, "file": policy.file(), "rules": shown }),
            )?;
            continue;
        }
        writeln!(out, "# workload {} ({})", policy.workload().name, print::one_line(policy.file()))?;
        for rule in &shown {
            writeln!(out, "\n{}", print::lines(rule.to_string().trim_end()))?;
        }
        writeln!(out)?;
    }
    Ok(Exit::Ok)
}

fn explain(set: &PolicySet, question: &Question, form: Form) -> Result<Exit, CliError> {
    let policy = by_name(set, &question.workload)?;
    let upstream = policy.upstream(&question.upstream).ok_or_else(|| {
        let known: Vec<&str> = policy.upstreams().iter().map(|u| &*u.name).collect();
        let message = format!("the policy of `{}` names no upstream `{}`", question.workload, question.upstream);
        CliError::Plain(Exit::Usage, message, Some(format!("it names: {}", known.join(", "))))
    })?;
    let to = Resource {
        upstream: upstream.name.clone(),
        protocol: upstream.protocol,
        address: upstream.addresses.first().map_or("", String::as_str).into(),
        // One that the upstream lists, so that the answer is about the command.
        database: question.database.clone().or_else(|| upstream.databases.first().cloned()).map(Into::into),
    };
    let who = Subject {
        workload: policy.workload().name.clone(),
        tenant: policy.workload().tenant.clone(),
        session: "explain".into(),
        cgroup: 0,
        intent: question.intent.as_deref().map(Into::into),
        trace_id: "".into(),
        ends_at: None,
        process: ProcessFacts::default(),
    };
    let explanation = policy.explain(&who, &to, &classify(upstream, &question.command));
    if form.json {
        json_line(&explanation)?;
    } else {
        write!(io::stdout(), "{}", print::lines(&explanation.to_string()))?;
        let note = match to.protocol {
            ProtocolId::Postgres => {
                "\n(unqualified names are taken as of search_path `public`, and as built-in functions)"
            }
            _ => "",
        };
        writeln!(io::stdout(), "{note}")?;
    }
    Ok(match explanation.effect {
        Effect::Deny | Effect::Suggest => Exit::Denied,
        Effect::Allow | Effect::Notify | Effect::Hold => Exit::Ok,
    })
}

fn test(paths: &[PathBuf], form: Form) -> Result<Exit, CliError> {
    let (mut passed, mut failed) = (0, 0);
    for file in policy_files(paths)? {
        let cases = Cases::path_for(&file);
        if !cases.exists() {
            continue;
        }
        let set = load(&file)?;
        let report = |errors: PolicyErrors| CliError::Report(errors.into());
        let cases = Cases::load(&cases).map_err(report)?;
        for policy in set.policies() {
            let outcome = cases.run(policy, classify).map_err(report)?;
            passed += outcome.passed();
            failed += outcome.failed();
            if form.json {
                json_line(&outcome)?;
            } else {
                write!(io::stdout(), "{}", print::lines(&outcome.to_string()))?;
                writeln!(io::stdout())?;
            }
        }
    }
    if passed + failed == 0 {
        let help = "cases for `bot.toml` stand in `bot.cases.toml` beside it".to_owned();
        return Err(CliError::Plain(Exit::Failed, "there are no decision cases to run".into(), Some(help)));
    }
    if !form.json {
        writeln!(io::stdout(), "{passed} passed, {failed} failed")?;
    }
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}

/// Policy files of folders, and files as they are; a case file stands for its policy.
fn policy_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    for path in paths {
        must_exist(path)?;
        if !path.is_dir() {
            let name = path.to_string_lossy();
            files.push(
                name.strip_suffix(".cases.toml").map_or_else(|| path.clone(), |stem| format!("{stem}.toml").into()),
            );
            continue;
        }
        let unreadable =
            |error| CliError::Plain(Exit::Failed, format!("cannot list {}: {error}", path.display()), None);
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            let name = file.to_string_lossy();
            if name.ends_with(".toml") && !name.ends_with(".cases.toml") {
                files.push(file);
            }
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn by_name<'a>(set: &'a PolicySet, name: &str) -> Result<&'a Arc<Policy>, CliError> {
    set.by_workload(name).ok_or_else(|| {
        let known: Vec<&str> = set.policies().iter().map(|p| &*p.workload().name).collect();
        let help = format!("there is: {}", known.join(", "));
        CliError::Plain(Exit::Usage, format!("no policy is for a workload `{name}`"), Some(help))
    })
}

fn classify(upstream: &UpstreamSpec, command: &str) -> Action {
    match upstream.protocol {
        ProtocolId::Postgres => sql::classify(command, &Offline).action,
        ProtocolId::Http => http::classify(command, &upstream.routes),
        ProtocolId::Llm => llm::classify(command, &upstream.routes),
    }
}

/// Name resolution without a server: `search_path` is `public`, the catalogue is as shipped.
struct Offline;

impl Names for Offline {
    fn relation_schema(&self, schema: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(match schema {
            Some(schema) => schema.into(),
            // The catalogue is searched first: https://www.postgresql.org/docs/current/ddl-schemas.html
            None if name.starts_with("pg_") => "pg_catalog".into(),
            None => "public".into(),
        })
    }

    fn function_schema(&self, schema: Option<&str>, _: &str) -> Option<Arc<str>> {
        Some(schema.unwrap_or("pg_catalog").into())
    }

    fn creation_schema(&self) -> Option<Arc<str>> {
        Some("public".into())
    }

    fn columns(&self, _schema: &str, _name: &str) -> Option<Arc<[Arc<str>]>> {
        None
    }
}
