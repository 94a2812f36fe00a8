use super::*;

fn credential(inject: &str) -> CredentialRef {
    let source = CredentialSource::File { path: "x".into() };
    CredentialRef { inject: Inject::try_from(inject.to_owned()).unwrap(), ..CredentialRef::plain("api".into(), source) }
}

fn read(method: &str, target: &str, fields: &[(&str, &str)], inject: &str) -> Result<Request, RequestError> {
    let mut head = http::Request::builder().method(method).uri(target).header("host", "API.example:8443");
    for (name, value) in fields {
        head = head.header(*name, *value);
    }
    Request::read(&head.body(()).unwrap().into_parts().0, &credential(inject), &[])
}

fn parts(request: &Request) -> Vec<String> {
    request.action().parts.iter().map(|(verb, target)| format!("{verb} {target}")).collect()
}

#[test]
fn verbs_follow_methods_and_targets_every_reading() {
    for (method, target, expected) in [
        ("GET", "/orders?x=1", vec!["read GET /orders"]),
        ("HEAD", "/", vec!["read HEAD /"]),
        ("POST", "/a/../orders", vec!["write POST /orders"]),
        ("PATCH", "/orders/1", vec!["write PATCH /orders/1"]),
        ("DELETE", "/orders/1", vec!["delete DELETE /orders/1"]),
        ("TRACE", "/", vec!["unknown TRACE /"]),
        ("PROPFIND", "/dav", vec!["unknown PROPFIND /dav"]),
        ("OPTIONS", "*", vec!["read OPTIONS *"]),
        ("GET", "//admin", vec!["read GET //admin", "read GET /admin"]),
        ("POST", "/a?_method=delete", vec!["write POST /a", "delete DELETE /a"]),
    ] {
        assert_eq!(parts(&read(method, target, &[], "bearer").unwrap()), expected);
    }
    let overridden =
        read("POST", "/a", &[("X-HTTP-Method-Override", "DELETE"), ("x-method-override", "put")], "bearer");
    assert_eq!(parts(&overridden.unwrap()), ["write POST /a", "delete DELETE /a", "write PUT /a"]);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    assert_eq!(read("GET", "/%zz", &[], "bearer").unwrap_err(), RequestError::Path(PathError::Encoding));
    for (name, error) in [
        ("upgrade", RequestError::Upgrade),
        ("x-original-url", RequestError::Reroutes("x-original-url")),
        ("x-forwarded-host", RequestError::Reroutes("x-forwarded-host")),
    ] {
        assert_eq!(read("GET", "/", &[(name, "x")], "bearer").unwrap_err(), error);
    }
}

#[test]
fn an_offer_of_http2_in_the_clear_alone_is_declined_by_going_on() {
    for offer in ["h2c", "H2C", "h2c, h2c"] {
        let fields = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", offer), ("HTTP2-Settings", "AAMAAABk")];
        let request = read("GET", "/", &fields, "bearer").unwrap();
        for name in ["connection", "upgrade", "http2-settings"] {
            assert!(!request.headers.contains_key(name), "{offer}: {name}");
        }
    }
    for offer in ["h2c, websocket", "websocket,h2c", "h2", "", "TLS/1.0, h2c"] {
        assert_eq!(read("GET", "/", &[("Upgrade", offer)], "bearer").unwrap_err(), RequestError::Upgrade, "{offer}");
    }
    let both = [("Upgrade", "h2c"), ("Upgrade", "websocket")];
    assert_eq!(read("GET", "/", &both, "bearer").unwrap_err(), RequestError::Upgrade);
}

#[test]
fn a_clients_own_credential_is_taken_out_of_the_place_of_ours() {
    let fields = [
        ("Authorization", "Bearer own"),
        ("X-Key", "key"),
        ("Cookie", "a=1; sid=own;b=2"),
        ("Proxy-Authorization", "own"),
    ];
    for (inject, gone, stays) in [
        ("bearer", vec!["authorization"], vec!["x-key", "cookie"]),
        ("header:X-Key", vec!["authorization", "x-key"], vec!["cookie"]),
        ("cookie:sid", vec!["authorization"], vec!["x-key", "cookie"]),
    ] {
        let request = read("GET", "/", &fields, inject).unwrap();
        for name in gone.iter().chain(&["proxy-authorization"]) {
            assert!(!request.headers.contains_key(*name), "{inject}: {name}");
        }
        assert!(stays.iter().all(|name| request.headers.contains_key(*name)), "{inject}");
        let head = String::from_utf8(request.head().to_vec()).unwrap();
        assert_eq!(head.contains("sid=own"), inject != "cookie:sid", "{head}");
        assert!(head.contains("a=1") && head.contains("b=2"), "{head}");
        assert!(!request.command(None).text.contains("own"), "{}", request.command(None).text);
    }
    let request = read("GET", "/x?a=1&api%5Fkey=own&api_key=own&b=2", &[], "query:api_key").unwrap();
    assert_eq!(request.target, "/x?a=1&b=2");
}

#[test]
fn fields_of_the_connection_and_of_forms_that_cannot_be_looked_into_are_taken_out() {
    let fields = [
        ("Connection", "close, X-Hop, Host"),
        ("X-Hop", "1"),
        ("Keep-Alive", "1"),
        ("TE", "trailers"),
        ("Accept-Encoding", "gzip, br"),
        ("Range", "bytes=0-1"),
        ("If-Range", "x"),
        ("Accept", "*/*"),
    ];
    let request = read("GET", "/", &fields, "bearer").unwrap();
    let names: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["host", "accept", "accept-encoding"]);
    assert_eq!(request.headers["accept-encoding"], "gzip, br");
    assert_eq!(request.host, "api.example");
}

#[test]
fn bodies_have_one_meaning_or_none() {
    assert_eq!(json(b""), Body::None);
    assert_eq!(json(b"{\"a\":[1,{\"b\":null}]}"), Body::Json(serde_json::json!({"a": [1, {"b": null}]})));
    for text in ["{\"a\":1,\"a\":2}", "[{\"b\":{\"a\":1,\"\\u0061\":2}}]", "{", "a=1", "1 2", "\u{feff}1"] {
        assert_eq!(json(text.as_bytes()), Body::Unknown, "{text}");
    }
}

#[test]
fn shapes_leave_out_what_differs() {
    let shape = |method: &str, target: &str| read(method, target, &[], "bearer").unwrap().facts.shape();
    assert_eq!(shape("GET", "/orders/17?b=1&a=2"), "GET api.example /orders/??a&b");
    assert_eq!(shape("GET", "/orders/17?b=1&a=2"), shape("GET", "/orders/99?a=x&b=y"));
    assert_eq!(shape("GET", "/o/123e4567-e89b-12d3-a456-426614174000"), "GET api.example /o/??");
    assert_ne!(shape("GET", "/orders/17"), shape("DELETE", "/orders/17"));
}

#[test]
fn cases_read_as_requests() {
    let action = classify("POST /orders\nHost: api\nContent-Type: application/json\n\n{\"amount\": 5}", &[]);
    let Facts::Http(facts) = &action.facts else { panic!("no facts") };
    assert_eq!((&*facts.host, &facts.body), ("api", &Body::Json(serde_json::json!({"amount": 5}))));
    assert_eq!(classify("GET https://api/x", &[]).parts[0].1.as_str(), "GET /x");
    for line in ["", "GET", "GET /%zz", "nonsense"] {
        assert_eq!(classify(line, &[]).clarity, Clarity::Opaque, "{line}");
    }
}
