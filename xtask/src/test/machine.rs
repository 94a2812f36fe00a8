//! Suites in a virtual machine: see [`crate::vm`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use super::{Reader, Tally};
use crate::{
    package, shell,
    vm::{self, Machine},
};

/// By far longer than a suite takes under software emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Runs a test binary there that installs the package, in two versions: the one that the other is upgraded to is the same
/// but for its number.
pub(super) fn package(binary: &Path, filter: &[String]) -> Result<Tally> {
    let built = shell::target_dir().join("debug/portcullis");
    let version = env!("CARGO_PKG_VERSION");
    let packages = [package::make(&built, version)?, package::make(&built, &format!("{version}+next"))?];
    let machine = Machine::prepare()?;
    let script = format!(
        "uname -sr; export PORTCULLIS_PACKAGES='/share/{0} /share/{1}' RUST_BACKTRACE=0; cd /; cp /share/{2} /tmp\n\
         /tmp/{2} --test-threads=1 {3}\n",
        name(&packages[0]),
        name(&packages[1]),
        name(binary),
        filter.join(" ")
    );
    let mut tally = Tally::default();
    let mut reader = Reader::new(&mut tally);
    let code = machine.run(&[binary, &packages[0], &packages[1]], &script, LIMIT, |line| reader.line(line))?;
    reader.end(1, code == 0, &format!("exit code {code}"));
    Ok(tally)
}

/// Tests with more connections at once than an emulated processor takes while the daemon's heart goes on beating. The
/// kernel then refuses them, as it should.
const TOO_MUCH: [&str; 2] = ["chaos::", "load::"];

/// Runs test binaries there, as root.
pub(super) fn tests(binaries: &[PathBuf], filter: &[String]) -> Result<Tally> {
    let machine = Machine::prepare()?;
    let mut filter = filter.join(" ");
    if filter.is_empty() && vm::is_emulated() {
        println!("left out, because the machine is emulated: {}", TOO_MUCH.join(", "));
        filter = TOO_MUCH.map(|name| format!("--skip {name}")).join(" ");
    }
    let place = shell::target_dir().join("debug");
    let programs = ["portcullis", "probe"].map(|name| place.join(name));
    let files: Vec<&Path> = programs.iter().chain(binaries).map(PathBuf::as_path).collect();
    // Where the tests look for them; and where every user can reach them, which the share is not.
    let mut script = format!("uname -sr; cat /sys/kernel/security/lsm; echo; mkdir -p '{}' /tests\n", place.display());
    for program in &programs {
        script += &format!("cp /share/{} '{}'\n", name(program), program.display());
    }
    // A cgroup as on a host: what is above it is not one of a service manager's, where nobody may live.
    script += "mkdir /sys/fs/cgroup/tests; echo $$ > /sys/fs/cgroup/tests/cgroup.procs\n";
    script += &format!("export PORTCULLIS_BIN='{}' RUST_BACKTRACE=0; cd /\n", programs[0].display());
    // One at a time: under emulation, what one test sends may arrive as late as the next one listens.
    for binary in binaries {
        script += &format!("cp /share/{0} /tests; /tests/{0} --test-threads=1 {1}\n", name(binary), filter);
    }
    let mut tally = Tally::default();
    let mut reader = Reader::new(&mut tally);
    let code = machine.run(&files, &script, LIMIT, |line| reader.line(line))?;
    reader.end(binaries.len(), code == 0, &format!("exit code {code}"));
    Ok(tally)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
