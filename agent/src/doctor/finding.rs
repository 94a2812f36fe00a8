//! What was found, graded.

use serde::{Deserialize, Serialize};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Closed,
    /// Not as it should be, and the host could close it.
    Open,
    /// This host lacks what would close it, or whoever asks may not look.
    Cannot,
}

impl Grade {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Cannot => "cannot",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// In a session of which workload; `None` where it is about the host or the daemon.
    pub workload: Option<String>,
    /// How it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What that means, where it is not closed.
    pub means: Option<String>,
    /// What to do about it; for [`Grade::Cannot`], what the host lacks.
    pub fix: Option<String>,
    /// How many ways were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<usize>,
    /// Those that got through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<String>,
}

impl Finding {
    /// All is well.
    pub fn closed(check: &str, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            workload: None,
            grade: Grade::Closed,
            found: found.into(),
            means: None,
            fix: None,
            attempts: None,
            reached: Vec::new(),
        }
    }

    /// Something is wrong: what that means, and what to do.
    pub fn open(check: &str, found: impl Into<String>, means: &str, fix: impl Into<String>) -> Self {
        let finding = Self::closed(check, found);
        Self { grade: Grade::Open, means: Some(means.into()), fix: Some(fix.into()), ..finding }
    }

    /// Something cannot be had here: what that means, and what is lacking.
    pub fn cannot(check: &str, found: impl Into<String>, means: &str, lacks: impl Into<String>) -> Self {
        Self { grade: Grade::Cannot, ..Self::open(check, found, means, lacks) }
    }
}
