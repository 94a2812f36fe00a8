//! Session ids (the layout of ULID: 48 bits of Unix milliseconds, 80 random bits) and W3C trace ids.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::IdentityError;

/// Crockford's base 32 in lower case: no `i`, `l`, `o`, `u`; its order is the order of the values.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A new session id: 26 characters that sort by time of making, usable as a file or cgroup name.
pub fn new_session_id() -> Result<Arc<str>, IdentityError> {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let mut random = [0; 16];
    fill(&mut random[6..])?;
    let value = (millis << 80) | u128::from_be_bytes(random);
    let mut text = String::with_capacity(26);
    for shift in (0..26).rev() {
        let digit = (value >> (shift * 5)) as usize & 31;
        text.push(char::from(ALPHABET[digit]));
    }
    Ok(text.into())
}

/// A new trace id as in W3C Trace Context: 32 lower-case hexadecimal digits, not all zero.
pub fn new_trace_id() -> Result<Arc<str>, IdentityError> {
    loop {
        let mut random = [0; 16];
        fill(&mut random)?;
        if random != [0; 16] {
            return Ok(data_encoding::HEXLOWER.encode(&random).into());
        }
    }
}

/// Whether text is a session id that this module could have made. Others never become part of a path.
pub fn is_session_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|b| ALPHABET.contains(&b))
}

/// Whether text is a trace id as in W3C Trace Context.
pub(super) fn is_trace_id(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 32 && text.bytes().all(hex) && text.bytes().any(|b| b != b'0')
}

fn fill(bytes: &mut [u8]) -> Result<(), IdentityError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| IdentityError::Random)
}
