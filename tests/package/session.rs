//! Processes of a session that outlives what is done to the daemon.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use crate::installed::{Installed, eventually};

/// Does what its standard input says, a line at a time: an SQL command for psql, or a port to connect to for ever, telling
/// each outcome.
const AGENT: &str = r"
import os, socket, subprocess, sys, time
url = sys.argv[1]
print('here', flush=True)
def knock(port):
    s = socket.socket()
    s.settimeout(60)
    try:
        s.connect(('127.0.0.1', port))
        # A daemon that hangs does not answer, and shall not keep the next attempt from being refused.
        s.settimeout(1)
        s.recv(1)
        return 'served'
    except OSError as e:
        return 'refused' if e.errno == 111 else 'ended'
    finally:
        s.close()
for line in sys.stdin:
    what, rest = line.rstrip('\n').split(' ', 1)
    if what == 'knock': print(knock(int(rest)), flush=True)
    elif what == 'hammer':
        while True:
            print(knock(int(rest)), flush=True)
            time.sleep(0.02)
    else:
        # A daemon that is just starting may refuse a first attempt.
        for attempt in range(60):
            done = subprocess.run(['psql', '-XAt', url, '-c', rest], capture_output=True, text=True)
            if 'Connection refused' not in done.stderr and 'server closed' not in done.stderr: break
            time.sleep(1)
        print((done.stdout + done.stderr).strip().replace('\n', ' '), flush=True)
";

/// A program in a session.
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    direct: u16,
}

impl Session {
    pub fn start(host: &Installed) -> Self {
        Self::of(host, "bot")
    }

    /// A session of this workload.
    pub fn of(host: &Installed, workload: &str) -> Self {
        let (child, input, lines) = agent(host, workload);
        Self { child, input: Some(input), lines, direct: host.direct().port() }
    }

    /// What psql prints in the session.
    pub fn psql(&mut self, sql: &str) -> String {
        self.ask(&format!("sql {sql}"))
    }

    /// Connects once to where nobody may come.
    pub fn try_direct(&mut self) {
        self.ask(&format!("knock {}", self.direct));
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().expect("not ended"), "{line}").expect("it listens");
        self.lines.next().expect("an answer").expect("text")
    }

    /// Waits until others ended its first process; false if it ended by itself, or does not end.
    pub fn was_ended(mut self) -> bool {
        eventually(|| self.child.try_wait().expect("a child").is_some_and(|status| !status.success()))
    }

    /// Another session of the same workload that connects to where nobody may come without cease.
    pub fn hammer(host: &Installed) -> Hammer {
        let (child, mut input, lines) = agent(host, "bot");
        writeln!(input, "hammer {}", host.direct().port()).expect("it listens");
        let counts = Arc::new(Mutex::new(Counts::default()));
        let counting = Arc::clone(&counts);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut counts = counting.lock().unwrap_or_else(PoisonError::into_inner);
                match line.as_str() {
                    "served" => counts.served += 1,
                    "refused" => counts.refused += 1,
                    _ => counts.ended += 1,
                }
            }
        });
        Hammer { child, counts, _input: input }
    }

    /// Ends it, and waits for it.
    pub fn end(mut self) {
        self.input = None;
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What became of connections to where nobody may come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Taken by the enforcer, which closed them: no policy names the place.
    pub served: usize,
    pub refused: usize,
    /// Taken, and reset as the enforcer ended.
    pub ended: usize,
}

pub struct Hammer {
    child: Child,
    counts: Arc<Mutex<Counts>>,
    _input: ChildStdin,
}

impl Hammer {
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(host: &Installed, workload: &str) -> (Child, ChildStdin, Lines<BufReader<ChildStdout>>) {
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", host.server().port);
    let mut command = Command::new("portcullis");
    command.args(["run", "--workload", workload, "--user", "nobody", "--intent", "package test", "--"]);
    command.args(["/usr/bin/python3", "-c", AGENT, &url]).current_dir("/");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a session");
    let input = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("it starts").expect("text"), "here");
    (child, input, lines)
}
