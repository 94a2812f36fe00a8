//! Commands that wait for a reviewer.
