//! What a command finds in its environment, and what it does not.

use std::collections::BTreeMap;

use portcullis_tests::{Daemon, PASSWORD, SHOP_POLICY, secret};

#[test]
fn no_variable_carries_a_credential_that_the_policy_keeps() {
    let daemon = Daemon::start_alone(SHOP_POLICY, "").expect("a daemon");
    let url = format!("postgres://shop_agent:{PASSWORD}@db/shop?sslmode=require");
    let encoded: String = PASSWORD.bytes().map(|byte| format!("{byte:02x}")).collect();
    let large = "x".repeat(100_000);
    let dropped = [
        // By their names, whatever is in them.
        ("PGPASSWORD", "p"),
        ("PGPASSFILE", "/p"),
        ("PGSERVICE", "p"),
        ("KUBECONFIG", "/p"),
        ("AWS_SECRET_ACCESS_KEY", "p"),
        ("AWS_PROFILE", "p"),
        ("DATABASE_URL", "p"),
        // By what is in them: the workload's own credential, before anybody used it.
        ("MINE", PASSWORD),
        ("SHOP_DSN", &url),
        ("HEX", &encoded),
        // By nobody having looked through them.
        ("LARGE", &large),
    ];
    let kept =
        [("PLAIN", "hello"), ("ANTHROPIC_API_KEY", "sk-of-the-agent"), ("NEARLY", &PASSWORD[1..]), ("EMPTY", "")];
    let mut command = daemon.governed("env", &["-0"]).expect("a command");
    let output = command.envs(dropped).envs(kept).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let found: BTreeMap<&str, &str> = stdout.split('\0').filter_map(|line| line.split_once('=')).collect();
    for (name, _) in dropped {
        assert!(!found.contains_key(name), "{name}");
    }
    for (name, value) in kept {
        assert_eq!(found.get(name), Some(&value), "{name}");
    }
    assert!(found.contains_key("PATH") && found.contains_key("PORTCULLIS_SESSION"), "{found:?}");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["portcullis: `LARGE` is left out: it cannot be looked through for secrets"]
    );
    // What was looked through is kept nowhere.
    std::fs::remove_file(daemon.path("credential")).expect("the only file that may have it");
    secret::not_in_files(&daemon.path("")).expect("it is in no file");
}
