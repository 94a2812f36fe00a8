//! The build that is shipped: what the compiler lays out and inlines is chosen by what a run of the benchmarks was seen to do
//! (profile-guided optimisation). Three builds' time, so nothing else is built so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{build_ebpf, setup, shell};

/// Benchmarks that are learned from, and what they take of Debian beside the usual.
const LEARNED: [&str; 2] = ["http", "postgres"];
const NEEDED: [&str; 3] = ["wrk", "haproxy", "pgbouncer"];

/// Builds the binary to count what it does, runs the benchmarks with it, and builds it once more; returns its path. What was
/// counted is kept until the code changes. Starts daemons, so it takes root.
pub fn build() -> Result<PathBuf> {
    let object = build_ebpf::run()?;
    let host = host()?;
    let place = shell::target_dir().join("profiled");
    let counted = place.join("counted");
    let counting =
        cargo(&place.join("counting"), &host, &object, &format!("-Cprofile-generate={}", counted.display()))?;
    let profile = place.join("profile");
    if !is_newer(&profile, &counting) {
        learn(&counting, &counted, &profile, &host)?;
    }
    cargo(&place.join("built"), &host, &object, &format!("-Cprofile-use={}", profile.display()))
}

/// Builds with flags of the compiler for the binary alone, in a target folder of its own: the other build stays as it is.
fn cargo(target: &Path, host: &str, object: &Path, flags: &str) -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--release", "--package", "portcullis", "--bin", "portcullis"]);
    // For a target that is named, build scripts get no flags.
    cargo.args(["--target", host, "--target-dir"]).arg(target);
    shell::run(cargo.env("RUSTFLAGS", flags).env("PORTCULLIS_EBPF", object))?;
    Ok(target.join(host).join("release/portcullis"))
}

/// Runs the benchmarks with the binary that counts.
fn learn(counting: &Path, counted: &Path, profile: &Path, host: &str) -> Result<()> {
    let tool = merger(host)?;
    setup::run(&setup::Arguments { build_only: false })?;
    for package in NEEDED {
        setup::need(package, package)?;
    }
    let mut build = shell::cargo();
    shell::run(build.args(["build", "--locked", "--release", "--package", "portcullis-tests", "--bin", "bench"]))?;
    if counted.exists() {
        fs::remove_dir_all(counted)?;
    }
    fs::create_dir_all(counted)?;
    for name in LEARNED {
        println!("learning from `bench {name}` (some minutes) ...");
        let mut bench = Command::new(shell::target_dir().join("release/bench"));
        bench.args([name, "--alone"]).env("PORTCULLIS_BIN", counting).env("PORTCULLIS_PROFILES", counted);
        // What the command line does is not learned from.
        shell::run_quietly(bench.env("LLVM_PROFILE_FILE", "/dev/null"))?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(counted)? {
        found.push(entry?.path());
    }
    ensure!(found.len() >= LEARNED.len(), "{} daemons have written what they counted", found.len());
    shell::run_quietly(Command::new(tool).args(["merge", "--sparse", "-o"]).arg(profile).args(found))?;
    Ok(())
}

/// `llvm-profdata` of the pinned toolchain.
fn merger(host: &str) -> Result<PathBuf> {
    let root = shell::answer("rustc", &["--print", "sysroot"]).context("there is no rustc")?;
    let tool = Path::new(root.trim()).join("lib/rustlib").join(host).join("bin/llvm-profdata");
    if !tool.exists() {
        let mut rustup = Command::new("rustup");
        shell::run_quietly(rustup.args(["component", "add", "llvm-tools"]).current_dir(shell::root()))?;
    }
    ensure!(tool.exists(), "{} is missing", tool.display());
    Ok(tool)
}

/// What this machine is to the compiler.
fn host() -> Result<String> {
    let said = shell::answer("rustc", &["--version", "--verbose"]).context("there is no rustc")?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what it builds for")?.to_owned())
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    changed(file).zip(changed(than)).is_some_and(|(file, than)| file > than)
}
