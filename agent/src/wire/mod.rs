//! Cutting and reading frames.
