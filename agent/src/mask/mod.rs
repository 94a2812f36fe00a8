//! Masking: detectors, column plans, rewriting of values.
