//! `cargo xtask bench`: benchmarks that compare in the same run and print ratios. They assert nothing.

use anyhow::Result;

use crate::{build_ebpf, shell};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Build without optimisation
    #[arg(long, global = true)]
    debug: bool,
    /// Print JSON in place of a table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// What connect() costs governed processes and others (root)
    Connect,
}

/// Builds and runs one.
pub fn run(arguments: &Arguments) -> Result<()> {
    build_ebpf::run()?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--package", "portcullis-tests", "--bin", "bench"]);
    if !arguments.debug {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    let profile = if arguments.debug { "debug" } else { "release" };
    let mut bench = std::process::Command::new(shell::target_dir().join(profile).join("bench"));
    bench.arg(match arguments.what {
        What::Connect => "connect",
    });
    if arguments.json {
        bench.arg("--json");
    }
    shell::run(&mut bench)
}
