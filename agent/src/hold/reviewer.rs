//! Who may decide.

use serde::{Deserialize, Serialize};

use crate::{
    action::ProcessFacts,
    policy::{HoldSpec, Reviewer},
};

/// A person at the control socket, as the kernel's peer credentials and the host's user database name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewerIdentity {
    /// User name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Names of the user's groups.
    pub groups: Vec<String>,
}

impl ReviewerIdentity {
    fn is(&self, reviewer: &Reviewer) -> bool {
        match reviewer {
            Reviewer::User(name) => *name == self.name,
            Reviewer::Group(name) => self.groups.contains(name),
        }
    }

    /// Whether the rule asks this person. Where the rule names nobody, the daemon's reviewers and root are asked.
    pub(super) fn may_review(&self, spec: &HoldSpec, daemon: &[Reviewer]) -> bool {
        if spec.reviewers.is_empty() {
            self.uid == 0 || daemon.iter().any(|r| self.is(r))
        } else {
            spec.reviewers.iter().any(|r| self.is(r))
        }
    }

    /// Whether the process runs as this very user, so that this person's approval could be the process's own.
    pub(super) fn runs(&self, process: &ProcessFacts) -> bool {
        process.pid != 0 && process.uid == self.uid
    }
}
