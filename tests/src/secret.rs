//! Looking for the upstream's password where it must not be.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Result, bail, ensure};

use crate::PASSWORD;

/// Bytes of memory read at a time.
const PIECE: usize = 1 << 20;

/// Looks in everything that a process has: environment, command line, memory. Returns how many bytes that was.
///
/// # Errors
/// It is there, or the process cannot be read.
pub fn not_in_process(pid: u32) -> Result<u64> {
    let mut total = 0;
    for name in ["environ", "cmdline"] {
        let data = fs::read(format!("/proc/{pid}/{name}"))?;
        total += data.len() as u64;
        ensure!(!has(&data), "the password is in /proc/{pid}/{name}");
    }
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((from, to)) = range.split_once('-') else { continue };
        if !rest.starts_with('r') || line.contains("[vvar") || line.contains("[vsyscall") {
            continue;
        }
        let (mut from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        // What spans two pieces is in the overlap.
        let overlap = PASSWORD.len() as u64;
        while from < to {
            let mut data = vec![0; PIECE.min(usize::try_from(to - from)?)];
            let n = memory.read_at(&mut data, from).unwrap_or(0);
            total += n as u64;
            ensure!(!has(&data[..n]), "the password is in the memory of {pid}: {line}");
            if n == 0 || from + n as u64 == to {
                break;
            }
            from += (n as u64).saturating_sub(overlap).max(1);
        }
    }
    ensure!(total > 1_000_000, "only {total} bytes could be read");
    Ok(total)
}

/// Looks in every file below a folder, or in one file. Returns how many bytes that was.
///
/// # Errors
/// It is there, or a file cannot be read.
pub fn not_in_files(path: &Path) -> Result<u64> {
    for _ in 0..50 {
        let looked = look(path);
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if !looked.as_ref().is_err_and(|error| error.downcast_ref().is_some_and(gone)) || !path.exists() {
            return looked;
        }
        // The daemon renamed a file between the list and the look: the list is not what is there.
        thread::sleep(Duration::from_millis(20));
    }
    bail!("{} never stays the same for as long as a look takes", path.display())
}

fn look(path: &Path) -> Result<u64> {
    let mut total = 0;
    for file in files(path)? {
        let data = fs::read(&file)?;
        total += data.len() as u64;
        ensure!(!has(&data), "{} has the password", file.display());
    }
    ensure!(total > 0, "{} is empty", path.display());
    Ok(total)
}

fn has(data: &[u8]) -> bool {
    let utf16: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [PASSWORD.as_bytes(), &utf16].iter().any(|form| contains(data, form))
}

fn contains(data: &[u8], form: &[u8]) -> bool {
    let first = form[0];
    let mut rest = data;
    while let Some(at) = rest.iter().position(|b| *b == first) {
        rest = &rest[at..];
        if rest.starts_with(form) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    let device = path.metadata()?.dev();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        // What is mounted below (the kernel's pins) is no place for text.
        if path.metadata()?.dev() == device && (path.is_dir() || path.is_file()) {
            all.extend(files(&path)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found() {
        let kept = format!("x{PASSWORD}");
        assert!(has(kept.as_bytes()) && !has(&kept.as_bytes()[..kept.len() - 1]));
        assert!(not_in_process(std::process::id()).unwrap_err().to_string().contains("memory"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &kept).unwrap();
        assert!(not_in_files(file.path()).is_err());
        drop(kept);
    }
}
