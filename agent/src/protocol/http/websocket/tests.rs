use super::*;

fn request(fields: &[(&str, &str)]) -> Parts {
    let mut head = http::Request::builder().uri("/x");
    for (name, value) in fields {
        head = head.header(*name, *value);
    }
    head.body(()).unwrap().into_parts().0
}

const FINE: [(&str, &str); 4] = [
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[test]
fn a_key_is_answered_as_the_rfc_says() {
    let offer = offered(&request(&FINE)).unwrap().unwrap();
    assert_eq!(offer.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(offered(&request(&FINE[2..])).unwrap().is_none(), "nobody asked");
}

#[test]
fn an_answer_is_to_the_offer() {
    let offer =
        offered(&request(&[&FINE[..], &[("sec-websocket-protocol", "chat, other")]].concat())).unwrap().unwrap();
    let answer = |more: &[(&str, &str)]| {
        let fine = [("connection", "Upgrade"), ("upgrade", "WebSocket")];
        let fields = request(&[&fine[..], more].concat()).headers;
        check_answer(&offer, &fields)
    };
    let accept = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer(&[accept]), Ok(()));
    assert_eq!(answer(&[accept, ("sec-websocket-protocol", "other")]), Ok(()));
    assert_eq!(answer(&[accept, ("sec-websocket-extensions", "")]), Ok(()), "none is none");
    for wrong in [
        &[][..],
        &[accept, accept],
        &[("sec-websocket-accept", "AAAA")],
        &[accept, ("sec-websocket-protocol", "third")],
        &[accept, ("sec-websocket-protocol", "chat, other")],
        &[accept, ("sec-websocket-protocol", "chat"), ("sec-websocket-protocol", "chat")],
        &[accept, ("sec-websocket-extensions", "permessage-deflate")],
        &[accept, ("upgrade", "websocket")],
    ] {
        assert!(answer(wrong).is_err(), "{wrong:?}");
    }
}
