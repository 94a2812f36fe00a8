//! A private web server, Python's own, with or without TLS.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    Server,
    postgres::{as_server, certificate},
};

const SCRIPT: &str = include_str!("web.py");
const MODEL: &str = include_str!("llm.py");

/// A running server.
#[derive(Debug)]
pub struct Web {
    children: Vec<Child>,
    dir: tempfile::TempDir,
    port: u16,
    clear: Vec<(&'static str, u16)>,
}

/// What a server was sent.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header fields, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, a character for each byte.
    pub body: String,
}

impl Seen {
    /// The value of a header field that stands there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str()).filter(|_| found.next().is_none())
    }
}

impl Web {
    /// Starts one that speaks TLS.
    pub fn start() -> Result<Self> {
        Self::launch(|dir| {
            certificate(dir)?;
            Ok(["server.crt", "server.key"].map(|name| dir.join(name)).to_vec())
        })
    }

    /// Starts one that speaks in the clear.
    pub fn start_clear() -> Result<Self> {
        Self::launch(|_| Ok(Vec::new()))
    }

    /// Starts one that speaks HTTP/2 and 1.1 over TLS: nginx, in front of one that speaks in the clear. What it is sent has
    /// a field `x-spoken` with the version.
    pub fn start_http2() -> Result<Self> {
        let mut web = Self::start_clear()?;
        let dir = web.dir.path();
        certificate(dir)?;
        // Somebody else may take it in between; then nginx says so and the test fails.
        let free =
            [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()));
        let [port, clear] = free;
        let (port, clear) = (port?.port(), clear?.port());
        let (dir_text, inner) = (dir.display(), web.port);
        let config = format!(
            "daemon off; master_process off; pid {dir_text}/nginx.pid; error_log {dir_text}/nginx.log;
             events {{}}
             http {{
                 access_log off; client_max_body_size 0;
                 client_body_temp_path {dir_text}/body; proxy_temp_path {dir_text}/proxy;
                 fastcgi_temp_path {dir_text}/fastcgi; uwsgi_temp_path {dir_text}/uwsgi; scgi_temp_path {dir_text}/scgi;
                 server {{
                     listen 127.0.0.1:{port} ssl http2; listen 127.0.0.1:{clear};
                     ssl_certificate {dir_text}/server.crt; ssl_certificate_key {dir_text}/server.key;
                     location / {{
                         proxy_pass http://127.0.0.1:{inner}; proxy_http_version 1.1;
                         proxy_buffering off; proxy_request_buffering off;
                         proxy_set_header Host $http_host; proxy_set_header Connection \"\";
                         proxy_set_header X-Spoken $server_protocol;
                     }}
                 }}
             }}"
        );
        fs::write(dir.join("nginx.conf"), config)?;
        let mut command = as_server("/usr/sbin/nginx".into())?;
        command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("nginx.log"));
        web.children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        web.clear = vec![("nginx", clear), ("Python", web.port)];
        web.port = port;
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(web);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let log = fs::read_to_string(dir.join("nginx.log")).unwrap_or_default();
        anyhow::bail!("nginx does not start: {log}")
    }

    /// Starts a stand-in for a model's service: it speaks the real formats over TLS, and thinks of nothing. Other users can read
    /// its CA.
    pub fn start_model() -> Result<Self> {
        let model = Self::start_script(MODEL, std::path::Path::new("/nonexistent"))?;
        fs::set_permissions(model.folder(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        Ok(model)
    }

    /// Starts another script of Python in its place, over TLS: it gets the folder with the certificate as its argument and
    /// prints its port. It finds the packages in `site`.
    pub fn start_script(script: &str, site: &std::path::Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-web-").tempdir()?;
        if crate::postgres::is_root()? {
            let mut chown = Command::new("chown");
            crate::postgres::run(chown.arg("postgres:postgres").arg(dir.path()))?;
        }
        certificate(dir.path())?;
        fs::write(dir.path().join("server.py"), script)?;
        // As whoever runs the tests: other users may not reach the packages.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--", "/usr/bin/python3", "-B"]).env("PYTHONPATH", site);
        Self::spawn(command.arg(dir.path().join("server.py")).arg(dir.path()), dir)
    }

    fn launch(prepare: impl FnOnce(&std::path::Path) -> Result<Vec<PathBuf>>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-web-").tempdir()?;
        // Its user is the one of the PostgreSQL that tests run, so that keys are made for both in one way.
        if crate::postgres::is_root()? {
            let mut chown = Command::new("chown");
            crate::postgres::run(chown.arg("postgres:postgres").arg(dir.path()))?;
        }
        fs::write(dir.path().join("web.py"), SCRIPT)?;
        let certificate = prepare(dir.path())?;
        let mut command = as_server("/usr/bin/python3".into())?;
        command.arg("-B").arg(dir.path().join("web.py")).arg(dir.path()).args(certificate);
        Self::spawn(&mut command, dir)
    }

    fn spawn(command: &mut Command, dir: tempfile::TempDir) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().parse().context("the web server does not start")?;
        Ok(Self { children: vec![child], dir, port, clear: Vec::new() })
    }

    /// Its folder, of which it serves `files`.
    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The servers by name, each with a port where it speaks in the clear, where there are several.
    pub fn clear_ports(&self) -> &[(&'static str, u16)] {
        &self.clear
    }

    /// Everything it was sent so far.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        let text = match fs::read_to_string(self.dir.path().join("requests")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        text.lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line)?;
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                let headers = value["headers"].as_array().context("no headers")?;
                Ok(Seen {
                    method: text(&value["method"]),
                    path: text(&value["path"]),
                    headers: headers.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
                    body: text(&value["body"]),
                })
            })
            .collect()
    }
}

impl Server for Web {
    fn port(&self) -> u16 {
        self.port
    }

    fn ca(&self) -> PathBuf {
        let ca = self.dir.path().join("ca.crt");
        if ca.exists() { ca } else { "/dev/null".into() }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
