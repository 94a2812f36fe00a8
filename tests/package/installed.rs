//! An installed package, with policies for a real PostgreSQL, purged when dropped.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use portcullis_tests::{PASSWORD, Postgres, SHOP_POLICY, Server as _};

pub struct Installed {
    server: Option<Postgres>,
    direct: TcpListener,
}

impl Installed {
    /// Installs the first version, and waits until its policies are in force.
    pub fn new() -> Self {
        let server = Postgres::start().expect("a server");
        install(0);
        // As deploy/README.md says: the root of the tree is systemd's.
        assert!(run("systemctl", &["start", "agents.slice"]).status.success());
        let write = |path: &str, bytes: &[u8], mode| {
            fs::write(path, bytes).expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        // The service has no /tmp of the host's.
        write("/etc/portcullis/ca.crt", &fs::read(server.ca()).expect("a certificate"), 0o644);
        write("/etc/portcullis/secrets/shop", PASSWORD.as_bytes(), 0o600);
        let policy = SHOP_POLICY
            .replace("{slice}", "portcullis.slice")
            .replace("{port}", &server.port.to_string())
            .replace("{ca}", "/etc/portcullis/ca.crt")
            .replace("{password}", "/etc/portcullis/secrets/shop");
        let unit = policy
            .replace("name = \"bot\"", "name = \"indexer\"")
            .replace("cgroup = \"portcullis.slice/bot/*\"", "cgroup = \"agents.slice/indexer.service\"\nclaim = true");
        write("/etc/portcullis/policies/bot.toml", policy.as_bytes(), 0o644);
        write("/etc/portcullis/policies/indexer.toml", unit.as_bytes(), 0o644);
        let direct = TcpListener::bind("127.0.0.1:0").expect("a port");
        direct.set_nonblocking(true).expect("a listener");
        let host = Self { server: Some(server), direct };
        host.reload("bot, indexer");
        host
    }

    /// Has the daemon read its policies again, and waits until it has those of just these workloads.
    pub fn reload(&self, workloads: &str) {
        let reloaded = run("systemctl", &["reload", "portcullis"]);
        let journal = || text(&run("journalctl", &["--unit=portcullis", "--lines=30", "--no-pager", "--output=cat"]));
        assert!(reloaded.status.success(), "{}{}", text(&reloaded), journal());
        let line = format!("policies    {workloads}");
        let in_force = || text(&run("portcullis", &["status"])).contains(&line);
        assert!(eventually(in_force), "{}", text(&run("portcullis", &["status"])));
    }

    pub fn server(&self) -> &Postgres {
        self.server.as_ref().expect("it runs")
    }

    /// Where nobody may come who is governed.
    pub fn direct(&self) -> SocketAddr {
        self.direct.local_addr().expect("an address")
    }

    /// How many came since the last call.
    pub fn reached(&self) -> usize {
        std::iter::from_fn(|| self.direct.accept().ok()).count()
    }

    /// The daemon's process.
    pub fn pid(&self) -> String {
        text(&run("systemctl", &["show", "--property=MainPID", "--value", "portcullis.service"])).trim().to_owned()
    }

    pub fn is_active(&self) -> bool {
        run("systemctl", &["is-active", "portcullis.service"]).status.success()
    }

    /// Installs the second version over the first.
    pub fn upgrade(&self) {
        install(1);
    }

    /// Purges it; the server goes on.
    pub fn purge(mut self) -> Postgres {
        let purged = run("dpkg", &["--purge", "portcullis"]);
        assert!(purged.status.success(), "{}", text(&purged));
        self.server.take().expect("it runs")
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // Whatever a failed test left there.
        for slice in ["portcullis.slice", "agents.slice"] {
            let _ = fs::write(format!("/sys/fs/cgroup/{slice}/cgroup.kill"), "1");
        }
        let purged = || run("dpkg", &["--purge", "portcullis"]).status.success();
        if !eventually(purged) && !thread::panicking() {
            panic!("the package cannot be purged");
        }
    }
}

/// Installs one of the two packages, in the order of their versions.
fn install(which: usize) {
    let packages = std::env::var("PORTCULLIS_PACKAGES").expect("run `cargo xtask test package`");
    let packages: Vec<&str> = packages.split(' ').collect();
    let output = run("dpkg", &["--install", packages[which]]);
    let journal = || text(&run("journalctl", &["--no-pager", "--output=cat", "--lines=30", "--unit=portcullis"]));
    assert!(output.status.success() && !text(&output).contains("does not run"), "{}{}", text(&output), journal());
}

/// Waits for something that must come true, on a slow machine; false if it does not in two minutes.
pub fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(120) {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    done()
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().expect(program)
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[derive(Debug)]
pub struct File {
    pub path: String,
    /// For a pinned object: which object.
    #[expect(dead_code, reason = "for comparison by its debug form")]
    inode: u64,
}

/// Every file below a folder.
pub fn files(folder: &str) -> Vec<File> {
    let mut all = Vec::new();
    let mut folders = vec![Path::new(folder).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            all.push(File { path: entry.path().display().to_string(), inode: metadata.ino() });
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all
}
