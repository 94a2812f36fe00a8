//! Changes of names under way: what connections to one database have sent, and its last reading may not show.
//!
//! A reading on another connection sees nothing that is not committed, and nothing tells when exactly a change takes
//! effect. So a change is in flux from before it is sent until a reading that began after its end, and names that it
//! touches resolve only where they can mean one thing ([`super::names`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;

use crate::sql::Reshape;

/// Changes that all connections to a database must reckon with.
#[derive(Debug, Default)]
pub struct Flux {
    entries: Mutex<Entries>,
    merged: ArcSwap<Reshape>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    open: HashMap<u64, Reshape>,
    /// Ended, one way or the other; the next reading shows how.
    ended: HashMap<u64, Reshape>,
    /// Of connections that went away in the middle: nobody knows when, or if, they take place.
    lost: Reshape,
}

impl Flux {
    /// What may have changed since the last reading. To be asked for before the reading is.
    pub fn load(&self) -> Arc<Reshape> {
        self.merged.load_full()
    }

    /// Changes that ended before now: a reading that begins now shows them.
    pub fn ended(&self) -> Vec<u64> {
        self.lock().ended.keys().copied().collect()
    }

    /// A reading shows these.
    pub fn shown(&self, ended: &[u64]) {
        if !ended.is_empty() {
            let mut entries = self.lock();
            entries.ended.retain(|id, _| !ended.contains(id));
            self.merge(&entries);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn merge(&self, entries: &Entries) {
        let mut merged = entries.lost.clone();
        for reshape in entries.open.values().chain(entries.ended.values()) {
            merged.merge(reshape);
        }
        self.merged.store(Arc::new(merged));
    }
}

/// One connection's changes.
#[derive(Debug)]
pub struct Changes {
    flux: Arc<Flux>,
    open: Option<u64>,
}

impl Changes {
    /// None yet.
    pub fn new(flux: Arc<Flux>) -> Self {
        Self { flux, open: None }
    }

    /// A change is about to be sent.
    pub fn begin(&mut self, reshape: &Reshape) {
        if reshape.is_empty() {
            return;
        }
        let mut entries = self.flux.lock();
        let id = *self.open.get_or_insert_with(|| {
            entries.next += 1;
            entries.next
        });
        if entries.open.entry(id).or_default().merge(reshape) {
            self.flux.merge(&entries);
        }
    }

    /// Everything that was sent has taken place, or never will. Says whether there was anything.
    pub fn end(&mut self) -> bool {
        let Some(id) = self.open.take() else { return false };
        let mut entries = self.flux.lock();
        if let Some(reshape) = entries.open.remove(&id) {
            entries.ended.insert(id, reshape);
        }
        true
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let Some(id) = self.open.take() else { return };
        let mut entries = self.flux.lock();
        if let Some(reshape) = entries.open.remove(&id) {
            entries.lost.merge(&reshape);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Changes, Flux};
    use crate::sql::{Reshape, classify, fuzz::Fixed};

    fn reshape(sql: &str) -> Reshape {
        classify(sql, &Fixed).statements.remove(0).reshape
    }

    fn touched(flux: &Flux, name: &str) -> bool {
        flux.load().touches_relation("public", name)
    }

    #[test]
    fn a_change_is_in_flux_until_a_reading_that_began_after_its_end() {
        let flux = Arc::new(Flux::default());
        let mut changes = Changes::new(Arc::clone(&flux));
        changes.begin(&reshape("drop table a"));
        assert!(touched(&flux, "a") && !touched(&flux, "b"));
        let early = flux.ended();
        assert!(changes.end() && !changes.end());
        flux.shown(&early);
        assert!(touched(&flux, "a"), "the reading began before the end");
        changes.begin(&reshape("drop table b"));
        flux.shown(&flux.ended());
        assert!(!touched(&flux, "a") && touched(&flux, "b"));
    }

    #[test]
    fn what_a_lost_connection_began_stays_in_flux() {
        let flux = Arc::new(Flux::default());
        let mut changes = Changes::new(Arc::clone(&flux));
        changes.begin(&reshape("drop table a"));
        drop(changes);
        flux.shown(&flux.ended());
        assert!(touched(&flux, "a"));
    }
}
