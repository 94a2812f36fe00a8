//! `doctor`: looks, tries, and prints what is closed, what is open, and what this host cannot close.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use nix::unistd::User;

use super::{
    CliError, Exit, Place,
    args::{Doctor, Form},
    interrupt::Interrupts,
    json_line,
    print::{self, Field, Tone},
};
use crate::{
    control::{
        client::ask_one_within,
        proto::{Examined, Request, StatusView},
    },
    doctor::{
        Finding, Grade, host, house,
        roads::{self, RoadsError},
        witness::Setup,
    },
    policy::{PolicySet, RunAs},
};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who the attempts run as where nothing else says so.
const NOBODY: &str = "nobody";

pub(super) fn doctor(place: &Place, asked: Doctor) -> Result<Exit, CliError> {
    let clocks = host::Clocks::now();
    let settings = place.settings()?;
    let socket = place.socket()?;
    let (mut features, mut findings) = host::features();
    let state = ask_one_within::<StatusView>(&socket, &Request::Status {}, PATIENCE)
        .and_then(|status| Ok((status, ask_one_within::<Examined>(&socket, &Request::Examine {}, PATIENCE)?)));
    let (status, examined) = match state {
        Ok(state) => state,
        Err(error) => {
            // What the host can do is known all the same.
            show(&findings, asked.form)?;
            return Err(error.into());
        }
    };
    findings.push(host::names(examined.names));
    findings.extend(house::findings(&settings, &status, &examined));
    let before_roads = findings.len();
    // What the daemon could not load closes nothing, whatever we could.
    if examined.problems.iter().any(|problem| problem.lacks.is_some()) {
        features.unix_hooks = Some(false);
    }
    if let Some(why) = &examined.no_lsm
        && features.lsm.replace(false) == Some(true)
    {
        findings.push(host::security_module_of_daemon(why));
    }
    let user = user(asked.user.as_deref())?;
    let policies = PolicySet::load(&settings.policy_dir).ok();
    let interrupts = Interrupts::hold()?;
    for workload in workloads(&asked.workload, &status)? {
        let setup = Setup {
            aim: roads::aim(),
            user: user.as_ref().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
            folder: if user.is_some() { settings.runtime_dir.clone() } else { std::env::temp_dir() },
            enforcer: status.listen.iter().filter_map(|a| a.parse().ok()).map(|a: SocketAddr| a.port()).collect(),
            control: socket.clone(),
            pins: examined.pin_dir.clone(),
            workload: workload.clone(),
        };
        // A policy that gives its sessions a user lets nobody else name one.
        let named = user.as_ref().filter(|_| !has_user_of_its_own(&policies, &workload)).map(|user| user.name.as_str());
        let command = session(place, &socket, &workload, named)?;
        if io::stderr().is_terminal() {
            eprintln!("trying every way out of a session of {}...", print::one_line(&workload));
        }
        match roads::findings(setup, command, features, || interrupts.came()) {
            Ok(found) => findings.extend(found),
            Err(error) => {
                interrupts.obey();
                return Err(failed(&error));
            }
        }
    }
    drop(interrupts);
    findings.insert(before_roads, clocks.finding());
    show(&findings, asked.form)?;
    Ok(if findings.iter().any(|finding| finding.grade == Grade::Open) { Exit::Failed } else { Exit::Ok })
}

/// The workloads to try: those named, or all that have a policy.
fn workloads(named: &[String], status: &StatusView) -> Result<Vec<String>, CliError> {
    let known = &status.policy.workloads;
    if let Some(unknown) = named.iter().find(|name| !known.contains(name)) {
        let help = format!("there is: {}", known.join(", "));
        return Err(CliError::Plain(Exit::Failed, format!("no policy is for a workload `{unknown}`"), Some(help)));
    }
    Ok(if named.is_empty() { known.clone() } else { named.to_vec() })
}

/// Who the attempts run as: never root, who cannot be kept in. `None` for whoever asks.
fn user(named: Option<&str>) -> Result<Option<User>, CliError> {
    if !nix::unistd::geteuid().is_root() {
        return match named {
            None => Ok(None),
            Some(_) => {
                let help = "leave `--user` out, or run it with sudo".into();
                Err(CliError::Plain(Exit::Usage, "only root can try as another user".into(), Some(help)))
            }
        };
    }
    let sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty() && name != "root");
    let name = named.map(str::to_owned).or(sudo).unwrap_or_else(|| NOBODY.into());
    match User::from_name(&name).ok().flatten() {
        Some(user) if user.uid.is_root() => {
            let help = "name another with `--user`: doctor tells what is promised".into();
            Err(CliError::Plain(Exit::Usage, "root of this host cannot be kept in".into(), Some(help)))
        }
        Some(user) => Ok(Some(user)),
        None => {
            let help = "name the one that your agents run as with `--user`".into();
            Err(CliError::Plain(Exit::Usage, format!("the host has no user `{name}`"), Some(help)))
        }
    }
}

fn has_user_of_its_own(policies: &Option<PolicySet>, workload: &str) -> bool {
    let policy = policies.as_ref().and_then(|policies| policies.by_workload(workload));
    policy.is_some_and(|policy| policy.workload().run_as != RunAs::Caller)
}

/// This program, in a session, as the program of attempts.
fn session(place: &Place, socket: &PathBuf, workload: &str, user: Option<&str>) -> Result<Command, CliError> {
    // Whatever became of the file since we were started, and whoever may read the folder it is in.
    const OURSELVES: &str = "/proc/self/exe";
    let mut command = Command::new(OURSELVES);
    if let Some(config) = &place.config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    command.arg("--socket").arg(std::path::absolute(socket)?);
    command.args(["run", "--workload", workload, "--intent", "portcullis doctor"]);
    if let Some(user) = user {
        command.args(["--user", user]);
    }
    command.args(["--", OURSELVES, "escape-attempts"]).current_dir("/");
    Ok(command)
}

fn failed(error: &RoadsError) -> CliError {
    let help = match error {
        RoadsError::Witness(_) => "run it with sudo, on a host where loopback and the temporary folder can be used",
        RoadsError::Interrupted => "run it again to its end",
        RoadsError::Session { .. } => "try it by hand: portcullis run --workload NAME --user nobody -- true",
    };
    CliError::Plain(Exit::Failed, super::chain(error), Some(help.into()))
}

fn show(findings: &[Finding], form: Form) -> Result<(), CliError> {
    if form.json {
        return findings.iter().try_for_each(json_line);
    }
    let width = (!io::stdout().is_terminal()).then_some(print::WIDTH);
    io::stdout().write_all(text(findings, width, print::Colour::of_stdout()).as_bytes())?;
    Ok(())
}

/// The table, what is to be said of each row that is not closed, and the sum.
pub(super) fn text(findings: &[Finding], width: Option<u16>, colour: print::Colour) -> String {
    let row = |finding: &Finding| {
        let tone = match finding.grade {
            Grade::Closed => Tone::Good,
            Grade::Open => Tone::Bad,
            Grade::Cannot => Tone::Warn,
        };
        vec![
            Field::toned(finding.grade.as_str(), tone),
            Field::from(&finding.check),
            Field::from(finding.workload.as_deref().unwrap_or("")),
            Field::from(&finding.found),
        ]
    };
    let mut out =
        print::table(&["GRADE", "CHECK", "WORKLOAD", "FOUND"], findings.iter().map(row).collect(), width, colour);
    out.push('\n');
    for finding in findings.iter().filter(|finding| finding.grade != Grade::Closed) {
        out.push_str(&format!("\n{}: {}\n", finding.grade.as_str(), print::one_line(&finding.check)));
        let todo = if finding.grade == Grade::Open { "close it" } else { "lacks" };
        let reached = finding.reached.join(", ");
        for (name, value) in [
            ("means", finding.means.as_deref()),
            (todo, finding.fix.as_deref()),
            ("reached", Some(&*reached).filter(|reached| !reached.is_empty())),
        ] {
            let Some(value) = value else { continue };
            out.push_str(&print::wrapped(&format!("  {name:<9} "), value, print::WIDTH));
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let [closed, open, cannot] = [Grade::Closed, Grade::Open, Grade::Cannot].map(count);
    out.push_str(&format!("\n{closed} closed, {open} open, {cannot} cannot"));
    let tried: usize = findings.iter().filter_map(|finding| finding.attempts).sum();
    if tried > 0 {
        let reached: usize = findings.iter().map(|finding| finding.reached.len()).sum();
        out.push_str(&format!("; attempts {tried}, reached {reached}"));
    }
    out.push('\n');
    out
}
