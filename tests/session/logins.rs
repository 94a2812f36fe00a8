//! Every way to log in upstream, against the real server.

use std::{fs, path::Path, process::Command};

use portcullis_tests::{PASSWORD, Postgres, Server as _, TestHouse};

use crate::{POLICY, server};

const TLS: &str = "tls = { mode = \"verify-full\", ca = \"{ca}\" }";
const CREDENTIAL: &str = "credential = { source = \"file\", user = \"shop_agent\", path = \"{password}\" }";

/// The policy with another upstream TLS and another credential.
fn policy(tls: &str, credential: &str) -> String {
    assert!(POLICY.contains(TLS) && POLICY.contains(CREDENTIAL));
    POLICY.replace(TLS, tls).replace(CREDENTIAL, credential)
}

/// Logs in and reads; what the agent is told, if not.
async fn try_login(server: &Postgres, policy: &str) -> Result<(), String> {
    let house = TestHouse::new(server, policy).unwrap();
    let said = |error: &anyhow::Error| {
        let error = error.downcast_ref::<tokio_postgres::Error>().unwrap();
        let text =
            error.as_db_error().map_or_else(|| error.to_string(), |e| format!("{} {}", e.code().code(), e.message()));
        assert!(!text.contains(PASSWORD) && !text.contains("/tmp") && !text.contains("shop_agent"), "{text}");
        text
    };
    let client = house.client().await.map_err(|error| said(&error))?;
    let row = client.query_one("SELECT session_user::text", &[]).await.map_err(|error| said(&error.into()))?;
    assert_eq!(row.get::<_, &str>(0), "shop_agent");
    Ok(())
}

/// What libpq's modes check, toward a server whose certificate is for localhost and 127.0.0.1.
#[tokio::test]
async fn tls_is_checked_as_the_policy_says() {
    let server = server();
    for mode in ["disable", "require"] {
        try_login(&server, &policy(&format!("tls = {{ mode = \"{mode}\" }}"), CREDENTIAL)).await.unwrap();
    }
    for mode in ["verify-ca", "verify-full"] {
        try_login(&server, &policy(&format!("tls = {{ mode = \"{mode}\", ca = \"{{ca}}\" }}"), CREDENTIAL))
            .await
            .unwrap();
        // The system's roots did not sign it.
        let error =
            try_login(&server, &policy(&format!("tls = {{ mode = \"{mode}\" }}"), CREDENTIAL)).await.unwrap_err();
        assert!(error.starts_with("08001"), "{mode}: {error}");
    }
    let without = Postgres::start_with(&["ssl=off"]).unwrap();
    let error = try_login(&without, POLICY).await.unwrap_err();
    assert!(error.contains("does not offer TLS"), "{error}");
}

#[tokio::test]
async fn passwords_go_as_the_server_asks_for_them() {
    let server = server();
    let no_tls = policy("tls = { mode = \"disable\" }", CREDENTIAL);
    for (method, stored, plain_works) in
        [("scram-sha-256", "scram-sha-256", true), ("md5", "md5", true), ("password", "scram-sha-256", false)]
    {
        let password = format!("SET password_encryption = '{stored}'; ALTER ROLE shop_agent PASSWORD '{PASSWORD}'");
        server.sql("postgres", &password).unwrap();
        server.hba(&[&format!("host all all all {method}")]).unwrap();
        try_login(&server, POLICY).await.unwrap_or_else(|error| panic!("{method} over TLS: {error}"));
        let plain = try_login(&server, &no_tls).await;
        if plain_works {
            plain.unwrap_or_else(|error| panic!("{method} without TLS: {error}"));
        } else {
            let error = plain.unwrap_err();
            assert!(error.contains("not supported here"), "a cleartext password without TLS: {error}");
        }
    }
    // A method that nobody speaks here.
    server.hba(&["host all all all ident"]).unwrap();
    assert!(try_login(&server, POLICY).await.is_err());
}

#[tokio::test]
async fn a_client_certificate_logs_in_without_a_password() {
    let server = Postgres::start_with(&["ssl_ca_file=ca.crt"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = client_certificate(&server, dir.path(), "shop_agent");
    server.hba(&["hostssl all all all cert"]).unwrap();
    let tls = format!("tls = {{ mode = \"verify-full\", ca = \"{{ca}}\", cert = {cert:?}, key = {key:?} }}");
    let credential = "credential = { source = \"none\", user = \"shop_agent\" }";
    try_login(&server, &policy(&tls, credential)).await.unwrap();
    let error = try_login(&server, &policy(TLS, credential)).await.unwrap_err();
    assert!(error.starts_with("28000"), "{error}");
    let (cert, key) = client_certificate(&server, dir.path(), "somebody_else");
    let tls = format!("tls = {{ mode = \"verify-full\", ca = \"{{ca}}\", cert = {cert:?}, key = {key:?} }}");
    let error = try_login(&server, &policy(&tls, credential)).await.unwrap_err();
    assert!(error.starts_with("28000"), "{error}");
}

#[tokio::test]
async fn a_wrong_or_missing_credential_is_told_without_detail() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "not-the-password\n").unwrap();
    Command::new("chmod").arg("600").arg(&wrong).status().unwrap();
    let missing = dir.path().join("missing");
    for path in [&wrong, &missing] {
        let credential = format!("credential = {{ source = \"file\", user = \"shop_agent\", path = {path:?} }}");
        let error = try_login(&server, &policy(TLS, &credential)).await.unwrap_err();
        assert!(error.contains("28000") && error.contains("did not accept the credential"), "{error}");
    }
    // A program as the source, asked again for each login.
    let script = format!("printf '{{\"user\": \"shop_agent\", \"password\": \"{PASSWORD}\"}}'");
    let credential = format!("credential = {{ source = \"exec\", argv = [\"/bin/sh\", \"-c\", {script:?}] }}");
    try_login(&server, &policy(TLS, &credential)).await.unwrap();
    let credential = "credential = { source = \"exec\", argv = [\"/bin/false\"] }";
    assert!(try_login(&server, &policy(TLS, credential)).await.is_err());
}

/// A certificate of the server's CA for a user; returns the paths of the certificate and its key.
fn client_certificate(server: &Postgres, dir: &Path, user: &str) -> (String, String) {
    let data = server.ca().parent().unwrap().display().to_string();
    let script = format!(
        "set -e; umask 077; cd '{}'
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN={user}' -keyout {user}.key -out {user}.csr
         openssl x509 -req -in {user}.csr -CA {data}/ca.crt -CAkey {data}/ca.key -CAcreateserial -days 2 -out {user}.crt",
        dir.display()
    );
    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = |end: &str| dir.join(format!("{user}.{end}")).display().to_string();
    (path("crt"), path("key"))
}
