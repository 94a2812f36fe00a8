//! Ways out of a session, tried one after the other as they are asked for on standard input.
//!
//! `portcullis doctor` and the escape test run this same program in a session. Whether an attempt reached anything is not
//! for this program to say where a listener can tell: see [`super::witness`]. Only where an attempt is about an effect
//! in the kernel (a namespace, a ring, another family of sockets) does it answer [`Answer::Effect`], if the kernel let it.
//! No attempt changes the host: what would is undone at once, or done so that it fails only after privileges were
//! checked.
#![expect(unsafe_code, reason = "system calls that no library makes, on purpose; nothing else in `doctor` needs any")]

mod net;
mod passed;
mod processes;
mod sys;
mod system;
mod xdp;

use std::{
    io::{self, BufRead, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

pub use self::passed::PASSED;
pub(super) use self::{
    net::JOINS,
    passed::GIVE,
    processes::SIGNAL,
    sys::{landlock_version, ring},
};

use serde::{Deserialize, Serialize};

/// What the attempts aim at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// An address of the witness that is not loopback.
    pub v4: Ipv4Addr,
    /// The same.
    pub v6: Ipv6Addr,
    /// Port of its listeners, TCP and UDP, also of those on loopback. Another for each attempt: see [`Runner::run`].
    ///
    /// [`Runner::run`]: super::Runner::run
    #[serde(default)]
    pub port: u16,
    /// Folder of unix sockets; their abstract names are their paths.
    pub unix: String,
    /// The device that leads to `v4`.
    pub device: String,
    /// Multicast groups that nobody else joined, each to be joined once.
    pub groups: [Ipv4Addr; 2],
    /// A process of the same user that is not governed.
    pub outside: i32,
    /// Where that process has memory that it does not use.
    pub outside_memory: u64,
    /// Port of the enforcer.
    pub enforcer: u16,
    /// The daemon's control socket.
    pub control: String,
    /// Folder of the pinned objects.
    pub pins: String,
    /// A folder among them that is there to be taken away.
    pub decoy: String,
    /// The workload that is governed.
    pub workload: String,
    /// A held command of it.
    pub hold: String,
    /// A program that prints its effective user, with the set-user-id bit of another; empty where none could be made.
    pub other_user: String,
    /// The user of that program.
    pub other_uid: u32,
    /// Sockets made before the session, which its processes were to inherit: UDP, and TCP connected to the witness.
    pub inherited: [i32; 2],
    /// What is in every payload, before the attempt's number: see [`tag`].
    pub marker: String,
}

impl Target {
    fn marker(&self) -> &[u8] {
        self.marker.as_bytes()
    }
}

/// What an attempt says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is over; whether anything arrived the witness knows.
    Done,
    /// The kernel let something happen that it should not.
    Effect,
    /// It listens on this TCP port, on all addresses, for the next half second.
    Listens(u16),
}

/// What a road is made of. Findings are told by road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Road {
    /// TCP and what looks like it.
    Tcp,
    /// UDP and other datagrams, ICMP, raw IP.
    Datagrams,
    /// Listening for others.
    Listening,
    /// Unix sockets.
    Unix,
    /// Other families of sockets.
    Families,
    /// Sockets that somebody else made.
    Passed,
    /// Processes that are not governed.
    Processes,
    /// The daemon itself: its port, its socket, its pins.
    Daemon,
    /// Cgroups.
    Cgroups,
    /// Namespaces and mounts.
    Namespaces,
    /// Interfaces of the kernel that undo hooks or pass them by.
    Kernel,
    /// Programs that run as somebody else.
    Privileges,
}

/// One way out.
pub struct Attempt {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub road: Road,
    act: Box<dyn Fn(&Target) -> Answer>,
}

impl Attempt {
    fn new(road: Road, name: impl Into<String>, act: impl Fn(&Target) -> Answer + 'static) -> Self {
        Self { name: name.into(), road, act: Box::new(act) }
    }

    /// One whose arrival the witness sees.
    fn sends(road: Road, name: impl Into<String>, act: impl Fn(&Target) + 'static) -> Self {
        Self::new(road, name, move |target| {
            act(target);
            Answer::Done
        })
    }

    /// One that tells whether the kernel let it.
    fn effect(road: Road, name: impl Into<String>, act: impl Fn(&Target) -> bool + 'static) -> Self {
        Self::new(road, name, move |target| if act(target) { Answer::Effect } else { Answer::Done })
    }
}

/// Every attempt. Its place in the list is its number.
pub fn all() -> Vec<Attempt> {
    let mut all = net::attempts();
    all.extend(system::attempts());
    all.push(xdp::attempt());
    all.extend(processes::attempts());
    all.extend(passed::attempts());
    all
}

/// What is in every payload of an attempt.
pub fn tag(marker: &str, number: usize) -> String {
    format!("{marker}{number:05}")
}

/// The number in the first tag of `bytes`.
pub fn tagged(marker: &str, bytes: &[u8]) -> Option<usize> {
    let at = memchr::memmem::find(bytes, marker.as_bytes())? + marker.len();
    std::str::from_utf8(bytes.get(at..at + 5)?).ok()?.parse().ok()
}

/// Serves attempts: a line with the [`Target`], `ready` as the answer, then a line `NUMBER PORT` for each attempt.
pub fn serve(input: impl BufRead, mut out: impl Write) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a request of the doctor");
    let all = all();
    let mut lines = input.lines();
    let target: Target = serde_json::from_str(&lines.next().ok_or_else(wrong)??)?;
    writeln!(out, "ready")?;
    out.flush()?;
    for line in lines {
        let line = line?;
        let (number, port) = line.split_once(' ').ok_or_else(wrong)?;
        let (number, port): (usize, u16) = (number.parse().map_err(|_| wrong())?, port.parse().map_err(|_| wrong())?);
        let attempt = all.get(number).ok_or_else(wrong)?;
        let target = Target { port, marker: tag(&target.marker, number), ..target.clone() };
        match sys::in_child(|| (attempt.act)(&target)) {
            Answer::Done => writeln!(out, "done")?,
            Answer::Effect => writeln!(out, "effect")?,
            Answer::Listens(port) => writeln!(out, "listens {port}")?,
        }
        out.flush()?;
    }
    Ok(())
}

impl std::str::FromStr for Answer {
    type Err = io::Error;

    fn from_str(line: &str) -> Result<Self, io::Error> {
        match line.trim_end().split_once(' ') {
            None if line.trim_end() == "done" => Ok(Self::Done),
            None if line.trim_end() == "effect" => Ok(Self::Effect),
            Some(("listens", port)) => port.parse().map(Self::Listens).map_err(|_| io::ErrorKind::InvalidData.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is no answer", line.trim_end()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_wherever_they_are_and_nowhere_else() {
        assert_eq!(tagged("m-", tag("m-", 42).as_bytes()), Some(42));
        assert_eq!(tagged("m-", format!("\0\u{7f}{}tail", tag("m-", 7)).as_bytes()), Some(7));
        for cut in ["", "m-", "m-0004", "m-12x45", "n-00042"] {
            assert_eq!(tagged("m-", cut.as_bytes()), None, "{cut}");
        }
    }
}
