//! What a fuzzer runs: the properties that hold for any text of a policy file.

use super::PolicySet;

/// Reads a text as a policy: an error with a place, or a set that names its policy, and the same again.
pub fn policy(text: &str) {
    match PolicySet::from_texts([("fuzz.toml", text)]) {
        Ok(set) => {
            let again = PolicySet::from_texts([("fuzz.toml", text)]).map(|set| set.hash().to_owned());
            assert_eq!(again.ok().as_deref(), Some(set.hash()));
            assert!(!set.policies().is_empty());
        }
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}
