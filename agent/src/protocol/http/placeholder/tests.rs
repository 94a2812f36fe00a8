use super::*;

fn values(all: &[(&str, &str)]) -> Values {
    all.iter().map(|(name, value)| (Arc::from(*name), SecretString::from(*value))).collect()
}

fn filled(
    fields: &[(&'static str, &str)],
    target: &str,
    body: &str,
    all: &[(&str, &str)],
) -> Result<(HeaderMap, String, String), Misplaced> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    let body = Sends::All(Bytes::copy_from_slice(body.as_bytes()));
    let complete = fill(Complete { headers, target: target.into(), body }, &values(all))?;
    let body = String::from_utf8(complete.body.bytes().unwrap().to_vec()).unwrap();
    Ok((complete.headers, complete.target, body))
}

#[test]
fn a_name_is_as_long_as_it_can_be() {
    let names = |text: &str| find(text.as_bytes()).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("PORTCULLIS_SECRET_a PORTCULLIS_SECRET_a_b-PORTCULLIS_SECRET_"), ["a", "a_b", ""]);
    assert_eq!(names("PORTCULLIS_SECRET_PORTCULLIS_SECRET_a"), ["PORTCULLIS_SECRET_a"]);
    assert_eq!(names("portcullis_secret_a PORTCULLIS_SECRE T_a"), Vec::<String>::new());
    // Of two, neither is taken for the beginning of the other.
    let (_, target, _) =
        filled(&[], "/?a=PORTCULLIS_SECRET_a&b=PORTCULLIS_SECRET_a_b", "", &[("a", "1"), ("a_b", "2")]).unwrap();
    assert_eq!(target, "/?a=1&b=2");
}

#[test]
fn values_are_written_as_their_place_has_them() {
    let value = "a\"b\\c\u{1}\u{e9} &=%+";
    let json = [("content-type", "application/problem+json; charset=utf-8")];
    let (.., body) = filled(&json, "/", r#"{"x":"PORTCULLIS_SECRET_s"}"#, &[("s", value)]).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), serde_json::json!({ "x": value }));
    let (_, target, _) = filled(&[], "/?x=PORTCULLIS_SECRET_s", "", &[("s", value)]).unwrap();
    assert_eq!(request::decoded(target.trim_start_matches("/?x=")), value);
    // Nothing but the value itself is written anew.
    let (_, target, _) = filled(&[], "/%7e?%61=%7e&b=+&PORTCULLIS&c=PORTCULLIS_SECRET_s", "", &[("s", "")]).unwrap();
    assert_eq!(target, "/%7e?%61=%7e&b=+&PORTCULLIS&c=");
    for (value, json) in [("", "\"\""), ("\"", "\"\\\"\""), ("\"\"", "\"\\\"\\\"\"")] {
        let (.., body) =
            filled(&[("content-type", "text/json")], "/", "\"PORTCULLIS_SECRET_s\"", &[("s", value)]).unwrap();
        assert_eq!(body, json);
    }
}

#[test]
fn what_would_end_a_field_is_no_value() {
    for value in ["a\r\nHost: x", "a\nb", "a\0b"] {
        assert!(filled(&[("x-a", "PORTCULLIS_SECRET_s")], "/", "", &[("s", value)]).is_err());
    }
}

#[test]
fn a_watched_body_passes_what_no_placeholder_begins_in() {
    let text = b"xPORTPORTCULLIS_SECRE PORTCULLIS_SECRET";
    for at in 0..=text.len() {
        let (mut held, mut out) = (BytesMut::new(), Vec::new());
        for piece in [&text[..at], &text[at..]] {
            out.extend_from_slice(&Watched::pass(&mut held, piece).unwrap());
            assert!(held.len() < PLACEHOLDER.len());
        }
        out.extend_from_slice(&held);
        assert_eq!(out, text, "cut at {at}");
    }
    let text = b"xPORTPORTCULLIS_SECRET_a";
    for at in 0..=text.len() {
        let (mut held, mut out) = (BytesMut::new(), Vec::new());
        let passed = [&text[..at], &text[at..]].iter().all(|piece| match Watched::pass(&mut held, piece) {
            Some(piece) => {
                out.extend_from_slice(&piece);
                true
            }
            None => false,
        });
        assert!(!passed && b"xPORT".starts_with(&out[..]), "cut at {at}: {}", String::from_utf8_lossy(&out));
    }
    // What cannot begin one does not wait.
    assert_eq!(&Watched::pass(&mut BytesMut::new(), b"hello").unwrap()[..], b"hello");
}
