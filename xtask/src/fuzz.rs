//! `cargo xtask fuzz [TARGET...] [--minutes N]`: runs the fuzz targets. What they find goes to the target folder; copy what failed to
//! `tests/fuzz/seeds`, where a plain test keeps running it.

use std::fs;

use anyhow::{Result, ensure};

use crate::{setup, shell};

const CARGO_FUZZ: &str = "0.13.2";

#[derive(clap::Args)]
pub struct Arguments {
    /// Targets to run; all if none is named
    targets: Vec<String>,
    /// Time for each
    #[arg(long, default_value_t = 60, conflicts_with = "minutes")]
    seconds: u32,
    /// Time for each
    #[arg(long)]
    minutes: Option<u32>,
}

/// Runs the targets one after the other.
pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = shell::root().join("tests/fuzz");
    let mut all: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder.join("targets"))? {
        all.push(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    all.sort();
    for name in &arguments.targets {
        ensure!(all.contains(name), "there is no target `{name}`; there are: {}", all.join(", "));
    }
    let program = setup::tools().join("bin/cargo-fuzz");
    if !program.exists() {
        println!("installing cargo-fuzz {CARGO_FUZZ} ...");
        let mut cargo = shell::cargo();
        cargo.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"]).arg(setup::tools());
        shell::run(cargo.env("CARGO_TARGET_DIR", setup::tools().join("build")))?;
    }
    let seconds = arguments.minutes.map_or(arguments.seconds, |minutes| minutes.saturating_mul(60));
    let chosen = all.iter().filter(|name| arguments.targets.is_empty() || arguments.targets.contains(name));
    for name in chosen {
        println!("\n== {name}");
        let grown = shell::target_dir().join("fuzz-corpus").join(name);
        fs::create_dir_all(&grown)?;
        let mut command = std::process::Command::new(&program);
        // Coverage needs nothing but the stable compiler; sanitizers would need another.
        command.args(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"]).arg(&folder).arg("--target-dir");
        command.arg(shell::target_dir().join("fuzz")).arg(name).arg(&grown).arg(folder.join("seeds").join(name));
        command.arg("--").arg(format!("-max_total_time={seconds}")).arg("-rss_limit_mb=4096");
        shell::run(command.current_dir(shell::root()))?;
    }
    Ok(())
}
