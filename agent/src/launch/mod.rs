//! `portcullis run`: the launcher.

pub mod confine;
