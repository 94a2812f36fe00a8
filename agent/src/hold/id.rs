//! Ids that a person can read aloud and type.

/// Crockford's base 32 in lower case: no `i`, `l`, `o`, `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Random id of `length` characters; `None` where the system gives no random bytes.
pub(super) fn random(length: usize) -> Option<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes.iter().take(length).map(|b| char::from(ALPHABET[usize::from(b & 31)])).collect())
}

/// What a person meant: case does not matter, and look-alikes are what they look like.
pub(super) fn normalise(typed: &str) -> String {
    let alike = |c: char| match c.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        c => c,
    };
    typed.trim().chars().take(32).map(alike).collect()
}
