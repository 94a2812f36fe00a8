use super::*;

const HOST: &str = "Host: api\r\n";

/// What passes, and what is wrong, however the bytes are cut.
fn fed(text: &[u8]) -> (Vec<u8>, Option<Violation>) {
    let cut = |size: usize| {
        let (mut guard, mut input, mut output) = (Guard::default(), BytesMut::new(), BytesMut::new());
        for piece in text.chunks(size) {
            input.extend_from_slice(piece);
            if let Err(violation) = guard.feed(&mut input, &mut output) {
                assert_eq!(guard.feed(&mut input, &mut output), Err(violation), "it stays broken");
                return (output.to_vec(), Some(violation));
            }
        }
        (output.to_vec(), None)
    };
    let whole = cut(text.len().max(1));
    for size in 1..text.len().min(30) {
        let split = cut(size);
        assert_eq!(
            (&split.0, split.1),
            (&whole.0, whole.1),
            "in pieces of {size}: {:?}",
            String::from_utf8_lossy(text)
        );
    }
    whole
}

#[test]
fn what_has_one_reading_passes_to_the_byte() {
    for text in [
        format!("GET / HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET /a/%2F?x=1&y HTTP/1.1\r\n{HOST}Accept: */*\r\nX-Empty:\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\n{HOST}\r\n"),
        format!(
            "POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n"
        ),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n"),
        format!("POST / HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n"),
        format!("M-SEARCH / HTTP/1.1\r\n{HOST}\r\n"),
    ] {
        assert_eq!(fed(text.as_bytes()), (text.clone().into_bytes(), None), "{text}");
    }
    // Trailers are left out, and so are empty lines before a request.
    let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    let text = format!("{head}1\r\nx\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n");
    let (out, violation) = fed(text.as_bytes());
    assert_eq!(String::from_utf8(out).unwrap(), format!("{head}1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n{HOST}\r\n"));
    assert_eq!(violation, None);
}

#[test]
fn what_has_two_readings_is_refused_before_any_of_it_passes() {
    let host = |rest: &str| format!("POST / HTTP/1.1\r\n{HOST}{rest}\r\n\r\n");
    let heads = [
        host("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        host("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        host("Content-Length: 5\r\nContent-Length: 5"),
        host("Content-Length: 5\r\nContent-Length: 6"),
        host("Content-Length: 5, 5"),
        host("Content-Length: +5"),
        host("Content-Length: -1"),
        host("Content-Length: 0x5"),
        host("Content-Length: 5 5"),
        host("Content-Length: 9999999999999999999"),
        host("Content-Length:"),
        host("Content-Length: \u{663}"),
        host("Content_Length: 5"),
        host("Transfer_Encoding: chunked"),
        host("Transfer-Encoding: chunked, chunked"),
        host("Transfer-Encoding: gzip, chunked"),
        host("Transfer-Encoding: identity"),
        host("Transfer-Encoding: xchunked"),
        host("Transfer-Encoding: \"chunked\""),
        host("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        host("Transfer-Encoding:\x0bchunked"),
        host("Transfer-Encoding: \x0cchunked"),
        host("Content-Length: 5\x0c"),
        host("Transfer-Encoding : chunked"),
        host("Transfer-Encoding\t: chunked"),
        host(" Transfer-Encoding: chunked"),
        host("X: y\r\n Transfer-Encoding: chunked"),
        host("X: y\r\n\tz"),
        host("X: y\nTransfer-Encoding: chunked"),
        host("X: y\rTransfer-Encoding: chunked"),
        host("X: a\0b"),
        host("X: a\x7fb"),
        host("No colon"),
        host(": no name"),
        host("N\u{e4}me: x"),
        host("Na me: x"),
        host("Host: other"),
        "GET / HTTP/1.1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nX-Host: api\r\n\r\n".into(),
        format!("GET  / HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET / HTTP/1.1 \r\n{HOST}\r\n"),
        format!(" GET / HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET\t/\tHTTP/1.1\r\n{HOST}\r\n"),
        format!("GET / HTTP/1.1\n{HOST}\n"),
        format!("GET / HTTP/1.2\r\n{HOST}\r\n"),
        format!("GET / http/1.1\r\n{HOST}\r\n"),
        format!("GET / HTTP/2.0\r\n{HOST}\r\n"),
        format!("GET /\r\n{HOST}\r\n"),
        format!("get / HTTP/1.1\r\n{HOST}\r\n"),
        format!("GE(T / HTTP/1.1\r\n{HOST}\r\n"),
        format!("CONNECT api:443 HTTP/1.1\r\n{HOST}\r\n"),
        format!("CONNECT / HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET http://other/ HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET api/x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET * HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET /a#b HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET /\u{e4} HTTP/1.1\r\n{HOST}\r\n"),
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", "X: y\r\n".repeat(FIELDS_MAX)),
        format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(HEAD_MAX)),
    ];
    for text in &heads {
        let (out, violation) = fed(text.as_bytes());
        assert!(out.is_empty() && violation.is_some(), "{:?}", &text[..text.len().min(200)]);
    }
    assert!(heads.len() >= 55);
}

#[test]
fn what_is_wrong_in_a_body_ends_it_there() {
    let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    for (body, passes) in [
        ("5;x=y\r\nhello\r\n0\r\n\r\n", ""),
        ("5 \r\nhello\r\n", ""),
        (" 5\r\nhello\r\n", ""),
        ("0x5\r\nhello\r\n", ""),
        ("+5\r\nhello\r\n", ""),
        ("-1\r\n", ""),
        ("\r\n", ""),
        ("g\r\n", ""),
        ("5\nhello\r\n", ""),
        ("5\rhello\r\n", ""),
        ("fffffffffffffffff\r\n", ""),
        ("00000000000000000000005\r\nhello\r\n", ""),
        ("5\r\nhello!\r\n", "5\r\nhello"),
        ("5\r\nhello\n", "5\r\nhello"),
        ("5\r\nhelloGET", "5\r\nhello"),
        ("0\r\nX\r\n\r\n", "0\r\n"),
        ("0\r\n X: y\r\n\r\n", "0\r\n"),
        ("0\r\nX: y\n\r\n", "0\r\n"),
        ("0\r\nX : y\r\n\r\n", "0\r\n"),
        ("0\r\n\nGET / HTTP/1.1", "0\r\n"),
    ] {
        let (out, violation) = fed(format!("{head}{body}").as_bytes());
        assert!(violation.is_some(), "{body:?}");
        assert_eq!(String::from_utf8(out).unwrap(), format!("{head}{passes}"), "{body:?}");
    }
}
