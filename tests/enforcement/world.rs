//! One test's surroundings: cgroups, pins and an enforcer of its own, all removed again, also after a failure.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub const PROBE: &str = env!("CARGO_BIN_EXE_probe");
pub const ECONNREFUSED: &str = "error 111";
pub const EPERM: &str = "error 1";

pub struct World {
    root: PathBuf,
    base: PathBuf,
    runtime: tempfile::TempDir,
    enforcer: Option<Enforcer>,
    /// Of the last enforcer, and so of the next.
    ports: (u16, u16),
}

pub struct Enforcer {
    process: Child,
    lines: BufReader<ChildStdout>,
    input: ChildStdin,
    pub port4: u16,
    pub port6: u16,
}

impl World {
    /// A hooked parent, one allowed session below it, and a live enforcer beside it.
    pub fn new() -> Self {
        let mut world = Self::bare();
        world.start();
        world.govern();
        world.allow("one");
        world
    }

    /// Cgroups only.
    pub fn bare() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let root = cgroup_root();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = root.join(format!("portcullis-test-{}-{number}", std::process::id()));
        let runtime = tempfile::tempdir().expect("a temporary folder");
        let world = Self { root, base, runtime, enforcer: None, ports: (0, 0) };
        for path in ["enforcer", "free", "agents/one", "agents/two"] {
            fs::create_dir_all(world.base.join(path)).expect("cgroups: these tests need root");
        }
        world
    }

    /// Starts an enforcer, or another after the last one.
    pub fn start(&mut self) {
        self.start_as(Command::new(PROBE));
    }

    /// Starts one that runs after this script of a shell, in a mount namespace of its own.
    pub fn start_after(&mut self, script: &str) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-e", "-c", &format!("{script}; exec \"$0\" \"$@\"")]).arg(PROBE);
        self.start_as(command);
    }

    /// Starts one in a network namespace.
    pub fn start_in(&mut self, namespace: &Namespace) {
        let mut command = Command::new("nsenter");
        command.arg(namespace.argument()).arg(PROBE);
        self.start_as(command);
    }

    fn start_as(&mut self, mut probe: Command) {
        let mut process = probe
            .args(["enforcer".as_ref(), self.pins().as_os_str(), self.root.as_os_str()])
            .arg(self.cgroup("enforcer"))
            .args([self.ports.0.to_string(), self.ports.1.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the probe");
        let mut lines = BufReader::new(process.stdout.take().expect("piped"));
        let input = process.stdin.take().expect("piped");
        let mut ready = String::new();
        lines.read_line(&mut ready).expect("a line");
        let mut ports = ready.strip_prefix("ready ").expect("the enforcer starts").split_whitespace();
        let mut port = || ports.next().and_then(|p| p.parse().ok()).expect("a port");
        let (port4, port6) = (port(), port());
        self.ports = (port4, port6);
        self.enforcer = Some(Enforcer { process, lines, input, port4, port6 });
    }

    pub fn govern(&mut self) {
        let agents = self.cgroup("agents");
        assert_eq!(self.tell(&format!("govern {}", agents.display())), "ok");
    }

    pub fn allow(&mut self, session: &str) {
        let id = self.id(&format!("agents/{session}"));
        assert_eq!(self.tell(&format!("allow {id}")), "ok");
    }

    /// Nothing is wrong; where the kernel judges unix sockets in no way, nothing but that, which is named.
    pub fn assert_well(&mut self) {
        let problems = self.tell("verify");
        if kernel_judges_unix() || kernel_takes_lsm() {
            assert_eq!(problems, "");
        } else {
            assert!(problems.starts_with(NOT_JUDGED) && !problems.contains("; "), "{problems}");
        }
    }

    /// One line to the enforcer, and its answer.
    pub fn tell(&mut self, line: &str) -> String {
        let enforcer = self.enforcer.as_mut().expect("an enforcer");
        writeln!(enforcer.input, "{line}").expect("the enforcer listens");
        let mut answer = String::new();
        enforcer.lines.read_line(&mut answer).expect("the enforcer answers");
        answer.trim_end_matches('\n').to_owned()
    }

    pub fn enforcer(&self) -> &Enforcer {
        self.enforcer.as_ref().expect("an enforcer")
    }

    /// kill -9.
    pub fn kill_enforcer(&mut self) {
        let mut enforcer = self.enforcer.take().expect("an enforcer");
        enforcer.process.kill().expect("it runs");
        enforcer.process.wait().expect("it ends");
    }

    /// Does something in a cgroup of this world and returns the line it prints.
    pub fn act(&self, cgroup: &str, action: &[&str]) -> String {
        let output = self.command(cgroup, action).stderr(Stdio::inherit()).output().expect("the probe");
        assert!(output.status.success(), "{action:?} ended with {}", output.status);
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    pub fn command(&self, cgroup: &str, action: &[&str]) -> Command {
        let mut command = Command::new(PROBE);
        command.arg("in").arg(self.cgroup(cgroup)).args(action).stdin(Stdio::null());
        command
    }

    pub fn cgroup(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// The kernel's id of a cgroup.
    pub fn id(&self, name: &str) -> u64 {
        fs::metadata(self.cgroup(name)).expect("the cgroup is there").ino()
    }

    pub fn pins(&self) -> PathBuf {
        self.runtime.path().join("bpf")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whatever still runs in there.
        let _ = fs::write(self.base.join("cgroup.kill"), "1");
        if let Some(mut enforcer) = self.enforcer.take() {
            let _ = enforcer.process.kill();
            let _ = enforcer.process.wait();
        }
        let _ = portcullis::bpf::remove_pins(&portcullis::bpf::KernelSettings {
            pin_dir: Some(self.pins()),
            runtime_dir: self.runtime.path().to_owned(),
            cgroup_root: self.root.clone(),
        });
        let removed = eventually(|| remove(&self.base).is_ok());
        if !thread::panicking() {
            assert!(removed, "{} could not be removed", self.base.display());
            assert!(!self.pins().exists(), "pins are left behind");
        }
    }
}

/// Removes a cgroup and those below it.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Whether this kernel has hooks for unix sockets, by its own types [Linux 6.7].
pub fn kernel_judges_unix() -> bool {
    const NAME: &[u8] = b"BPF_CGROUP_UNIX_CONNECT";
    let types = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel tells its types");
    types.windows(NAME.len()).any(|name| name == NAME)
}

/// Whether the kernel takes and calls programs of the security module. That is found by trying; but it cannot where `bpf`
/// is not among its modules, and Debian's 6.1, which the virtual machine boots with it, can.
pub fn kernel_takes_lsm() -> bool {
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| {
        let missing = portcullis::bpf::probe().expect("root may probe").no_lsm;
        let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        let is_listed = modules.trim().split(',').any(|module| module == "bpf");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("proc is mounted");
        assert!(is_listed || missing.is_some(), "taken without being among the modules: {modules}");
        if is_listed && release.starts_with("6.1.") {
            assert_eq!(missing, None, "this kernel can");
        }
        missing.is_none()
    })
}

/// Whether unix sockets are judged, by the hooks of cgroups or by the security module.
pub fn unix_is_judged() -> bool {
    kernel_judges_unix() || kernel_takes_lsm()
}

/// Whether nothing that is promised is beyond this kernel: the last of it came with Linux 6.12.
pub fn kernel_can_all() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("proc is mounted");
    let mut numbers = release.split('.').map(|number| number.trim().parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

/// How the product says that the kernel has none.
pub const NOT_JUDGED: &str = "unix sockets of the host are not refused: this kernel cannot (Linux 6.7 can)";

/// Waits for something that must come true; false if it does not in ten seconds.
pub fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    done()
}

/// A network namespace with nothing in it but a loopback device, as long as this lives.
pub struct Namespace {
    holder: Child,
    pub pid: String,
}

impl Namespace {
    pub fn new() -> Self {
        let mut command = Command::new(PROBE);
        command.arg("namespace").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("the probe");
        let mut pid = String::new();
        let lines = holder.stdout.as_mut().expect("piped");
        BufReader::new(lines).read_line(&mut pid).expect("a line");
        assert!(!pid.is_empty(), "a network namespace: these tests need root");
        Self { holder, pid: pid.trim_end().to_owned() }
    }

    /// For nsenter(1).
    fn argument(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.pid)
    }

    /// A server in this namespace.
    pub fn listen(&self, address: &str) -> Direct {
        Direct::of(self.try_listen(address).expect("a port"))
    }

    /// A listening socket in this namespace.
    pub fn try_listen(&self, address: &str) -> std::io::Result<TcpListener> {
        let namespace = portcullis::net::namespace::Namespace::of(self.pid.parse().expect("a number"))?;
        namespace.visit(|| TcpListener::bind(address)).expect("root may visit it")
    }

    /// The command of a world, in this namespace.
    pub fn command(&self, world: &World, cgroup: &str, action: &[&str]) -> Command {
        self.inside(&world.command(cgroup, action))
    }

    /// The same command in this namespace, without input.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(self.argument()).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        // Not where the tests are: the session's user may not be let in.
        inside.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A server that nobody redirects to, and how many came to it.
pub struct Direct {
    pub address: String,
    listener: TcpListener,
}

impl Direct {
    pub fn new(ip: &str) -> Self {
        Self::of(TcpListener::bind((ip, 0)).expect("a port"))
    }

    fn of(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).expect("a listener");
        Self { address: listener.local_addr().expect("an address").to_string(), listener }
    }

    /// How many connections reached it since the last call.
    pub fn reached(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

pub fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    mounts
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .expect("a cgroup2 tree is mounted")
}
