use proptest::prelude::*;

use super::*;
use crate::action::{Detector, MaskSpec, MaskWith};
use crate::mask::detect;

const SECRET: &str = "hunter2-\"very\\secret\"";

fn masker(json: &[&str], detect: &[Detector], with: MaskWith) -> JsonMasker {
    let json = json.iter().map(|pattern| (*pattern).to_owned()).collect();
    let spec = MaskSpec { json, detect: detect.to_vec(), ..MaskSpec::new(with) };
    let masks = Arc::new(MaskSet::compile(&[spec], [7; 32]).unwrap());
    JsonMasker::new(masks, Arc::new(KnownSecrets::new([SECRET.as_bytes()])))
}

/// Masks a text cut into pieces of every size; all must give the same.
fn masked(make: impl Fn() -> JsonMasker, text: &str) -> Result<(String, Hits), JsonError> {
    let cut = |size: usize| {
        let (mut masker, mut out) = (make(), Vec::new());
        for piece in text.as_bytes().chunks(size) {
            masker.push(piece, &mut out)?;
        }
        let hits = masker.finish(&mut out)?;
        Ok((String::from_utf8(out).unwrap(), hits))
    };
    let whole = cut(text.len().max(1));
    for size in 1..text.len().min(40) {
        assert_eq!(cut(size), whole, "in pieces of {size}: {text}");
    }
    whole
}

fn places(json: &[&str], text: &str) -> String {
    masked(|| masker(json, &[], MaskWith::Redact), text).unwrap().0
}

#[test]
fn values_are_masked_by_their_place() {
    let text = r#"{"id": 1, "email": "a@b.c", "deep": {"Email":"x", "list": [ {"email": 7}, {"other": null} ]}, "e\u006dail": "y"}"#;
    let expected = r#"{"id": 1, "email": "[redacted]", "deep": {"Email":"[redacted]", "list": [ {"email": "[redacted]"}, {"other": null} ]}, "e\u006dail": "[redacted]"}"#;
    assert_eq!(places(&["email"], text), expected);
    assert_eq!(places(&["**/email"], text), expected);
    assert_eq!(
        places(&["deep/list/*/email"], r#"{"deep":{"list":[{"email":1}]},"email":2}"#),
        r#"{"deep":{"list":[{"email":"[redacted]"}]},"email":2}"#
    );
    // A whole object, an array, and what stands beside them.
    assert_eq!(places(&["a"], r#"{"a": {"b": [1, "x\"}"]}, "c": 1}"#), r#"{"a": "[redacted]", "c": 1}"#);
    assert_eq!(
        places(&["a"], r#"[{"a":[]},{"a":[[{}]]},{"a":null},{"a":true}]"#),
        r#"[{"a":"[redacted]"},{"a":"[redacted]"},{"a":null},{"a":"[redacted]"}]"#
    );
    // No name poses as two.
    assert_eq!(places(&["a/b"], r#"{"a/b": 1, "a": {"b": 2}}"#), r#"{"a/b": 1, "a": {"b": "[redacted]"}}"#);
    // Items by number, values at the top, one after the other.
    assert_eq!(places(&["1"], "[10,11,12]\n{\"1\": 5}\n"), "[10,\"[redacted]\",12]\n{\"1\": \"[redacted]\"}\n");
}

#[test]
fn what_is_found_by_its_looks_is_masked_in_strings_keys_and_numbers() {
    let make = || masker(&[], &[Detector::Email, Detector::CreditCard], MaskWith::Redact);
    let text = r#"{"to someone@example.com": "card 4111111111111111", "n": 4111111111111111, "t": "\u0073omeone@example.com \n", "ok": 12}"#;
    let (out, hits) = masked(make, text).unwrap();
    assert_eq!(out, r#"{"to [redacted]": "card [redacted]", "n": "[redacted]", "t": "[redacted] \n", "ok": 12}"#);
    assert_eq!(hits.count, 4);
    let (out, _) =
        masked(|| masker(&[], &[Detector::Email], MaskWith::Null), r#"{"x@example.com": "x@example.com"}"#).unwrap();
    assert_eq!(out, r#"{"[redacted]": null}"#);
}

#[test]
fn a_known_secret_is_masked_however_it_is_escaped() {
    let plain = serde_json::to_string(SECRET).unwrap();
    let escaped: String = SECRET.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect();
    for form in [plain, format!("\"{escaped}\""), format!("\"before {escaped} after\"")] {
        let (out, hits) = masked(|| masker(&[], &[], MaskWith::Redact), &format!("{{\"token\":{form}}}")).unwrap();
        assert!(!out.contains("hunter2") && !out.contains("0068") && hits.count == 1, "{out}");
    }
}

#[test]
fn what_is_not_masked_stays_as_it_was_written() {
    for text in [
        "",
        " \n",
        "null",
        "-0.0e+1",
        "\"\\u00e4\\/\\ud83d\\ude00\"",
        "[ ]",
        "{ }",
        "[1 , 2]",
        "{\"a\":{}}\r\n{\"a\":[]}",
        "\"\u{e4}\u{1F600}\"",
        "\"\\ud800\"",
        "true false",
        "[NaN, -Infinity]",
    ] {
        assert_eq!(masked(|| masker(&["x"], &[Detector::Email], MaskWith::Redact), text).unwrap().0, text);
    }
}

#[test]
fn what_is_no_json_is_an_error() {
    for text in [
        "{",
        "[1,]",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "[1 2]",
        "{1:2}",
        "nul",
        "01",
        "+1",
        "1.",
        "\"open",
        "\"\\x41\"",
        "\"\\u12g4\"",
        "]",
        "[}",
        "{]",
        "<html>",
        "// c",
        "{'a':1}",
        "{a:1}",
        "\"a\":1",
        "nan",
        "\u{feff}1",
        "[1]]",
        "\"\\",
        "\"\\u12\"",
    ] {
        assert!(masked(|| masker(&[], &[], MaskWith::Redact), text).is_err(), "{text}");
    }
    let deep = "[".repeat(DEPTH_MAX + 1);
    assert_eq!(masker(&[], &[], MaskWith::Redact).push(deep.as_bytes(), &mut Vec::new()), Err(JsonError::TooComplex));
    let mut poisoned = masker(&[], &[], MaskWith::Redact);
    assert!(poisoned.push(b"}", &mut Vec::new()).is_err());
    assert!(poisoned.push(b"1", &mut Vec::new()).is_err());
}

#[test]
fn long_strings_are_masked_in_bounded_memory() {
    let filler = "lorem \\u0069psum ".repeat(20_000);
    let text = format!("{{\"a\": \"{filler}someone@example.com {filler}\", \"b\": \"{filler}\"}}");
    let (mut masker, mut out) = (masker(&["b"], &[Detector::Email], MaskWith::Redact), Vec::new());
    for piece in text.as_bytes().chunks(1000) {
        masker.push(piece, &mut out).unwrap();
        assert!(masker.raw.capacity() < 4 * WHOLE);
    }
    let hits = masker.finish(&mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(!out.contains("someone@") && out.ends_with("\"b\": \"[redacted]\"}"), "{}", &out[out.len() - 40..]);
    assert_eq!(hits.count, 2);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    let expected = format!("{0}[redacted] {0}", "lorem ipsum ".repeat(20_000));
    assert!(value["a"].as_str().unwrap() == expected, "too long to be shown");
}

#[test]
fn what_is_clean_is_told_at_a_glance() {
    let passes = |text: &str| masker(&[], &detect::ALL, MaskWith::Redact).passes(text.as_bytes());
    for clean in ["{}", "[1, 2.5, -3e7, true, null]", "\"\"", r#"{"a": "b", "c": [{"d": "4111 1111"}]}"#, " 7\n"] {
        assert!(passes(clean), "{clean}");
        assert_eq!(
            masked(|| masker(&[], &detect::ALL, MaskWith::Redact), clean),
            Ok((clean.to_owned(), Hits::default()))
        );
    }
    for other in [
        "",
        "{",
        "nothing",
        "1 2",
        "[4111111111111111]",
        r#"["a@b.com"]"#,
        // Nobody looks behind an escape here.
        r#"["\n"]"#,
        r#"["a\u0040b.com"]"#,
    ] {
        assert!(!passes(other), "{other}");
    }
    assert!(!masker(&["a"], &[], MaskWith::Redact).passes(b"{}"), "a place is masked, or may be");
}

/// Parts of what is found by its looks, as strings and numbers have them.
fn parts() -> impl Strategy<Value = String> {
    let parts = [
        "4111111111111111",
        "4111",
        " ",
        "1111",
        "-",
        "5500-0000-0000-0004",
        "DE89370400440532013000",
        "GB82 WEST 1234 5698",
        " 7654 32",
        "a",
        "someone",
        "@",
        "example.com",
        ".",
        "ghp_",
        "012345678901234567890123456789abcdef",
        "-----BEGIN ",
        "PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9",
        ",",
        ":",
        "'",
        "hunter2-",
        "x",
        "ü",
        "{",
        "]",
        "AKIA",
        "ABCDEFGHIJKLMNOP",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..5).prop_map(|parts| parts.concat())
}

fn numbers() -> impl Strategy<Value = String> {
    let numbers =
        ["4111111111111111", "-4111111111111111", "4111", "1111", "1.4111111111111111", "4111111111111111.5", "0"];
    prop::sample::select(numbers.to_vec()).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever stands beside it, what would be masked in a part of a text is no clean text.
    #[test]
    fn what_passes_at_a_glance_is_what_nothing_is_masked_in(
        items in prop::collection::vec(prop_oneof![parts().prop_map(|text| format!("\"{text}\"")), numbers()], 1..5),
        between in prop::sample::select(vec![",", ", ", " ,", ",\n"]),
        object in any::<bool>(),
    ) {
        let text = if object {
            let items: Vec<_> = items.iter().map(|item| format!("\"k\":{item}")).collect();
            format!("{{{}}}", items.join(between))
        } else {
            format!("[{}]", items.join(between))
        };
        let make = || masker(&[], &detect::ALL, MaskWith::Redact);
        if make().passes(text.as_bytes()) {
            let (mut masker, mut out) = (make(), Vec::new());
            masker.push(text.as_bytes(), &mut out).unwrap();
            prop_assert_eq!(masker.finish(&mut out), Ok(Hits::default()), "{}", text);
            prop_assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
