//! `cargo xtask demo`: set-up, build, then the main job step by step on a private PostgreSQL.

use anyhow::Result;

use crate::{build, setup, shell};

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave it running, with commands to try
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::run(&setup::Arguments { build_only: false })?;
    let binary = build::run(&build::Arguments { debug: true, profiled: false })?;
    let mut cargo = shell::cargo();
    cargo.args(["run", "--locked", "--quiet", "--package", "portcullis-tests", "--bin", "demo", "--"]);
    if arguments.keep {
        cargo.arg("--keep");
    }
    shell::run(cargo.env("PORTCULLIS_BIN", binary))
}
