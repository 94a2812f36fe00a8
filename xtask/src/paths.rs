//! Instructions of the paths that every transaction takes, counted by callgrind, beside those of the last time.
//!
//! Unlike times, they are the same on every run of one program, whatever else the machine does.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{setup, shell};

/// A path, and how often it is run.
struct Counted {
    name: &'static str,
    what: &'static str,
    /// The function whose instructions are counted.
    function: &'static str,
    times: u32,
}

const PATHS: &[Counted] = &[
    Counted { name: "forward", what: "forward an unmasked row", function: "take", times: 20_000 },
    Counted { name: "mask", what: "mask a row", function: "take", times: 5_000 },
    Counted { name: "decide", what: "decide", function: "decide", times: 5_000 },
    Counted { name: "classify", what: "classify a cached statement", function: "classify", times: 5_000 },
    Counted { name: "append", what: "append an event", function: "append", times: 5_000 },
];

/// How much more than the baseline is no regression yet.
const TOLERANCE: f64 = 1.05;

/// A path's instructions for each item.
pub struct Count {
    /// The path.
    pub what: &'static str,
    /// When the baseline was written.
    pub before: f64,
    /// Now.
    pub now: f64,
}

impl Count {
    /// Whether it takes more than it should.
    pub fn is_worse(&self) -> bool {
        self.now > self.before * TOLERANCE
    }
}

fn baseline() -> PathBuf {
    shell::root().join("tests/bench/paths.json")
}

/// Counts, and prints a table beside the baseline.
pub fn run() -> Result<Vec<Count>> {
    let file = baseline();
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let before: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    println!("{:32} {:>10} {:>10} {:>6}", "instructions", "baseline", "now", "ratio");
    let mut counts = Vec::new();
    for (path, now) in PATHS.iter().zip(measure()?) {
        let before = *before.get(path.name).with_context(|| format!("{} lacks `{}`", file.display(), path.name))?;
        println!("{:32} {before:>10.1} {now:>10.1} {:>6.2}", path.what, now / before);
        counts.push(Count { what: path.what, before, now });
    }
    Ok(counts)
}

/// Counts, and makes that the baseline.
pub fn save() -> Result<()> {
    let measured = measure()?;
    let now: BTreeMap<_, _> =
        PATHS.iter().zip(measured).map(|(path, now)| (path.name, (now * 10.0).round() / 10.0)).collect();
    fs::write(baseline(), serde_json::to_string_pretty(&now)? + "\n")?;
    println!("{now:#?}");
    Ok(())
}

fn measure() -> Result<Vec<f64>> {
    setup::need("valgrind", "valgrind")?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--profile", "paths", "--package", "portcullis-tests", "--bin", "paths"]);
    shell::run(&mut cargo)?;
    PATHS.iter().map(count).collect()
}

fn count(path: &Counted) -> Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]);
    valgrind.arg(format!("--toggle-collect=paths::path::{}*", path.function));
    valgrind.arg(shell::target_dir().join("paths/paths")).args([path.name, &path.times.to_string()]);
    let output = valgrind.output().context("cannot start valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "path {}: {said}", path.name);
    let total = said.lines().find_map(|line| line.split_once("Collected :")).context("valgrind counted nothing")?;
    let total: f64 = total.1.trim().parse()?;
    ensure!(total > 0.0, "callgrind found no function of path {}", path.name);
    Ok(total / f64::from(path.times))
}
