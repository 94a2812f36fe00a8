//! Durations as policies write them: `15m`, `8h`, `1h30m`.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// Longest duration: a year.
const MAX_SECONDS: u64 = 365 * 86_400;

/// A positive duration of whole seconds, at most a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse(&text).map(Self).ok_or_else(|| {
            format!("`{text}` is not a duration: write numbers with s, m, h or d, such as `15m` or `1h30m`, up to 365d")
        })
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "examples": ["15m", "8h"] })
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = match after.bytes().next()? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            _ => return None,
        };
        if unit >= last_unit {
            return None;
        }
        last_unit = unit;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &after[1..];
    }
    (1..=MAX_SECONDS).contains(&total).then(|| Duration::from_secs(total))
}

/// The shortest text that reads back as the duration. Parts of seconds are dropped.
pub(super) fn format(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut out = String::new();
    for (unit, letter) in [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')] {
        if seconds >= unit {
            out.push_str(&(seconds / unit).to_string());
            out.push(letter);
            seconds %= unit;
        }
    }
    if out.is_empty() { "0s".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write_and_nothing_else() {
        for (text, seconds) in [("15m", 900), ("8h", 28_800), ("1h30m", 5_400), ("90s", 90), ("2d", 172_800)] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["1d2h3m4s", "365d"] {
            assert_eq!(format(parse(text).expect(text)), text);
        }
        for text in [
            "",
            "0s",
            "15",
            "m",
            "15 m",
            "-1m",
            "+1m",
            "1.5h",
            "30m1h",
            "1m1m",
            "366d",
            "1w",
            "15M",
            "99999999999999999999s",
            "18446744073709551615d",
            "1\u{0661}m",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
