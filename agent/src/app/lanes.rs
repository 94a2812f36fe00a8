//! Where connections run: a runtime for each processor, and each connection on one of them from beginning to end. What
//! belongs to a connection stays with its processor, and nothing is stolen or woken across. Clients of one processor share a
//! runtime, as far as that leaves the others as much to do: who wakes it is then mostly where it runs.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::net::gathered::send_gathered;

/// Threads of a lane for what blocks, at most; more waits.
const BLOCKING: usize = 64;
/// By how many connections a lane may be ahead of another for being the one of the client's processor.
const AHEAD: usize = 8;
/// A lane that has taken no turn for so long hangs.
pub(super) const HUNG: Duration = Duration::from_secs(120);

/// Runtimes, each with a thread of its own, which end with this.
#[derive(Debug)]
pub(super) struct Lanes(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    /// How many connections run on it.
    load: Arc<AtomicUsize>,
    _open: oneshot::Sender<()>,
}

impl Lanes {
    /// One for each processor that the process may use.
    pub(super) fn open() -> io::Result<Self> {
        (0..thread::available_parallelism()?.get()).map(|_| Lane::open()).collect::<Result<_, _>>().map(Self)
    }

    /// Runs `work` on the runtime of a client's processor, or on the one that has the least to do.
    pub(super) fn spawn(&self, processor: Option<usize>, work: impl Future<Output = ()> + Send + 'static) {
        let Some(least) = self.0.iter().min_by_key(|lane| lane.load()) else { return };
        let own = processor.map(|number| &self.0[number % self.0.len()]);
        let lane = own.filter(|own| own.load() < least.load() + AHEAD).unwrap_or(least);
        let share = Share::of(&lane.load);
        lane.runtime.spawn(async move {
            work.await;
            drop(share);
        });
    }

    /// Waits until each of them has taken a turn.
    pub(super) async fn turn(&self) {
        let turns: Vec<_> = self.0.iter().map(|lane| lane.runtime.spawn(std::future::ready(()))).collect();
        for turn in turns {
            let _ = turn.await;
        }
    }
}

impl Lane {
    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    fn open() -> io::Result<Self> {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().thread_name("portcullis").max_blocking_threads(BLOCKING).build()?;
        let handle = runtime.handle().clone();
        runtime.spawn(send_gathered());
        let (open, closed) = oneshot::channel::<()>();
        thread::Builder::new().name("portcullis".into()).spawn(move || {
            let _ = runtime.block_on(closed);
        })?;
        Ok(Self { runtime: handle, load: Arc::default(), _open: open })
    }
}

/// One connection's part of the load.
struct Share(Arc<AtomicUsize>);

impl Share {
    fn of(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashMap;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_stays_on_one_thread_and_is_shared_out() {
        let lanes = Lanes((0..3).map(|_| Lane::open().unwrap()).collect());
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut doors = Vec::new();
        for _ in 0..6 {
            let (open, opened) = oneshot::channel::<()>();
            let tell = tell.clone();
            lanes.spawn(None, async move {
                let begun = thread::current().id();
                tokio::task::yield_now().await;
                tell.send(begun).unwrap();
                let _ = opened.await;
                assert_eq!(thread::current().id(), begun);
                tell.send(begun).unwrap();
            });
            doors.push(open);
        }
        let mut threads = HashMap::new();
        for _ in 0..6 {
            *threads.entry(told.recv().await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(threads.values().copied().collect::<Vec<_>>(), [2, 2, 2]);
        let loads = || lanes.0.iter().map(Lane::load).collect::<Vec<_>>();
        assert_eq!(loads(), [2, 2, 2]);
        drop(doors);
        for _ in 0..6 {
            told.recv().await.unwrap();
        }
        lanes.turn().await;
        assert_eq!(loads(), [0, 0, 0]);
    }

    #[tokio::test]
    async fn clients_of_one_processor_share_a_lane_until_it_is_ahead() {
        let lanes = Lanes((0..2).map(|_| Lane::open().unwrap()).collect());
        let loads = || lanes.0.iter().map(Lane::load).collect::<Vec<_>>();
        let spawn = |processor, count| {
            (0..count).for_each(|_| lanes.spawn(Some(processor), std::future::pending::<()>()));
        };
        spawn(3, AHEAD);
        assert_eq!(loads(), [0, AHEAD], "the fourth of four processors has the second of two lanes");
        spawn(1, 2);
        assert_eq!(loads(), [1, AHEAD + 1], "beyond, they take turns");
        spawn(0, 2 * AHEAD);
        assert_eq!(loads(), [2 * AHEAD + 1, AHEAD + 1]);
        lanes.spawn(None, std::future::pending::<()>());
        assert_eq!(loads(), [2 * AHEAD + 1, AHEAD + 2], "whose processor is not known goes where there is least to do");
    }

    #[tokio::test]
    async fn what_panics_frees_its_place_and_ends_nothing_else() {
        let lanes = Lanes(vec![Lane::open().unwrap()]);
        lanes.spawn(None, async { panic!("on purpose") });
        lanes.turn().await;
        assert_eq!(lanes.0[0].load(), 0);
        let (tell, told) = oneshot::channel();
        lanes.spawn(None, async move { tell.send(()).unwrap() });
        told.await.unwrap();
    }

    #[tokio::test]
    async fn with_the_lanes_their_work_ends() {
        let lanes = Lanes(vec![Lane::open().unwrap()]);
        let (held, dropped) = oneshot::channel::<()>();
        lanes.spawn(None, async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        lanes.turn().await;
        drop(lanes);
        assert!(dropped.await.is_err());
    }
}
