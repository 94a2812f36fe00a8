//! `cargo xtask build`: the binary with its BPF programs inside.

use std::path::PathBuf;

use anyhow::Result;

use crate::{build_ebpf, profiled, shell};

#[derive(clap::Args)]
pub struct Arguments {
    /// Build without optimisation
    #[arg(long)]
    pub debug: bool,
    /// Build as it is shipped, by what the benchmarks are seen to do: three builds' time (root)
    #[arg(long, conflicts_with = "debug")]
    pub profiled: bool,
}

/// Builds the BPF object, then the binary; returns the path of the binary.
pub fn run(arguments: &Arguments) -> Result<PathBuf> {
    if arguments.profiled {
        let binary = profiled::build()?;
        println!("{}", binary.display());
        return Ok(binary);
    }
    // At its stable place, where the agent's build script finds it, also when tests are built.
    build_ebpf::run()?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--locked", "--package", "portcullis", "--bin", "portcullis"]);
    if !arguments.debug {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    let profile = if arguments.debug { "debug" } else { "release" };
    let binary = shell::target_dir().join(profile).join("portcullis");
    println!("{}", binary.display());
    Ok(binary)
}
