//! The enforcer's side: tells every client the origin that the kernel has for its connection, and obeys lines on its
//! standard input, each answered by one line.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use portcullis::{
    bpf::{Kernel, KernelSettings},
    net::namespace::Namespace,
};

use crate::{load, names::Resolver};

/// Threads that accept from each listener.
const ACCEPTING: usize = 8;
const BACKLOG: i32 = 4096;

#[derive(Default)]
struct Seen {
    /// Origins, and how often each came.
    origins: BTreeMap<SocketAddr, usize>,
    /// Why connections had none.
    without: Vec<String>,
    claims: Claims,
}

/// What clients claimed, beside what the kernel knew.
#[derive(Default)]
struct Claims {
    right: usize,
    wrong: Vec<String>,
    /// Reset before they said anything.
    silent: usize,
    /// Ports of clients, each once.
    ports: BTreeSet<u16>,
}

/// What the enforcer does with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Tells the origin at once.
    Tell,
    /// Reads what the client claims first, and compares.
    Compare,
}

pub fn run(pins: &Path, root: &Path, own: &Path, port4: u16, port6: u16) -> Result<()> {
    crate::join(own)?;
    let kernel = Arc::new(Kernel::open(&KernelSettings {
        pin_dir: Some(pins.to_owned()),
        runtime_dir: pins.to_owned(),
        cgroup_root: root.to_owned(),
    })?);
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port4))?;
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port6))?;
    let ports = (v4.local_addr()?.port(), v6.local_addr()?.port());
    let address4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.0);
    let address6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, ports.1, 0, 0);
    kernel.set_enforcer(address4, Some(address6), &[own])?;

    let seen = Arc::new(Mutex::new(Seen::default()));
    let comparing = Arc::new(AtomicBool::new(false));
    for listener in [v4, v6] {
        serve(listener, &kernel, &seen, &comparing)?;
    }
    let beating = Arc::new(AtomicBool::new(true));
    {
        let (kernel, beating) = (kernel.clone(), beating.clone());
        kernel.heartbeat()?;
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(200));
                if beating.load(Ordering::SeqCst) {
                    let _ = kernel.heartbeat();
                }
            }
        });
    }
    let mut resolver = Resolver::new(kernel.questions().context("nobody else reads them")?);
    let mut refusals = kernel.refusals().context("nobody else reads them")?;
    say(&format!("ready {} {}", ports.0, ports.1))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let done = match words[..] {
            ["govern", path] => result(kernel.govern(Path::new(path))),
            ["release", path] => result(kernel.release(Path::new(path))),
            ["allow", id] => result(kernel.allow_session(id.parse()?)),
            ["forget", id] => result(kernel.forget_session(id.parse()?)),
            ["folder", id, folder] => result(kernel.set_unix_folder(id.parse()?, folder)),
            ["unix", id, ref paths @ ..] => result(kernel.set_unix_paths(id.parse()?, paths)),
            // Those since the last time: reason, cgroup, pid, uid, name, left out, words.
            ["refusals"] => {
                let told = std::iter::from_fn(|| refusals.read()).map(|refusal| {
                    let process =
                        refusal.process.map_or("- - -".to_owned(), |p| format!("{} {} {}", p.pid, p.uid, p.comm));
                    let (reason, cgroup) = (refusal.reason.as_str(), refusal.cgroup_id);
                    format!("{reason} {cgroup} {process} {} {}", refusal.left_out, refusal.what)
                });
                told.collect::<Vec<_>>().join(";")
            }
            ["refused"] => {
                let counts = kernel.refused()?.into_iter().filter(|(_, count)| *count > 0);
                counts.map(|(reason, count)| format!("{}={count}", reason.as_str())).collect::<Vec<_>>().join(" ")
            }
            // In the network namespace of a process.
            ["listen", pid] => {
                let made = Namespace::of(pid.parse()?)?
                    .visit(|| Ok::<_, io::Error>([TcpListener::bind(address4)?, TcpListener::bind(address6)?]))?;
                for listener in made? {
                    serve(listener, &kernel, &seen, &comparing)?;
                }
                "ok".into()
            }
            // Names over UDP, in the network namespace of a process or here.
            ["resolve", ref pid @ ..] => {
                let bind = || [address4.into(), address6.into()].map(portcullis::net::deaf::bind);
                let made = match pid {
                    [pid] => Namespace::of(pid.parse()?)?.visit(bind)?,
                    _ => bind(),
                };
                for socket in made {
                    resolver.serve(&kernel, socket?)?;
                }
                "ok".into()
            }
            // Questions since the last time: asked, cgroup, client, length.
            ["questions"] => resolver.told(),
            // To the client of the one question an answer for the socket of the other, as it was asked.
            ["answer", to, of] => resolver.answer(&kernel, to.parse()?, of.parse()?)?,
            ["compare"] => {
                comparing.store(true, Ordering::SeqCst);
                "ok".into()
            }
            // How many came: with the origin they claimed, with another, with none, silent; from how many ports.
            ["compared"] => {
                let seen = lock(&seen);
                let Claims { right, wrong, silent, ports } = &seen.claims;
                for what in wrong.iter().chain(&seen.without).take(20) {
                    eprintln!("{what}");
                }
                let (wrong, missing, ports) = (wrong.len(), seen.without.len(), ports.len());
                format!("right {right} wrong {wrong} missing {missing} silent {silent} ports {ports}")
            }
            ["entries"] => {
                let entries = kernel.entries()?;
                entries.iter().map(|(table, count)| format!("{table} {count}")).collect::<Vec<_>>().join(" ")
            }
            ["verify"] => kernel.verify().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            ["fall-silent"] => {
                beating.store(false, Ordering::SeqCst);
                "ok".into()
            }
            ["stop"] => {
                beating.store(false, Ordering::SeqCst);
                result(kernel.stop())
            }
            ["seen"] => {
                let seen = std::mem::take(&mut *lock(&seen));
                let origins = seen.origins.iter().map(|(a, n)| format!("{a}={n}")).collect::<Vec<_>>().join(",");
                format!("{origins} {}", seen.without.join(";"))
            }
            _ => bail!("unknown line {line:?}"),
        };
        say(&done)?;
    }
    Ok(())
}

fn serve(
    listener: TcpListener,
    kernel: &Arc<Kernel>,
    seen: &Arc<Mutex<Seen>>,
    comparing: &Arc<AtomicBool>,
) -> Result<()> {
    kernel.add_listener(&listener)?;
    // More than std asks for, or clients wait a second for a place.
    // SAFETY: the call takes numbers only.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        bail!(io::Error::last_os_error());
    }
    // Of use where the network namespace has it turned on.
    load::set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, BACKLOG)?;
    for _ in 0..ACCEPTING {
        let listener = listener.try_clone()?;
        let (kernel, seen, comparing) = (kernel.clone(), seen.clone(), comparing.clone());
        thread::spawn(move || {
            loop {
                if let Ok((stream, peer)) = listener.accept() {
                    let manner = if comparing.load(Ordering::SeqCst) { Manner::Compare } else { Manner::Tell };
                    answer(&kernel, stream, peer, &seen, manner);
                }
            }
        });
    }
    Ok(())
}

fn answer(kernel: &Kernel, mut stream: TcpStream, peer: SocketAddr, seen: &Mutex<Seen>, manner: Manner) {
    match (kernel.origin(stream.as_fd()), manner) {
        (Err(error), _) => lock(seen).without.push(format!("{peer}: {error:?}")),
        (Ok(origin), Manner::Compare) => {
            let claim = read_claim(&stream);
            let found = load::claim_of(&origin);
            {
                let claims = &mut lock(seen).claims;
                claims.ports.insert(peer.port());
                match claim {
                    Ok(claim) if claim == found => claims.right += 1,
                    Ok(claim) => claims.wrong.push(format!("{claim:?} came as {found:?}")),
                    Err(_) => claims.silent += 1,
                }
            }
            // A client that left at once is not there to read it.
            let _ = stream.write_all(found.as_bytes());
        }
        (Ok(origin), Manner::Tell) => {
            *lock(seen).origins.entry(origin.address).or_default() += 1;
            let _ = writeln!(
                stream,
                "{} {} {} {} {}",
                origin.address, origin.cgroup_id, origin.pid, origin.uid, origin.comm
            );
        }
    }
}

/// What the client says; an error if it reset the connection, or never speaks.
fn read_claim(stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(load::PATIENCE))?;
    let mut claim = String::new();
    BufReader::new(stream).read_line(&mut claim)?;
    if claim.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(claim) }
}

fn result(done: Result<(), impl std::error::Error>) -> String {
    match done {
        Ok(()) => "ok".into(),
        Err(error) => format!("error {error}"),
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
