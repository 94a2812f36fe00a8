//! Bound parameters as policies see them: each as a text, whatever form it came in.
//!
//! A text parameter is what it is. Of binary ones those of the plain types are read; another, or one whose type nobody has
//! told, leaves the whole list unknown, so that a rule which asks for it stays closed.

use std::{fmt::Write as _, sync::Arc};

use super::codec::{self, Bind, Format};
use crate::action::{Action, Facts, Params};

/// The parameters of a Bind, by the types that the statement declares or the server has told.
pub fn read(bind: &Bind<'_>, types: &[u32]) -> Params {
    let each = bind.parameters.iter().enumerate().map(|(at, (format, value))| match (format, value) {
        (_, None) => Some(None),
        (Format::Text, Some(value)) => codec::text(value).ok().map(|text| Some(text.into())),
        (Format::Binary, Some(value)) => shown(types.get(at).copied()?, value).map(|text| Some(text.into())),
    });
    each.collect::<Option<Vec<Option<Arc<str>>>>>().map_or(Params::Unknown, |all| Params::Known(all.into()))
}

/// A binary value as text. The types are those of pg_type.dat.
fn shown(type_oid: u32, value: &[u8]) -> Option<String> {
    Some(match type_oid {
        16 => match value {
            [0] => "false".to_owned(),
            [1] => "true".to_owned(),
            _ => return None,
        },
        21 => i16::from_be_bytes(value.try_into().ok()?).to_string(),
        23 => i32::from_be_bytes(value.try_into().ok()?).to_string(),
        20 => i64::from_be_bytes(value.try_into().ok()?).to_string(),
        26 => u32::from_be_bytes(value.try_into().ok()?).to_string(),
        // text, bpchar, varchar, name, unknown, json
        25 | 1042 | 1043 | 19 | 705 | 114 => codec::text(value).ok()?.to_owned(),
        // jsonb has a version before it.
        3802 => codec::text(value.strip_prefix(&[1])?).ok()?.to_owned(),
        2950 if value.len() == 16 => {
            let mut uuid = String::with_capacity(36);
            for (at, byte) in value.iter().enumerate() {
                if matches!(at, 4 | 6 | 8 | 10) {
                    uuid.push('-');
                }
                let _ = write!(uuid, "{byte:02x}");
            }
            uuid
        }
        _ => return None,
    })
}

/// The same action with these parameters.
pub fn with(action: &Action, params: &Params) -> Action {
    let mut action = action.clone();
    if let Facts::Sql(facts) = &action.facts {
        let facts = facts.iter().map(|facts| crate::action::SqlFacts { params: params.clone(), ..facts.clone() });
        action.facts = Facts::Sql(facts.collect());
    }
    action
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(parameters: Vec<(Format, Option<&[u8]>)>, types: &[u32]) -> Params {
        read(&Bind { portal: "", statement: "", essence: &[], parameters, formats: Vec::new() }, types)
    }

    #[test]
    fn parameters_are_read_in_either_form() {
        let known = |texts: &[Option<&str>]| {
            Params::Known(texts.iter().map(|text| text.map(Arc::from)).collect::<Vec<_>>().into())
        };
        let (text, binary) = (Format::Text, Format::Binary);
        assert_eq!(params(vec![], &[]), known(&[]));
        assert_eq!(
            params(vec![(text, Some(b"7")), (text, None), (binary, None)], &[]),
            known(&[Some("7"), None, None])
        );
        assert_eq!(params(vec![(binary, Some(&[0xff, 0xff, 0xff, 0xfe]))], &[23]), known(&[Some("-2")]));
        assert_eq!(params(vec![(binary, Some(&[0; 8]))], &[20]), known(&[Some("0")]));
        assert_eq!(params(vec![(binary, Some(b"\x01{}"))], &[3802]), known(&[Some("{}")]));
        let uuid: Vec<u8> = (0..16).collect();
        assert_eq!(
            params(vec![(binary, Some(&uuid))], &[2950]),
            known(&[Some("00010203-0405-0607-0809-0a0b0c0d0e0f")])
        );
        // What cannot be read leaves all of them unknown.
        for (value, types) in
            [(&[0, 0, 0, 7][..], &[][..]), (&[7], &[23]), (&[0; 4], &[1700]), (&[0xff], &[25]), (&[2], &[16])]
        {
            assert_eq!(
                params(vec![(text, Some(b"x")), (binary, Some(value))], &[&[25], types].concat()),
                Params::Unknown
            );
        }
        assert_eq!(params(vec![(text, Some(&[0xff]))], &[]), Params::Unknown);
    }
}
