//! Names over UDP, for clients that ask by nothing else: musl's resolver, and Go's own.
//!
//! The kernel tells each question with the session and the socket that it is of, and an answer arrives at that socket or
//! nowhere: [`Kernel::questions`], [`Kernel::expect_answer`]. What is answered is what is answered over TCP
//! ([`session::answer_datagram`]). A question that there is no time or room for has no answer; clients ask again.

use std::{
    collections::{BTreeMap, HashMap},
    net::UdpSocket,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{accept::with_executable, helper::Helper};
use crate::{
    action::ProcessFacts,
    bpf::{BpfError, Kernel, Question},
    control::proto::NamesOver,
    session::{self, House},
};

/// Most questions that are read at once.
const READ: usize = 64;
/// Most questions of a session, and of all, that are being answered at one time.
const OF_ONE: usize = 32;
const OF_ALL: usize = 1024;
/// After which nobody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A family of addresses in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Where {
    netns_cookie: u64,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// Answers questions.
pub(super) struct Resolver {
    house: Arc<House>,
    kernel: Arc<Kernel>,
    helper: Arc<Helper>,
    /// What answers are sent from.
    sockets: Mutex<BTreeMap<Where, Arc<UdpSocket>>>,
    busy: Mutex<Busy>,
}

/// How many questions are being answered.
#[derive(Debug, Default)]
struct Busy {
    /// By cgroup.
    each: HashMap<u64, usize>,
    all: usize,
}

/// One of them, until it is dropped.
struct Turn {
    resolver: Arc<Resolver>,
    cgroup: u64,
}

impl Resolver {
    pub(super) fn new(house: Arc<House>, kernel: Arc<Kernel>, helper: Arc<Helper>) -> Self {
        Self { house, kernel, helper, sockets: Mutex::default(), busy: Mutex::default() }
    }

    /// Has names answered from this socket until the token is cancelled. Needs a runtime.
    pub(super) fn serve(self: &Arc<Self>, socket: UdpSocket, stop: CancellationToken) -> Result<(), BpfError> {
        let family = match socket.local_addr().map_err(BpfError::Socket)?.is_ipv4() {
            true => Family::V4,
            false => Family::V6,
        };
        let here = Where { netns_cookie: self.kernel.add_resolver(&socket)?, family };
        lock(&self.sockets).insert(here, Arc::new(socket));
        let this = self.clone();
        tokio::spawn(async move {
            stop.cancelled().await;
            // Its last descriptor but for answers that are being sent: the kernel takes the leave to ask away with it.
            lock(&this.sockets).remove(&here);
        });
        Ok(())
    }

    /// How names can be asked for.
    pub(super) fn reach(&self) -> NamesOver {
        if lock(&self.sockets).is_empty() { NamesOver::Tcp } else { NamesOver::TcpAndUdp }
    }

    /// Reads questions for as long as they can be read.
    pub(super) async fn run(self: Arc<Self>) {
        let Some(questions) = self.kernel.questions() else { return };
        let mut questions = match questions.watch() {
            Ok(questions) => questions,
            Err(error) => return tracing::error!(%error, "names are not answered over UDP"),
        };
        loop {
            match questions.read(READ).await {
                Ok(asked) => asked.into_iter().for_each(|question| self.take(question)),
                Err(error) => return tracing::error!(%error, "names are no longer answered over UDP"),
            }
        }
    }

    fn take(self: &Arc<Self>, question: Question) {
        let left = PATIENCE.saturating_sub(question.age);
        let Some(session) = self.house.sessions.by_cgroup(question.origin.cgroup_id) else { return };
        let Some(turn) = self.begin(question.origin.cgroup_id) else { return };
        tokio::spawn(async move {
            let this = turn.resolver.clone();
            let answer = async {
                let origin = &question.origin;
                let process = ProcessFacts { pid: origin.pid, uid: origin.uid, comm: origin.comm.clone(), exe: None };
                let (helper, known) = (this.helper.clone(), process.clone());
                let looked_up = tokio::task::spawn_blocking(move || with_executable(&helper, known)).await;
                let process = looked_up.unwrap_or(process);
                session::answer_datagram(&this.house, &session, &process, &question.bytes).await
            };
            if let Ok(Some(answer)) = tokio::time::timeout(left, answer).await {
                this.send(&question, &answer);
            }
            drop(turn);
        });
    }

    fn send(&self, question: &Question, answer: &[u8]) {
        let Some(id) = answer.first_chunk() else { return };
        let family = if question.client.is_ipv4() { Family::V4 } else { Family::V6 };
        let from = Where { netns_cookie: question.origin.netns_cookie, family };
        // Its namespace may be gone meanwhile.
        let Some(socket) = lock(&self.sockets).get(&from).cloned() else { return };
        if let Err(error) = self.kernel.expect_answer(question.socket, u16::from_be_bytes(*id)) {
            return tracing::error!(%error, "an answer would not arrive");
        }
        if let Err(error) = socket.send_to(answer, question.client) {
            tracing::debug!(%error, "an answer was not sent");
        }
    }

    /// `None` where as many are being answered as may be.
    fn begin(self: &Arc<Self>, cgroup: u64) -> Option<Turn> {
        lock(&self.busy).begin(cgroup).then(|| Turn { resolver: self.clone(), cgroup })
    }
}

impl Busy {
    fn begin(&mut self, cgroup: u64) -> bool {
        let each = self.each.get(&cgroup).copied().unwrap_or(0);
        if each >= OF_ONE || self.all >= OF_ALL {
            return false;
        }
        self.each.insert(cgroup, each + 1);
        self.all += 1;
        true
    }

    fn end(&mut self, cgroup: u64) {
        self.all = self.all.saturating_sub(1);
        if let Some(each) = self.each.get_mut(&cgroup) {
            *each = each.saturating_sub(1);
            if *each == 0 {
                self.each.remove(&cgroup);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.resolver.busy).end(self.cgroup);
    }
}

/// None of these is left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_session_takes_the_room_of_others() {
        let mut busy = Busy::default();
        assert_eq!((0..100).filter(|_| busy.begin(7)).count(), OF_ONE);
        assert!(busy.begin(8));
        busy.end(7);
        assert!(busy.begin(7) && !busy.begin(7));
        for cgroup in 100..200 {
            let _ = (0..OF_ONE).filter(|_| busy.begin(cgroup)).count();
        }
        assert_eq!((busy.all, busy.begin(8)), (OF_ALL, false));
        for cgroup in [7, 8].into_iter().chain(100..200) {
            (0..OF_ONE).for_each(|_| busy.end(cgroup));
        }
        assert!(busy.each.is_empty());
    }
}
