//! Sizes as policies write them: `512MiB`, `2GiB`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// Binary units only: `MB` means two different things to two people.
const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// A size in bytes, above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse(&text).map(Self).ok_or_else(|| {
            format!("`{text}` is not a size: write a whole number with KiB, MiB, GiB or TiB, such as `512MiB`")
        })
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB|TiB)$", "examples": ["512MiB", "2GiB"] })
    }
}

fn parse(text: &str) -> Option<u64> {
    let (number, shift) = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0 && *bytes <= i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_numbers_with_binary_units_and_nothing_else() {
        for (text, bytes) in [("1KiB", 1 << 10), ("512MiB", 512 << 20), ("2GiB", 2 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "KiB",
            "0GiB",
            "2",
            "2GB",
            "2 GiB",
            "-2GiB",
            "+2GiB",
            "1.5GiB",
            "2gib",
            "99999999999999999999KiB",
            "8388608TiB",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
