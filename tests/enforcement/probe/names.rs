//! Names over UDP: the enforcer's side, which answers what it is told to answer, and clients.

use std::{
    collections::HashMap,
    io::{self, BufRead},
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use portcullis::bpf::{Kernel, Question, Questions};

/// How long a client waits for an answer: on the loopback device it comes at once.
const PATIENCE: Duration = Duration::from_millis(1500);

pub struct Resolver {
    questions: Questions,
    sockets: HashMap<(u64, bool), UdpSocket>,
    /// All that were told.
    asked: Vec<Question>,
}

impl Resolver {
    pub fn new(questions: Questions) -> Self {
        Self { questions, sockets: HashMap::new(), asked: Vec::new() }
    }

    pub fn serve(&mut self, kernel: &Kernel, socket: UdpSocket) -> Result<()> {
        let namespace = kernel.add_resolver(&socket)?;
        self.sockets.insert((namespace, socket.local_addr()?.is_ipv4()), socket);
        Ok(())
    }

    pub fn told(&mut self) -> String {
        let new: Vec<Question> = std::iter::from_fn(|| self.questions.read()).collect();
        let line = |question: &Question| {
            let Question { origin, client, bytes, .. } = question;
            format!("{} {} {client} {}", origin.address, origin.cgroup_id, bytes.len())
        };
        let lines: Vec<String> = new.iter().map(line).collect();
        self.asked.extend(new);
        lines.join(";")
    }

    pub fn answer(&mut self, kernel: &Kernel, to: usize, of: usize) -> Result<String> {
        let (to, of) = (self.asked.get(to).context("no such question")?, self.asked.get(of).context("none")?);
        let id = u16::from_be_bytes(*of.bytes.first_chunk().context("too short")?);
        kernel.expect_answer(of.socket, id)?;
        let socket = self.sockets.get(&(to.origin.netns_cookie, to.client.is_ipv4())).context("no socket")?;
        socket.send_to(&of.bytes, to.client)?;
        Ok("ok".into())
    }
}

/// A message of DNS as far as the kernel looks at it.
fn question(id: u16, length: usize) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.resize(length, b'q');
    message
}

/// Asks, each time that a line comes, and then tells what came back: from whom, and how long.
pub fn ask(how: &str, id: u16, length: usize, server: SocketAddr) -> io::Result<()> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if how == "connected" {
        socket.connect(server)?;
        println!("peer {}", socket.peer_addr()?);
    }
    for line in io::stdin().lock().lines() {
        match &*line? {
            "ask" => {
                let message = question(id, length);
                let sent = match how {
                    "connected" => socket.send(&message),
                    _ => socket.send_to(&message, server),
                };
                match sent {
                    Ok(_) => println!("sent"),
                    Err(error) => println!("error {}", error.raw_os_error().unwrap_or(0)),
                }
            }
            _ => match socket.recv_from(&mut [0; 2048]) {
                Ok((length, from)) => println!("{length} from {from}"),
                Err(_) => println!("nothing"),
            },
        }
    }
    Ok(())
}

/// So many questions at once: how many were let out.
pub fn flood(count: usize, server: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    let message = question(7, 40);
    Ok((0..count).filter(|_| socket.send(&message).is_ok()).count().to_string())
}
