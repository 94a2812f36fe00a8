//! A decision that is asked for again and again: a prepared statement is judged at each execution, and its rules' `when`s
//! would be evaluated each time.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Decision, Policy};
use crate::action::{Action, Resource, Subject};

/// What the policy in force answered about one action of one subject on one resource. Another policy is asked anew, so a
/// reload takes effect at once; whoever changes the action, subject or resource must start with another memory.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Option<(Arc<Policy>, Decision)>>);

impl Remembered {
    /// As [`Policy::decide`].
    pub fn decide(&self, policy: &Arc<Policy>, who: &Subject, to: &Resource, what: &Action) -> Decision {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, decision)) if Arc::ptr_eq(of, policy) => decision.clone(),
            _ => last.insert((Arc::clone(policy), policy.decide(who, to, what))).1.clone(),
        }
    }
}
