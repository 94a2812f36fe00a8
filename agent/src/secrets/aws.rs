//! Keys of AWS: a secret access key alone, or all of them as a `credential_process` gives them (AWS SDKs and Tools Reference,
//! "Process credential provider"), which is one text for keys that change together.

use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroize;

use super::{Lease, SecretFault};

/// How long before their end keys are not used any more.
const MARGIN: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Process {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<jiff::Timestamp>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.secret_access_key.zeroize();
        self.session_token.zeroize();
    }
}

/// Takes a secret apart that may be several.
pub(super) fn read(lease: &mut Lease) -> Result<(), SecretFault> {
    let Some(secret) = &lease.password else { return Ok(()) };
    let text = secret.expose_secret();
    if text.trim_ascii_start().starts_with('{') {
        // The error's own text may quote what it stumbled over.
        let keys: Process = serde_json::from_str(text)
            .map_err(|error| SecretFault::NotAwsJson { line: error.line(), column: error.column() })?;
        if keys.secret_access_key.is_empty() {
            return Err(SecretFault::Empty);
        }
        lease.user = Some(keys.access_key_id.clone());
        lease.session_token = keys.session_token.as_deref().map(SecretString::from);
        lease.until = keys.expiration.map(until);
        lease.password = Some(SecretString::from(keys.secret_access_key.as_str()));
    }
    let fits = |id: &String| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if lease.user.as_ref().is_some_and(fits) { Ok(()) } else { Err(SecretFault::NoKeyId) }
}

fn until(end: jiff::Timestamp) -> Instant {
    let left = SystemTime::from(end).duration_since(SystemTime::now()).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(left.saturating_sub(MARGIN)).unwrap_or(now)
}
