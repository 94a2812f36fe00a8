//! What `connect()` costs: of a governed process through the redirect, and of one that is not governed while the hooks are
//! there, each against the same call on a host without hooks.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis::bpf::{Kernel, KernelSettings, remove_pins};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::median;

const ROUNDS: usize = 9;
/// Connections in each measurement, and before it.
const COUNT: usize = 3000;
const WARM: usize = 300;
/// Room for all of them: a client that the server cannot follow would wait a second for a place.
const BACKLOG: i32 = 4096;

pub enum Print {
    Table,
    Json,
}

/// What is measured in each round, in this order.
const NAMES: [&str; 3] =
    ["not governed, no hooks loaded", "governed, through the redirect", "not governed, hooks loaded"];

/// Measures in turns and prints.
pub fn run(print: Print) -> Result<()> {
    let bench = Bench::new()?;
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let before = bench.measure("free")?;
        let hooks = bench.hooks()?;
        let governed = bench.measure("agents/one")?;
        let beside = bench.measure("free")?;
        drop(hooks);
        for (times, time) in times.iter_mut().zip([before, governed, beside]) {
            times.push(time);
        }
    }
    let ratio = |which: usize| times[which].iter().zip(&times[0]).map(|(time, base)| time / base).collect::<Vec<_>>();
    match print {
        Print::Table => {
            println!("p50 of {COUNT} times connect() over loopback, in {ROUNDS} rounds\n");
            println!("{:32} {:>10} {:>8} {:>15}", "", "median", "ratio", "of single rounds");
            for (which, name) in NAMES.iter().enumerate() {
                let (mut all, time) = (ratio(which), median(times[which].clone()) / 1000.0);
                all.sort_by(f64::total_cmp);
                let (least, most) = (all[0], all[ROUNDS - 1]);
                println!("{name:32} {time:>7.2} us {:>7.2}x {least:>7.2} - {most:.2}", median(all));
            }
        }
        Print::Json => {
            let rows = NAMES.iter().enumerate().map(|(which, name)| {
                serde_json::json!({ "what": name, "p50_ns": median(times[which].clone()), "ratio": median(ratio(which)) })
            });
            println!("{}", serde_json::Value::Array(rows.collect()));
        }
    }
    Ok(())
}

/// Cgroups, and one server in each of the two that are not governed. Both do the same for a connection.
struct Bench {
    root: PathBuf,
    base: PathBuf,
    runtime: tempfile::TempDir,
    server: Child,
    /// The server without hooks.
    direct: SocketAddr,
    /// Ours, which hooked connections come to.
    listeners: [TcpListener; 2],
    kernel: Arc<RwLock<Option<Kernel>>>,
}

impl Bench {
    fn new() -> Result<Self> {
        let root = portcullis::config::cgroup::root().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let base = root.join(format!("portcullis-bench-{}", std::process::id()));
        for path in ["enforcer", "free", "agents/one"] {
            fs::create_dir_all(base.join(path)).context("cgroups: this needs root")?;
        }
        let mut server = Command::new(std::env::current_exe()?);
        server.arg("connect-server").arg(base.join("free")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = server.spawn()?;
        let mut direct = String::new();
        BufReader::new(server.stdout.as_mut().context("piped")?).read_line(&mut direct)?;
        join(&base.join("enforcer"))?;
        let listeners = [listen(Ipv4Addr::LOCALHOST.into())?, listen(Ipv6Addr::LOCALHOST.into())?];
        let kernel: Arc<RwLock<Option<Kernel>>> = Arc::default();
        for listener in &listeners {
            let (listener, kernel) = (listener.try_clone()?, kernel.clone());
            thread::spawn(move || {
                let _ = to_processor(1);
                while let Ok((stream, _)) = listener.accept() {
                    // As the daemon does first of all.
                    if let Some(kernel) = kernel.read().ok().as_deref().and_then(Option::as_ref) {
                        let _ = kernel.origin(stream.as_fd());
                    }
                }
            });
        }
        let direct = direct.trim_end().parse()?;
        Ok(Self { root, base, runtime: tempfile::tempdir()?, server, direct, listeners, kernel })
    }

    fn settings(&self) -> KernelSettings {
        KernelSettings {
            pin_dir: Some(self.runtime.path().join("bpf")),
            runtime_dir: self.runtime.path().to_owned(),
            cgroup_root: self.root.clone(),
        }
    }

    /// Loads the hooks, as long as the result lives.
    fn hooks(&self) -> Result<Hooks<'_>> {
        let kernel = Kernel::open(&self.settings())?;
        let [v4, v6] = [self.listeners[0].local_addr()?.port(), self.listeners[1].local_addr()?.port()];
        let v4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, v4);
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, v6, 0, 0);
        kernel.set_enforcer(v4, Some(v6), &[&self.base.join("enforcer")])?;
        for listener in &self.listeners {
            kernel.add_listener(listener)?;
        }
        kernel.govern(&self.base.join("agents"))?;
        kernel.allow_session(fs::metadata(self.base.join("agents/one"))?.ino())?;
        kernel.heartbeat()?;
        *self.kernel.write().ok().context("a thread broke off")? = Some(kernel);
        let stop = Arc::new(AtomicBool::new(false));
        let beating = {
            let (kernel, stop) = (self.kernel.clone(), stop.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(kernel) = kernel.read().ok().as_deref().and_then(Option::as_ref) {
                        let _ = kernel.heartbeat();
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            })
        };
        Ok(Hooks { bench: self, stop, beating: Some(beating) })
    }

    /// The median time of a connect from a cgroup, in nanoseconds.
    fn measure(&self, cgroup: &str) -> Result<f64> {
        let mut client = Command::new(std::env::current_exe()?);
        client.arg("connect-client").arg(self.base.join(cgroup)).args([self.direct.to_string(), COUNT.to_string()]);
        let output = client.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "the client in {cgroup} ended with {}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim_end().parse()?)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = join(&self.root);
        for path in ["enforcer", "free", "agents/one", "agents", ""] {
            let _ = fs::remove_dir(self.base.join(path));
        }
    }
}

struct Hooks<'a> {
    bench: &'a Bench,
    stop: Arc<AtomicBool>,
    beating: Option<thread::JoinHandle<()>>,
}

impl Drop for Hooks<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.beating.take().map(thread::JoinHandle::join);
        if let Ok(mut kernel) = self.bench.kernel.write() {
            *kernel = None;
        }
        if let Err(error) = remove_pins(&self.bench.settings()) {
            eprintln!("hooks are left behind: {error}");
        }
    }
}

/// Accepts and closes, until standard input ends.
pub fn server(cgroup: &Path) -> Result<()> {
    join(cgroup)?;
    let listener = listen(Ipv4Addr::LOCALHOST.into())?;
    println!("{}", listener.local_addr()?);
    thread::spawn(move || {
        let _ = to_processor(1);
        while let Ok((stream, _)) = listener.accept() {
            drop(stream);
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    let address = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects, and prints the median time of that in nanoseconds.
pub fn client(cgroup: &Path, address: SocketAddr, count: usize) -> Result<()> {
    join(cgroup)?;
    to_processor(0)?;
    let to = SockAddr::from(address);
    let mut times = Vec::with_capacity(count);
    for i in 0..WARM + count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        let start = Instant::now();
        socket.connect(&to)?;
        let took = start.elapsed();
        if i >= WARM {
            times.push(took.as_secs_f64() * 1e9);
        }
        // Leaves no port in TIME_WAIT, among which the next would search.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    println!("{}", median(times));
    Ok(())
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("joining {}", cgroup.display()))
}

/// Keeps the calling thread on one processor, if there are several: clients and servers do not take turns then.
fn to_processor(number: usize) -> Result<()> {
    let count = thread::available_parallelism()?.get();
    // SAFETY: a structure of numbers, of which bits below its length are set.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number % count, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(done == 0, "a processor to stay on: {}", io::Error::last_os_error());
    Ok(())
}
