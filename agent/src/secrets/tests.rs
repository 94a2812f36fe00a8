use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    mask::{Hits, MaskSet, Masked},
    policy::Inject,
};

fn credential(source: CredentialSource) -> CredentialRef {
    CredentialRef { user: Some("reader".into()), ..CredentialRef::plain("orders".into(), source) }
}

fn file(path: impl Into<PathBuf>) -> CredentialRef {
    credential(CredentialSource::File { path: path.into() })
}

fn exec(argv: &[&str]) -> CredentialRef {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    credential(CredentialSource::Exec { argv, timeout: Duration::from_secs(20) })
}

fn shell(script: &str) -> CredentialRef {
    exec(&["/bin/sh", "-c", script])
}

fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) {
    // A file that its owner may not write is made anew.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn password(lease: &Lease) -> &str {
    lease.password.as_ref().unwrap().expose_secret()
}

async fn fault(secrets: &Secrets, credential: &CredentialRef) -> (SecretFault, String) {
    let error = secrets.lease(credential).await.expect_err("no credential");
    assert_eq!(error.to_string(), "the credential for this upstream is not available");
    let detail = error.detail();
    assert!(detail.starts_with("credential of upstream `orders`: "), "{detail}");
    (error.cause, detail)
}

#[tokio::test]
async fn a_file_is_read_anew_for_each_login() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders");
    let secrets = Secrets::new(Some(dir.path().to_owned()));
    for (bytes, value) in [
        ("first", "first"),
        ("two\n", "two"),
        ("three\r\n", "three"),
        (" f our \n\n", " f our \n"),
        ("f\u{fc}nf", "f\u{fc}nf"),
    ] {
        write(&path, bytes, 0o600);
        for credential in [file(&path), file("orders")] {
            let lease = secrets.lease(&credential).await.unwrap();
            assert_eq!((lease.user.as_deref(), password(&lease)), (Some("reader"), value));
            assert!(!format!("{lease:?}").contains(value));
        }
    }
}

#[tokio::test]
async fn a_file_that_others_can_read_or_change_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let secrets = Secrets::new(None);
    for mode in [0o644, 0o604, 0o620, 0o602, 0o601, 0o666, 0o777] {
        write(&path, "value", mode);
        let (fault, detail) = fault(&secrets, &file(&path)).await;
        assert!(matches!(fault, SecretFault::Exposed { mode: m, .. } if m == mode), "{mode:o} {fault:?}");
        assert!(detail.contains("chmod 0600") && !detail.contains("value"), "{detail}");
    }
    for mode in [0o400, 0o600, 0o640, 0o440] {
        write(&path, "value", mode);
        assert!(secrets.lease(&file(&path)).await.is_ok(), "{mode:o}");
    }
}

#[tokio::test]
async fn what_is_no_usable_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Secrets::new(Some(dir.path().to_owned()));
    let at = |name: &str| dir.path().join(name);
    for (name, bytes) in [("empty", &b""[..]), ("newline", b"\n"), ("crlf", b"\r\n")] {
        write(&at(name), bytes, 0o600);
        assert!(matches!(fault(&secrets, &file(name)).await.0, SecretFault::Empty), "{name}");
    }
    for (name, bytes) in [("nul", &b"a\0b"[..]), ("latin1", b"p\xe4ss"), ("endnul", b"abc\0\n")] {
        write(&at(name), bytes, 0o600);
        assert!(matches!(fault(&secrets, &file(name)).await.0, SecretFault::NotText), "{name}");
    }
    write(&at("cap"), [b'x'; VALUE_MAX], 0o600);
    assert_eq!(password(&secrets.lease(&file("cap")).await.unwrap()).len(), VALUE_MAX);
    for over in [1, 2, 3, 4, 1 << 20] {
        write(&at("over"), vec![b'x'; VALUE_MAX + over], 0o600);
        assert!(matches!(fault(&secrets, &file("over")).await.0, SecretFault::TooLong), "{over}");
    }
    assert!(matches!(fault(&secrets, &file("absent")).await.0, SecretFault::Read { .. }));
    assert!(fault(&secrets, &file("absent")).await.1.contains("No such file"));
    assert!(matches!(fault(&secrets, &file(dir.path())).await.0, SecretFault::NotAFile { .. }));
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    assert!(matches!(fault(&secrets, &file("fifo")).await.0, SecretFault::NotAFile { .. }));
    assert!(matches!(fault(&secrets, &file("../secret")).await.0, SecretFault::Escapes { .. }));
    assert!(matches!(fault(&secrets, &file("a/../../secret")).await.0, SecretFault::Escapes { .. }));
    let nowhere = Secrets::new(None);
    assert!(matches!(fault(&nowhere, &file("cap")).await.0, SecretFault::NoDirectory { .. }));
    assert!(fault(&nowhere, &file("cap")).await.1.contains("LoadCredential="));
}

#[tokio::test]
async fn no_secret_is_no_password() {
    let lease = Secrets::new(None).lease(&credential(CredentialSource::None)).await.unwrap();
    assert_eq!((lease.user.as_deref(), lease.password.is_none()), (Some("reader"), true));
}

#[tokio::test]
async fn a_program_answers_text_or_json() {
    let secrets = Secrets::new(None);
    for (script, user, value) in [
        ("echo s3cret", "reader", "s3cret"),
        ("printf 's3cret'", "reader", "s3cret"),
        (r#"echo '{"user": "dyn-7", "password": "p\"w"}'"#, "dyn-7", "p\"w"),
        (r#"printf '\n {"password":"pw"}'"#, "reader", "pw"),
        ("echo noise >&2; echo s3cret", "reader", "s3cret"),
    ] {
        let lease = secrets.lease(&shell(script)).await.unwrap();
        assert_eq!((lease.user.as_deref(), password(&lease)), (Some(user), value), "{script}");
    }
    // No shell of ours: an argument is an argument.
    let lease = secrets.lease(&exec(&["/bin/echo", "$(id) ; `id`"])).await.unwrap();
    assert_eq!(password(&lease), "$(id) ; `id`");
}

#[tokio::test]
async fn a_program_sees_a_path_and_nothing_else() {
    let lease = Secrets::new(None).lease(&exec(&["/usr/bin/env"])).await.unwrap();
    assert!(password(&lease).starts_with("PATH=/") && !password(&lease).contains('\n'), "{}", password(&lease));
    let lease = Secrets::new(None).lease(&shell("cat; pwd")).await.unwrap();
    assert_eq!(password(&lease), "/");
}

#[tokio::test]
async fn a_failing_program_is_told_to_the_operator_alone() {
    let secrets = Secrets::new(None);
    let (_, detail) = fault(&secrets, &shell("echo s3cret; printf 'vault is\\nsealed\\033[0m' >&2; exit 3")).await;
    assert!(detail.contains("exit status: 3 and said: vault is sealed [0m"), "{detail}");
    assert!(!detail.contains("s3cret"));
    let (_, detail) = fault(&secrets, &shell("yes x | head -c 1000000 >&2; exit 1")).await;
    assert!(detail.len() < 1500);
    assert!(matches!(fault(&secrets, &exec(&["/no/such/program"])).await.0, SecretFault::Start { .. }));
    assert!(matches!(fault(&secrets, &exec(&["echo", "x"])).await.0, SecretFault::NotAbsolute { .. }));
    assert!(matches!(fault(&secrets, &exec(&[])).await.0, SecretFault::NotAbsolute { .. }));
    assert!(matches!(fault(&secrets, &shell("true")).await.0, SecretFault::Empty));
    assert!(matches!(fault(&secrets, &shell("printf 'a\\000b'")).await.0, SecretFault::NotText));
    assert!(matches!(fault(&secrets, &shell("yes | head -c 70000")).await.0, SecretFault::TooLong));
    assert!(matches!(fault(&secrets, &shell("yes | head -c 1000000")).await.0, SecretFault::TooLong));
}

#[tokio::test]
async fn broken_json_is_no_password_and_is_not_quoted() {
    let secrets = Secrets::new(None);
    for json in [
        r#"{"password": "s3cret""#,
        r#"{"password": s3cret}"#,
        r#"{"pasword": "s3cret"}"#,
        r#"{"password": "s3cret", "s3cret": 1}"#,
        r#"{"password": ["s3cret"]}"#,
        r#"{"password": "s3cret"} s3cret"#,
    ] {
        let (fault, detail) = fault(&secrets, &exec(&["/bin/echo", json])).await;
        assert!(matches!(fault, SecretFault::NotJson { .. }), "{json} {fault:?}");
        assert!(!format!("{detail} {fault:?}").contains("s3cret"), "{detail}");
    }
    assert!(matches!(fault(&secrets, &exec(&["/bin/echo", r#"{"password":""}"#])).await.0, SecretFault::Empty));
    assert!(matches!(
        fault(&secrets, &exec(&["/bin/echo", r#"{"password":"a\u0000"}"#])).await.0,
        SecretFault::NotText
    ));
}

/// Whether a process lives; a zombie does not.
fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_slow_program_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 600 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pids.display());
    let mut slow = shell(&script);
    if let CredentialSource::Exec { timeout, .. } = &mut slow.source {
        *timeout = Duration::from_secs(600);
    }
    let task = tokio::spawn(async move { fault(&Secrets::new(None), &slow).await });
    until("started", || pids.exists()).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(601)).await;
    tokio::time::resume();
    let (fault, detail) = task.await.unwrap();
    assert!(matches!(fault, SecretFault::TimedOut { .. }), "{fault:?}");
    assert!(detail.contains("600000 ms"), "{detail}");
    let pids = fs::read_to_string(pids).unwrap();
    until("killed", || !pids.split_whitespace().any(alive)).await;
}

#[tokio::test]
async fn a_login_that_goes_away_leaves_no_program() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!("sleep 600 & echo $! $$ > {}.new; mv {0}.new {0}; wait", pids.display());
    let task = tokio::spawn(async move { Secrets::new(None).lease(&shell(&script)).await.is_ok() });
    until("started", || pids.exists()).await;
    task.abort();
    let pids = fs::read_to_string(pids).unwrap();
    until("killed", || !pids.split_whitespace().any(alive)).await;
}

#[tokio::test]
async fn every_leased_value_becomes_a_mask_and_stays_one() {
    let secrets = Secrets::new(None);
    assert!(secrets.known().is_empty());
    let before = secrets.known();
    for value in ["first-password", "second-password", "first-password"] {
        secrets.lease(&exec(&["/bin/echo", value])).await.unwrap();
    }
    assert!(before.is_empty());
    let set = MaskSet::none();
    let text = b"first-password and second-password and c2Vjb25kLXBhc3N3b3Jk";
    let masked = set.scrub(text, &secrets.known(), &mut Hits::default()).or_text(text).into_owned();
    assert_eq!(masked, b"[redacted] and [redacted] and [redacted]");
    assert!(!format!("{secrets:?} {:?}", secrets.known()).contains("password"));
    // A failed lease teaches nothing.
    let _ = secrets.lease(&shell("echo third; exit 1")).await;
    assert_eq!(set.scrub(b"third", &secrets.known(), &mut Hits::default()), Masked::Unchanged);
}

#[test]
fn of_very_many_values_the_least_recent_goes() {
    let secrets = Secrets::new(None);
    let value = |n: usize| SecretString::from(format!("<password-{n}>"));
    // Learning is quadratic in the number of values, which is small in life; here only the last ones are built.
    {
        let mut values = secrets.known.values.lock().unwrap();
        values.by_value = (0..KNOWN_MAX).map(|n| (n as u64 + 1, value(n))).collect();
        values.leases = KNOWN_MAX as u64;
    }
    secrets.known.learn(&value(0));
    secrets.known.learn(&value(KNOWN_MAX));
    let found = |n: usize| {
        let text = value(n).expose_secret().to_owned();
        MaskSet::none().scrub(text.as_bytes(), &secrets.known(), &mut Hits::default()) != Masked::Unchanged
    };
    assert!(found(0) && found(2) && found(KNOWN_MAX) && !found(1));
    assert_eq!(secrets.known.values.lock().unwrap().by_value.len(), KNOWN_MAX);
}

fn sigv4(path: &Path, user: Option<&str>) -> CredentialRef {
    let inject = Inject::try_from("sigv4:eu-central-1/s3".to_owned()).unwrap();
    CredentialRef { user: user.map(Into::into), inject, ..file(path) }
}

#[tokio::test]
async fn keys_of_aws_come_one_by_one_or_as_its_programs_give_them() {
    let dir = tempfile::tempdir().unwrap();
    let (path, token) = (dir.path().join("key"), dir.path().join("token"));
    let secrets = Secrets::new(None);
    write(&path, "the-secret-key\n", 0o600);
    write(&token, "the-session-token\n", 0o600);
    let token = CredentialSource::File { path: token };
    let credential = CredentialRef { session_token: Some(token), ..sigv4(&path, Some("AKIAONE")) };
    let lease = secrets.lease(&credential).await.unwrap();
    let session = |lease: &Lease| lease.session_token.as_ref().map(|token| token.expose_secret().to_owned());
    assert_eq!((lease.user.as_deref(), password(&lease)), (Some("AKIAONE"), "the-secret-key"));
    assert_eq!(session(&lease).as_deref(), Some("the-session-token"));
    assert!(secrets.known().are_in(b"the-session-token"));
    assert!(matches!(fault(&secrets, &sigv4(&path, None)).await.0, SecretFault::NoKeyId));
    // As `credential_process` has it, from a file or a program.
    let json = r#"{"Version": 1, "AccessKeyId": "ASIATWO", "SecretAccessKey": "another/key", "SessionToken": "another-token",
                   "Expiration": "2124-01-01T00:00:00Z"}"#;
    write(&path, json, 0o600);
    let program = CredentialRef { user: None, ..exec(&["/bin/cat", path.to_str().unwrap()]) };
    for credential in [sigv4(&path, None), CredentialRef { inject: sigv4(&path, None).inject, ..program }] {
        let secrets = Secrets::new(None);
        let lease = secrets.lease(&credential).await.unwrap();
        assert_eq!((lease.user.as_deref(), password(&lease)), (Some("ASIATWO"), "another/key"));
        assert_eq!(session(&lease).as_deref(), Some("another-token"));
        assert!(lease.is_fresh() && lease.until.is_some());
        assert!(secrets.known().are_in(b"another/key") && secrets.known().are_in(b"another-token"));
    }
    write(&path, json.replace("2124", "2024"), 0o600);
    assert!(!secrets.lease(&sigv4(&path, None)).await.unwrap().is_fresh());
    for wrong in ["{", "{}", r#"{"AccessKeyId": 1, "SecretAccessKey": "hidden"}"#] {
        write(&path, wrong, 0o600);
        let (fault, detail) = fault(&secrets, &sigv4(&path, None)).await;
        assert!(matches!(fault, SecretFault::NotAwsJson { .. }) && !detail.contains("hidden"), "{wrong}: {detail}");
    }
}
