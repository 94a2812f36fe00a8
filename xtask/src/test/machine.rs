//! Suites in a virtual machine: see [`crate::vm`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use super::{Reader, Tally};
use crate::{shell, vm::Machine};

/// By far longer than a suite takes under software emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Runs test binaries there, as root.
pub(super) fn tests(binaries: &[PathBuf]) -> Result<Tally> {
    let machine = Machine::prepare()?;
    let place = shell::target_dir().join("debug");
    let programs = ["portcullis", "probe"].map(|name| place.join(name));
    let files: Vec<&Path> = programs.iter().chain(binaries).map(PathBuf::as_path).collect();
    // Where the tests look for them; and where every user can reach them, which the share is not.
    let mut script = format!("uname -sr; cat /sys/kernel/security/lsm; echo; mkdir -p '{}' /tests\n", place.display());
    for program in &programs {
        script += &format!("cp /share/{} '{}'\n", name(program), program.display());
    }
    script += &format!("export PORTCULLIS_BIN='{}' RUST_BACKTRACE=0; cd /\n", programs[0].display());
    for binary in binaries {
        script += &format!("cp /share/{0} /tests; /tests/{0}\n", name(binary));
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
