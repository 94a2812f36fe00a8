//! `cargo xtask bench`: benchmarks that compare in the same run and print ratios. They assert nothing.

use anyhow::Result;

use crate::{build_ebpf, paths, setup, shell};

#[derive(clap::Args)]
pub struct Arguments {
    /// One of them; all if none is named
    #[command(subcommand)]
    what: Option<What>,
    /// Build without optimisation
    #[arg(long, global = true)]
    debug: bool,
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
        Some(What::Connect) => {
            build(arguments)?;
            bench(arguments, &["connect"])
        }
        Some(What::Classify) => {
            build(arguments)?;
            bench(arguments, &["classify"])
        }
        Some(What::Postgres(chosen)) => {
            build(arguments)?;
            compare(arguments, "postgres", &["pgbouncer", "haproxy"], chosen)
        }
        Some(What::Http(chosen)) => {
            build(arguments)?;
            compare(arguments, "http", &["wrk", "haproxy"], chosen)
        }
        None => {
            build(arguments)?;
            bench(arguments, &["connect"])?;
            compare(arguments, "postgres", &["pgbouncer", "haproxy"], &Chosen::default())?;
            compare(arguments, "http", &["wrk", "haproxy"], &Chosen::default())
        }
    }
}

fn build(arguments: &Arguments) -> Result<()> {
    build_ebpf::run()?;
    // In one build: apart, what both need would be compiled twice.
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--package", "portcullis", "--bin", "portcullis"]);
    cargo.args(["--package", "portcullis-tests", "--bin", "bench"]);
    if !arguments.debug {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)
}

/// One that compares with others; `needs` are programs of Debian packages of the same name.
fn compare(arguments: &Arguments, name: &str, needs: &[&'static str], chosen: &Chosen) -> Result<()> {
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
    bench(arguments, &what)
}

fn bench(arguments: &Arguments, what: &[&str]) -> Result<()> {
    let built = shell::target_dir().join(if arguments.debug { "debug" } else { "release" });
    let mut bench = std::process::Command::new(built.join("bench"));
    bench.args(what).env("PORTCULLIS_BIN", built.join("portcullis"));
    if arguments.json {
        bench.arg("--json");
    }
    shell::run(&mut bench)
}
