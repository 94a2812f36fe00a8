//! `when`: a CEL expression over typed facts, compiled and checked once.
//!
//! Names, fields and functions that do not exist are found when the policy is loaded. What only shows at run time (a
//! fact that this command does not have, an index out of bounds) leaves the expression unanswered, and the rule's
//! effect decides what that means: see [`Verdict`].

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, ExecutionError, Program, Value,
    common::ast::{EntryExpr, Expr, IdedExpr},
};

use super::error::did_you_mean;
use smallvec::SmallVec;

use crate::action::{Body, HttpFacts, LlmFacts, Params, ProtocolId, Resource, SqlFacts, Subject, Target};

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

const VARIABLES: &[&str] = &["sql", "http", "llm", "workload", "session", "upstream", "database"];
const SQL: &[&str] = &["verb", "has_where", "has_limit", "tables", "functions", "statements", "text", "params"];
const HTTP: &[&str] = &["method", "host", "path", "query", "headers", "upgrade", "body_json"];
const LLM: &[&str] = &["api", "model", "stream", "max_tokens", "tools", "prompt", "injection"];
const SESSION: &[&str] = &["intent"];
const FUNCTIONS: &[&str] =
    &["size", "contains", "startsWith", "endsWith", "string", "int", "uint", "double", "bool", "bytes", "type", "dyn"];

/// What evaluation gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It could not be evaluated: a match for hold, suggest and deny, none for allow and notify.
    Unanswered,
}

/// A compiled expression.
pub(super) struct When {
    text: Box<str>,
    program: Program,
    /// It asks for bound parameters.
    pub(super) asks_params: bool,
    /// It asks for the body of a request.
    pub(super) asks_body: bool,
    /// The protocols of whose commands it asks for facts. Opening a connection is no command.
    pub(super) about: SmallVec<[ProtocolId; 1]>,
}

/// What is wrong with an expression, and where in its text.
#[derive(Debug, PartialEq)]
pub(super) struct WhenError {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl When {
    pub(super) fn new(text: &str) -> Result<Self, WhenError> {
        let whole = |message: String| WhenError { at: 0..text.len(), message, help: None };
        // The grammar's runtime is not ours: a panic in it must not take the daemon down on a reload.
        let compiled = catch_unwind(AssertUnwindSafe(|| ENV.compile(text)))
            .map_err(|_| whole("the expression cannot be parsed".into()))?;
        let program = compiled.map_err(|errors| match errors.errors.first() {
            Some(error) => {
                let at = offset(text, error.pos);
                WhenError { at: at..text.len().min(at + 1).max(at), message: tidy(&error.msg), help: None }
            }
            None => whole("the expression cannot be parsed".into()),
        })?;
        let mut names = Names { text, scope: Vec::new(), params: false, body: false, about: SmallVec::new() };
        names.check(program.expression())?;
        let Names { params, body, about, .. } = names;
        let when = Self { text: text.into(), asks_params: params, asks_body: body, about, program };
        when.try_on_samples().map_err(whole)?;
        Ok(when)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn holds(&self, facts: &CelFacts) -> Verdict {
        match self.run(facts) {
            Ok(Value::Bool(true)) => Verdict::True,
            Ok(Value::Bool(false)) => Verdict::False,
            _ => Verdict::Unanswered,
        }
    }

    fn run(&self, facts: &CelFacts) -> Result<Value, ExecutionError> {
        catch_unwind(AssertUnwindSafe(|| self.program.execute(&facts.0)))
            .unwrap_or_else(|_| Err(ExecutionError::InternalError("evaluation failed".into())))
    }

    /// Finds type errors before they meet a command. What depends on values (a missing key, an index) is not one.
    fn try_on_samples(&self) -> Result<(), String> {
        for (verb, has) in [("select", true), ("update", false)] {
            let sql = SqlFacts {
                verb: verb.into(),
                has_where: has,
                has_limit: has,
                tables: vec![Target::new("public.sample")],
                functions: vec!["pg_catalog.sample".into()],
                statements: 1,
                text: "sample".into(),
                params: Params::Known([Some("sample".into())].into()),
                ..SqlFacts::default()
            };
            let sample = || "sample".to_owned();
            let http = HttpFacts {
                method: sample(),
                host: sample(),
                path: sample(),
                body: Body::Json(serde_json::Value::Object(serde_json::Map::new())),
                llm: Some(LlmFacts {
                    api: "chat",
                    model: sample(),
                    max_tokens: Some(1),
                    prompt: Some("sample".into()),
                    ..LlmFacts::default()
                }),
                ..HttpFacts::default()
            };
            let mut facts = CelFacts::of("sample", Some("sample"), "sample", Some("sample"));
            facts.add_sql(&sql);
            facts.add_http(&http);
            match self.run(&facts) {
                Ok(Value::Bool(_)) => {}
                Ok(other) => return Err(format!("the expression gives a {}, not true or false", other.type_of())),
                Err(
                    ExecutionError::NoSuchKey(_)
                    | ExecutionError::IndexOutOfBounds(_)
                    | ExecutionError::DivisionByZero(_)
                    | ExecutionError::RemainderByZero(_)
                    | ExecutionError::Overflow(..)
                    | ExecutionError::FunctionError { .. },
                ) => {}
                Err(error) => return Err(format!("the expression cannot be evaluated: {error}")),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "When({:?})", self.text)
    }
}

/// What facts are there of: one statement, or one request.
#[derive(Clone, Copy)]
pub(super) enum Stated<'a> {
    Sql(&'a SqlFacts),
    Http(&'a HttpFacts),
}

/// The facts of one statement, in CEL's values.
pub(super) struct CelFacts(Context<'static, 'static>);

impl CelFacts {
    pub(super) fn new(who: &Subject, to: &Resource, stated: Option<Stated<'_>>) -> Self {
        let mut facts = Self::of(&who.workload, who.intent.as_deref(), &to.upstream, to.database.as_deref());
        match stated {
            None => {}
            Some(Stated::Sql(sql)) => facts.add_sql(sql),
            Some(Stated::Http(http)) => facts.add_http(http),
        }
        facts
    }

    fn of(workload: &str, intent: Option<&str>, upstream: &str, database: Option<&str>) -> Self {
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value("workload", workload);
        context.add_variable_from_value("upstream", upstream);
        if let Some(database) = database {
            context.add_variable_from_value("database", database);
        }
        let session: HashMap<&str, Value> = intent.map(|intent| ("intent", Value::from(intent))).into_iter().collect();
        context.add_variable_from_value("session", session);
        Self(context)
    }

    fn add_sql(&mut self, sql: &SqlFacts) {
        let list = |texts: &mut dyn Iterator<Item = &str>| Value::from(texts.map(Value::from).collect::<Vec<_>>());
        let mut facts: HashMap<&str, Value> = HashMap::from([
            ("verb", Value::from(sql.verb.as_str())),
            ("has_where", Value::Bool(sql.has_where)),
            ("has_limit", Value::Bool(sql.has_limit)),
            ("tables", list(&mut sql.tables.iter().map(Target::as_str))),
            ("functions", list(&mut sql.functions.iter().map(String::as_str))),
            ("statements", Value::Int(i64::try_from(sql.statements).unwrap_or(i64::MAX))),
            ("text", Value::from(sql.text.as_str())),
        ]);
        let text = |param: &Option<Arc<str>>| param.as_deref().map_or(Value::Null, Value::from);
        match &sql.params {
            Params::None => facts.insert("params", Value::from(Vec::<Value>::new())),
            Params::Known(params) => facts.insert("params", Value::from(params.iter().map(text).collect::<Vec<_>>())),
            Params::Pending | Params::Unknown => None,
        };
        self.0.add_variable_from_value("sql", facts);
    }

    fn add_http(&mut self, http: &HttpFacts) {
        // What has no one value is not there: to ask for it leaves the expression unanswered.
        let query = http.query.iter().filter_map(|(name, value)| Some((name.clone(), Value::from(value.as_deref()?))));
        let headers = http.headers.by_name().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
        let mut facts: HashMap<&str, Value> = HashMap::from([
            ("method", Value::from(http.method.as_str())),
            ("host", Value::from(http.host.as_str())),
            ("path", Value::from(http.path.as_str())),
            ("query", Value::from(query.collect::<HashMap<String, Value>>())),
            ("headers", Value::from(headers.collect::<HashMap<String, Value>>())),
            ("upgrade", Value::from(http.upgrade.as_str())),
        ]);
        match &http.body {
            Body::None => facts.insert("body_json", Value::Null),
            Body::Json(body) => facts.insert("body_json", value(body)),
            Body::Pending | Body::Unknown => None,
        };
        self.0.add_variable_from_value("http", facts);
        if let Some(llm) = &http.llm {
            self.add_llm(llm);
        }
    }

    fn add_llm(&mut self, llm: &LlmFacts) {
        let list = |texts: &mut dyn Iterator<Item = &str>| Value::from(texts.map(Value::from).collect::<Vec<_>>());
        let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let facts: HashMap<&str, Value> = HashMap::from([
            ("api", Value::from(llm.api)),
            ("model", Value::from(llm.model.as_str())),
            ("stream", Value::Bool(llm.stream)),
            ("max_tokens", llm.max_tokens.map_or(Value::Null, number)),
            ("tools", list(&mut llm.tools.iter().map(String::as_str))),
            ("prompt", llm.prompt.as_deref().map_or(Value::Null, Value::from)),
            ("injection", list(&mut llm.injection.iter().copied())),
        ]);
        self.0.add_variable_from_value("llm", facts);
    }
}

/// JSON in CEL's values. Numbers are doubles where they are no integers.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::Int(n),
            (None, Some(n)) => Value::UInt(n),
            (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        serde_json::Value::Object(members) => {
            let members = members.iter().map(|(key, member)| (key.clone(), value(member)));
            Value::from(members.collect::<HashMap<String, Value>>())
        }
    }
}

/// Checks that every name exists.
struct Names<'a> {
    text: &'a str,
    /// Variables of the macros around (`all`, `exists`, `map`, ...).
    scope: Vec<String>,
    /// `sql.params` was met, or `sql` as a whole.
    params: bool,
    /// `http.body_json` was met, or `http` as a whole.
    body: bool,
    /// Of `sql` and `http`, those that were met.
    about: SmallVec<[ProtocolId; 1]>,
}

impl Names<'_> {
    fn check(&mut self, node: &IdedExpr) -> Result<(), WhenError> {
        match &node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                self.params |= name == "sql";
                self.body |= name == "http";
                self.variable(name)
            }
            Expr::Select(select) => {
                if let Expr::Ident(root) = &select.operand.expr
                    && !self.scope.contains(root)
                {
                    self.field(root, &select.field)?;
                    self.params |= root == "sql" && select.field == "params";
                    self.body |= root == "http" && select.field == "body_json";
                    // Which field it is was looked at here.
                    return self.variable(root);
                }
                self.check(&select.operand)
            }
            Expr::Call(call) => {
                // Operators have names that no one can write.
                if call.func_name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    self.known("function", &call.func_name, FUNCTIONS)?;
                }
                call.target.iter().map(|target| &**target).chain(&call.args).try_for_each(|part| self.check(part))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.check(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::StructField(field) => self.check(&field.value),
                EntryExpr::MapEntry(entry) => self.check(&entry.key).and_then(|()| self.check(&entry.value)),
            }),
            Expr::Struct(_) => Err(self.error("", "messages cannot be built here".into(), None)),
            Expr::Comprehension(loop_) => {
                self.check(&loop_.iter_range)?;
                self.check(&loop_.accu_init)?;
                let outside = self.scope.len();
                self.scope.extend([loop_.iter_var.clone(), loop_.accu_var.clone()]);
                self.scope.extend(loop_.iter_var2.clone());
                for part in [&loop_.loop_cond, &loop_.loop_step, &loop_.result] {
                    self.check(part)?;
                }
                self.scope.truncate(outside);
                Ok(())
            }
        }
    }

    fn variable(&mut self, name: &str) -> Result<(), WhenError> {
        let about = match name {
            _ if self.scope.iter().any(|known| known == name) => None,
            "sql" => Some(ProtocolId::Postgres),
            "http" => Some(ProtocolId::Http),
            "llm" => Some(ProtocolId::Llm),
            _ => None,
        };
        if let Some(about) = about.filter(|about| !self.about.contains(about)) {
            self.about.push(about);
        }
        // `type(x) == string` names a type.
        let types = ["bool", "bytes", "double", "int", "list", "map", "string", "uint", "type", "null_type"];
        if name.starts_with('@') || self.scope.iter().any(|known| known == name) || types.contains(&name) {
            return Ok(());
        }
        self.known("variable", name, VARIABLES)
    }

    fn field(&self, root: &str, field: &str) -> Result<(), WhenError> {
        match root {
            "sql" => self.known("fact of `sql`:", field, SQL),
            "http" => self.known("fact of `http`:", field, HTTP),
            "llm" => self.known("fact of `llm`:", field, LLM),
            "session" => self.known("fact of `session`:", field, SESSION),
            "workload" | "upstream" | "database" => {
                Err(self.error(field, format!("`{root}` is a text and has no fields"), None))
            }
            _ => Ok(()),
        }
    }

    fn known(&self, what: &str, name: &str, known: &[&str]) -> Result<(), WhenError> {
        if known.contains(&name) {
            return Ok(());
        }
        let help = did_you_mean(name, known.iter().copied()).unwrap_or_else(|| format!("known: {}", known.join(", ")));
        Err(self.error(name, format!("unknown {what} `{name}`"), Some(help)))
    }

    /// An error at the first place where the word stands.
    fn error(&self, word: &str, message: String, help: Option<String>) -> WhenError {
        let boundary = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let found = self.text.match_indices(word).find(|(at, _)| {
            !word.is_empty()
                && boundary(self.text[..*at].chars().next_back())
                && boundary(self.text[at + word.len()..].chars().next())
        });
        let at = found.map_or(0..self.text.len(), |(at, _)| at..at + word.len());
        WhenError { at, message, help }
    }
}

/// Byte offset of a line (from 1) and column (from 0 or 1, by the parser's mood) in the text.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or(0);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let column = usize::try_from(column - 1).unwrap_or(0);
    text[start.min(text.len())..].char_indices().nth(column).map_or(text.len(), |(at, _)| start + at)
}

/// The parser's message without its prefix and its list of every possible token.
fn tidy(message: &str) -> String {
    let message = message.trim().trim_start_matches("Syntax error: ");
    let end = message.find(" expecting").unwrap_or(message.len());
    format!("syntax error: {}", message[..end].trim_end_matches([',', ' ']))
}

#[cfg(test)]
mod tests;
