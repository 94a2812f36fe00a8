//! A whole daemon, as root, in folders and cgroups of its own.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{PASSWORD, Server};

/// The user that these daemons run as: none that the host knows.
pub const DAEMON: u32 = 61_943;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running daemon. Dropping it stops it and takes its pins and cgroups away.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    dir: tempfile::TempDir,
    slice: String,
}

/// Where profiles are kept of a daemon that was built to write them: the folder `$PORTCULLIS_PROFILES`.
const PROFILES: &str = "PORTCULLIS_PROFILES";

/// Where the binary under test is: `$PORTCULLIS_BIN`.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("PORTCULLIS_BIN").context("PORTCULLIS_BIN is not set: run `cargo xtask test`")?;
    Ok(path.into())
}

impl Daemon {
    /// Starts one whose only policy is `policy`. `{slice}`, `{port}`, `{ca}` and `{password}` in it are replaced.
    pub fn start(server: &impl Server, policy: &str) -> Result<Self> {
        Self::start_for(server.port(), &server.ca().display().to_string(), policy, "")
    }

    /// The same with further settings at the end.
    pub fn start_with(server: &impl Server, policy: &str, settings: &str) -> Result<Self> {
        Self::start_for(server.port(), &server.ca().display().to_string(), policy, settings)
    }

    /// Adds the policy of another workload, and puts it in force.
    pub fn add_policy(&self, name: &str, policy: &str) -> Result<()> {
        fs::write(self.path(&format!("policies/{name}.toml")), policy)?;
        self.ok(&["reload"]).map(drop)
    }

    /// The same without a server, and with further settings at the end: for what never connects.
    pub fn start_alone(policy: &str, settings: &str) -> Result<Self> {
        Self::start_for(9, "/dev/null", policy, settings)
    }

    fn start_for(port: u16, ca: &str, policy: &str, more: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-d-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let slice = format!("portcullis-t{}-{}.slice", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(at("policies"))?;
        let credential = at("credential");
        fs::write(&credential, format!("{PASSWORD}\n"))?;
        fs::set_permissions(&credential, fs::Permissions::from_mode(0o600))?;
        // The server's own folder is closed to others.
        let authority = at("ca.crt");
        fs::write(&authority, fs::read(ca)?)?;
        let policy = policy
            .replace("{slice}", &slice)
            .replace("{port}", &port.to_string())
            .replace("{ca}", &authority)
            .replace("{password}", &credential);
        fs::write(at("policies/bot.toml"), policy)?;
        let settings = format!(
            "policy_dir = {:?}\nstate_dir = {:?}\nruntime_dir = {:?}\nreviewers = [\"user:root\"]\n\
             [daemon]\nuser = \"{DAEMON}\"\n[listen]\nv4 = \"127.0.0.1:0\"\nv6 = \"[::1]:0\"\n[kernel]\ndaemon_cgroup = {:?}\n{more}",
            at("policies"),
            at("state"),
            at("run"),
            format!("{slice}-daemon"),
        );
        fs::write(at("portcullis.toml"), settings)?;
        let mut daemon = Self { child: None, dir, slice };
        daemon.launch()?;
        Ok(daemon)
    }

    /// Starts the process, and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        // Cores are asked for, so that a test can see that there is none.
        self.launch_by(&["/bin/sh", "-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""])
    }

    /// The same by way of another program, which gets the daemon's command line behind its own arguments.
    pub fn launch_by(&mut self, way: &[&str]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        let (program, arguments) = way.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments).arg(binary()?);
        command.arg("daemon").arg("--config").arg(self.path("portcullis.toml")).stdin(Stdio::null());
        command.current_dir(self.dir.path());
        if std::env::var_os(PROFILES).is_some() {
            // It may write nowhere else.
            command.env("LLVM_PROFILE_FILE", self.path("state/%p.profraw"));
        }
        self.child = Some(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.cli(&["held"])?.status.success() {
            if let Some(status) = self.child.as_mut().context("not started")?.try_wait()? {
                bail!("the daemon ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "the daemon does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Kills it with SIGKILL, supervisor and all.
    pub fn kill(&mut self) -> Result<()> {
        let daemon = format!("/proc/{}", self.pid()?);
        let mut child = self.child.take().context("not running")?;
        child.kill()?;
        child.wait()?;
        // The kernel ends it with its supervisor.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&daemon).exists() {
            ensure!(Instant::now() < deadline, "the daemon outlives its supervisor");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it as a service manager would, supervisor and all.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("not running")?;
        crate::signal("TERM", child.id().cast_signed())?;
        let status = child.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", self.log());
        Ok(())
    }

    /// Process id of its supervisor.
    pub fn supervisor(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("not running")?.id())
    }

    /// Sends a signal to the daemon itself, not to its supervisor.
    pub fn signal(&self, name: &str) -> Result<()> {
        crate::signal(name, self.pid()?.cast_signed())
    }

    /// Waits until the supervisor has started another daemon than `before`, and it answers.
    pub fn recovered(&mut self, before: u32) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.pid().is_ok_and(|pid| pid == before) || !self.cli(&["held"])?.status.success() {
            ensure!(Instant::now() < deadline, "the daemon does not come back: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Name of its workloads' cgroup.
    pub fn slice(&self) -> &str {
        &self.slice
    }

    /// Folders of its workloads' cgroups.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        roots.iter().map(|root| Path::new(root).join(&self.slice)).filter(|path| path.is_dir()).collect()
    }

    /// Its process id: the supervisor's child.
    pub fn pid(&self) -> Result<u32> {
        let supervisor = self.supervisor()?;
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
        Ok(children.split_whitespace().next().context("the supervisor has no daemon")?.parse()?)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Folder of its pinned objects.
    pub fn pins(&self) -> PathBuf {
        let runtime_dir = self.path("run");
        portcullis::bpf::KernelSettings { pin_dir: None, runtime_dir, cgroup_root: PathBuf::new() }.pin_dir()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A command of its CLI.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.arg("--config").arg(self.path("portcullis.toml")).args(arguments);
        command.stdin(Stdio::null()).env_remove("PGPASSWORD");
        Ok(command)
    }

    /// Runs a command of its CLI.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// The same; its output, which must be a success.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// What `status` says, also of a host that lacks something.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.cli(&["status", "--json"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// A command that runs as `nobody` in a session of the workload `bot`.
    pub fn governed(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        self.governed_in("bot", program, arguments)
    }

    /// The same in a session of another workload.
    pub fn governed_in(&self, workload: &str, program: &str, arguments: &[&str]) -> Result<Command> {
        let run = ["run", "--workload", workload, "--user", "nobody", "--intent", "end-to-end test", "--", program];
        let mut command = self.command(&run)?;
        command.args(arguments).current_dir("/");
        Ok(command)
    }

    /// The id of the command that waits; waits for one.
    pub fn held(&self) -> Result<serde_json::Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for line in self.ok(&["held", "--json"])?.lines() {
                let hold: serde_json::Value = serde_json::from_str(line)?;
                if hold["state"] == "requested" {
                    return Ok(hold);
                }
            }
            ensure!(Instant::now() < deadline, "nothing is held: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = crate::signal("TERM", child.id().cast_signed());
            for _ in 0..200 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(profiles) = std::env::var_os(PROFILES)
            && let Err(error) = keep_profiles(&self.path("state"), Path::new(&profiles))
        {
            eprintln!("profiles cannot be kept: {error}");
        }
        for mount in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let Some(at) = mount.split(' ').nth(4) else { continue };
            if Path::new(at).starts_with(self.dir.path()) {
                let _ = Command::new("umount").arg("-l").arg(at).status();
            }
        }
        // Those of limits on a hybrid host come last: the others are where processes are killed by.
        for root in ["unified", "", "memory", "pids", "cpu"] {
            let root = Path::new("/sys/fs/cgroup").join(root);
            for name in [self.slice.clone(), format!("{}-daemon", self.slice)] {
                remove_cgroup(&root.join(name));
            }
        }
    }
}

/// Copies what a daemon that was built for it has counted.
fn keep_profiles(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let (Some("profraw"), Some(name)) = (path.extension().and_then(OsStr::to_str), path.file_name()) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn remove_cgroup(dir: &Path) {
    if !dir.join("cgroup.procs").exists() {
        return;
    }
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..50 {
        if fs::remove_dir(dir).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
