//! `cargo xtask setup`: what building and testing need and this machine lacks, and nothing else. Running it again does
//! nothing. One line per step: `ok` was there, `installed` is new.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{corpus, shell};

/// The last release built on the LLVM of the pinned toolchain.
const BPF_LINKER: &str = "0.10.4";

/// Debian packages that the tests and the demo use: peers and clients.
const PACKAGES: &[&str] = &[
    "postgresql",
    "postgresql-contrib",
    "postgresql-client",
    "iproute2",
    "openssl",
    "openssh-client",
    "bzip2",
    "curl",
    "nginx",
    "libclang-dev",
    "python3",
    "python3-venv",
    "nodejs",
    "golang-go",
    "musl-tools",
    "openjdk-17-jdk-headless",
];

/// Drivers of other languages, for the tests of clients: their folder below the tools, the file that pins their versions.
const PYTHON: (&str, &str) = ("python", "tests/clients/requirements.txt");
const NODE: (&str, &str) = ("node", "tests/clients/package-lock.json");

#[derive(clap::Args)]
pub struct Arguments {
    /// Only what building needs: no packages of the system
    #[arg(long)]
    pub build_only: bool,
}

/// Runs every step.
pub fn run(arguments: &Arguments) -> Result<()> {
    step("rust-src", has_rust_src, install_rust_src)?;
    step("bpf-linker", has_bpf_linker, install_bpf_linker)?;
    if !arguments.build_only {
        step("Debian packages", || missing_packages().is_empty(), || install_packages(&missing_packages()))?;
        // Its own step: some distributions' nodejs brings it.
        step("npm", || shell::answer("npm", &["--version"]).is_some(), || install_packages(&["npm"]))?;
        step("Python drivers", || is_current(PYTHON), install_python_drivers)?;
        step("Node drivers", || is_current(NODE), install_node_drivers)?;
        step("SQL corpus", corpus::is_there, corpus::install)?;
    }
    Ok(())
}

/// Installs a Debian package where the program that it brings is missing.
pub fn need(program: &str, package: &'static str) -> Result<()> {
    step(package, || shell::answer("which", &[program]).is_some(), || install_packages(&[package]))
}

/// Where the project's own tools lie: in the target folder, never in the user's home.
pub fn tools() -> PathBuf {
    shell::target_dir().join("tools")
}

/// The project's own bpf-linker.
pub fn bpf_linker() -> PathBuf {
    tools().join("bin/bpf-linker")
}

fn step(name: &str, there: impl Fn() -> bool, install: impl FnOnce() -> Result<()>) -> Result<()> {
    if there() {
        println!("{name:<16} ok");
        return Ok(());
    }
    print!("{name:<16} installing ... ");
    std::io::stdout().flush()?;
    let start = Instant::now();
    install().with_context(|| format!("{name} could not be installed"))?;
    ensure!(there(), "{name} was installed without an error and is still missing");
    println!("installed ({} s)", start.elapsed().max(Duration::from_secs(1)).as_secs());
    Ok(())
}

fn has_rust_src() -> bool {
    shell::answer("rustc", &["--print", "sysroot"])
        .is_some_and(|root| PathBuf::from(root.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

fn install_rust_src() -> Result<()> {
    shell::run_quietly(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(shell::root()))?;
    Ok(())
}

fn has_bpf_linker() -> bool {
    shell::answer(&bpf_linker().to_string_lossy(), &["--version"])
        .is_some_and(|version| version.split_whitespace().any(|word| word == BPF_LINKER))
}

fn install_bpf_linker() -> Result<()> {
    print!("(about a minute) ");
    std::io::stdout().flush()?;
    let tools = tools();
    let mut cargo = shell::cargo();
    cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--root"]).arg(&tools);
    // Its own build folder, so that this may run while something else builds in ours.
    cargo.env("CARGO_TARGET_DIR", tools.join("build"));
    shell::run_quietly(&mut cargo)?;
    // Half a gigabyte that nothing uses again; failing to remove it is no reason to fail.
    let _ = std::fs::remove_dir_all(tools.join("build"));
    Ok(())
}

/// Whether drivers are installed as the pinning file says: a copy of it lies beside them.
fn is_current((folder, pins): (&str, &str)) -> bool {
    let read = |path: PathBuf| fs::read(path).ok();
    let installed = read(tools().join(folder).join("installed"));
    installed.is_some() && installed == read(shell::root().join(pins))
}

fn note_current((folder, pins): (&str, &str)) -> Result<()> {
    fs::copy(shell::root().join(pins), tools().join(folder).join("installed"))?;
    Ok(())
}

fn install_python_drivers() -> Result<()> {
    let folder = tools().join(PYTHON.0);
    // The system's, which the tests run: not another one that comes first on the path.
    shell::run_quietly(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    shell::run_quietly(pip.args(["install", "--quiet", "--requirement"]).arg(shell::root().join(PYTHON.1)))?;
    note_current(PYTHON)
}

fn install_node_drivers() -> Result<()> {
    let folder = tools().join(NODE.0);
    fs::create_dir_all(&folder)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(shell::root().join("tests/clients").join(file), folder.join(file))?;
    }
    let mut npm = Command::new("npm");
    shell::run_quietly(npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder))?;
    note_current(NODE)
}

fn missing_packages() -> Vec<&'static str> {
    PACKAGES.iter().copied().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    shell::answer("dpkg-query", &["--show", "--showformat=${db:Status-Status}", package])
        .is_some_and(|status| status == "installed")
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        // The tests run servers of their own; where no systemd starts it anyway, no service is started.
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        shell::run_quietly(&mut command)
    };
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)?;
    Ok(())
}
