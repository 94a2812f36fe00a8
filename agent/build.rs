//! Puts the BPF object, where `cargo xtask build-ebpf` has made one, where the library embeds it from.
//!
//! Without one the library embeds nothing and says so when it is asked to load it: `cargo check` and the unit tests
//! need no BPF toolchain.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=PORTCULLIS_EBPF");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let object = match env::var_os("PORTCULLIS_EBPF") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            fs::read(path)?
        }
        None => found(&out)?,
    };
    fs::write(out.join("portcullis-ebpf"), object)
}

/// The object at its stable place, `<target>/bpf/portcullis-ebpf`, or nothing.
fn found(out: &Path) -> io::Result<Vec<u8>> {
    // OUT_DIR is <target>/[<triple>/]<profile>/build/<package>-<hash>/out.
    let triple = env::var_os("TARGET");
    let Some(target) = out.ancestors().skip(4).take(2).find(|dir| dir.file_name() != triple.as_deref()) else {
        return Ok(Vec::new());
    };
    // cargo takes a missing file for a changed one and would run this each time; so the folder is made and watched.
    let dir = target.join("bpf");
    fs::create_dir_all(&dir)?;
    println!("cargo::rerun-if-changed={}", dir.display());
    match fs::read(dir.join("portcullis-ebpf")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}
