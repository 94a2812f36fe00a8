//! `cargo xtask`: what the project needs beside `cargo build`. One file per subcommand.

mod bench;
mod build;
mod build_ebpf;
mod corpus;
mod demo;
mod functions;
mod fuzz;
#[cfg(test)]
mod layers;
mod package;
mod paths;
mod profiled;
mod setup;
mod shell;
mod test;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build and test Portcullis")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a benchmark
    Bench(bench::Arguments),
    /// Install what building and testing need and this machine lacks
    Setup(setup::Arguments),
    /// Build the BPF object
    BuildEbpf,
    /// Build the binary with its BPF programs inside
    Build(build::Arguments),
    /// Set up, build, and show the main job step by step
    Demo(demo::Arguments),
    /// Make the lists of PostgreSQL's own functions, types and operators from its catalogue
    Functions(functions::Arguments),
    /// Build a Debian package
    Package(package::Arguments),
    /// Run the fuzz targets
    Fuzz(fuzz::Arguments),
    /// Set up, build and run the tests
    Test(test::Arguments),
    /// Run commands in a virtual machine with Debian's kernel
    Vm(vm::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::BuildEbpf => build_ebpf::run().map(|_| ()),
        Command::Build(arguments) => build::run(&arguments).map(|_| ()),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Functions(arguments) => functions::run(&arguments),
        Command::Package(arguments) => package::run(&arguments).map(|_| ()),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Vm(arguments) => vm::run(&arguments),
    }
}
