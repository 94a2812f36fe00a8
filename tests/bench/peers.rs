//! What stands between client and server in each measurement: nothing, Portcullis, pgbouncer, HAProxy.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Daemon, PASSWORD, Postgres};

/// Twenty rules, two column masks, detectors where asked for, recording on: as it is shipped.
const POLICY: &str = include_str!("policy.toml");

/// What is added to it for [`Under::Detectors`].
const DETECTORS: &str = r#"
[[mask]]
upstream = "shop"
detect = ["credit_card", "iban", "email", "private_key", "api_token"]
with = "redact"
"#;

/// The ways from client to server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Direct,
    Portcullis,
    Pgbouncer,
    Haproxy,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Portcullis, Self::Pgbouncer, Self::Haproxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Portcullis => "portcullis",
            Self::Pgbouncer => "pgbouncer",
            Self::Haproxy => "haproxy",
        }
    }
}

/// Which policy a governed client is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// The usual one.
    Usual,
    /// The same, with every detector on every column.
    Detectors,
}

/// Everything that runs.
pub struct Peers {
    pub server: Postgres,
    pub daemon: Daemon,
    pgbouncer: Peer,
    haproxy: Peer,
    dir: tempfile::TempDir,
}

/// A peer's process and its port.
pub struct Peer {
    pub child: Child,
    pub port: u16,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first: killed, one that has processes of its own would leave them behind.
        let _ = portcullis_tests::signal("TERM", self.child.id().cast_signed());
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peers {
    /// Starts all of them on private ports.
    pub fn start() -> Result<Self> {
        // With fsync, as a server has it: Portcullis, too, waits for its disk.
        let settings = ["log_statement=none", "max_connections=5100", "shared_buffers=512MB", "fsync=on"];
        let server = Postgres::start_with(&settings)?;
        let dir = tempfile::Builder::new().prefix("portcullis-bench-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let daemon = Daemon::start(&server, POLICY)?;
        let credential = daemon.path("credential").display().to_string();
        let detectors = POLICY.replace("\"bot\"", "\"scan\"").replace("/bot/", "/scan/") + DETECTORS;
        let detectors = detectors.replace("{slice}", daemon.slice()).replace("{port}", &server.port.to_string());
        daemon.add_policy("scan", &detectors.replace("{password}", &credential))?;
        let pgbouncer = pgbouncer(&server, dir.path())?;
        let haproxy = haproxy(&server, dir.path())?;
        Ok(Self { server, daemon, pgbouncer, haproxy, dir })
    }

    /// A folder of this run, which clients can read.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a client goes.
    pub fn port(&self, way: Way) -> u16 {
        match way {
            Way::Direct | Way::Portcullis => self.server.port,
            Way::Pgbouncer => self.pgbouncer.port,
            Way::Haproxy => self.haproxy.port,
        }
    }

    /// The process in between, if there is one.
    pub fn pid(&self, way: Way) -> Result<Option<u32>> {
        Ok(match way {
            Way::Direct => None,
            Way::Portcullis => Some(self.daemon.pid()?),
            Way::Pgbouncer => Some(self.pgbouncer.child.id()),
            Way::Haproxy => Some(self.haproxy.child.id()),
        })
    }

    /// A client, which speaks without TLS on every way. Only who goes straight to the server, or through a proxy that
    /// logs nobody in, has the password.
    pub fn client(&self, way: Way, under: Under, program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = if way == Way::Portcullis {
            let workload = if under == Under::Detectors { "scan" } else { "bot" };
            self.daemon.governed_in(workload, program, arguments)?
        } else {
            let mut command = Command::new(program);
            command.args(arguments).current_dir("/");
            command
        };
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port(way).to_string()).env("PGUSER", "shop_agent");
        command.env("PGDATABASE", "shop").env("PGSSLMODE", "disable").stdin(Stdio::null());
        if matches!(way, Way::Direct | Way::Haproxy) {
            command.env("PGPASSWORD", PASSWORD);
        }
        Ok(command)
    }

    /// Runs a client; what it printed.
    pub fn run(&self, way: Way, under: Under, program: &str, arguments: &[&str]) -> Result<String> {
        let output =
            self.client(way, under, program, arguments)?.output().with_context(|| format!("cannot run {program}"))?;
        ensure!(output.status.success(), "{} by way of {}: {}", program, way.name(), said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A port that nobody has now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// In session mode, and with a password of its own for the server, as Portcullis has.
fn pgbouncer(server: &Postgres, dir: &Path) -> Result<Peer> {
    let port = free_port()?;
    let file = dir.join("pgbouncer.ini");
    let text = format!(
        "[databases]\nshop = host=127.0.0.1 port={} dbname=shop user=shop_agent password={PASSWORD}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = session\nmax_client_conn = 6000\ndefault_pool_size = 5050\n\
         ignore_startup_parameters = extra_float_digits\nserver_tls_sslmode = disable\nserver_idle_timeout = 10\n\
         log_connections = 0\nlog_disconnections = 0\nverbose = 0\n",
        server.port
    );
    fs::write(&file, text)?;
    // It does not run as root.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL", "--", "pgbouncer", "-q"]);
    command.arg(file);
    peer(command, port, dir.join("pgbouncer.log").as_path())
}

/// In TCP mode: it inspects nothing.
fn haproxy(server: &Postgres, dir: &Path) -> Result<Peer> {
    let port = free_port()?;
    let file = dir.join("haproxy.cfg");
    let mut config = fs::File::create(&file)?;
    write!(
        config,
        "global\n  maxconn 6000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n\
         listen postgres\n  bind 127.0.0.1:{port}\n  server one 127.0.0.1:{}\n",
        server.port
    )?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "--", "haproxy", "-q", "-db", "-f"]).arg(file);
    peer(command, port, dir.join("haproxy.log").as_path())
}

/// Starts one, and waits until it listens.
pub fn peer(mut command: Command, port: u16, log: &Path) -> Result<Peer> {
    let log = fs::File::create(log)?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/").spawn()?;
    let mut peer = Peer { child, port };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = peer.child.try_wait()? {
            anyhow::bail!("{command:?} ended with {status}");
        }
        ensure!(Instant::now() < deadline, "{command:?} does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(peer)
}
