//! `cargo xtask build-ebpf`: the BPF object, at a stable path and the same to the byte wherever it is built.
//!
//! `core` for the BPF target is built from source, which a stable toolchain does only when told that it may
//! (`RUSTC_BOOTSTRAP`). Nothing else in the project needs that.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{setup, shell};

const TARGET: &str = "bpfel-unknown-none";

/// Builds the object and returns its path, `<target>/bpf/portcullis-ebpf`.
pub fn run() -> Result<PathBuf> {
    let linker = setup::bpf_linker();
    ensure!(linker.exists(), "bpf-linker is not installed: run `cargo xtask setup`");
    let root = shell::root();
    let build = shell::target_dir().join("bpf-build");
    let sysroot = shell::answer("rustc", &["--print", "sysroot"]).context("rustc does not answer")?;
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let remap = |from: &str, to: &str| format!("--remap-path-prefix={from}={to}");
    let flags = [
        "-Cdebuginfo=2".into(), // BTF is made from it
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        remap(&build.to_string_lossy(), "/build"),
        remap(&cargo_home.to_string_lossy(), "/cargo"),
        remap(sysroot.trim(), "/rust"),
        remap(&root.to_string_lossy(), "/portcullis"),
    ];
    let mut cargo = shell::cargo();
    cargo
        .args(["build", "--locked", "--quiet", "--release", "-Z", "build-std=core", "--bin", "portcullis-ebpf"])
        .args(["--target", TARGET, "--manifest-path"])
        .arg(root.join("agent-ebpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(&build)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    shell::run(&mut cargo)?;
    let built = fs::read(build.join(TARGET).join("release/portcullis-ebpf")).context("the object was not built")?;
    let object = shell::target_dir().join("bpf/portcullis-ebpf");
    // An object that did not change keeps its time, so the agent is not built again.
    if fs::read(&object).ok().as_deref() != Some(&built[..]) {
        fs::create_dir_all(object.parent().expect("has a parent"))?;
        fs::write(&object, &built).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}
