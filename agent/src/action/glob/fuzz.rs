//! What a fuzzer runs: the properties that hold for any patterns and target.

use super::{Glob, Scanned};

/// Three lines: two patterns and a target.
///
/// A pattern matches itself where it has no wildcard; what matches could match; two patterns that match one target
/// overlap, either way around.
pub fn glob(text: &str) {
    let mut lines = text.split('\n');
    let [a, b, target] = [(); 3].map(|()| lines.next().unwrap_or_default());
    for separator in ['.', '/'] {
        let globs = [a, b].map(|pattern| Glob::new(pattern, separator));
        for (pattern, glob) in [a, b].iter().zip(&globs) {
            match glob {
                Ok(glob) => {
                    assert_eq!(glob.as_str(), *pattern);
                    assert!(glob.overlaps(glob), "{pattern} overlaps itself");
                    let scanned = Scanned::new(target, separator);
                    assert_eq!(glob.matches(target), glob.matches_scanned(&scanned));
                    assert!(
                        !glob.matches(target) || glob.could_match(&scanned),
                        "{pattern} matches {target}, and could"
                    );
                }
                Err(error) => assert!(error.at() <= pattern.len() && !error.to_string().is_empty()),
            }
        }
        if let [Ok(a), Ok(b)] = &globs {
            assert_eq!(a.overlaps(b), b.overlaps(a));
            assert!(!(a.matches(target) && b.matches(target)) || a.overlaps(b), "{a} and {b} match {target}");
        }
    }
}
