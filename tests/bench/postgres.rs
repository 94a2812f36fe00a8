//! PostgreSQL through Portcullis, beside the same straight to the server, through pgbouncer and through HAProxy.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write as _},
    path::PathBuf,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    median,
    peers::{Peers, Way},
};

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns of each measurement.
    pub rounds: usize,
    /// Seconds of each run of pgbench.
    pub seconds: u32,
    /// Rows of the large table.
    pub rows: u32,
    /// Idle connections.
    pub idle: usize,
}

impl Effort {
    pub const QUICK: Self = Self { rounds: 3, seconds: 1, rows: 100_000, idle: 200 };
    pub const FULL: Self = Self { rounds: 5, seconds: 6, rows: 1_000_000, idle: 1000 };
}

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    /// What was measured.
    scenario: &'static str,
    /// Of what.
    unit: &'static str,
    way: &'static str,
    median: f64,
    least: f64,
    most: f64,
    /// To the same straight to the server, in the same run; of speeds more is better, of all else less.
    to_direct: Option<f64>,
    to_pgbouncer: Option<f64>,
}

#[derive(Clone, Copy)]
enum Measure {
    /// Transactions per second of pgbench.
    Tps(&'static [&'static str]),
    /// Milliseconds that one client waits for a transaction.
    Latency(&'static [&'static str]),
    /// Processor seconds of what is in between, for 100,000 transactions.
    Cpu(&'static [&'static str]),
    /// Seconds of a psql that writes to nowhere.
    Psql(&'static str),
    /// Seconds of a COPY from a file.
    CopyIn,
    /// KiB of memory for each connection that does nothing.
    Idle,
}

struct Scenario {
    name: &'static str,
    unit: &'static str,
    measure: Measure,
}

const SCENARIOS: &[Scenario] = &[
    tps("select, prepared, 1 client", &["-S", "-M", "prepared", "-c", "1"]),
    tps("select, prepared, 16 clients", &["-S", "-M", "prepared", "-c", "16", "-j", "2"]),
    tps("select, prepared, 64 clients", &["-S", "-M", "prepared", "-c", "64", "-j", "2"]),
    tps("select, simple, 1 client", &["-S", "-M", "simple", "-c", "1"]),
    tps("select, simple, 16 clients", &["-S", "-M", "simple", "-c", "16", "-j", "2"]),
    tps("select, simple, 64 clients", &["-S", "-M", "simple", "-c", "64", "-j", "2"]),
    tps("TPC-B-like, 16 clients", &["-M", "prepared", "-c", "16", "-j", "2"]),
    tps("connection for each, 8 clients", &["-S", "-C", "-M", "simple", "-c", "8", "-j", "2"]),
    Scenario {
        name: "latency, prepared, 1 client",
        unit: "ms",
        measure: Measure::Latency(&["-S", "-M", "prepared", "-c", "1"]),
    },
    Scenario {
        name: "processor, prepared, 16 clients",
        unit: "s/100k",
        measure: Measure::Cpu(&["-S", "-M", "prepared", "-c", "16", "-j", "2"]),
    },
    Scenario {
        name: "large SELECT, no masks",
        unit: "s",
        measure: Measure::Psql("SELECT id, name, city, note FROM people"),
    },
    Scenario {
        name: "large SELECT, two masked columns",
        unit: "s",
        measure: Measure::Psql("SELECT id, name, email, phone FROM people"),
    },
    Scenario {
        name: "COPY out",
        unit: "s",
        measure: Measure::Psql("COPY (SELECT id, name, city, note FROM people) TO STDOUT"),
    },
    Scenario { name: "COPY in", unit: "s", measure: Measure::CopyIn },
    Scenario { name: "idle connection", unit: "KiB", measure: Measure::Idle },
];

const fn tps(name: &'static str, arguments: &'static [&'static str]) -> Scenario {
    Scenario { name, unit: "1/s", measure: Measure::Tps(arguments) }
}

/// Measures, in turns, every scenario whose name contains `only`.
pub fn run(effort: Effort, only: &str) -> Result<Vec<Line>> {
    let peers = Peers::start()?;
    prepare(&peers, effort)?;
    let mut lines = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(only)) {
        eprintln!("{} ...", scenario.name);
        let mut found: BTreeMap<Way, Vec<f64>> = BTreeMap::new();
        for _ in 0..effort.rounds {
            for way in Way::ALL {
                if let Some(value) = scenario.measure.take(&peers, effort, way)? {
                    found.entry(way).or_default().push(value);
                }
            }
        }
        lines.extend(table(scenario, &found));
    }
    Ok(lines)
}

fn table(scenario: &Scenario, found: &BTreeMap<Way, Vec<f64>>) -> Vec<Line> {
    let middle = |way| found.get(&way).map(|values| median(values.clone()));
    let line = |(way, values): (&Way, &Vec<f64>)| {
        let median = median(values.clone());
        Line {
            scenario: scenario.name,
            unit: scenario.unit,
            way: way.name(),
            median,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(0.0, f64::max),
            to_direct: middle(Way::Direct).map(|base| median / base),
            to_pgbouncer: middle(Way::Pgbouncer).map(|base| median / base),
        }
    };
    found.iter().map(line).collect()
}

/// The lines as JSON.
pub fn json(lines: &[Line]) -> Value {
    let one = |line: &Line| {
        let Line { scenario, unit, way, median, least, most, to_direct, to_pgbouncer } = line;
        json!({
            "scenario": scenario, "unit": unit, "way": way, "median": median, "least": least, "most": most,
            "to_direct": to_direct, "to_pgbouncer": to_pgbouncer,
        })
    };
    lines.iter().map(one).collect()
}

/// The lines as a table that fits 80 columns.
pub fn print(lines: &[Line]) {
    let mut scenario = "";
    for line in lines {
        if line.scenario != scenario {
            scenario = line.scenario;
            println!(
                "\n{:34} {:>10} {:>10} {:>10} {:>6} {:>6}",
                scenario, line.unit, "least", "most", "direct", "bouncr"
            );
        }
        let digits = if line.median < 10.0 { 3 } else { usize::from(line.median < 1000.0) };
        let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(
            "  {:32} {:>10.digits$} {:>10.digits$} {:>10.digits$} {:>6} {:>6}",
            line.way,
            line.median,
            line.least,
            line.most,
            ratio(line.to_direct),
            ratio(line.to_pgbouncer),
        );
    }
}

fn file(peers: &Peers) -> PathBuf {
    peers.dir().join("people.txt")
}

fn prepare(peers: &Peers, effort: Effort) -> Result<()> {
    let (server, port) = (&peers.server, peers.server.port.to_string());
    let socket = server.socket_dir().display().to_string();
    let mut init = std::process::Command::new("pgbench");
    init.args(["-i", "-q", "-s", "10", "-h", &socket, "-p", &port, "-U", "postgres", "shop"]);
    ensure!(init.output()?.status.success(), "pgbench -i");
    let rows = effort.rows;
    server.sql(
        "shop",
        &format!(
            "CREATE TABLE people AS SELECT i AS id, 'Somebody ' || i AS name, 'person' || i || '@example.com' AS email, \
             '+49 30 ' || (1000000 + i) AS phone, 'City ' || i % 1000 AS city, repeat('lorem ipsum ', 4) AS note \
             FROM generate_series(1, {rows}) AS i; CREATE TABLE copied (id int, name text, city text, note text); \
             GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent; VACUUM ANALYZE"
        )
        .replace("; VACUUM ANALYZE", ""),
    )?;
    server.sql("shop", "VACUUM ANALYZE")?;
    let text = server.sql("shop", "COPY (SELECT id, name, city, note FROM people) TO STDOUT")?;
    fs::write(file(peers), text + "\n")?;
    Ok(())
}

impl Measure {
    fn take(self, peers: &Peers, effort: Effort, way: Way) -> Result<Option<f64>> {
        let seconds = effort.seconds.to_string();
        let pgbench =
            |arguments: &[&str]| peers.run(way, "pgbench", &[&["-n", "-T", &seconds], arguments].concat()).map(Pgbench);
        Ok(Some(match self {
            Self::Tps(arguments) => pgbench(arguments)?.number("tps = ")?,
            Self::Latency(arguments) => pgbench(arguments)?.number("latency average = ")?,
            Self::Cpu(arguments) => {
                let Some(pid) = peers.pid(way)? else { return Ok(None) };
                let before = cpu(pid)?;
                let done = pgbench(arguments)?.number("transactions actually processed: ")?;
                (cpu(pid)? - before) / done * 100_000.0
            }
            Self::Psql(sql) => {
                let start = Instant::now();
                peers.run(way, "psql", &["-XAtq", "-o", "/dev/null", "-c", sql])?;
                start.elapsed().as_secs_f64()
            }
            Self::CopyIn => {
                peers.server.sql("shop", "TRUNCATE copied")?;
                let sql = format!("\\copy copied FROM '{}'", file(peers).display());
                let start = Instant::now();
                peers.run(way, "psql", &["-XAtq", "-c", &sql])?;
                start.elapsed().as_secs_f64()
            }
            Self::Idle => {
                let Some(pid) = peers.pid(way)? else { return Ok(None) };
                idle(peers, way, pid, effort.idle)?
            }
        }))
    }
}

struct Pgbench(String);

impl Pgbench {
    fn number(&self, label: &str) -> Result<f64> {
        ensure!(self.0.contains("number of failed transactions: 0"), "{}", self.0);
        let rest = self.0.split_once(label).with_context(|| format!("no `{label}` in {}", self.0))?.1;
        let number = rest.split([' ', '\n', '/']).next().unwrap_or_default();
        number.parse().with_context(|| format!("`{number}` after `{label}`"))
    }
}

/// Seconds that a process has spent on processors, of all its threads (proc_pid_stat(5)).
fn cpu(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    // utime and stime are fields 14 and 15; after the name, 11 and 12. In ticks of 10 ms.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Memory that connections add which have logged in, run a query, and wait.
fn idle(peers: &Peers, way: Way, pid: u32, connections: usize) -> Result<f64> {
    let before = resident(pid)?;
    let program = std::env::current_exe()?.display().to_string();
    let mut client = peers.client(way, &program, &["idle-client", &connections.to_string()])?;
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(client.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the idle client failed");
    let after = resident(pid)?;
    client.stdin.take().context("no input")?.write_all(b"\n")?;
    client.wait()?;
    Ok((after - before) / connections as f64)
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
