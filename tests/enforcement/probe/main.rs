//! What the enforcement tests run: the enforcer's side of the kernel seam, and what a governed process tries.
//!
//! A program of its own, because cgroups, capabilities and filters are of a whole process, and because the enforcer has
//! to be killed.

mod client;
mod enforcer;
mod knock;
mod load;
mod names;
mod unix;

use std::{env, fs, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use portcullis::{
    bpf::UnixHooks,
    launch::confine::{Settings, User, confine},
};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        // enforcer PINS CGROUP_ROOT OWN_CGROUP PORT4 PORT6
        ["enforcer", pins, root, own, port4, port6] => {
            enforcer::run(Path::new(pins), Path::new(root), Path::new(own), port4.parse()?, port6.parse()?)
        }
        // in CGROUP ACTION...: joins, then does something.
        ["in", cgroup, ref action @ ..] => {
            join(Path::new(cgroup))?;
            client::act(action)
        }
        // confined|confined-without-hooks UID|- PROGRAM ARGUMENTS...
        [how @ ("confined" | "confined-without-hooks"), user, program, ref arguments @ ..] => {
            let user = match user {
                "-" => None,
                uid => uid.parse().ok().map(|uid| User { uid, gid: uid, groups: vec![uid] }),
            };
            let unix = if how == "confined" { UnixHooks::Attached } else { UnixHooks::Missing };
            confine(&Settings { user, unix, ..Settings::default() })?;
            Err(Command::new(program).args(arguments).exec()).context("exec")
        }
        ["act", ref action @ ..] => client::act(action),
        ["namespace"] => load::namespace(),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("joining {}", cgroup.display()))
}
