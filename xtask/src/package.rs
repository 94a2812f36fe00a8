//! `cargo xtask package`: a Debian package of the binary, its units, and what they need. The scripts that dpkg runs are in
//! `deploy/debian`; this only lays out files.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{build, setup, shell};

/// What dpkg asks of a control file beside name, version and size: deb-control(5).
const FIELDS: &str = "\
Section: admin
Priority: optional
Maintainer: The Portcullis developers <maintainers@portcullis.invalid>
Homepage: https://github.com/portcullis-dev/portcullis
Description: governs what AI-agent processes do to backends
 A host agent between AI-agent processes and every backend they use. Programs
 on cgroup hooks of the kernel redirect each connection of a governed process
 to a daemon on the same host, which judges every command by policy, holds
 risky ones for a person, logs in with the real credential, masks what comes
 back, and records it all.
";

/// What lies in the project and where it goes.
const FILES: &[(&str, &str)] = &[
    ("deploy/portcullis.service", "usr/lib/systemd/system/portcullis.service"),
    ("deploy/portcullis.socket", "usr/lib/systemd/system/portcullis.socket"),
    ("deploy/portcullis.slice", "usr/lib/systemd/system/portcullis.slice"),
    ("deploy/portcullis.sysusers", "usr/lib/sysusers.d/portcullis.conf"),
    ("deploy/portcullis.tmpfiles", "usr/lib/tmpfiles.d/portcullis.conf"),
    ("deploy/portcullis.toml", "etc/portcullis/portcullis.toml"),
    ("deploy/workload.conf", "usr/share/doc/portcullis/examples/workload.conf"),
    ("deploy/namespaces.conf", "usr/share/doc/portcullis/examples/namespaces.conf"),
    ("deploy/README.md", "usr/share/doc/portcullis/workloads.md"),
    ("README.md", "usr/share/doc/portcullis/README.md"),
    ("CHANGELOG.md", "usr/share/doc/portcullis/changelog"),
    ("LICENSE-APACHE", "usr/share/doc/portcullis/LICENSE-APACHE"),
    ("LICENSE-MIT", "usr/share/doc/portcullis/LICENSE-MIT"),
];

/// What the binary writes of itself, by its arguments.
const WRITTEN: &[(&[&str], &str)] = &[
    (&["completions", "bash"], "usr/share/bash-completion/completions/portcullis"),
    (&["completions", "zsh"], "usr/share/zsh/vendor-completions/_portcullis"),
    (&["completions", "fish"], "usr/share/fish/vendor_completions.d/portcullis.fish"),
    (&["man"], "usr/share/man/man1/portcullis.1"),
];

/// Run by dpkg.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: portcullis
Source: https://github.com/portcullis-dev/portcullis

Files: *
Copyright: The Portcullis developers
License: Apache-2.0 or MIT
 The texts are in LICENSE-APACHE and LICENSE-MIT beside this file.
";

#[derive(clap::Args)]
pub struct Arguments {
    /// Package a binary without optimisation
    #[arg(long)]
    pub debug: bool,
    /// Package one that was built once: a third of the time
    #[arg(long, conflicts_with = "debug")]
    pub plain: bool,
    /// Version of the package, in place of the project's
    #[arg(long)]
    pub version: Option<String>,
}

/// Builds the binary and the package; returns the package's path.
pub fn run(arguments: &Arguments) -> Result<PathBuf> {
    let binary =
        build::run(&build::Arguments { debug: arguments.debug, profiled: !(arguments.debug || arguments.plain) })?;
    let version = arguments.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let package = make(&binary, version)?;
    println!("{}", package.display());
    Ok(package)
}

/// Makes the package of a binary that was built.
pub fn make(binary: &Path, version: &str) -> Result<PathBuf> {
    setup::need("dpkg-shlibdeps", "dpkg-dev")?;
    let place = shell::target_dir().join("package");
    let tree = place.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let program = tree.join("usr/bin/portcullis");
    write(&program, &fs::read(binary)?, 0o755)?;
    shell::run_quietly(Command::new("strip").arg(&program))?;
    lay_out(&tree, binary)?;

    let architecture = shell::answer("dpkg", &["--print-architecture"]).context("this is not Debian")?;
    let architecture = architecture.trim();
    let libraries = libraries(&place.join("libraries"), &program)?;
    let control = tree.join("DEBIAN");
    let text = format!(
        "Package: portcullis\nVersion: {version}\nArchitecture: {architecture}\n\
         Depends: {libraries}, systemd (>= 249), init-system-helpers, passwd\nRecommends: ca-certificates\n{FIELDS}"
    );
    write(&control.join("control"), text.as_bytes(), 0o644)?;
    // A file that the operator changed is not written over.
    write(&control.join("conffiles"), b"/etc/portcullis/portcullis.toml\n", 0o644)?;
    for name in SCRIPTS {
        write(&control.join(name), &fs::read(shell::root().join("deploy/debian").join(name))?, 0o755)?;
    }
    // For `dpkg --verify`.
    let sums = "find usr -type f -print0 | sort -z | xargs -0 md5sum > DEBIAN/md5sums";
    shell::run_quietly(Command::new("sh").args(["-e", "-c", sums]).current_dir(&tree))?;
    let package = place.join(format!("portcullis_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    shell::run_quietly(build.args(["--root-owner-group", "-Zxz", "-z3", "--build"]).arg(&tree).arg(&package))?;
    Ok(package)
}

fn lay_out(tree: &Path, binary: &Path) -> Result<()> {
    for (from, to) in FILES {
        let text = fs::read(shell::root().join(from)).with_context(|| format!("{from} cannot be read"))?;
        write(&tree.join(to), &text, 0o644)?;
    }
    for (arguments, to) in WRITTEN {
        let text = shell::answer(&binary.to_string_lossy(), arguments)
            .with_context(|| format!("`portcullis {}` failed", arguments.join(" ")))?;
        write(&tree.join(to), text.as_bytes(), 0o644)?;
    }
    let documents = tree.join("usr/share/doc/portcullis");
    write(&documents.join("copyright"), COPYRIGHT.as_bytes(), 0o644)?;
    for entry in fs::read_dir(shell::root().join("policies"))? {
        let path = entry?.path();
        let name = path.file_name().context("a policy without a name")?;
        write(&documents.join("examples/policies").join(name), &fs::read(&path)?, 0o644)?;
    }
    // Where policies are looked for; a daemon without any governs nothing.
    let policies = tree.join("etc/portcullis/policies");
    folder(&policies)?;
    for file in ["usr/share/man/man1/portcullis.1", "usr/share/doc/portcullis/changelog"] {
        shell::run_quietly(Command::new("gzip").args(["-9", "-n"]).arg(tree.join(file)))?;
    }
    Ok(())
}

/// Packages of the libraries that the binary is linked to, with the versions it needs.
fn libraries(place: &Path, program: &Path) -> Result<String> {
    // The tool wants to stand in a source package.
    write(&place.join("debian/control"), b"Source: portcullis\n\nPackage: portcullis\nArchitecture: any\n", 0o644)?;
    let mut tool = Command::new("dpkg-shlibdeps");
    let said = shell::run_quietly(tool.current_dir(place).arg("-O").arg(program))?;
    let found = said.trim().strip_prefix("shlibs:Depends=").map(str::to_owned);
    let found = found.with_context(|| format!("dpkg-shlibdeps says {said:?}"))?;
    ensure!(found.contains("libc6"), "the binary needs {found}, and no libc?");
    Ok(found)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    folder(path.parent().context("a file lies in a folder")?)?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Makes a folder and those above it, whatever the umask says.
fn folder(path: &Path) -> Result<()> {
    if !path.is_dir() {
        folder(path.parent().context("a folder lies in another")?)?;
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
