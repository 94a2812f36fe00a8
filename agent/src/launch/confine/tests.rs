//! What can be told without giving up anything. That it holds is shown in `tests/enforcement`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn filters_are_valid_and_short_enough_for_the_kernel() {
    for hooks in [UnixHooks::Attached, UnixHooks::Missing] {
        let filters = filter::filters(hooks).unwrap();
        assert!(filters.len() >= 3);
        // BPF_MAXINSNS
        assert!(filters.iter().all(|filter| !filter.is_empty() && filter.len() < 4096));
    }
}

#[test]
fn a_process_with_threads_is_not_confined() {
    // The test harness runs this in a thread beside its main one.
    assert!(matches!(confine(&Settings::default()), Err(ConfineError::Threads)));
}
