//! The live table: every connection that is being served. A connection is entered before it is first judged, so that a
//! policy change cannot slip in between; a drop guard takes it out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::sync::Notify;

use super::{ConnectionCx, House};
use crate::{
    action::{Action, Target, Verb},
    policy::Decision,
};

/// Every live connection.
#[derive(Debug, Default)]
pub struct LiveTable {
    entries: Mutex<HashMap<u64, (Arc<ConnectionCx>, SystemTime)>>,
    left: Notify,
}

/// A connection as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    /// Number within the daemon's life.
    pub id: u64,
    /// Workload name.
    pub workload: Arc<str>,
    /// Session id.
    pub session: Arc<str>,
    /// Upstream name.
    pub upstream: Arc<str>,
    /// Database, once known.
    pub database: Option<Arc<str>>,
    /// Process id, a hint.
    pub pid: u32,
    /// Since when.
    pub since: SystemTime,
}

/// Takes a connection out of the table when dropped.
#[derive(Debug)]
pub struct Entry<'a> {
    table: &'a LiveTable,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
        self.table.left.notify_waiters();
    }
}

impl LiveTable {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Arc<ConnectionCx>, SystemTime)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection.
    pub fn enter(&self, cx: &Arc<ConnectionCx>) -> Entry<'_> {
        self.lock().insert(cx.id, (Arc::clone(cx), SystemTime::now()));
        Entry { table: self, id: cx.id }
    }

    /// What is there, by id.
    pub fn list(&self) -> Vec<ConnectionView> {
        let mut views: Vec<_> = self
            .lock()
            .values()
            .map(|(cx, since)| ConnectionView {
                id: cx.id,
                workload: Arc::clone(&cx.subject.workload),
                session: Arc::clone(&cx.subject.session),
                upstream: Arc::clone(&cx.upstream.name),
                database: cx.database().cloned(),
                pid: cx.subject.process.pid,
                since: *since,
            })
            .collect();
        views.sort_by_key(|view| view.id);
        views
    }

    /// Puts the house's policies in force for every connection, and ends those that may no longer be.
    pub fn rejudge(&self, house: &House) {
        let all: Vec<_> = self.lock().values().map(|(cx, _)| Arc::clone(cx)).collect();
        for cx in all {
            let judged = house.judge(&cx.subject.workload, &cx.upstream.name);
            let Some((upstream, judge)) = judged.filter(|(upstream, _)| **upstream == *cx.upstream) else {
                cx.end("the policy no longer names this upstream as it was");
                continue;
            };
            drop(upstream);
            cx.judge_by(judge);
            if !matches!(cx.decide(&connect(&cx)), Decision::Allow(_) | Decision::Hold(_)) {
                cx.end("the policy no longer allows this connection");
            }
        }
    }

    /// Ends every connection of a session.
    pub fn close_session(&self, session: &str, why: &'static str) {
        for (cx, _) in self.lock().values() {
            if &*cx.subject.session == session {
                cx.end(why);
            }
        }
    }

    /// Ends these connections.
    pub fn close(&self, ids: impl IntoIterator<Item = u64>, why: &'static str) {
        let entries = self.lock();
        for id in ids {
            if let Some((cx, _)) = entries.get(&id) {
                cx.end(why);
            }
        }
    }

    /// Waits until none is left; after `patience`, ends what is still there.
    pub async fn drain(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.emptied()).await.is_ok() {
            return;
        }
        for (cx, _) in self.lock().values() {
            cx.end("the enforcer is shutting down");
        }
        // Ended connections write their last words within a bounded time.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.emptied()).await;
    }

    async fn emptied(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            left.await;
        }
    }
}

/// The action of opening a connection.
pub(super) fn connect(cx: &ConnectionCx) -> Action {
    Action::single(cx.upstream.protocol, Verb::Connect, Target::new(Arc::clone(&cx.address)))
}
