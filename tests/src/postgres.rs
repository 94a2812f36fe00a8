//! A private, real PostgreSQL with SCRAM and TLS, seeded with a shop.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::Server;

/// The password of `shop_agent`. Long and odd, so that finding it anywhere means that it leaked.
pub const PASSWORD: &str = "s3cr3t-Zq81-upstream-9fK";

const SEED: &str = include_str!("shop.sql");

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    dir: tempfile::TempDir,
    /// Its TCP port on loopback.
    pub port: u16,
}

impl Postgres {
    /// Starts a server in a folder of its own, as `postgres` if we are root, else as ourselves.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with further settings, `name=value`.
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        let bin = binaries()?;
        let dir = tempfile::Builder::new().prefix("portcullis-pg-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        let data = dir.path().join("data");
        if is_root()? {
            run(Command::new("chown").arg("postgres:postgres").arg(dir.path()))?;
        }
        let auth = ["--auth-local=trust", "--auth-host=scram-sha-256", "--username=postgres"];
        let encoding = ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"];
        run(as_server(bin.join("initdb"))?.arg("-D").arg(&data).args(auth).args(encoding))?;
        certificate(&data)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = as_server(bin.join("postgres"))?;
        command.arg("-D").arg(&data).arg("-k").arg(dir.path()).arg("-p").arg(port.to_string());
        let usual = ["listen_addresses=127.0.0.1", "fsync=off", "ssl=on", "max_connections=100", "log_statement=all"];
        for setting in usual.iter().chain(settings) {
            command.arg("-c").arg(setting);
        }
        let log = fs::File::create(dir.path().join("server.log"))?;
        let child = command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null()).spawn()?;
        let mut server = Self { child, dir, port };
        server.wait_ready(&bin)?;
        server.sql("postgres", "CREATE DATABASE shop")?;
        server.sql("shop", &SEED.replace(":PASSWORD", PASSWORD))?;
        Ok(server)
    }

    fn wait_ready(&mut self, bin: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut ready = Command::new(bin.join("pg_isready"));
            if ready.arg("-q").arg("-h").arg(self.dir.path()).arg("-p").arg(self.port.to_string()).status()?.success() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("postgres ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "postgres does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// Replaces its rules of authentication; connections over its own socket stay trusted.
    pub fn hba(&self, lines: &[&str]) -> Result<()> {
        let all = format!("local all all trust\n{}\n", lines.join("\n"));
        let reloads = || self.log().matches("reloading configuration files").count();
        let before = reloads();
        fs::write(self.dir.path().join("data/pg_hba.conf"), all)?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while reloads() == before {
            ensure!(Instant::now() < deadline, "the server does not reload");
        }
        Ok(())
    }

    /// Where its Unix socket is.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs SQL as the superuser over the server's own socket; returns unaligned rows.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = Command::new("psql");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg("-X").arg("-q").arg("-A").arg("-t").arg("-v").arg("ON_ERROR_STOP=1");
        command.arg("-h").arg(self.dir.path()).arg("-p").arg(self.port.to_string());
        command.arg("-U").arg("postgres").arg("-d").arg(database).arg("-c").arg(sql);
        let output = command.output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

impl Server for Postgres {
    fn port(&self) -> u16 {
        self.port
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("data/ca.crt")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT: an immediate shutdown that takes the server's children along.
        if crate::signal("QUIT", self.child.id().cast_signed()).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

fn binaries() -> Result<PathBuf> {
    for version in (10..=20).rev() {
        let bin = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
        if bin.join("postgres").exists() {
            return Ok(bin);
        }
    }
    bail!("no PostgreSQL server is installed: run `cargo xtask setup`")
}

/// A command of the server: never as root, and killed with the thread that started it.
pub(crate) fn as_server(program: PathBuf) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if is_root()? {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/");
    Ok(command)
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A CA and a certificate for localhost and 127.0.0.1.
pub(crate) fn certificate(data: &Path) -> Result<()> {
    let script = "set -e; umask 077
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=test CA' \
            -keyout ca.key -out ca.crt
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=localhost' \
            -keyout server.key -out server.csr
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt
        chmod 644 ca.crt; chmod 711 .";
    let mut command = as_server("/bin/sh".into())?;
    let script = format!("cd '{}' && {script}", data.display());
    run(command.arg("-c").arg(script))?;
    // initdb made the folder 0700; PostgreSQL insists on it.
    run(as_server("/bin/chmod".into())?.arg("700").arg(data))
}
