//! Governed programs that others start: a unit of systemd's with the drop-in that the package brings, and a daemon that may
//! serve those that have a network of their own.

use std::fs;

use crate::installed::{run, text};

const UNIT: &str = "/etc/systemd/system/indexer.service";
const PROGRAM: &str = "/usr/local/bin/indexer";
const OUTPUT: &str = "/run/indexer.output";

/// What became of the unit.
#[derive(Debug)]
pub struct Ran {
    /// Whether its program ended well.
    pub is_well: bool,
    /// What it wrote, and what systemd said of it.
    pub said: String,
}

/// Runs a Python program as `indexer.service`, with more lines in its section of the service; leaves nothing of it.
pub fn run_unit(program: &str, more: &str) -> Ran {
    let folder = format!("{UNIT}.d");
    fs::write(PROGRAM, program).expect("a program");
    let unit = format!(
        "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 {PROGRAM}\nStandardOutput=truncate:{OUTPUT}\n\
         StandardError=inherit\n{more}\n"
    );
    fs::write(UNIT, unit).expect("a unit");
    fs::create_dir_all(&folder).expect("a folder");
    let drop_in = fs::read("/usr/share/doc/portcullis/examples/workload.conf").expect("the drop-in is packaged");
    fs::write(format!("{folder}/portcullis.conf"), drop_in).expect("a drop-in");
    assert!(run("systemctl", &["daemon-reload"]).status.success());
    let started = run("systemctl", &["start", "indexer.service"]);
    let mut written = fs::read_to_string(OUTPUT).unwrap_or_default();
    if !started.status.success() {
        let journal = ["--no-pager", "--output=cat", "--lines=40", "-u", "indexer.service", "-u", "portcullis.service"];
        written += &text(&run("journalctl", &journal));
    }
    fs::remove_dir_all(&folder).expect("a folder");
    for file in [UNIT, PROGRAM, OUTPUT] {
        let _ = fs::remove_file(file);
    }
    let _ = run("systemctl", &["daemon-reload"]);
    let _ = run("systemctl", &["reset-failed", "indexer.service"]);
    Ran { is_well: started.status.success(), said: format!("{written}{}", text(&started)) }
}

/// The daemon may enter other network namespaces, as long as this lives.
pub struct MayEnter(());

const SERVICE: &str = "/etc/systemd/system/portcullis.service.d";

impl MayEnter {
    pub fn new() -> Self {
        fs::create_dir_all(SERVICE).expect("a folder");
        let drop_in = fs::read("/usr/share/doc/portcullis/examples/namespaces.conf").expect("the drop-in is packaged");
        let this = Self(());
        fs::write(format!("{SERVICE}/namespaces.conf"), drop_in).expect("a drop-in");
        restart();
        this
    }
}

impl Drop for MayEnter {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(SERVICE);
        restart();
    }
}

fn restart() {
    let reloaded = run("systemctl", &["daemon-reload"]);
    let restarted = run("systemctl", &["restart", "portcullis.service"]);
    let is_done = reloaded.status.success() && restarted.status.success();
    assert!(is_done || std::thread::panicking(), "{}{}", text(&reloaded), text(&restarted));
}
