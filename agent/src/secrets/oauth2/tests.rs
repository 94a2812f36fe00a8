use super::*;
use crate::policy::TokenEndpoint;

fn spec() -> OAuth2Spec {
    OAuth2Spec {
        endpoint: TokenEndpoint::parse("http://localhost:81/token?x=1").unwrap(),
        tls: None,
        client_id: "a b&c".into(),
        client_secret: None,
        client_auth: ClientAuth::Basic,
        refresh_token: None,
        scopes: vec!["read".into(), "write:all".into()],
        audience: Some("https://api.example/".into()),
        timeout: Duration::from_secs(10),
    }
}

async fn sent(spec: &OAuth2Spec, secret: Option<&str>, refresh: Option<&str>) -> (Option<String>, String) {
    let (secret, refresh) = (secret.map(SecretString::from), refresh.map(SecretString::from));
    let request = request(spec, secret.as_ref(), refresh.as_ref()).unwrap();
    assert_eq!(
        (request.uri().to_string(), &request.headers()["host"]),
        ("/token?x=1".into(), &"localhost:81".parse().unwrap())
    );
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    (authorization, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn requests_are_as_the_rfc_has_them() {
    let spec = spec();
    let asked = "scope=read+write%3Aall&audience=https%3A%2F%2Fapi.example%2F";
    // Section 2.3.1: both are encoded before they are joined.
    let basic = format!("Basic {}", BASE64.encode(b"a+b%26c:s%3Aecr%C3%A9t"));
    assert_eq!(
        sent(&spec, Some("s:ecr\u{e9}t"), None).await,
        (Some(basic), format!("grant_type=client_credentials&{asked}"))
    );
    let post = OAuth2Spec { client_auth: ClientAuth::Post, ..spec.clone() };
    assert_eq!(
        sent(&post, Some("x&y"), Some("r=1")).await,
        (None, format!("grant_type=refresh_token&refresh_token=r%3D1&{asked}&client_id=a+b%26c&client_secret=x%26y"))
    );
    let (authorization, form) = sent(&spec, None, Some("r")).await;
    assert!(authorization.is_none() && form.ends_with("&client_id=a+b%26c"), "{form}");
}

#[test]
fn answers_are_read_as_the_rfc_has_them() {
    let ok = |text: &str| read(StatusCode::OK, text.as_bytes());
    let answer =
        ok(r#"{"access_token":"abc","token_type":"Bearer","expires_in":3600,"refresh_token":"next one","x":1}"#);
    let answer = answer.unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!((answer.token.expose_secret(), answer.lives), ("abc", Some(Duration::from_secs(3600))));
    assert_eq!(answer.refresh.map(|token| token.expose_secret().to_owned()), Some("next one".to_owned()));
    for (lives, seconds) in
        [("\"60\"", Some(60.0)), ("-5", Some(0.0)), ("1.5", Some(1.5)), ("\"soon\"", None), ("null", None)]
    {
        let text = format!(r#"{{"access_token":"abc","token_type":"BEARER","expires_in":{lives}}}"#);
        let answer = ok(&text).unwrap_or_else(|fault| panic!("{lives}: {fault}"));
        assert_eq!(answer.lives.map(|lives| lives.as_secs_f64()), seconds, "{lives}");
    }
    let text = r#"{"access_token":"abc","token_type":"bearer","expires_in":1e300}"#;
    assert_eq!(ok(text).ok().and_then(|answer| answer.lives), Some(LONGEST));
    for text in
        ["", "{", "[]", "{}", "access_token=abc&token_type=bearer", r#"{"access_token":1,"token_type":"bearer"}"#]
    {
        assert!(matches!(ok(text), Err(TokenFault::NotJson { .. })), "{text}");
    }
    for text in [
        r#"{"access_token":"abc","token_type":"mac"}"#,
        r#"{"access_token":"","token_type":"bearer"}"#,
        r#"{"access_token":"a\r\nX: y","token_type":"bearer"}"#,
        r#"{"access_token":"a b","token_type":"bearer"}"#,
        r#"{"access_token":"a","token_type":"bearer","refresh_token":"\u0000"}"#,
    ] {
        assert!(matches!(ok(text), Err(TokenFault::NotBearer)), "{text}");
    }
}

#[test]
fn an_error_says_nothing_but_its_name() {
    let told = |text: &str| match read(StatusCode::BAD_REQUEST, text.as_bytes()) {
        Err(fault) => fault.to_string(),
        Ok(_) => panic!("{text} is no token"),
    };
    let text = told(r#"{"error":"invalid_grant","error_description":"token hunter2 is gone"}"#);
    assert!(text.contains("400") && text.contains("invalid_grant") && text.contains("authorize anew"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!told(r#"{"error":"Hunter2 is no secret"}"#).contains("unter2"));
    assert_eq!(told("<html>hunter2</html>"), "the token endpoint answered 400 Bad Request");
}

#[tokio::test]
async fn what_is_kept_is_for_its_source_alone_and_for_nobody_else_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("tokens/x.token");
    assert!(stored(Some(place.clone())).await.is_none());
    let source = blake3::hash(b"first");
    for next in ["second", "third"] {
        write(&place, source, &next.into()).unwrap();
        let (of, token) = stored(Some(place.clone())).await.unwrap();
        assert_eq!((of, token.expose_secret()), (source, next));
    }
    assert_eq!(place.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::write(&place, "nonsense\n").unwrap();
    assert!(stored(Some(place.clone())).await.is_none());
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(stored(Some(place)).await.is_none(), "others may have changed it");
}
