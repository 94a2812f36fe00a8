//! `cargo xtask test [SUITE...]`: does its own set-up, runs the suites, and ends with one plain line of counts.
//!
//! The suites that need no root run as an unprivileged user even when this runs as root, so that a test which only
//! passes for root is found. The others need root and fail without it: nothing is skipped.
//!
//! `--kernel 6.1` runs the suite `enforcement` on that kernel, in a virtual machine.

mod machine;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{build, paths, setup, shell};

/// Who runs a suite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    /// Ourselves: it needs no rights, but reads the project's files.
    Any,
    Unprivileged,
    Root,
    /// Root of a virtual machine. It takes minutes, so it runs only where it is named.
    Machine,
}

struct Suite {
    name: &'static str,
    /// What cargo builds for it.
    targets: &'static [&'static str],
    user: User,
}

const SUITES: &[Suite] = &[
    Suite { name: "lint", targets: &[], user: User::Root },
    Suite { name: "unit", targets: &["--package", "portcullis", "--lib"], user: User::Unprivileged },
    Suite { name: "policies", targets: &["--package", "portcullis", "--test", "*"], user: User::Any },
    Suite { name: "layers", targets: &["--package", "xtask"], user: User::Any },
    Suite {
        name: "session",
        targets: &["--package", "portcullis-tests", "--test", "session"],
        user: User::Unprivileged,
    },
    Suite {
        name: "enforcement",
        targets: &["--package", "portcullis-tests", "--test", "enforcement"],
        user: User::Root,
    },
    Suite { name: "corpus", targets: &["--package", "portcullis-tests", "--test", "corpus"], user: User::Any },
    Suite { name: "sql", targets: &["--package", "portcullis-tests", "--test", "sql"], user: User::Any },
    Suite { name: "paths", targets: &[], user: User::Any },
    Suite { name: "package", targets: &["--package", "portcullis-tests", "--test", "package"], user: User::Machine },
    Suite { name: "clients", targets: &["--package", "portcullis-tests", "--test", "clients"], user: User::Root },
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Suites to run; all but `package` if none is named
    suites: Vec<String>,
    /// Run the suite `enforcement` on this kernel, in a virtual machine
    #[arg(long)]
    kernel: Option<Kernel>,
    /// For the test binaries: names of tests, `--skip NAME`
    #[arg(last = true)]
    filter: Vec<String>,
}

/// A kernel that is not this host's.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Kernel {
    /// Debian 12's
    #[value(name = "6.1")]
    Debian12,
}

/// Runs the suites.
pub fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.suites {
        let names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        ensure!(names.contains(&name.as_str()), "there is no suite `{name}`; there are: {}", names.join(", "));
    }
    if arguments.kernel.is_some() {
        ensure!(arguments.suites == ["enforcement"], "on another kernel, only the suite `enforcement` runs");
    }
    setup::run(&setup::Arguments { build_only: false })?;
    build::run(&build::Arguments { debug: true, profiled: false })?;
    let chosen = |suite: &&Suite| match arguments.suites.is_empty() {
        true => suite.user != User::Machine,
        false => arguments.suites.iter().any(|name| name == suite.name),
    };
    let (mut passed, mut failed) = (0, Vec::new());
    for suite in SUITES.iter().filter(chosen) {
        println!("\n== {}", suite.name);
        let tally = match (suite.name, arguments.kernel) {
            ("lint", _) => lint(),
            ("paths", _) => paths()?,
            ("package", _) => machine::package(&build_tests(suite)?[0], &arguments.filter)?,
            (_, None) => suite_run(suite, &arguments.filter)?,
            (_, Some(Kernel::Debian12)) => machine::tests(&build_tests(suite)?, &arguments.filter)?,
        };
        println!("== {}: {} passed, {} failed", suite.name, tally.passed, tally.failed.len());
        passed += tally.passed;
        failed.extend(tally.failed.into_iter().map(|name| format!("{}: {name}", suite.name)));
    }
    // Last, because a long log is often read from its end, or only there.
    for name in &failed {
        println!("failed: {name}");
    }
    println!("\n{passed} passed, {} failed", failed.len());
    ensure!(failed.is_empty(), "{} tests failed", failed.len());
    Ok(())
}

/// What came of a suite.
#[derive(Default)]
struct Tally {
    passed: u64,
    /// Their names.
    failed: Vec<String>,
}

/// Formatting, lints, and the rows that must build without an async runtime.
fn lint() -> Tally {
    let checks: [&[&str]; 3] = [
        &["fmt", "--all", "--check"],
        &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        &["check", "--locked", "--package", "portcullis", "--no-default-features"],
    ];
    let mut tally = Tally::default();
    for check in checks {
        match shell::run(shell::cargo().args(check)) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                println!("{error:#}");
                tally.failed.push(format!("cargo {}", check[0]));
            }
        }
    }
    tally
}

/// None takes more instructions than it did.
fn paths() -> Result<Tally> {
    let mut tally = Tally::default();
    for count in paths::run()? {
        if count.is_worse() {
            tally.failed.push(format!("{}: {:.0} instructions, were {:.0}", count.what, count.now, count.before));
        } else {
            tally.passed += 1;
        }
    }
    Ok(tally)
}

fn suite_run(suite: &Suite, filter: &[String]) -> Result<Tally> {
    let mut tally = Tally::default();
    for binary in build_tests(suite)? {
        run_binary(&binary, filter, suite.user, &mut tally)?;
    }
    Ok(tally)
}

/// Builds a suite's test binaries; returns their paths.
fn build_tests(suite: &Suite) -> Result<Vec<PathBuf>> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]).args(suite.targets);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "suite {} does not build", suite.name);
    let mut binaries = Vec::new();
    for line in output.stdout.lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if message["profile"]["test"] == true
            && let Some(path) = message["executable"].as_str()
        {
            binaries.push(PathBuf::from(path));
        }
    }
    ensure!(!binaries.is_empty(), "suite {} has no test binary", suite.name);
    Ok(binaries)
}

/// Runs a test binary, its output on ours, and counts.
fn run_binary(binary: &Path, filter: &[String], user: User, tally: &mut Tally) -> Result<()> {
    // A folder that any user may enter, whatever the modes above the target folder are.
    let place = PathBuf::from(format!("/tmp/portcullis-test-{}", std::process::id()));
    fs::create_dir_all(&place)?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
    let copy = place.join(binary.file_name().context("a test binary without a name")?);
    fs::copy(binary, &copy)?;
    let root = fs::metadata("/proc/self")?.uid() == 0;
    let mut command = match user {
        User::Unprivileged if root && reachable(&shell::root()) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(&copy);
            command.env("HOME", "/tmp");
            command
        }
        User::Unprivileged | User::Any => Command::new(&copy),
        User::Root | User::Machine => {
            ensure!(root, "this suite needs root");
            Command::new(&copy)
        }
    };
    let package = shell::root().join("tests");
    command.current_dir(if user == User::Unprivileged { "/".into() } else { package });
    // Else it would ask cargo, which another user cannot reach.
    command.env("INSTA_WORKSPACE_ROOT", shell::root());
    command.env("PORTCULLIS_BIN", shell::target_dir().join("debug/portcullis"));
    command.env("PORTCULLIS_TOOLS", setup::tools());
    command.args(filter).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a test binary")?;
    let mut reader = Reader::new(tally);
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        reader.line(&line?);
    }
    let status = child.wait()?;
    fs::remove_dir_all(&place)?;
    reader.end(1, status.success(), &status.to_string());
    Ok(())
}

/// Prints what test binaries say, and counts.
struct Reader<'a> {
    tally: &'a mut Tally,
    /// How many had failed before the binary that speaks.
    before: usize,
    /// How many had failed before the first.
    start: usize,
    summaries: usize,
}

impl<'a> Reader<'a> {
    fn new(tally: &'a mut Tally) -> Self {
        let start = tally.failed.len();
        Self { tally, before: start, start, summaries: 0 }
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        if let Some(name) = failed_test(line) {
            self.tally.failed.push(name.to_owned());
        }
        if let Some((passed, failed)) = counts(line) {
            self.tally.passed += passed;
            // Whatever the lines above looked like, none is lost.
            while ((self.tally.failed.len() - self.before) as u64) < failed {
                self.tally.failed.push("a test that is not named".to_owned());
            }
            self.before = self.tally.failed.len();
            self.summaries += 1;
        }
    }

    /// So many binaries have ended, and how. One that died without its last line failed in whatever it was doing.
    fn end(self, binaries: usize, success: bool, status: &str) {
        if self.summaries < binaries || (!success && self.tally.failed.len() == self.start) {
            println!("the test binary ended with {status}");
            self.tally.failed.push(format!("the test binary ended with {status}"));
        }
    }
}

/// `test masks::a ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Whether another user can enter a folder: only then can it read the snapshots that tests compare with.
fn reachable(dir: &Path) -> bool {
    dir.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

/// `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| -> Option<u64> {
        let before = rest.split_once(word)?.0;
        before.rsplit([' ', '.', ';']).find(|part| !part.is_empty())?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::{Reader, Tally, counts, failed_test};

    #[test]
    fn a_binary_without_a_last_line_failed() {
        let counted = |lines: &[&str], binaries, success| {
            let mut tally = Tally::default();
            let mut reader = Reader::new(&mut tally);
            lines.iter().for_each(|line| reader.line(line));
            reader.end(binaries, success, "status");
            (tally.passed, tally.failed.join(", "))
        };
        let (ok, bad) = ("test result: ok. 2 passed; 0 failed;", "test result: FAILED. 1 passed; 1 failed;");
        let died = "the test binary ended with status".to_owned();
        assert_eq!(counted(&[ok], 1, true), (2, String::new()));
        assert_eq!(counted(&["test a ... FAILED", bad], 1, false), (1, "a".into()));
        assert_eq!(counted(&[bad, bad], 2, false), (2, "a test that is not named, a test that is not named".into()));
        assert_eq!(counted(&["test a ... ok"], 1, true), (0, died.clone()));
        assert_eq!(counted(&[ok], 2, true), (2, died.clone()));
        assert_eq!(counted(&[ok], 1, false), (2, died));
    }

    #[test]
    fn closing_lines_are_read() {
        let ok = "test result: ok. 21 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 23.14s";
        assert_eq!(counts(ok), Some((21, 0)));
        let bad = "test result: FAILED. 20 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(counts(bad), Some((20, 1)));
        assert_eq!(counts("test masks::a ... ok"), None);
        assert_eq!(failed_test("test masks::a ... ok"), None);
        assert_eq!(failed_test("test masks::a ... FAILED"), Some("masks::a"));
    }
}
