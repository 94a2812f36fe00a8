//! Escape attempts, one after the other as they are asked for on standard input. Whether one reached anything is not for
//! this program to say: `tests/enforcement/escape.rs` watches where it would arrive. Only where an attempt is about an effect
//! in the kernel (a trace, a mount, a ring) does it say `effect`, if the kernel let it.
//!
//! Long because it is a list.
#![expect(unsafe_code, reason = "system calls that no library makes, on purpose")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod net;
mod system;

use std::{
    io::{BufRead, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

/// What the attempts aim at.
#[derive(Clone, Debug)]
pub struct Target {
    /// The witness in its own network namespace.
    pub v4: Ipv4Addr,
    /// The same.
    pub v6: Ipv6Addr,
    /// Port of its listeners, TCP and UDP, also of those on loopback.
    pub port: u16,
    /// Folder of unix sockets; their abstract names are its path.
    pub unix: String,
    /// The device that leads to the witness.
    pub device: String,
    /// A process of the same user that is not governed.
    pub outside: i32,
    /// Port of the enforcer.
    pub enforcer: u16,
    /// The daemon's control socket.
    pub control: String,
    /// What is in every payload.
    pub marker: Vec<u8>,
}

/// An attempt: its name, and what it does. `true`: the kernel let an effect happen that it should not.
pub type Attempt = (String, Box<dyn Fn(&Target) -> bool>);

fn all() -> Vec<Attempt> {
    let mut all = net::attempts();
    all.extend(system::attempts());
    all
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let all = all();
    let mut out = std::io::stdout();
    if arguments.first().is_some_and(|a| a == "list") {
        for (name, _) in &all {
            println!("{name}");
        }
        return;
    }
    let [v4, v6, port, unix, device, outside, enforcer, control, marker] = &arguments[..] else {
        panic!("{arguments:?}");
    };
    let target = Target {
        v4: v4.parse().unwrap(),
        v6: v6.parse().unwrap(),
        port: port.parse().unwrap(),
        unix: unix.clone(),
        device: device.clone(),
        outside: outside.parse().unwrap(),
        enforcer: enforcer.parse().unwrap(),
        control: control.clone(),
        marker: marker.clone().into_bytes(),
    };
    writeln!(out, "ready").unwrap();
    for line in std::io::stdin().lock().lines() {
        let number: usize = line.unwrap().parse().unwrap();
        let answer = in_child(|| (all[number].1)(&target));
        writeln!(out, "{answer}").unwrap();
        out.flush().unwrap();
    }
}

/// Runs in a child with an alarm: a hang, a crash or a kill by a filter is an answer, too.
fn in_child(attempt: impl Fn() -> bool) -> &'static str {
    // SAFETY: this program has one thread; the child runs on a copy of it.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: plain system calls.
        unsafe {
            libc::alarm(2);
            let effect = attempt();
            libc::_exit(i32::from(effect));
        }
    }
    let mut status = 0;
    // SAFETY: our child, and a valid place for its status.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1 { "effect" } else { "done" }
}
