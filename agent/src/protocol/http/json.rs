//! Bodies for rules: JSON that has one meaning.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::action::Body;

/// About the most values of a body that is read for rules: in memory each takes many times its shortest text.
const VALUES_MAX: usize = 1 << 20;

/// A body for rules: JSON, if it has one meaning.
pub fn json(body: &[u8]) -> Body {
    if body.is_empty() {
        return Body::None;
    }
    if memchr::memchr3_iter(b',', b'[', b'{', body).count() > VALUES_MAX {
        return Body::Unknown;
    }
    serde_json::from_slice::<Once>(body).map_or(Body::Unknown, |Once(value)| Body::Json(value))
}

/// JSON whose objects have each name once. Of two values some servers take the first and some the last.
struct Once(serde_json::Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = serde_json::Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(serde_json::Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Once(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(items.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = serde_json::Map::new();
                while let Some((name, Once(value))) = map.next_entry::<String, Once>()? {
                    if members.insert(name, value).is_some() {
                        return Err(de::Error::custom("a name stands there twice"));
                    }
                }
                Ok(members.into())
            }
        }

        deserializer.deserialize_any(Values).map(Once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_very_many_values_is_not_read() {
        let many = format!("[{}1]", "1,".repeat(VALUES_MAX));
        assert_eq!(json(many.as_bytes()), Body::Unknown);
        assert!(matches!(json(format!("[{}1]", "1,".repeat(1000)).as_bytes()), Body::Json(_)));
    }
}
