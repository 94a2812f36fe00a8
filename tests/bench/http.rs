//! HTTP over TLS through Portcullis, beside nginx and HAProxy as reverse proxies in front of the same server.
//!
//! All end the client's TLS and speak in the clear to nginx as a static server on loopback, over connections that they
//! keep. Only Portcullis judges, masks and records; the others log nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use portcullis_tests::Daemon;
use serde_json::{Value, json};

use crate::{
    median,
    peers::{Peer, free_port, peer},
    scenario::{Effort, Extent, Figure, cpu, memory},
};

/// A few rules, two masks with detectors, recording on: as it is shipped.
const POLICY: &str = include_str!("http.toml");
/// Clients at once.
const CLIENTS: &str = "64";
/// Length of a small body, in bytes.
const SMALL: usize = 1024;

/// The ways from client to server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Direct,
    Portcullis,
    Nginx,
    Haproxy,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Portcullis, Self::Nginx, Self::Haproxy];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Portcullis => "portcullis",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// Something that is done on each way.
struct Scenario {
    name: &'static str,
    measure: Measure,
    extent: Extent,
}

#[derive(Clone, Copy)]
enum Measure {
    /// Requests for a path, one after the other on each connection.
    Load(&'static str),
    /// One large response.
    Download,
    /// One large body of a request.
    Upload,
    /// Many requests of curl, some at once.
    Many(&'static [&'static str], &'static str),
}

const SCENARIOS: &[Scenario] = &[
    // First: later, memory that others gave back is used again.
    Scenario { name: "response that streams", measure: Measure::Download, extent: Extent::Some },
    Scenario { name: "upload that streams", measure: Measure::Upload, extent: Extent::Some },
    Scenario { name: "GET, 1 KiB of JSON", measure: Measure::Load("/small.json"), extent: Extent::Some },
    Scenario { name: "GET, 1 KiB of text", measure: Measure::Load("/small.txt"), extent: Extent::Some },
    Scenario { name: "GET, 16 KiB of text", measure: Measure::Load("/medium.txt"), extent: Extent::All },
    Scenario { name: "GET, masked JSON", measure: Measure::Load("/masked.json"), extent: Extent::Learned },
    Scenario {
        name: "requests of HTTP/2",
        measure: Measure::Many(&["--http2"], "/small.json?of=[1-4000]"),
        extent: Extent::Learned,
    },
    Scenario {
        name: "requests with a body",
        measure: Measure::Many(
            &["-X", "PUT", "-H", "Content-Type: application/json", "-d", BODY],
            "/upload?of=[1-2000]",
        ),
        extent: Extent::Learned,
    },
];

const BODY: &str = r#"{"order": 12, "to": "somebody@example.org", "items": [{"article": "box", "amount": 3}]}"#;

impl Scenario {
    fn figures(&self) -> &'static [Figure] {
        match self.measure {
            Measure::Load(_) => &[
                Figure { name: "", unit: "1/s" },
                Figure { name: "half within", unit: "ms" },
                Figure { name: "99 % within", unit: "ms" },
                Figure { name: "processor", unit: "s/100k" },
            ],
            Measure::Many(..) => &[Figure { name: "", unit: "s" }],
            Measure::Download | Measure::Upload => &[
                Figure { name: "", unit: "s" },
                Figure { name: "memory before", unit: "MiB" },
                Figure { name: "most meanwhile", unit: "MiB" },
            ],
        }
    }

    fn take(&self, peers: &Peers, effort: Effort, way: Way) -> Result<Vec<Option<f64>>> {
        match self.measure {
            Measure::Load(path) => load(peers, effort, way, path),
            Measure::Download => stream(peers, way, &["-o", "/dev/null", &peers.url(way, "/large.txt")]),
            Measure::Upload => {
                let file = peers.dir.path().join("files/large.txt").display().to_string();
                // Nobody is asked first whether it may come.
                stream(peers, way, &["-H", "Expect:", "-T", &file, &peers.url(way, "/upload")])
            }
            Measure::Many(with, path) => {
                let start = Instant::now();
                let url = peers.url(way, path);
                let usual = ["-sSfk", "--parallel", "--parallel-max", "16", "-o", "/dev/null", &url];
                peers.run(way, "curl", &[&usual, with].concat())?;
                Ok(vec![Some(start.elapsed().as_secs_f64())])
            }
        }
    }
}

/// Everything that runs.
struct Peers {
    daemon: Daemon,
    server: Peer,
    /// Its port for TLS.
    encrypted: u16,
    sink: u16,
    nginx: Peer,
    haproxy: Peer,
    dir: tempfile::TempDir,
}

impl Peers {
    fn start(mib: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-bench-").tempdir()?;
        // The others run as a user who owns nothing.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        files(dir.path(), mib)?;
        certificate(dir.path())?;
        let (port, encrypted, sink) = (free_port()?, free_port()?, sink()?);
        let config = format!(
            "server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{encrypted} ssl; root {}; }}",
            dir.path().join("files").display()
        );
        let server = nginx(dir.path(), "server", port, &config)?;
        let policy = POLICY.replace("{web}", &port.to_string()).replace("{sink}", &sink.to_string());
        let daemon = Daemon::start_alone(&policy, "")?;
        let nginx = nginx_proxy(dir.path(), port, sink)?;
        let haproxy = haproxy(dir.path(), port, sink)?;
        Ok(Self { daemon, server, encrypted, sink, nginx, haproxy, dir })
    }

    fn url(&self, way: Way, path: &str) -> String {
        let upload = path.starts_with("/upload");
        let (scheme, port) = match way {
            // What takes uploads speaks in the clear only.
            Way::Direct if upload => ("http", self.sink),
            Way::Direct => ("https", self.encrypted),
            // The enforcer speaks TLS for a server that does not.
            Way::Portcullis if upload => ("https", self.sink),
            Way::Portcullis => ("https", self.server.port),
            Way::Nginx => ("https", self.nginx.port),
            Way::Haproxy => ("https", self.haproxy.port),
        };
        format!("{scheme}://localhost:{port}{path}")
    }

    /// The processes in between.
    fn pids(&self, way: Way) -> Result<Vec<u32>> {
        let first = match way {
            Way::Direct => return Ok(Vec::new()),
            Way::Portcullis => return Ok(vec![self.daemon.pid()?]),
            Way::Nginx => self.nginx.child.id(),
            Way::Haproxy => self.haproxy.child.id(),
        };
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([first]).collect())
    }

    fn run(&self, way: Way, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = if way == Way::Portcullis {
            self.daemon.governed(program, arguments)?
        } else {
            let mut command = Command::new(program);
            command.args(arguments).current_dir("/");
            command
        };
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} by way of {}: {said}{errors}", way.name());
        Ok(said)
    }
}

/// What is served: text in which nothing is masked, as most is, but for one.
fn files(dir: &Path, mib: usize) -> Result<()> {
    let files = dir.join("files");
    fs::create_dir(&files)?;
    let line = b"An order of 12 boxes, sent on Tuesday to the usual place; nobody asked for more, and it was paid.\n";
    let text: Vec<u8> = line.iter().copied().cycle().take(1 << 20).collect();
    let mut order = json!({ "id": 12, "state": "sent", "items": [], "note": "" });
    let mut items = Vec::new();
    while order.to_string().len() + 60 < SMALL {
        items.push(json!({ "article": format!("box-{}", items.len()), "amount": 12, "price": 1.5 }));
        order["items"] = items.clone().into();
    }
    let missing = SMALL - order.to_string().len();
    order["note"] = "x".repeat(missing).into();
    fs::write(files.join("small.json"), order.to_string())?;
    order["note"] = "for somebody@example.org, by 4111 1111 1111 1111".into();
    fs::write(files.join("masked.json"), order.to_string())?;
    fs::write(files.join("small.txt"), &text[..SMALL])?;
    fs::write(files.join("medium.txt"), &text[..16 << 10])?;
    let mut large = fs::File::create(files.join("large.txt"))?;
    for _ in 0..mib {
        large.write_all(&text)?;
    }
    Ok(())
}

/// A certificate that everybody may use, for one run.
fn certificate(dir: &Path) -> Result<()> {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem && cat cert.pem key.pem > both.pem && \
        chmod 644 *.pem";
    let output = Command::new("/bin/sh").args(["-c", script]).current_dir(dir).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// As a user who owns nothing, killed with this program.
fn alone(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=TERM", "--", program]);
    command
}

fn nginx(dir: &Path, name: &str, port: u16, servers: &str) -> Result<Peer> {
    let (at, pem) = (dir.join(name).display().to_string(), dir.display());
    let config = format!(
        "daemon off; worker_processes 2; pid {at}.pid; error_log {at}.log;
         events {{ worker_connections 1024; }}
         http {{
             types {{ application/json json; text/plain txt; }} default_type text/plain;
             access_log off; sendfile on; keepalive_requests 100000000; client_max_body_size 0;
             client_body_temp_path {at}-body; proxy_temp_path {at}-proxy;
             fastcgi_temp_path {at}-fastcgi; uwsgi_temp_path {at}-uwsgi; scgi_temp_path {at}-scgi;
             ssl_certificate {pem}/cert.pem; ssl_certificate_key {pem}/key.pem;
             {servers}
         }}"
    );
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, config)?;
    let mut command = alone("/usr/sbin/nginx");
    command.arg("-c").arg(file).arg("-e").arg(format!("{at}.log"));
    peer(command, port, Path::new(&format!("{at}.out")))
}

fn nginx_proxy(dir: &Path, web: u16, sink: u16) -> Result<Peer> {
    let port = free_port()?;
    let config = format!(
        "upstream web {{ server 127.0.0.1:{web}; keepalive 128; keepalive_requests 100000000; }}
         upstream sink {{ server 127.0.0.1:{sink}; keepalive 8; }}
         server {{
             listen 127.0.0.1:{port} ssl;
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_request_buffering off;
             location / {{ proxy_pass http://web; }}
             location /upload {{ proxy_pass http://sink; }}
         }}"
    );
    nginx(dir, "nginx", port, &config)
}

fn haproxy(dir: &Path, web: u16, sink: u16) -> Result<Peer> {
    let port = free_port()?;
    let file = dir.join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  \
         http-reuse always\n\
         frontend all\n  bind 127.0.0.1:{port} ssl crt {}\n  use_backend sink if {{ path /upload }}\n  default_backend web\n\
         backend web\n  server one 127.0.0.1:{web}\n\
         backend sink\n  server one 127.0.0.1:{sink}\n",
        dir.join("both.pem").display()
    );
    fs::write(&file, text)?;
    let mut command = alone("haproxy");
    command.args(["-q", "-db", "-f"]).arg(file);
    peer(command, port, &dir.join("haproxy.log"))
}

/// A server that reads bodies to their end and keeps nothing of them; its port.
fn sink() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that breaks off tells of it itself.
            thread::spawn(move || swallow(stream));
        }
    });
    Ok(port)
}

fn swallow(stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone()?);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = number.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

/// wrk, for some seconds.
fn load(peers: &Peers, effort: Effort, way: Way, path: &str) -> Result<Vec<Option<f64>>> {
    let (seconds, url) = (format!("-d{}s", effort.seconds), peers.url(way, path));
    let spent = |pids: &[u32]| pids.iter().map(|pid| cpu(*pid)).sum::<Result<f64>>();
    let pids = peers.pids(way)?;
    let before = spent(&pids)?;
    let said = peers.run(way, "wrk", &["-t2", &format!("-c{CLIENTS}"), &seconds, "--latency", &url])?;
    let spent = spent(&pids)? - before;
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "by way of {}: {said}", way.name());
    let word = |label: &str, which: usize| {
        let line = said.lines().find(|line| line.contains(label)).with_context(|| format!("no `{label}`: {said}"))?;
        line.split_whitespace().nth(which).with_context(|| format!("`{line}`"))
    };
    let requests: f64 = word(" requests in ", 0)?.parse()?;
    let each = (!pids.is_empty()).then(|| spent / requests * 100_000.0);
    let (half, most) = (milliseconds(word(" 50%", 1)?)?, milliseconds(word(" 99%", 1)?)?);
    Ok(vec![Some(word("Requests/sec:", 1)?.parse()?), Some(half), Some(most), each])
}

/// `1.25ms`, `830.00us` or `1.02s`.
fn milliseconds(text: &str) -> Result<f64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[number.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        other => anyhow::bail!("`{other}` in `{text}` is no unit"),
    };
    Ok(number.parse::<f64>()? * factor)
}

/// curl, once, and what memory the proxy takes for it.
fn stream(peers: &Peers, way: Way, arguments: &[&str]) -> Result<Vec<Option<f64>>> {
    let pids = peers.pids(way)?;
    for pid in &pids {
        // The peak begins anew (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    }
    let all = |field: &str| pids.iter().map(|pid| memory(*pid, field)).sum::<Result<f64>>();
    let before = all("VmRSS:")?;
    let start = Instant::now();
    peers.run(way, "curl", &[&["-sSfk", "--max-time", "300"], arguments].concat())?;
    let took = start.elapsed().as_secs_f64();
    let mebibytes = |kibibytes: f64| (!pids.is_empty()).then_some(kibibytes / 1024.0);
    Ok(vec![Some(took), mebibytes(before), mebibytes(all("VmHWM:")?)])
}

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    scenario: &'static str,
    figure: Figure,
    way: &'static str,
    median: f64,
    least: f64,
    most: f64,
    /// To the same through the others, in the same run; of speeds more is better, of all else less.
    to_nginx: Option<f64>,
    to_haproxy: Option<f64>,
}

/// Measures, in turns, every scenario whose name contains `only`.
pub fn run(effort: Effort, only: &str) -> Result<Vec<Line>> {
    let mib = if effort.extent == Extent::All { 1024 } else { 256 };
    let peers = Peers::start(mib)?;
    let mut lines = Vec::new();
    let wanted = |scenario: &&Scenario| {
        if only.is_empty() { scenario.extent <= effort.extent } else { scenario.name.contains(only) }
    };
    for scenario in SCENARIOS.iter().filter(wanted) {
        eprintln!("{} ({mib} MiB where it streams) ...", scenario.name);
        let mut found = vec![BTreeMap::<Way, Vec<f64>>::new(); scenario.figures().len()];
        for _ in 0..effort.rounds {
            for way in Way::ALL.into_iter().filter(|way| effort.extent.compares() || *way == Way::Portcullis) {
                for (found, value) in found.iter_mut().zip(scenario.take(&peers, effort, way)?) {
                    found.entry(way).or_default().extend(value);
                }
            }
        }
        for (figure, found) in scenario.figures().iter().zip(&found) {
            lines.extend(table(scenario, *figure, found));
        }
    }
    Ok(lines)
}

fn table(scenario: &Scenario, figure: Figure, found: &BTreeMap<Way, Vec<f64>>) -> Vec<Line> {
    let measured = |way| found.get(&way).filter(|values| !values.is_empty());
    let middle = |way| measured(way).map(|values| median(values.clone()));
    let line = |way: Way| {
        let values = measured(way)?;
        let median = median(values.clone());
        Some(Line {
            scenario: scenario.name,
            figure,
            way: way.name(),
            median,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(0.0, f64::max),
            to_nginx: middle(Way::Nginx).map(|base| median / base),
            to_haproxy: middle(Way::Haproxy).map(|base| median / base),
        })
    };
    Way::ALL.into_iter().filter_map(line).collect()
}

/// The lines as JSON.
pub fn json(lines: &[Line]) -> Value {
    let one = |line: &Line| {
        let Line { scenario, figure, way, median, least, most, to_nginx, to_haproxy } = line;
        json!({
            "scenario": scenario, "figure": figure.name, "unit": figure.unit, "way": way, "median": median,
            "least": least, "most": most, "to_nginx": to_nginx, "to_haproxy": to_haproxy,
        })
    };
    lines.iter().map(one).collect()
}

/// The lines as a table that fits 80 columns.
pub fn print(lines: &[Line]) {
    let mut before = ("", "");
    for line in lines {
        if (line.scenario, line.figure.name) != before {
            let title = match (line.scenario == before.0, line.figure.name) {
                (true, figure) => format!("  {figure}"),
                (false, "") => format!("\n{}", line.scenario),
                (false, figure) => format!("\n{}, {figure}", line.scenario),
            };
            before = (line.scenario, line.figure.name);
            println!(
                "{title:34} {:>10} {:>10} {:>10} {:>6} {:>7}",
                line.figure.unit, "least", "most", "nginx", "haproxy"
            );
        }
        let digits = if line.median < 10.0 { 3 } else { usize::from(line.median < 1000.0) };
        let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(
            "    {:30} {:>10.digits$} {:>10.digits$} {:>10.digits$} {:>6} {:>7}",
            line.way,
            line.median,
            line.least,
            line.most,
            ratio(line.to_nginx),
            ratio(line.to_haproxy),
        );
    }
}
