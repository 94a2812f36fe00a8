//! What the kernel refused, on the record: joined to its session, at most so often, with a count of what was left out.
//!
//! Refusing does not wait for this, so a flood is cut and not held back: the counters in `status` have all of it. The
//! kernel limits each cgroup; a session can make many, so each session, and all that belongs to none, is limited again.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{accept, helper::Helper};
use crate::{
    bpf::{Kernel, Refusal, Refusals},
    identity::Session,
    record::{Event, EventBody},
    session::House,
};

/// How many of a session are written in [`WINDOW`].
const WRITTEN: u32 = 16;
const WINDOW: Duration = Duration::from_secs(1);
/// Time between looks at what was left out.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How many are read before others get a turn.
const AT_ONCE: usize = 64;

/// Reads and records for ever.
pub(super) async fn record(house: Arc<House>, kernel: Arc<Kernel>, helper: Arc<Helper>) {
    let Some(refusals) = kernel.refusals() else { return };
    if let Err(error) = read(&house, &kernel, &helper, refusals).await {
        tracing::error!(%error, "what the kernel refuses is counted but not recorded any more");
    }
}

async fn read(house: &House, kernel: &Kernel, helper: &Helper, refusals: Refusals) -> io::Result<()> {
    let mut refusals = refusals.watch()?;
    // What was left out under an earlier daemon is in the counters only.
    let mut ledger = Ledger { known: kernel.left_out().into_iter().collect(), ..Ledger::default() };
    let mut tick = tokio::time::interval(CATCH_UP);
    loop {
        tokio::select! {
            read = refusals.read(AT_ONCE) => {
                let read = read?;
                tokio::task::block_in_place(|| {
                    read.into_iter().for_each(|refusal| take(house, helper, &mut ledger, refusal));
                });
            }
            _ = tick.tick() => catch_up(house, &mut ledger, kernel.left_out()),
        }
        tokio::task::yield_now().await;
    }
}

fn take(house: &House, helper: &Helper, ledger: &mut Ledger, refusal: Refusal) {
    let session = house.sessions.by_cgroup(refusal.cgroup_id);
    let owner = owner(session.as_deref());
    let now = Instant::now();
    ledger.told(&owner, refusal.cgroup_id, refusal.left_out, now);
    let Some(left_out) = ledger.turn(&owner, now) else { return };
    let mut what = refusal.what;
    if session.is_none() {
        what = format!("cgroup {}: {what}", refusal.cgroup_id);
    }
    if left_out > 0 {
        what = format!("{what} ({left_out} others were left out)");
    }
    let process = refusal.process.map(|process| accept::with_executable(helper, process)).unwrap_or_default();
    append(house, session.as_deref(), EventBody::Refused { what, process });
}

/// Writes down how many were left out where nothing follows that would say it.
fn catch_up(house: &House, ledger: &mut Ledger, totals: Vec<(u64, u64)>) {
    let owner = |cgroup| owner(house.sessions.by_cgroup(cgroup).as_deref());
    for (owner, count) in ledger.catch_up(totals, owner, Instant::now()) {
        let session = house.sessions.get(&owner);
        let what = format!("{count} refusals were left out: `portcullis status` counts them by reason");
        append(house, session.as_deref(), EventBody::Refused { what, process: Default::default() });
    }
}

fn append(house: &House, session: Option<&Session>, body: EventBody) {
    let event = match session {
        Some(session) => Event {
            tenant: session.tenant.clone(),
            workload: session.workload.clone(),
            session_id: session.id.clone(),
            trace_id: Some(session.trace_id.clone()),
            body,
            ..Event::daemon("")
        },
        None => Event { body, ..Event::daemon("") },
    };
    if let Err(error) = house.recorder.append(event) {
        tracing::error!(%error, "a refusal of the kernel could not be recorded");
    }
}

/// The id of the session; empty for what belongs to none.
fn owner(session: Option<&Session>) -> Arc<str> {
    session.map_or_else(|| "".into(), |session| session.id.clone())
}

/// How much was written lately, and what was not.
#[derive(Debug, Default)]
struct Ledger {
    /// What the kernel left out of each cgroup so far.
    known: HashMap<u64, u64>,
    windows: BTreeMap<Arc<str>, Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Ledger {
    fn window(&mut self, owner: &Arc<str>, now: Instant) -> &mut Window {
        self.windows.entry(owner.clone()).or_insert(Window { since: now, written: 0, left_out: 0 })
    }

    /// Takes note of how much the kernel left out of a cgroup so far.
    fn told(&mut self, owner: &Arc<str>, cgroup: u64, total: u64, now: Instant) {
        let known = self.known.entry(cgroup).or_default();
        // An older total than the last: it waited in the buffer meanwhile.
        let more = total.saturating_sub(*known);
        *known = total.max(*known);
        if more > 0 {
            self.window(owner, now).left_out += more;
        }
    }

    /// Whether one may be written now, and how many were left out before it.
    fn turn(&mut self, owner: &Arc<str>, now: Instant) -> Option<u64> {
        let window = self.window(owner, now);
        if now.duration_since(window.since) >= WINDOW {
            (window.since, window.written) = (now, 0);
        }
        if window.written >= WRITTEN {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }

    /// Compares with the kernel's own totals: what is to be written for whom. Forgets owners and cgroups that are quiet.
    fn catch_up(
        &mut self,
        totals: Vec<(u64, u64)>,
        owner: impl Fn(u64) -> Arc<str>,
        now: Instant,
    ) -> Vec<(Arc<str>, u64)> {
        let totals: HashMap<u64, u64> = totals.into_iter().collect();
        for (cgroup, total) in &totals {
            let known = self.known.get(cgroup).copied().unwrap_or(0);
            // A smaller total: the kernel forgot the cgroup meanwhile and began again.
            let more = if *total < known { *total } else { *total - known };
            if more > 0 {
                self.window(&owner(*cgroup), now).left_out += more;
            }
        }
        self.known = totals;
        let due = self.windows.iter_mut().filter(|(_, window)| window.left_out > 0);
        let due = due.map(|(owner, window)| (owner.clone(), std::mem::take(&mut window.left_out))).collect();
        self.windows.retain(|_, window| now.duration_since(window.since) < WINDOW);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(due: Vec<(Arc<str>, u64)>) -> Vec<(String, u64)> {
        due.into_iter().map(|(owner, count)| (owner.to_string(), count)).collect()
    }

    #[test]
    fn each_owner_is_written_so_often_and_what_is_left_out_is_told_once() {
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let start = Instant::now();
        let mut ledger = Ledger::default();
        for _ in 0..WRITTEN {
            assert_eq!(ledger.turn(&one, start), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(ledger.turn(&one, start), None);
        }
        assert_eq!(ledger.turn(&other, start), Some(0), "another's turn is its own");
        assert_eq!(ledger.turn(&one, start + WINDOW), Some(5));
        assert_eq!(ledger.turn(&one, start + WINDOW), Some(0), "told once");
        let due = ledger.catch_up(Vec::new(), |_| one.clone(), start + WINDOW);
        assert_eq!(sum(due), []);
    }

    #[test]
    fn what_the_kernel_left_out_is_told_with_the_next_or_by_the_clock() {
        let one: Arc<str> = "one".into();
        let now = Instant::now();
        let mut ledger = Ledger { known: [(7, 100)].into(), ..Ledger::default() };
        ledger.told(&one, 7, 103, now);
        assert_eq!(ledger.turn(&one, now), Some(3));
        ledger.told(&one, 7, 102, now);
        assert_eq!(ledger.turn(&one, now), Some(0), "an older total");
        let due = ledger.catch_up(vec![(7, 110), (8, 2)], |_| one.clone(), now);
        assert_eq!(sum(due), [("one".to_owned(), 9)]);
        assert_eq!(sum(ledger.catch_up(vec![(7, 110), (8, 2)], |_| one.clone(), now)), []);
        // Forgotten by the kernel, and begun again.
        assert_eq!(sum(ledger.catch_up(vec![(7, 4)], |_| one.clone(), now)), [("one".to_owned(), 4)]);
        assert_eq!(sum(ledger.catch_up(vec![], |_| one.clone(), now + WINDOW)), []);
        assert!(ledger.known.is_empty() && ledger.windows.is_empty(), "nothing is kept of the quiet: {ledger:?}");
    }
}
