//! The enforcer's side: tells every client the origin that the kernel has for its connection, and obeys lines on its
//! standard input, each answered by one line.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use portcullis::bpf::{Kernel, KernelSettings};

#[derive(Default)]
struct Seen {
    /// Origins, and how often each came.
    origins: BTreeMap<SocketAddr, usize>,
    /// Why connections had none.
    without: Vec<String>,
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
    kernel.set_enforcer(address4, Some(address6), own)?;

    let seen = Arc::new(Mutex::new(Seen::default()));
    for listener in [v4, v6] {
        let (kernel, seen) = (kernel.clone(), seen.clone());
        thread::spawn(move || {
            loop {
                if let Ok((stream, _)) = listener.accept() {
                    answer(&kernel, stream, &seen);
                }
            }
        });
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

fn answer(kernel: &Kernel, mut stream: TcpStream, seen: &Mutex<Seen>) {
    match kernel.origin(stream.as_fd()) {
        Ok(origin) => {
            *lock(seen).origins.entry(origin.address).or_default() += 1;
            // A client that left at once is not there to read it.
            let _ = writeln!(
                stream,
                "{} {} {} {} {}",
                origin.address, origin.cgroup_id, origin.pid, origin.uid, origin.comm
            );
        }
        Err(error) => lock(seen).without.push(format!("{error:?}")),
    }
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
