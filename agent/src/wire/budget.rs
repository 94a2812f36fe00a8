//! Shares of memory. A connection's lies under its session's, and that under the daemon's, so that no agent can take what
//! the others need.
//!
//! What is charged is what grows with what a peer sends and stays: large frames while they gather, prepared statements,
//! bound parameters. The sizes are those of the bytes on the wire with a factor for what is made of them; they bound the
//! memory, they do not measure it. Failure mode: the connection that asks for more than there is ends.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// No memory is left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more memory would be used than may be ({limit} bytes)")]
pub struct OverBudget {
    /// Limit of the share that is used up, in bytes.
    pub limit: usize,
}

/// A share of memory, in bytes.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    whole: Option<Arc<Budget>>,
}

impl Budget {
    /// All there is.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), whole: None })
    }

    /// A share of another: what it is charged, the other is charged, too.
    pub fn share(whole: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), whole: Some(Arc::clone(whole)) })
    }

    /// Takes memory until the charge is dropped.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<Charge, OverBudget> {
        self.take(bytes)?;
        Ok(Charge { budget: Some(Arc::clone(self)), bytes })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), OverBudget> {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, more).map_err(|_| OverBudget { limit: self.limit })?;
        if let Some(whole) = &self.whole
            && let Err(over) = whole.take(bytes)
        {
            self.used.fetch_sub(bytes, Relaxed);
            return Err(over);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }
}

/// Memory in use. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct Charge {
    budget: Option<Arc<Budget>>,
    bytes: usize,
}

impl Charge {
    /// How much it is, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_bounded_at_every_level_and_comes_back() {
        let whole = Budget::new(100);
        let (a, b) = (Budget::share(&whole, 80), Budget::share(&whole, 80));
        let first = a.charge(60).unwrap();
        assert_eq!(a.charge(21).unwrap_err().limit, 80);
        assert_eq!(b.charge(41).unwrap_err().limit, 100, "the whole is used up first");
        assert_eq!(b.used(), 0, "what was refused leaves nothing behind");
        let second = b.charge(40).unwrap();
        assert_eq!(whole.used(), 100);
        drop(first);
        assert_eq!((a.used(), whole.used()), (0, 40));
        assert!(a.charge(usize::MAX).is_err(), "no sum wraps");
        drop(second);
        assert_eq!(whole.used(), 0);
    }
}
