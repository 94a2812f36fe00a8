//! `cargo xtask bench`: benchmarks that compare in the same run and print ratios. They assert nothing.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{build_ebpf, paths, profiled, setup, shell};

/// Programs of Debian packages of the same name that a benchmark compares with, or is driven by.
const POSTGRES: &[&str] = &["pgbouncer", "haproxy"];
const HTTP: &[&str] = &["wrk", "haproxy"];

#[derive(clap::Args)]
pub struct Arguments {
    /// One of them; all if none is named
    #[command(subcommand)]
    what: Option<What>,
    /// Build without optimisation
    #[arg(long, global = true)]
    debug: bool,
    /// Measure a binary that was built once, not as it is shipped: a third of the time
    #[arg(long, global = true, conflicts_with = "debug")]
    plain: bool,
    /// Print JSON in place of a table
    #[arg(long, global = true)]
    json: bool,
    /// Shorter runs, less data: under two minutes each
    #[arg(long, global = true)]
    quick: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// What connect() costs governed processes and others (root)
    Connect,
    /// What reading and deciding a statement costs
    Classify,
    /// PostgreSQL straight, and through Portcullis, pgbouncer and HAProxy (root)
    Postgres(Chosen),
    /// HTTP over TLS straight, and through Portcullis, nginx and HAProxy (root)
    Http(Chosen),
    /// Instructions of the five commonest paths, beside their baseline
    Paths {
        /// Make what is counted the baseline
        #[arg(long)]
        save: bool,
    },
}

#[derive(Default, clap::Args)]
struct Chosen {
    /// Only what has this in its name
    #[arg(long)]
    only: Option<String>,
}

/// Builds and runs one, or all that take time.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        Some(What::Paths { save: true }) => paths::save(),
        Some(What::Paths { save: false }) => paths::run().map(drop),
        Some(What::Connect) => bench(arguments, Some(&build(arguments)?), &["connect"]),
        // It reads statements itself.
        Some(What::Classify) => {
            build_bench(arguments, &[])?;
            bench(arguments, None, &["classify"])
        }
        Some(What::Postgres(chosen)) => compare(arguments, &build(arguments)?, "postgres", POSTGRES, chosen),
        Some(What::Http(chosen)) => compare(arguments, &build(arguments)?, "http", HTTP, chosen),
        None => {
            let binary = build(arguments)?;
            bench(arguments, Some(&binary), &["connect"])?;
            compare(arguments, &binary, "postgres", POSTGRES, &Chosen::default())?;
            compare(arguments, &binary, "http", HTTP, &Chosen::default())
        }
    }
}

/// Builds the benchmarks; `more` is what cargo builds with them.
fn build_bench(arguments: &Arguments, more: &[&str]) -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--package", "portcullis-tests", "--bin", "bench"]).args(more);
    if !arguments.debug {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    Ok(built(arguments))
}

/// Where cargo puts them.
fn built(arguments: &Arguments) -> PathBuf {
    shell::target_dir().join(if arguments.debug { "debug" } else { "release" })
}

/// Builds the benchmarks and what they measure; returns the latter's path.
fn build(arguments: &Arguments) -> Result<PathBuf> {
    if !arguments.debug && !arguments.plain {
        build_bench(arguments, &[])?;
        return profiled::build();
    }
    build_ebpf::run()?;
    // In one build: apart, what both need would be compiled twice.
    Ok(build_bench(arguments, &["--package", "portcullis", "--bin", "portcullis"])?.join("portcullis"))
}

/// One that compares with others.
fn compare(arguments: &Arguments, binary: &Path, name: &str, needs: &[&'static str], chosen: &Chosen) -> Result<()> {
    setup::run(&setup::Arguments { build_only: false })?;
    for package in needs {
        setup::need(package, package)?;
    }
    let mut what = vec![name];
    if arguments.quick {
        what.push("--quick");
    }
    if let Some(only) = &chosen.only {
        what.extend(["--only", only]);
    }
    bench(arguments, Some(binary), &what)
}

fn bench(arguments: &Arguments, binary: Option<&Path>, what: &[&str]) -> Result<()> {
    let mut bench = Command::new(built(arguments).join("bench"));
    bench.args(what);
    if let Some(binary) = binary {
        bench.env("PORTCULLIS_BIN", binary);
    }
    if arguments.json {
        bench.arg("--json");
    }
    shell::run(&mut bench)
}
