//! What a governed command finds in its environment, and what it does not.

use std::{collections::BTreeMap, ffi::OsString, path::Path, process::Command, time::SystemTime};

use super::user::Target;
use crate::control::proto::{Opened, Variables};

/// Variables that hold a credential, name a file with one, or send a client past the enforcer. The policy's own
/// credentials take their place, so a governed command has no use for them.
pub const UNSET: &[&str] = &[
    // libpq and its drivers
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGSYSCONFDIR",
    "PGSSLKEY",
    "PGSSLCERT",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGHOSTADDR",
    "PGOPTIONS",
    // other databases, and what frameworks and images name theirs
    "DATABASE_URL",
    "DATABASE_PASSWORD",
    "DB_PASSWORD",
    "DB_URL",
    "POSTGRES_PASSWORD",
    "POSTGRES_URL",
    "POSTGRESQL_PASSWORD",
    "POSTGRESQL_URL",
    "SQLALCHEMY_DATABASE_URI",
    "MYSQL_PWD",
    "MYSQL_PASSWORD",
    "MYSQL_ROOT_PASSWORD",
    "MYSQL_TEST_LOGIN_FILE",
    "MYSQL_URL",
    "MARIADB_PASSWORD",
    "MARIADB_ROOT_PASSWORD",
    "REDISCLI_AUTH",
    "REDIS_PASSWORD",
    "REDIS_URL",
    "MONGODB_URI",
    "MONGO_URL",
    "CLICKHOUSE_PASSWORD",
    "SQLCMDPASSWORD",
    "SNOWSQL_PWD",
    "DATABRICKS_TOKEN",
    // agents and sockets that lend out keys
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "KUBECONFIG",
    "HELM_KUBETOKEN",
    "KRB5CCNAME",
    "KRB5_KTNAME",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
    "SUDO_ASKPASS",
    "NETRC",
    "XDG_RUNTIME_DIR",
    // tokens
    "VAULT_TOKEN",
    "BAO_TOKEN",
    "VAULT_SECRET_ID",
    "CONSUL_HTTP_TOKEN",
    "NOMAD_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "CLOUDSDK_CONFIG",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_CONFIG_DIR",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_PASSWORD",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "ARM_ACCESS_KEY",
    "ARM_CLIENT_SECRET",
    "IDENTITY_HEADER",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "ACTIONS_RUNTIME_TOKEN",
    "CI_JOB_TOKEN",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "GITLAB_TOKEN",
    "NPM_TOKEN",
    "NODE_AUTH_TOKEN",
    "CARGO_REGISTRY_TOKEN",
    "TWINE_PASSWORD",
    // our own
    "PORTCULLIS_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
];

/// Variables that name a bundle of roots, for clients that take one bundle only.
const BUNDLES: &[&str] = &[
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "NIX_SSL_CERT_FILE",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
];

/// Options for every JVM. Those of a session stand behind the caller's: of an option that stands twice the last holds.
const JAVA_OPTIONS: &str = "JAVA_TOOL_OPTIONS";

/// Password of Java's trust store. What is in it is public, but a JVM that is given no password takes nothing from it;
/// this one is what Java's own stores have.
pub const STORE_PASSWORD: &str = "changeit";

/// What the daemon knows about a session, for its variables.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Its id.
    pub session: &'a str,
    /// Workload name.
    pub workload: &'a str,
    /// Why it runs.
    pub intent: Option<&'a str>,
    /// W3C trace id.
    pub trace_id: &'a str,
    /// PEM of the runtime CA alone.
    pub ca: &'a Path,
    /// PEM of the system's roots and the runtime CA.
    pub bundle: &'a Path,
    /// The same as a store of PKCS#12.
    pub store: &'a Path,
    /// Folder for unix sockets of its own, if it has one.
    pub sockets: Option<&'a Path>,
    /// Tells spans of sessions apart; not secret.
    pub now: SystemTime,
}

/// The variables of a session.
pub fn variables(facts: &Facts<'_>) -> BTreeMap<String, String> {
    let ca = facts.ca.display().to_string();
    let bundle = facts.bundle.display().to_string();
    let nanos = facts.now.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos());
    // Never all zero: https://www.w3.org/TR/trace-context/#parent-id
    let span = (nanos as u64).max(1);
    let mut out = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        // A NUL cannot be in an environment; the daemon refuses intents that have one.
        out.insert(name.to_owned(), value.replace('\0', ""));
    };
    set("PORTCULLIS_SESSION", facts.session);
    set("PORTCULLIS_WORKLOAD", facts.workload);
    if let Some(intent) = facts.intent {
        set("PORTCULLIS_INTENT", intent);
    }
    set("TRACEPARENT", &format!("00-{}-{span:016x}-01", facts.trace_id));
    if let Some(sockets) = facts.sockets {
        // Where programs put their sockets; those that the caller had are of the host.
        for name in ["XDG_RUNTIME_DIR", "TMUX_TMPDIR"] {
            set(name, &sockets.display().to_string());
        }
    }
    // glibc asks over TCP, which goes everywhere that sessions do. It also has Go ask glibc, where it is built with cgo.
    set("RES_OPTIONS", "use-vc");
    // The enforcer speaks for the upstream with a certificate of the runtime CA.
    set("PGSSLROOTCERT", &ca);
    set("NODE_EXTRA_CA_CERTS", &ca);
    set("DENO_CERT", &ca);
    for name in BUNDLES {
        set(name, &bundle);
    }
    set(JAVA_OPTIONS, &java_options(facts.store));
    out
}

/// <https://docs.oracle.com/en/java/javase/17/security/java-secure-socket-extension-jsse-reference-guide.html>,
/// "Customizing the Default Keystores and Truststores".
fn java_options(store: &Path) -> String {
    let option = |name: &str, value: &str| match value.contains(char::is_whitespace) {
        // The JVM cuts at white space outside of quotes.
        true => format!("-Djavax.net.ssl.{name}='{value}'"),
        false => format!("-Djavax.net.ssl.{name}={value}"),
    };
    let store = option("trustStore", &store.display().to_string());
    [store, option("trustStoreType", "PKCS12"), option("trustStorePassword", STORE_PASSWORD)].join(" ")
}

/// The trace id of a `traceparent` (W3C Trace Context, version 00), to join.
pub(super) fn trace_id(traceparent: Option<&str>) -> Option<String> {
    let mut fields = traceparent?.split('-');
    let (version, trace) = (fields.next()?, fields.next()?);
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let valid = version == "00" && trace.len() == 32 && hex(trace) && trace.bytes().any(|b| b != b'0');
    (valid && fields.count() == 2).then(|| trace.to_owned())
}

/// Most of an environment that is looked through for secrets, in bytes of the request that carries it.
const MAX_LOOKED_THROUGH: usize = 64 << 10;

/// An environment, sorted for the daemon to look through.
#[derive(Debug, Default)]
pub(super) struct LookedThrough {
    /// What the daemon is sent.
    pub(super) variables: Variables,
    /// What it cannot be sent, and so the command must not have: names that are no text, and the largest.
    pub(super) left_out: Vec<OsString>,
}

/// Sorts an environment, without what the command gets in no case.
pub(super) fn to_look_through(variables: impl Iterator<Item = (OsString, OsString)>) -> LookedThrough {
    let mut sorted = LookedThrough::default();
    let mut fitting = Vec::new();
    for (name, value) in variables {
        match name.to_str() {
            Some(text) if UNSET.contains(&text) => {}
            // Bytes of a value that are no text are of no secret: those are text.
            Some(text) => fitting.push((text.to_owned(), value.to_string_lossy().into_owned())),
            None => sorted.left_out.push(name),
        }
    }
    fitting.sort_by_key(|(name, value)| name.len() + value.len());
    let mut room = MAX_LOOKED_THROUGH;
    for (name, value) in fitting {
        // As it is written in the request, where some bytes take six.
        let bytes = serde_json::to_string(&(&name, &value)).map_or(usize::MAX, |text| text.len());
        match room.checked_sub(bytes) {
            Some(left) => {
                room = left;
                sorted.variables.0.insert(name, value);
            }
            None => sorted.left_out.push(name.into()),
        }
    }
    sorted
}

/// Makes the command's environment: the caller's, less what it must not have, with the session's.
pub(super) fn apply(command: &mut Command, opened: &Opened, user: Option<&Target>) {
    for name in UNSET.iter().copied().chain(opened.unset.iter().map(String::as_str)) {
        command.env_remove(name);
    }
    if let Some(user) = user {
        for name in ["SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND", "MAIL"] {
            command.env_remove(name);
        }
        command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name).env("SHELL", &user.shell);
    }
    // After what must not be there was taken away.
    let java = said(command, JAVA_OPTIONS).filter(|said| !said.is_empty());
    command.envs(&opened.env);
    if let (Some(mut all), Some(own)) = (java, opened.env.get(JAVA_OPTIONS)) {
        all.push(" ");
        all.push(own);
        command.env(JAVA_OPTIONS, all);
    }
}

/// What a command's variable is, as things stand.
fn said(command: &Command, name: &str) -> Option<OsString> {
    match command.get_envs().find(|(known, _)| *known == name) {
        Some((_, changed)) => changed.map(OsString::from),
        None => std::env::var_os(name),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{
        launch::room::Room,
        policy::{Filesystem, Temporary},
    };

    #[test]
    fn only_a_valid_traceparent_is_joined() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(Some(&format!("00-{trace}-00f067aa0ba902b7-01"))).as_deref(), Some(trace));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(trace_id(Some(bad)), None, "{bad}");
        }
        assert_eq!(trace_id(None), None);
    }

    #[test]
    fn what_cannot_be_looked_through_is_left_out() {
        use std::os::unix::ffi::OsStringExt;
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let odd = OsString::from_vec(vec![b'A', 0xff]);
        let large = "x".repeat(MAX_LOOKED_THROUGH);
        let controls = "\u{1}".repeat(MAX_LOOKED_THROUGH / 5);
        let all = [
            pair("PATH", "/bin"),
            pair("PGPASSWORD", "never sent"),
            pair("LARGE", &large),
            pair("CONTROLS", &controls),
            pair("MIDDLE", &large[..MAX_LOOKED_THROUGH / 2]),
            (odd.clone(), "x".into()),
        ];
        let sorted = to_look_through(all.into_iter());
        assert_eq!(sorted.variables.0.keys().collect::<Vec<_>>(), ["MIDDLE", "PATH"]);
        assert_eq!(sorted.left_out, [odd, "CONTROLS".into(), "LARGE".into()]);
        assert_eq!(format!("{:?}", sorted.variables), "Variables(2)");
    }

    #[test]
    fn the_command_keeps_no_credential_variable() {
        let env = variables(&Facts {
            session: "s",
            workload: "w",
            intent: Some("why\0not"),
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
            ca: Path::new("/run/p/ca.pem"),
            bundle: Path::new("/run/p/ca-bundle.pem"),
            store: Path::new("/run/p/ca-bundle.p12"),
            sockets: Some(Path::new("/run/p/session")),
            now: SystemTime::UNIX_EPOCH,
        });
        assert_eq!(env["PORTCULLIS_INTENT"], "whynot");
        assert_eq!(trace_id(Some(&env["TRACEPARENT"])).unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(!env["TRACEPARENT"].contains("-0000000000000000-"));
        let opened = Opened {
            session: "s".into(),
            cgroup: "/c".into(),
            cgroup_dir: "/sys/c".into(),
            controllers: BTreeMap::new(),
            room: Room {
                temporary: Temporary::Private,
                filesystem: Filesystem::Host,
                sockets: "/run/p/session".into(),
                keep: Vec::new(),
            },
            unix: crate::bpf::UnixHooks::Attached,
            user: None,
            ends_at: None,
            env,
            unset: vec!["EXTRA_TOKEN".into()],
        };
        let mut command = Command::new("true");
        command
            .env("PGPASSWORD", "x")
            .env("EXTRA_TOKEN", "y")
            .env("PGSSLROOTCERT", "/mine")
            .env(JAVA_OPTIONS, "-Xmx64m -Djavax.net.ssl.trustStore=/mine")
            .env("XDG_RUNTIME_DIR", "/run/user/1");
        apply(&mut command, &opened, None);
        let after: BTreeMap<_, _> = command.get_envs().collect();
        assert_eq!(after[std::ffi::OsStr::new("PGPASSWORD")], None);
        assert_eq!(after[std::ffi::OsStr::new("EXTRA_TOKEN")], None);
        assert_eq!(after[std::ffi::OsStr::new("PGSSLROOTCERT")].unwrap(), "/run/p/ca.pem");
        assert_eq!(after[std::ffi::OsStr::new("XDG_RUNTIME_DIR")].unwrap(), "/run/p/session");
        let own = "-Djavax.net.ssl.trustStore=/run/p/ca-bundle.p12 -Djavax.net.ssl.trustStoreType=PKCS12 \
                   -Djavax.net.ssl.trustStorePassword=changeit";
        let java = |command: &Command| said(command, JAVA_OPTIONS).unwrap().into_string().unwrap();
        assert_eq!(java(&command), format!("-Xmx64m -Djavax.net.ssl.trustStore=/mine {own}"));
        // Nothing was there, or what was there must not be.
        for (value, unset) in [("", "OTHER"), ("-Dsecret", JAVA_OPTIONS)] {
            let mut command = Command::new("true");
            let mut opened = opened.clone();
            opened.unset.push(unset.into());
            command.env(JAVA_OPTIONS, value);
            apply(&mut command, &opened, None);
            assert_eq!(java(&command), own);
        }
        assert!(java_options(Path::new("/run/of p/s")).starts_with("-Djavax.net.ssl.trustStore='/run/of p/s' "));
    }
}
