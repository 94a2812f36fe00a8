//! A policy file that parsed to a [`Policy`], with every finding about what it means.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use super::{
    Autonomy, CredentialRef, CredentialSource, Effect, HoldScope, Inject, Policy, Reviewer, TlsMode, TlsSpec,
    UpstreamSpec, WorkloadSpec,
    compiled::Words,
    error::{PolicyError, Source, did_you_mean},
    file::{self, At, CredentialKind, File, Required, Several},
    index::Index,
    rule::{self, Origin, RuleSpec},
    when::When,
};
use crate::action::{Direction, Glob, GlobError, MaskSpec, ProtocolId, Verb};

/// Most unix sockets of one workload: the kernel's table is shared by all sessions.
const MAX_UNIX: usize = 64;
/// `sun_path` in linux/un.h, in bytes.
const MAX_UNIX_PATH: usize = 108;
const DEFAULT_EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether reading the file cut out upstreams, whose names are then not missed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Upstreams {
    AllThere,
    SomeLost,
}

/// Checks a file that could be read.
pub(super) fn check(source: &Source, file: &File, known: Upstreams, errors: &mut Vec<PolicyError>) -> Option<Policy> {
    let mut checker = Checker { source, known, upstreams: Vec::new(), errors };
    let before = checker.errors.len();
    let (workload, cgroup) = checker.workload(&file.workload.value);
    checker.upstreams(&file.upstream);
    let mut rules = checker.rules(file);
    let masks = checker.masks(&file.mask);
    let upstreams = checker.upstreams;
    if errors.len() > before {
        return None;
    }
    for upstream in &upstreams {
        rules.extend(upstream.tier.into_iter().flat_map(|tier| tier.rules(&upstream.name)));
    }
    for (upstream, masks) in upstreams.iter().zip(&masks) {
        let by_column = masks.iter().filter(|mask| !mask.columns.is_empty());
        rules.extend(by_column.map(|mask| mask.inference).max().map(|with| rule::inference(&upstream.name, with)));
    }
    rules.push(rule::implicit());
    rules.sort_by(|a, b| a.order().cmp(&b.order()));
    let floor = workload.autonomy.floor();
    Some(Policy {
        file: source.name.clone(),
        cgroup: cgroup?,
        masks,
        asks_params: rules.iter().any(|rule| rule.when.as_ref().is_some_and(|when| when.asks_params)),
        index: upstreams.iter().map(|upstream| Index::new(&rules, upstream)).collect(),
        upstreams,
        workload,
        rules,
        floor,
        words: Words::default(),
    })
}

struct Checker<'a> {
    source: &'a Source,
    known: Upstreams,
    upstreams: Vec<Arc<UpstreamSpec>>,
    errors: &'a mut Vec<PolicyError>,
}

impl Checker<'_> {
    fn error(&mut self, span: &Range<usize>, message: impl Into<String>) -> &mut PolicyError {
        self.errors.push(PolicyError::at(self.source, span.clone(), message));
        let last = self.errors.len() - 1;
        &mut self.errors[last]
    }

    fn hinted(&mut self, span: &Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(PolicyError::at(self.source, span.clone(), message).help(help));
    }

    fn workload(&mut self, workload: &file::Workload) -> (WorkloadSpec, Option<Glob>) {
        self.identifier(&workload.name, "workload");
        if let Some(tenant) = &workload.tenant {
            self.sentence(tenant, "the tenant");
        }
        let cgroup = self.cgroup(&workload.cgroup);
        self.claim(workload);
        let spec = WorkloadSpec {
            name: workload.name.value.as_str().into(),
            cgroup: workload.cgroup.value.clone(),
            claim: workload.claim.as_ref().is_some_and(|claim| claim.value),
            tenant: workload.tenant.as_ref().map(|tenant| tenant.value.as_str().into()),
            autonomy: workload.autonomy.unwrap_or(Autonomy::Confirm),
            unix: self.unix(workload.unix.as_ref()),
            ttl: workload.session.ttl.map(|ttl| ttl.0),
            require_intent: workload.session.require_intent,
            limits: self.limits(&workload.limits),
            temporary: self.temporary(workload),
            filesystem: self.filesystem(workload),
            run_as: self.run_as(workload),
        };
        (spec, cgroup)
    }

    /// Paths that are compared byte by byte in the kernel, so each has one way to be written.
    fn unix(&mut self, paths: Option<&At<Vec<At<String>>>>) -> Vec<String> {
        let Some(paths) = paths else { return Vec::new() };
        if paths.value.len() > MAX_UNIX {
            self.error(&paths.span, format!("a workload reaches at most {MAX_UNIX} unix sockets"));
        }
        let mut taken: Vec<String> = Vec::new();
        for At { span, value: path } in &paths.value {
            if path.starts_with('@') || path.starts_with('\0') {
                self.error(span, "abstract unix sockets cannot be reached: only those with a path");
            } else if path.contains('\0') {
                self.error(span, "a path has no NUL");
            } else if !path.starts_with('/') {
                self.hinted(span, "the path of a unix socket is absolute", "for example `/run/nscd/socket`");
            } else if path.len() > MAX_UNIX_PATH {
                self.error(span, format!("the path of a unix socket has at most {MAX_UNIX_PATH} bytes"));
            } else if path[1..].split('/').any(|segment| matches!(segment, "" | "." | "..")) {
                self.hinted(span, "a path names each folder once", "without `//`, `.`, `..` and a `/` at its end");
            } else if path.contains(['*', '?', '[']) {
                self.hinted(span, "a path is no pattern", "write each socket's own path");
            } else if taken.contains(path) {
                self.error(span, format!("`{path}` is listed twice"));
            } else {
                taken.push(path.clone());
            }
        }
        taken
    }

    fn cgroup(&mut self, pattern: &At<String>) -> Option<Glob> {
        if pattern.value.starts_with('/') {
            self.hinted(
                &pattern.span,
                "a cgroup pattern is relative to the cgroup2 root",
                format!("write `{}`", pattern.value.trim_start_matches('/')),
            );
            return None;
        }
        let glob = self.glob(pattern, '/', "cgroup pattern")?;
        if pattern.value.split('/').any(|segment| matches!(segment, "." | "..")) {
            self.error(&pattern.span, "a cgroup pattern may not have `.` or `..` segments");
        } else if glob.parent().is_empty() {
            self.hinted(
                &pattern.span,
                "a cgroup pattern needs a fixed folder that it lives in",
                "the kernel hooks are attached there; for example `portcullis.slice/NAME/*`",
            );
        }
        Some(glob)
    }

    /// A name that stands in paths, tables and commands.
    fn identifier(&mut self, name: &At<String>, what: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.value.is_empty()
            || name.value.len() > 64
            || name.value.starts_with(['.', '-'])
            || !name.value.chars().all(fits)
        {
            self.hinted(
                &name.span,
                format!("`{}` cannot be the name of {} {what}", name.value.escape_debug(), article(what)),
                "up to 64 letters, digits, `.`, `_` and `-`, not first a `.` or `-`",
            );
        }
    }

    fn sentence(&mut self, text: &At<String>, what: &str) {
        if text.value.trim().is_empty() {
            self.error(&text.span, format!("{what} is empty"));
        } else if text.value.chars().any(char::is_control) {
            self.error(&text.span, format!("{what} has control characters"));
        }
    }

    fn glob(&mut self, pattern: &At<String>, separator: char, what: &str) -> Option<Glob> {
        self.globbed(pattern, Glob::new(&pattern.value, separator), what)
    }

    fn globbed(&mut self, pattern: &At<String>, made: Result<Glob, GlobError>, what: &str) -> Option<Glob> {
        match made {
            Ok(glob) => Some(glob),
            Err(error) => {
                let at = error.at();
                let end = pattern.value[at..].chars().next().map_or(at, |c| at + c.len_utf8());
                let span = self.source.inside(pattern.span.clone(), &pattern.value, at..end);
                let found = PolicyError::at(self.source, span, format!("bad {what}: {error}"));
                self.errors.push(found.help("`*` within a segment, `**` across, quotes around odd names"));
                None
            }
        }
    }

    /// A list that is there must say something.
    fn filled<'v, T>(&mut self, list: &'v Option<At<Vec<T>>>, what: &str) -> Option<&'v [T]> {
        let list = list.as_ref()?;
        if list.value.is_empty() {
            self.hinted(&list.span, format!("`{what}` is an empty list"), "leave the key out to mean every one");
        }
        Some(&list.value)
    }

    fn protocol(&mut self, name: &At<String>) -> Option<ProtocolId> {
        let found = ProtocolId::ALL.iter().copied().find(|protocol| protocol.as_str() == name.value);
        if found.is_none() {
            let known = ProtocolId::ALL.iter().map(|protocol| protocol.as_str());
            let help = did_you_mean(&name.value, known.clone())
                .unwrap_or_else(|| format!("this version speaks: {}", known.collect::<Vec<_>>().join(", ")));
            self.hinted(&name.span, format!("protocol `{}` is not supported", name.value), help);
        }
        found
    }

    /// The upstreams that a rule or mask names.
    fn named_upstreams(&mut self, names: Option<&At<Several<String>>>) -> Option<Vec<Arc<str>>> {
        let names = names?;
        let each = names.value.each(&names.span);
        if each.is_empty() {
            self.hinted(&names.span, "`upstream` is an empty list", "leave the key out to mean every one");
        }
        let mut found = Vec::new();
        for name in each {
            match self.upstreams.iter().find(|upstream| *upstream.name == *name.value) {
                Some(upstream) => found.push(upstream.name.clone()),
                None if self.known == Upstreams::SomeLost => {}
                None => {
                    let known: Vec<Arc<str>> = self.upstreams.iter().map(|upstream| upstream.name.clone()).collect();
                    let help = did_you_mean(&name.value, known.iter().map(|name| &**name));
                    let error = PolicyError::at(self.source, name.span, format!("unknown upstream `{}`", name.value));
                    self.errors.push(error.label("no [[upstream]] has this name").maybe_help(help));
                }
            }
        }
        Some(found)
    }

    fn masks(&mut self, masks: &[At<file::Mask>]) -> Vec<Vec<MaskSpec>> {
        let mut specs: Vec<Vec<MaskSpec>> = vec![Vec::new(); self.upstreams.len()];
        // What each upstream already has: the mask, and the line it was written on.
        let mut seen: Vec<HashMap<String, (crate::action::MaskWith, usize)>> =
            vec![HashMap::new(); self.upstreams.len()];
        for mask in masks {
            let At { span, value: mask } = mask;
            let names = self.named_upstreams(mask.upstream.as_ref());
            if mask.columns.is_none() && mask.detect.is_none() && mask.json.is_none() {
                let text = "a mask needs `columns`, `json` or `detect`";
                self.hinted(&header(self.source, span), text, "or it hides nothing");
            }
            let columns: Vec<(Range<usize>, String)> = self
                .filled(&mask.columns, "columns")
                .unwrap_or_default()
                .iter()
                .filter_map(|pattern| Some((pattern.span.clone(), self.column(pattern)?)))
                .collect();
            let detect = self.filled(&mask.detect, "detect").unwrap_or_default();
            let unresolved = mask.unresolved.as_ref().filter(|_| mask.json.is_none()).map(|at| &at.span);
            let inference = mask.inference.as_ref().map(|at| &at.span);
            if let Some(span) = unresolved.or(inference).filter(|_| mask.columns.is_none()) {
                self.hinted(span, "this is for masks of columns", "what a detector finds has no column");
            }
            let direction = mask.direction.as_ref().map(|at| at.value).unwrap_or_default();
            self.fits(mask, names.as_deref());
            let json: Vec<String> = self
                .filled(&mask.json, "json")
                .unwrap_or_default()
                .iter()
                .filter_map(|pattern| Some(self.glob(pattern, '/', "pattern of a JSON path")?.as_str().to_owned()))
                .collect();
            let here: Vec<usize> = (0..self.upstreams.len())
                .filter(|place| names.as_ref().is_none_or(|names| names.contains(&self.upstreams[*place].name)))
                // Requests of other protocols are not masked, and `fits` said so of those that are named.
                .filter(|place| direction == Direction::Response || self.upstreams[*place].protocol.is_http())
                .collect();
            let keys = columns.iter().map(|(span, column)| (span, column.clone()));
            let keys = keys.chain(detect.iter().map(|detector| (&detector.span, detector.value.as_str().to_owned())));
            let paths = mask.json.iter().flat_map(|list| &list.value);
            let keys = keys.chain(paths.map(|path| (&path.span, format!("/{}", path.value))));
            for (span, key) in keys.map(|(span, key)| (span, format!("{direction:?} {key}"))) {
                let line = self.source.position(span.start).0;
                let others = here.iter().filter_map(|place| seen[*place].get(&key).copied());
                let conflict = others.filter(|(with, _)| *with != mask.with).min_by_key(|(_, line)| *line);
                if let Some((_, other)) = conflict {
                    let text = "this is masked in two different ways for the same upstream";
                    self.hinted(span, text, format!("the other mask is on line {other}"));
                }
                for place in &here {
                    seen[*place].entry(key.clone()).or_insert((mask.with, line));
                }
            }
            for place in here {
                specs[place].push(MaskSpec {
                    columns: columns.iter().map(|(_, column)| column.clone()).collect(),
                    json: json.clone(),
                    detect: detect.iter().map(|detector| detector.value).collect(),
                    with: mask.with,
                    direction,
                    unresolved: mask.unresolved.as_ref().map(|at| at.value).unwrap_or_default(),
                    inference: mask.inference.as_ref().map(|at| at.value).unwrap_or_default(),
                });
            }
        }
        specs
    }

    /// What hides values of one protocol hides none of another's.
    fn fits(&mut self, mask: &file::Mask, names: Option<&[Arc<str>]>) {
        let about = |name: &str| names.is_none_or(|names| names.iter().any(|other| **other == *name));
        let spoken: Vec<ProtocolId> =
            self.upstreams.iter().filter(|upstream| about(&upstream.name)).map(|upstream| upstream.protocol).collect();
        let keys = [
            ("columns", mask.columns.as_ref().map(|key| &key.span), ProtocolId::Postgres),
            ("json", mask.json.as_ref().map(|key| &key.span), ProtocolId::Http),
        ];
        let speaks = |spoken: &ProtocolId, wanted: ProtocolId| {
            *spoken == wanted || (wanted == ProtocolId::Http && spoken.is_http())
        };
        let requests = mask.direction.as_ref().filter(|at| at.value == Direction::Request);
        let keys = keys.into_iter().chain([("direction", requests.map(|at| &at.span), ProtocolId::Http)]);
        if let Some(columns) = mask.columns.as_ref().filter(|_| requests.is_some()) {
            self.hinted(&columns.span, "a request has no columns", "leave `direction` out");
        }
        for (key, span, protocol) in keys {
            let fit = spoken.iter().filter(|spoken| speaks(spoken, protocol)).count();
            let strays = fit < spoken.len() && (names.is_some() || fit == 0);
            if let Some(span) = span.filter(|_| strays) {
                self.hinted(span, format!("`{key}` is for upstreams of the protocol `{protocol}`"), "name such a one");
            }
        }
    }

    /// A pattern over `schema.table.column`, completed on the left.
    fn column(&mut self, pattern: &At<String>) -> Option<String> {
        let glob = self.glob(pattern, '.', "column pattern")?;
        match glob.segments() {
            _ if glob.names_kind() => self.error(&pattern.span, "a column has no kind before it"),
            None | Some(3) => return Some(pattern.value.clone()),
            Some(1 | 2) => return Some(format!("**.{}", pattern.value)),
            Some(_) => self.error(&pattern.span, "a column is `schema.table.column`"),
        };
        None
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The first line of a table.
fn header(source: &Source, span: &Range<usize>) -> Range<usize> {
    let end = source.text[span.clone()].find('\n').map_or(span.end, |line| span.start + line);
    span.start..end
}

mod credentials;
mod host;
mod models;
mod rules;
mod upstreams;
