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

/// A running server.
#[derive(Debug)]
pub struct Web {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
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
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().parse().context("the web server does not start")?;
        Ok(Self { child, dir, port })
    }

    /// Its folder, of which it serves `files`.
    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
