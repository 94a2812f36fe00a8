//! `cargo xtask functions`: makes the lists of what PostgreSQL itself has (`agent/src/sql/*.txt`) from its catalogue.
//!
//! Each list has its query beside it (`functions.sql` makes `functions.txt`), with what is kept by hand: functions that
//! are denied though the catalogue calls them harmless, and some that are let pass though it does not. Review the
//! difference that is printed before it is committed: every name in `functions.txt` may be called without a rule.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::shell;

/// The lists, in the order in which they depend on each other.
const LISTS: &[&str] = &["keywords", "functions", "types", "operators", "attributes"];

/// The server whose catalogue they are of.
const MAJOR: u32 = 15;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only print the differences, and fail if there are any
    #[arg(long)]
    check: bool,
}

/// Makes every list, and prints what changed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let server = Server::start()?;
    let folder = shell::root().join("agent/src/sql");
    let mut changed = Vec::new();
    for list in LISTS {
        let query = fs::read_to_string(folder.join(format!("{list}.sql")))?;
        // The one thing that a query takes from outside.
        let reviewed = fs::read_to_string(folder.join("functions.txt"))?;
        let made = server.ask(&query.replace(":'reviewed'", &format!("'{}'", reviewed.replace('\'', "''"))))?;
        let file = folder.join(format!("{list}.txt"));
        let before = fs::read_to_string(&file).unwrap_or_default();
        let differences = differences(&before, &made);
        println!("{list:<12} {} lines, {} differ", made.lines().count(), differences.len());
        differences.iter().for_each(|line| println!("  {line}"));
        if !differences.is_empty() {
            changed.push(*list);
            if !arguments.check {
                fs::write(&file, made)?;
            }
        }
    }
    ensure!(!arguments.check || changed.is_empty(), "not as the catalogue has it: {}", changed.join(", "));
    Ok(())
}

/// Lines that one text has and the other has not. Both are sorted, and neither has a line twice.
fn differences(before: &str, now: &str) -> Vec<String> {
    let gone = before.lines().filter(|line| !now.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let new = now.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

/// A private server, reached over its Unix socket alone.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start() -> Result<Self> {
        let bin = PathBuf::from(format!("/usr/lib/postgresql/{MAJOR}/bin"));
        ensure!(bin.join("postgres").exists(), "the lists are PostgreSQL {MAJOR}'s, which is not installed");
        let folder = std::env::temp_dir().join(format!("portcullis-functions-{}", std::process::id()));
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
        if is_root()? {
            shell::run_quietly(Command::new("chown").arg("postgres:postgres").arg(&folder))?;
        }
        let data = folder.join("data");
        let mut initdb = as_server(&bin.join("initdb"))?;
        initdb.arg("-D").arg(&data).args(["--no-sync", "--auth=trust", "--username=postgres"]);
        shell::run_quietly(initdb.args(["--encoding=UTF8", "--locale=C"]))?;
        let mut postgres = as_server(&bin.join("postgres"))?;
        postgres.arg("-D").arg(&data).arg("-k").arg(&folder).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let child = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self { child, folder };
        let deadline = Instant::now() + Duration::from_secs(30);
        while server.ask("select 1").is_err() {
            ensure!(Instant::now() < deadline, "the server does not start");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// Runs a query; its rows, one a line.
    fn ask(&self, query: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(&self.folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().context("cannot start psql")?;
        let mut input = child.stdin.take().context("psql has no input")?;
        let query = query.to_owned();
        let writer = thread::spawn(move || input.write_all(query.as_bytes()));
        let output = child.wait_with_output()?;
        let written = writer.join().expect("the writer does not panic");
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        written?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children end when they find it gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// A command of the server: never as root, and killed with the thread that started it.
fn as_server(program: &Path) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if is_root()? {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn differences_are_told_both_ways() {
        assert_eq!(differences("a\nb\n", "b\nc\n"), ["- a", "+ c"]);
        assert!(differences("a\n", "a\n").is_empty());
    }
}
