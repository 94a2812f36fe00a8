//! What is measured, and how.

use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::peers::{Peers, Under, Way};

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns of each measurement.
    pub rounds: usize,
    /// Seconds of each run of pgbench.
    pub seconds: u32,
    /// Rows of the large table.
    pub rows: u32,
    /// Rows of 1 KiB that are copied.
    pub copied: u32,
    /// Which scenarios.
    pub extent: Extent,
}

/// Which scenarios are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Those that tell most.
    Some,
    /// All.
    All,
    /// What else is done often, too, and everything by way of Portcullis only.
    Learned,
}

impl Extent {
    /// Whether others are compared with.
    pub fn compares(self) -> bool {
        self != Self::Learned
    }
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 3, seconds: 1, rows: 100_000, copied: 50_000, extent: Extent::Some };
    /// For a build that learns from it what is done often.
    pub const ALONE: Self = Self { rounds: 1, seconds: 3, extent: Extent::Learned, ..Self::QUICK };
    pub const FULL: Self = Self { rounds: 5, seconds: 3, rows: 1_000_000, copied: 500_000, extent: Extent::All };
}

/// A figure of a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// What it tells.
    pub name: &'static str,
    pub unit: &'static str,
}

/// Something that is done on each way.
pub struct Scenario {
    pub name: &'static str,
    measure: Measure,
    /// Rounds, where they are not those of the effort.
    pub rounds: Option<usize>,
    pub extent: Extent,
}

#[derive(Clone, Copy)]
enum Measure {
    /// A run of pgbench with these arguments.
    Pgbench(&'static [&'static str]),
    /// A psql that writes to nowhere.
    Psql(Under, &'static str),
    /// A COPY from a file.
    CopyIn,
    /// So many connections that do nothing.
    Idle(usize),
}

pub const SCENARIOS: &[Scenario] = &[
    // First: later, memory that others gave back is used again.
    Scenario { name: "200 idle connections", measure: Measure::Idle(200), rounds: Some(1), extent: Extent::Some },
    Scenario { name: "1000 idle connections", measure: Measure::Idle(1000), rounds: Some(1), extent: Extent::All },
    Scenario { name: "5000 idle connections", measure: Measure::Idle(5000), rounds: Some(1), extent: Extent::All },
    pgbench("select, prepared, 1 client", Extent::Some, &["-S", "-M", "prepared", "-c", "1"]),
    pgbench("select, prepared, 16 clients", Extent::Some, &["-S", "-M", "prepared", "-c", "16", "-j", "2"]),
    pgbench("select, prepared, 64 clients", Extent::All, &["-S", "-M", "prepared", "-c", "64", "-j", "2"]),
    pgbench("select, simple, 1 client", Extent::All, &["-S", "-M", "simple", "-c", "1"]),
    pgbench("select, simple, 16 clients", Extent::Some, &["-S", "-M", "simple", "-c", "16", "-j", "2"]),
    pgbench("select, simple, 64 clients", Extent::All, &["-S", "-M", "simple", "-c", "64", "-j", "2"]),
    pgbench("TPC-B-like, 16 clients", Extent::Some, &["-M", "prepared", "-c", "16", "-j", "2"]),
    pgbench("a connection for each, 8 clients", Extent::Some, &["-S", "-C", "-M", "simple", "-c", "8", "-j", "2"]),
    psql("SELECT, no masks", Under::Usual, "SELECT id, name, city, note FROM people"),
    psql("SELECT, two masked columns", Under::Usual, "SELECT id, name, email, phone FROM people"),
    psql("SELECT, detectors on all text", Under::Detectors, "SELECT id, name, city, note FROM people"),
    psql("COPY out, rows of 1 KiB", Under::Usual, "COPY (SELECT * FROM wide) TO STDOUT"),
    Scenario { name: "COPY in, rows of 1 KiB", measure: Measure::CopyIn, rounds: None, extent: Extent::Some },
];

const fn pgbench(name: &'static str, extent: Extent, arguments: &'static [&'static str]) -> Scenario {
    Scenario { name, measure: Measure::Pgbench(arguments), rounds: None, extent }
}

const fn psql(name: &'static str, under: Under, sql: &'static str) -> Scenario {
    Scenario { name, measure: Measure::Psql(under, sql), rounds: None, extent: Extent::Some }
}

const SECONDS: Figure = Figure { name: "", unit: "s" };

impl Scenario {
    /// What [`Scenario::take`] returns, in its order.
    pub fn figures(&self) -> &'static [Figure] {
        match self.measure {
            Measure::Pgbench(_) => &[
                Figure { name: "", unit: "1/s" },
                Figure { name: "half within", unit: "ms" },
                Figure { name: "99 % within", unit: "ms" },
                Figure { name: "processor", unit: "s/100k" },
            ],
            Measure::Psql(..) | Measure::CopyIn => &[SECONDS],
            Measure::Idle(_) => &[Figure { name: "each", unit: "KiB" }, Figure { name: "in all", unit: "MiB" }],
        }
    }

    /// Does it once. A figure is absent where there is nothing in between to be measured.
    pub fn take(&self, peers: &Peers, effort: Effort, way: Way) -> Result<Vec<Option<f64>>> {
        match self.measure {
            Measure::Pgbench(arguments) => pgbench_once(peers, effort, way, arguments),
            Measure::Psql(under, sql) => {
                let start = Instant::now();
                peers.run(way, under, "psql", &["-XAtq", "-o", "/dev/null", "-c", sql])?;
                Ok(vec![Some(start.elapsed().as_secs_f64())])
            }
            Measure::CopyIn => {
                peers.server.sql("shop", "TRUNCATE copied")?;
                let sql = format!("\\copy copied FROM '{}'", file(peers).display());
                let start = Instant::now();
                peers.run(way, Under::Usual, "psql", &["-XAtq", "-c", &sql])?;
                Ok(vec![Some(start.elapsed().as_secs_f64())])
            }
            Measure::Idle(count) => idle(peers, way, count),
        }
    }
}

fn file(peers: &Peers) -> PathBuf {
    peers.dir().join("wide.txt")
}

/// Fills the database, and makes what is copied into it.
pub fn prepare(peers: &Peers, effort: Effort) -> Result<()> {
    let (server, port) = (&peers.server, peers.server.port.to_string());
    let socket = server.socket_dir().display().to_string();
    let mut init = std::process::Command::new("pgbench");
    init.args(["-i", "-q", "-s", "10", "-h", &socket, "-p", &port, "-U", "postgres", "shop"]);
    ensure!(init.output()?.status.success(), "pgbench -i");
    let Effort { rows, copied, .. } = effort;
    server.sql(
        "shop",
        &format!(
            "CREATE TABLE people AS SELECT i AS id, 'Somebody ' || i AS name, 'person' || i || '@example.com' AS email, \
             '+49 30 ' || (1000000 + i) AS phone, 'City ' || i % 1000 AS city, repeat('lorem ipsum ', 4) AS note \
             FROM generate_series(1, {rows}) AS i; \
             CREATE TABLE wide AS SELECT i AS id, repeat('lorem ipsum ', 84) AS note FROM generate_series(1, {copied}) AS i; \
             CREATE UNLOGGED TABLE copied (id int, note text); \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent"
        ),
    )?;
    server.sql("shop", "VACUUM ANALYZE")?;
    let sql = format!("\\copy wide TO '{}'", file(peers).display());
    server.sql("shop", &sql)?;
    fs::set_permissions(file(peers), fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn pgbench_once(peers: &Peers, effort: Effort, way: Way, arguments: &[&str]) -> Result<Vec<Option<f64>>> {
    let logs = tempfile::Builder::new().prefix("log-").tempdir_in(peers.dir())?;
    fs::set_permissions(logs.path(), fs::Permissions::from_mode(0o777))?;
    let prefix = format!("--log-prefix={}/log", logs.path().display());
    let seconds = effort.seconds.to_string();
    // Of every tenth transaction, so that the log costs little.
    let usual = ["-n", "-T", &seconds, "-l", "--sampling-rate=0.1", &prefix];
    let pid = peers.pid(way)?;
    let before = pid.map(cpu).transpose()?;
    let said = peers.run(way, Under::Usual, "pgbench", &[&usual, arguments].concat())?;
    let spent = pid.map(cpu).transpose()?.zip(before).map(|(after, before)| after - before);
    ensure!(said.contains("number of failed transactions: 0"), "{said}");
    let done = number(&said, "transactions actually processed: ")?;
    let mut waits = waits(logs.path())?;
    waits.sort_by(f64::total_cmp);
    let within = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied();
    Ok(vec![Some(number(&said, "tps = ")?), within(0.5), within(0.99), spent.map(|seconds| seconds / done * 100_000.0)])
}

fn number(said: &str, label: &str) -> Result<f64> {
    let rest = said.split_once(label).with_context(|| format!("no `{label}` in {said}"))?.1;
    let number = rest.split([' ', '\n', '/']).next().unwrap_or_default();
    number.parse().with_context(|| format!("`{number}` after `{label}`"))
}

/// Milliseconds that transactions took, of the logs of pgbench: their third column, in microseconds.
fn waits(logs: &Path) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(logs)? {
        for line in fs::read_to_string(entry?.path())?.lines() {
            let wait = line.split(' ').nth(2).with_context(|| format!("`{line}` in a log of pgbench"))?;
            all.push(wait.parse::<f64>()? / 1000.0);
        }
    }
    Ok(all)
}

/// Seconds that a process has spent on processors, of all its threads (proc_pid_stat(5)).
pub fn cpu(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    // utime and stime are fields 14 and 15; after the name, 11 and 12. In ticks of 10 ms.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

/// A field of what the kernel says of a process's memory, in KiB (proc_pid_status(5)).
pub fn memory(pid: u32, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

fn resident(pid: u32) -> Result<f64> {
    memory(pid, "VmRSS:")
}

/// Memory that connections add which have logged in, run a query, and wait.
fn idle(peers: &Peers, way: Way, connections: usize) -> Result<Vec<Option<f64>>> {
    let Some(pid) = peers.pid(way)? else { return Ok(vec![None, None]) };
    let before = resident(pid)?;
    // Where the session's user may enter, whatever the modes above the target folder are.
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let program = folder.path().join("bench");
    fs::copy(std::env::current_exe()?, &program)?;
    let program = program.display().to_string();
    let mut client = peers.client(way, Under::Usual, &program, &["idle-client", &connections.to_string()])?;
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(client.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the idle client failed");
    let after = resident(pid)?;
    client.stdin.take().context("no input")?.write_all(b"\n")?;
    client.wait()?;
    gone(peers)?;
    Ok(vec![Some((after - before) / connections as f64), Some(after / 1024.0)])
}

/// Waits until the server's connections are given back: pgbouncer keeps them for a while.
fn gone(peers: &Peers) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    while peers.server.sql("postgres", clients)?.parse::<u32>()? > 20 {
        ensure!(Instant::now() < deadline, "idle connections do not end");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What [`idle`] starts: connections by libpq's variables.
pub fn idle_client(connections: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let mut config = tokio_postgres::Config::new();
        config.host(variable("PGHOST")).port(variable("PGPORT").parse()?).user(variable("PGUSER"));
        config.dbname(variable("PGDATABASE")).password(variable("PGPASSWORD"));
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let mut clients = Vec::new();
        for _ in 0..connections {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.query_one("SELECT abalance FROM pgbench_accounts WHERE aid = $1", &[&1i32]).await?;
            clients.push(client);
        }
        println!("ready");
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
        Ok(())
    })
}
