//! PostgreSQL's own regression SQL, out of Debian's source package: what the suite `sql` holds classification against.
//!
//! Only apt fetches, and it checks what it fetches. It reads a list of sources of its own, made from the host's (the same
//! mirrors and keys, `deb-src` for `deb`), and keeps its state in the target folder: the host's apt is not changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{setup, shell};

/// Where the SQL lies: below it the folders of the source package, with nothing but `*.sql`.
pub fn folder() -> PathBuf {
    setup::tools().join("postgresql-sql")
}

/// Whether it is there.
pub fn is_there() -> bool {
    // Written last.
    folder().join("version").exists()
}

/// Fetches and unpacks it.
pub fn install() -> Result<()> {
    let apt = Apt::new(setup::tools().join("apt"))?;
    let package = format!("postgresql-{}", major()?);
    // Sources of a repository that has none are an error of this, and no matter.
    let _ = shell::run_quietly(apt.command("apt-get").arg("update"));
    let shown = apt.command("apt-cache").args(["showsrc", "--only-source", &package]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let mut versions: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("Version: ")).collect();
    ensure!(!versions.is_empty(), "apt's sources have no source package {package}");
    // Any will do, rather a new one: a mirror may list one that it does not have yet.
    versions.sort_unstable();
    let fetched = versions.iter().rev().find(|version| {
        let mut fetch = apt.command("apt-get");
        fetch.args(["source", "--quiet", "--download-only", "--tar-only", "--only-source"]);
        fetch.arg(format!("{package}={version}")).current_dir(&apt.0);
        fetch.output().is_ok_and(|output| output.status.success())
    });
    let version =
        fetched.with_context(|| format!("no version of {package} could be fetched: {}", versions.join(", ")))?;
    unpack(&archive(&apt.0)?)?;
    fs::write(folder().join("version"), format!("{package} {version}\n"))?;
    // Its lists and the archive are used once.
    fs::remove_dir_all(&apt.0)?;
    Ok(())
}

fn unpack(archive: &Path) -> Result<()> {
    let folder = folder();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--wildcards", "--file"]).arg(archive);
    shell::run_quietly(tar.arg("--directory").arg(&folder).args(["*/src/*.sql", "*/contrib/*.sql"]))?;
    Ok(())
}

/// The major version of the newest server that is installed.
fn major() -> Result<u32> {
    let entries = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL is installed")?;
    let majors = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    majors.max().context("no PostgreSQL is installed")
}

fn archive(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".orig.tar.")) {
            return Ok(path);
        }
    }
    anyhow::bail!("apt fetched no archive")
}

/// apt with state and sources in a folder of its own.
struct Apt(PathBuf);

impl Apt {
    fn new(folder: PathBuf) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        for below in ["sources.d", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(below))?;
        }
        let mut count = 0;
        for path in sources()? {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().context("a list without a name")?;
            fs::write(folder.join("sources.d").join(name), as_sources(&text))?;
            count += 1;
        }
        ensure!(count > 0, "apt has no lists of sources");
        Ok(Self(folder))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, below) in [
            ("Dir::Etc::sourcelist", "none"),
            ("Dir::Etc::sourceparts", "sources.d"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.0.join(below).display()));
        }
        // Its own user could not write below the target folder.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }
}

/// The host's lists, in apt's order of folders.
fn sources() -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let single = PathBuf::from("/etc/apt/sources.list");
    if single.exists() {
        paths.push(single);
    }
    let parts = Path::new("/etc/apt/sources.list.d");
    if parts.exists() {
        for entry in fs::read_dir(parts)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "list" || extension == "sources") {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// The same repositories, for source packages: `deb` lines of a one-line list, `Types:` of a deb822 list.
fn as_sources(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match (line.trim_start().strip_prefix("deb "), line.split_once(':')) {
            (Some(rest), _) => out.push_str(&format!("deb-src {rest}")),
            (None, Some((key, _))) if key.eq_ignore_ascii_case("types") => out.push_str("Types: deb-src"),
            _ if line.trim_start().starts_with("deb-src ") => continue,
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::as_sources;

    #[test]
    fn lists_of_packages_become_lists_of_sources() {
        let line = "# a\ndeb [signed-by=/k] http://m/debian bookworm main\ndeb-src http://m/debian bookworm main\n";
        assert_eq!(as_sources(line), "# a\ndeb-src [signed-by=/k] http://m/debian bookworm main\n");
        let deb822 = "Types: deb\nURIs: http://m/debian\nSuites: bookworm\n";
        assert_eq!(as_sources(deb822), "Types: deb-src\nURIs: http://m/debian\nSuites: bookworm\n");
    }
}
