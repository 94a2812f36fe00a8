//! A process that is not governed, of the same user as the session's.

use std::{
    fs,
    io::{self, PipeReader, Read},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileExt, fchown},
            process::CommandExt,
        },
    },
    process::{Child, Command, Stdio},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::tagged;

/// Longest tag that is looked for in its memory, in bytes.
const ROOM: usize = 64;

pub(super) struct Outside {
    child: Child,
    output: PipeReader,
    memory: u64,
}

impl Outside {
    pub(super) fn start(user: Option<(u32, u32)>) -> io::Result<Self> {
        let mut command = Command::new("sleep");
        let (output, input) = io::pipe()?;
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
            // It is its own, as if it had made it.
            fchown(&input, Some(uid), Some(gid))?;
        }
        command.arg("3600").stdin(Stdio::null()).stdout(input).stderr(Stdio::null()).current_dir("/");
        let child = command.spawn()?;
        fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let memory = unused_memory(child.id())?;
        Ok(Self { child, output, memory })
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Address of memory that it does not use: the low end of its stack.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Numbers of the attempts that wrote to its memory or its output.
    pub(super) fn written(&mut self, marker: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let mut bytes = [0u8; ROOM];
        while let Ok(n @ 1..) = self.output.read(&mut bytes) {
            found.extend(tagged(marker, &bytes[..n]));
        }
        let memory = fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", self.child.id()));
        if let Ok(memory) = memory
            && memory.read_exact_at(&mut bytes, self.memory).is_ok()
            && let Some(number) = tagged(marker, &bytes)
        {
            found.push(number);
            let _ = memory.write_all_at(&[0; ROOM], self.memory);
        }
        found
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unused_memory(pid: u32) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]"));
    stack
        .and_then(|line| u64::from_str_radix(line.split('-').next()?, 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has no stack"))
}
