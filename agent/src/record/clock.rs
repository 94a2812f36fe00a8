//! Times of events, written quickly: only the microseconds anew while the second is the same.

use std::fmt::Write as _;

use jiff::Timestamp;

/// The last time that was written.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: i64,
    text: String,
}

impl Clock {
    /// RFC 3339 with microseconds, UTC: 27 characters.
    pub(super) fn stamp(&mut self, now: Timestamp) -> &str {
        let micros = now.subsec_microsecond();
        // Before 1970 they count backwards: no such clock is worth the trouble.
        if self.text.is_empty() || self.second != now.as_second() || micros < 0 {
            self.second = now.as_second();
            self.text = format!("{now:.6}");
        } else {
            self.text.truncate(self.text.len() - "000000Z".len());
            // A String takes everything.
            let _ = write!(self.text, "{micros:06}Z");
        }
        &self.text
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::{Clock, Timestamp};

    #[test]
    fn every_time_is_written_as_if_it_were_the_first() {
        let mut clock = Clock::default();
        for micros in
            [0, 1, 999_999, 1_000_000, 1_000_001, 1_999_999, 5, -1, -999_999, -1_000_000, 1_763_700_000_123_456, 7]
        {
            let now = Timestamp::from_microsecond(micros).unwrap();
            assert_eq!(clock.stamp(now), format!("{now:.6}"));
        }
    }
}
