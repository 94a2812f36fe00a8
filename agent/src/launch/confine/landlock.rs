//! A Landlock domain of the session's own [Linux 5.13, 6.12 for signals].
//!
//! Outside of it no process can be traced, and so none can be written to through `/proc/PID/mem` or run through a stolen
//! descriptor: without a domain, any process of the same user that is not governed is a road out. System call filters
//! cannot tell that file from another.

use landlock::{
    AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope,
};

/// Why there is no domain.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel has no Landlock, or not enough of it.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// The root folder could not be opened.
    #[error(transparent)]
    Root(#[from] landlock::PathFdError),
}

/// Puts the calling thread, and all that it starts, into a domain of its own for good.
pub(super) fn enter() -> Result<(), LandlockError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        // Something must be handled. Device nodes nobody here can make anyway; moving files between folders is refused by
        // any ruleset that does not allow it.
        .handle_access(AccessFs::MakeBlock | AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::Refer))?
        .restrict_self()?;
    Ok(())
}
