//! The command line. Everything but `daemon` is synchronous and single-threaded: `run` becomes the agent, and a thread
//! left behind would be one more process to contain.

mod args;
mod audit;
mod doctor;
mod events;
mod held;
mod interrupt;
mod policy;
mod print;
mod replay;
mod sessions;
mod status;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod uninstall;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use serde::Serialize;

pub use args::Cli;
use args::{AuditAction, Command, Form};

use crate::{
    config::{self, ConfigError, Settings},
    control::{
        client::ClientError,
        proto::{Code, Failure, Request},
    },
    launch,
};

/// How the program ends; the numbers are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed, or what was checked is not right.
    Failed = 1,
    /// The command line or a request is wrong.
    Usage = 2,
    /// Policy or the daemon said no.
    Denied = 3,
    /// No daemon answers.
    Unreachable = 4,
    /// A daemon lost what it cannot be without, and is to be started again.
    Again = 5,
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub enum CliError {
    /// The daemon did not, or said no.
    Client(ClientError),
    /// With a place in a file, for people.
    Report(miette::Report),
    /// Anything else: what, and what to do.
    Plain(Exit, String, Option<String>),
    /// The reader of our output went away.
    Output(io::Error),
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Report(error.into())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Parses the arguments and does what they say.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { Exit::Ok as u8 });
        }
    };
    let exit = match run(cli) {
        Ok(exit) => exit,
        Err(error) => explain(&error, &mut io::stderr()),
    };
    ExitCode::from(exit as u8)
}

fn run(cli: Cli) -> Result<Exit, CliError> {
    let house = Place { config: cli.config, socket: cli.socket };
    match cli.command {
        Command::Daemon => super::daemon::run(house.settings()?).map_err(CliError::Report).map(|ended| match ended {
            super::daemon::Ended::Well => Exit::Ok,
            super::daemon::Ended::Failed => Exit::Failed,
            super::daemon::Ended::Bereft => Exit::Again,
        }),
        Command::Run(run) => {
            let what = launch::Launch {
                workload: run.workload,
                intent: run.intent,
                ttl: run.ttl,
                user: run.user,
                root: if run.i_know_root_escapes { launch::HostRoot::Accepted } else { launch::HostRoot::Refused },
                command: run.command,
            };
            let error = launch::launch(&house.socket()?, what);
            Err(match error {
                launch::LaunchError::Client(error) => error.into(),
                error => {
                    let help = error.help();
                    CliError::Plain(Exit::Failed, chain(&error), help)
                }
            })
        }
        Command::Held { id, watch, form } => held::held(&house.socket()?, id.as_deref(), watch, form),
        Command::Approve { id, grant, reason, form } => held::approve(&house.socket()?, id, grant, reason, form),
        Command::Deny { id, reason, form } => held::deny(&house.socket()?, id, reason, form),
        Command::Grants { action: None, form } => held::grants(&house.socket()?, form),
        Command::Grants { action: Some(args::GrantAction::Revoke { id }), form } => {
            held::revoke(&house.socket()?, id, form)
        }
        Command::Sessions { record, form } => sessions::sessions(&house, record.as_deref(), form),
        Command::Replay { session, speed, record, form } => {
            sessions::replay(&house, &session, speed, record.as_deref(), form)
        }
        Command::Follow { form } => events::follow(&house.socket()?, form),
        Command::Status { form } => status::status(&house.socket()?, form),
        Command::Reload => status::plain(&house.socket()?, &Request::Reload {}),
        Command::Quarantine { session } => status::plain(&house.socket()?, &Request::Quarantine { session }),
        Command::Audit { action: AuditAction::Verify { record, form } } => {
            audit::verify(&house, record.as_deref(), form)
        }
        Command::Policy { action } => policy::policy(&house, action),
        Command::Uninstall { leave_ungoverned } => {
            let ungoverned =
                if leave_ungoverned { uninstall::Ungoverned::Accepted } else { uninstall::Ungoverned::Refused };
            uninstall::uninstall(&house, ungoverned, &mut io::stdout())
        }
        Command::Doctor(asked) => doctor::doctor(&house, asked),
        Command::EscapeAttempts => {
            crate::doctor::attempts::serve(io::stdin().lock(), io::stdout().lock())?;
            Ok(Exit::Ok)
        }
        Command::PrivilegedHelper => super::helper::serve().map_err(CliError::Report).map(|()| Exit::Ok),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut io::stdout());
            Ok(Exit::Ok)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?;
            Ok(Exit::Ok)
        }
    }
}

/// Where the daemon and its files are.
struct Place {
    config: Option<PathBuf>,
    socket: Option<PathBuf>,
}

impl Place {
    fn settings(&self) -> Result<Settings, CliError> {
        Ok(config::load(self.config.as_deref())?)
    }

    /// `--socket`, then `$PORTCULLIS_SOCKET`, then the settings.
    fn socket(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        match std::env::var_os("PORTCULLIS_SOCKET") {
            Some(path) if !path.is_empty() => Ok(path.into()),
            _ => Ok(self.settings()?.control_socket()),
        }
    }
}

/// Prints an error with what to do about it, and tells the exit code.
fn explain(error: &CliError, out: &mut dyn Write) -> Exit {
    let (exit, message, help) = match error {
        CliError::Client(error) => explain_client(error),
        CliError::Plain(exit, message, help) => (*exit, message.clone(), help.clone()),
        CliError::Report(report) => {
            let _ = writeln!(out, "{}", render(report));
            return Exit::Failed;
        }
        CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Ok,
        CliError::Output(error) => (Exit::Failed, format!("cannot write the output: {error}"), None),
    };
    let _ = writeln!(out, "portcullis: {}", print::lines(&message));
    if let Some(help) = help {
        let _ = writeln!(out, "  help: {}", print::one_line(&help));
    }
    exit
}

fn explain_client(error: &ClientError) -> (Exit, String, Option<String>) {
    match error {
        ClientError::Unreachable { path, source } if source.kind() == io::ErrorKind::PermissionDenied => (
            Exit::Denied,
            format!("you may not use {}", path.display()),
            Some("ask root to add you to the group that owns it".into()),
        ),
        ClientError::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut => (
            Exit::Unreachable,
            chain(error),
            Some("it hangs, and governed connections are refused: see its log, and restart it (systemctl restart portcullis)".into()),
        ),
        ClientError::Unreachable { .. } => (
            Exit::Unreachable,
            chain(error),
            Some(
                "start it with `portcullis daemon` (systemctl start portcullis), or name its socket with --socket"
                    .into(),
            ),
        ),
        ClientError::Refused(Failure { code, message, help }) => {
            let exit = match code {
                Code::Usage => Exit::Usage,
                Code::Denied => Exit::Denied,
                Code::NotFound | Code::Failed => Exit::Failed,
            };
            (exit, message.clone(), help.clone())
        }
        ClientError::Broken(_) | ClientError::Garbled(_) => (Exit::Failed, chain(error), None),
    }
}

/// A report with its source lines; colours only on a terminal.
pub(super) fn render(report: &miette::Report) -> String {
    let colour = io::stderr().is_terminal() && print::Colour::of_stdout() == print::Colour::Always;
    let theme = if colour { miette::GraphicalTheme::unicode() } else { miette::GraphicalTheme::unicode_nocolor() };
    let mut out = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(theme).with_width(80).with_links(false);
    match handler.render_report(&mut out, report.as_ref()) {
        Ok(()) => out,
        Err(_) => report.to_string(),
    }
}

/// An error and its causes in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = next.source();
    }
    out
}

/// An object per line.
fn json_line(item: &(impl Serialize + ?Sized)) -> Result<(), CliError> {
    let text = serde_json::to_string(item).map_err(io::Error::other)?;
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Items as JSON lines, or as a table.
fn listing<T: Serialize>(
    items: &[T],
    form: Form,
    header: &[&str],
    row: impl Fn(&T) -> Vec<print::Field>,
    empty: &str,
) -> Result<Exit, CliError> {
    if form.json {
        items.iter().try_for_each(json_line)?;
    } else {
        print::show(header, items.iter().map(row).collect(), empty)?;
    }
    Ok(Exit::Ok)
}

/// Whether a path given on the command line is there, before a confusing error further down.
fn must_exist(path: &Path) -> Result<(), CliError> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::Plain(Exit::Failed, format!("cannot read {}: {error}", path.display()), None)),
    }
}
