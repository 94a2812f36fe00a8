//! Clients in Go, Java and C, which bring their own TLS, their own idea of whom to trust, or their own resolver.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use portcullis_tests::{Daemon, PASSWORD, Postgres, SHOP_POLICY, Server as _, Web};

use crate::{
    languages::{run, tools},
    text,
    web::{POLICY, record},
};

/// Everything that a client sent had the credential in the place of its own, and nothing of a refused request came
/// through.
fn all_of_it_is_right(web: &Web, daemon: &Daemon, requests: usize) {
    let seen = web.seen().unwrap();
    assert_eq!(seen.len(), requests, "{seen:?}");
    let credential = format!("Bearer {PASSWORD}");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some(&*credential)), "{seen:?}");
    assert!(!seen.iter().any(|seen| seen.path.contains("admin")), "{seen:?}");
    let record = record(daemon);
    assert!(record.contains("no administration") && !record.contains(PASSWORD), "{record:.2000}");
}

/// Its output with one variable less than a session has.
fn without(daemon: &Daemon, variable: &str, program: &str, arguments: &[&str]) -> Output {
    let arguments = [&["-u", variable, program], arguments].concat();
    daemon.governed("/usr/bin/env", &arguments).unwrap().output().unwrap()
}

/// Builds the client in Go, with C's resolver or with Go's own.
fn go(daemon: &Daemon, cgo: &str) -> PathBuf {
    // What Go builds of itself is kept for the next time.
    let (to, cache) = (daemon.path("go-client"), tools().join("go"));
    let source = daemon.path("go_client.go");
    fs::write(&source, include_str!("go_client.go")).unwrap();
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&to).arg(&source).current_dir(daemon.path(""));
    build.env("CGO_ENABLED", cgo).env("GOCACHE", &cache).env("GOPATH", &cache).env("GOFLAGS", "");
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", text(&built));
    let about = Command::new("go").args(["version", "-m"]).arg(&to).output().unwrap();
    assert!(text(&about).contains(&format!("CGO_ENABLED={cgo}")), "{}", text(&about));
    to
}

#[test]
fn go_with_and_without_cgo() {
    for cgo in ["1", "0"] {
        let web = Web::start_http2().unwrap();
        let daemon = Daemon::start(&web, POLICY).unwrap();
        let client = go(&daemon, cgo).display().to_string();
        let url = format!("https://localhost:{}", web.port());
        for version in ["HTTP/1.1", "HTTP/2.0"] {
            run(&daemon, &mut daemon.governed(&client, &[&url, version]).unwrap());
        }
        all_of_it_is_right(&web, &daemon, 2 * 21);
        // It is by the session's bundle that the enforcer is trusted.
        let said = text(&without(&daemon, "SSL_CERT_FILE", &client, &[&url, "HTTP/2.0"]));
        assert!(said.contains("x509") && !said.contains("ok\n"), "{said}");
    }
}

/// Writes the client in Java.
fn java_file(daemon: &Daemon) -> String {
    let file = daemon.path("JavaClient.java");
    fs::write(&file, include_str!("JavaClient.java")).unwrap();
    file.display().to_string()
}

/// Gives a command no file of hosts, and these settings of resolvers.
fn by_names_alone(daemon: &Daemon, resolv_conf: &str, command: &Command) -> Command {
    let [hosts, settings] = [("hosts", "# nobody\n"), ("resolv.conf", resolv_conf)].map(|(name, content)| {
        let path = daemon.path(name);
        fs::write(&path, content).unwrap();
        path
    });
    let script = "mount --bind \"$0\" /etc/hosts && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script]).arg(hosts).arg(settings);
    wrapped.arg(command.get_program()).args(command.get_args()).current_dir("/").stdin(Stdio::null());
    wrapped
}

#[test]
fn names_are_found_over_tcp_and_udp() {
    let web = Web::start_http2().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let url = format!("https://localhost:{}", web.port());
    // A name server that does not exist: the enforcer answers in its place.
    let plain = "nameserver 192.0.2.53\n";
    let over_tcp = "nameserver 192.0.2.53\noptions use-vc\n";
    let ask = |cgo: &str, resolv_conf: &str, url: &str| {
        let client = go(&daemon, cgo).display().to_string();
        let command = daemon.governed(&client, &[url, "HTTP/2.0"]).unwrap();
        text(&by_names_alone(&daemon, resolv_conf, &command).output().unwrap())
    };
    for (cgo, resolv_conf) in [("1", plain), ("0", over_tcp), ("0", plain)] {
        assert_eq!(ask(cgo, resolv_conf, &url), "ok\n", "{cgo}: {}", daemon.log());
        assert!(ask(cgo, resolv_conf, "https://evil.example").contains("no such host"), "{cgo}");
    }
    let command = daemon.governed("java", &[&java_file(&daemon), &url, "HTTP_2", "HTTP_2"]).unwrap();
    let output = by_names_alone(&daemon, plain, &command).env("JAVA_TOOL_OPTIONS", "-Dmine=kept").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{}{}", text(&output), daemon.log());
    assert!(record(&daemon).contains("dns evil.example"), "{}", record(&daemon));
}

/// A client with musl's resolver, which asks over UDP alone: resolves, connects, and asks whether TLS is spoken.
const MUSL: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int count, char **arguments) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    int failed = getaddrinfo(arguments[1], arguments[2], &hints, &found);
    if (failed) return printf("%s\n", gai_strerror(failed)), 1;
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen)) return perror("connect"), 1;
    char answer = '-';
    write(fd, "\0\0\0\10\4\322\26\57", 8);
    read(fd, &answer, 1);
    return printf("%c\n", answer), 0;
}
"#;

#[test]
fn musl_finds_names_over_udp_and_connects() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, &SHOP_POLICY.replace("127.0.0.1:", "localhost:")).unwrap();
    let client = daemon.path("musl-client").display().to_string();
    let source = daemon.path("musl.c");
    fs::write(&source, MUSL).unwrap();
    let built = Command::new("musl-gcc").args(["-static", "-O1", "-o", &client]).arg(&source).output().unwrap();
    assert!(built.status.success(), "{}", text(&built));
    let ask = |resolv_conf: &str, host: &str| {
        let command = daemon.governed(&client, &[host, &server.port.to_string()]).unwrap();
        text(&by_names_alone(&daemon, resolv_conf, &command).output().unwrap())
    };
    // Name servers that do not exist, of either family, and what the host's own often is.
    for servers in
        ["nameserver 192.0.2.53\n", "nameserver 192.0.2.53\nnameserver 2001:db8::53\n", "nameserver 127.0.0.53\n"]
    {
        assert_eq!(ask(servers, "localhost"), "S\n", "{servers}: {}", daemon.log());
        assert_eq!(ask(servers, "evil.example"), "Name does not resolve\n", "{servers}");
    }
    assert!(record(&daemon).contains("dns evil.example AAAA"), "{}", record(&daemon));
}

#[test]
fn java() {
    let web = Web::start_http2().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let file = java_file(&daemon);
    let java = |arguments: &[&str]| {
        let mut command = daemon.governed("java", &[&[&*file], arguments].concat()).unwrap();
        // A store of its own, which no JVM can have here.
        let output =
            command.env("JAVA_TOOL_OPTIONS", "-Dmine=kept -Djavax.net.ssl.trustStore=/nowhere").output().unwrap();
        // On standard error the JVM says which options it picked up.
        let said = text(&output);
        assert!(output.status.success() && output.stdout == b"ok\n", "{said}\n{}", daemon.log());
    };
    let url = format!("https://localhost:{}", web.port());
    java(&[&url, "HTTP_1_1", "HTTP_1_1"]);
    java(&[&url, "HTTP_2", "HTTP_2"]);
    // In the clear it asks for an upgrade to HTTP/2, which it is not given.
    java(&[&format!("http://localhost:{}", web.port()), "HTTP_2", "HTTP_1_1"]);
    all_of_it_is_right(&web, &daemon, 3 * 21);
    // It is by the session's store that the enforcer is trusted.
    let arguments = ["-Dmine=kept", &file, &url, "HTTP_2", "HTTP_2"];
    let said = text(&without(&daemon, "JAVA_TOOL_OPTIONS", "java", &arguments));
    assert!(said.contains("unable to find valid certification path") && !said.contains("ok\n"), "{said}");
}

/// What is in Java's store is what is in the bundle, also after the daemon has made another authority.
#[test]
fn javas_store_and_the_bundle_are_one() {
    let mut daemon = Daemon::start_alone(POLICY, "").unwrap();
    let mut before = String::new();
    for _ in 0..2 {
        let keytool = Command::new("keytool")
            .args(["-list", "-rfc", "-storetype", "PKCS12", "-storepass", "changeit", "-keystore"])
            .arg(daemon.path("run/trust/ca-bundle.p12"))
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&keytool.stdout).into_owned();
        let bundle = fs::read_to_string(daemon.path("run/trust/ca-bundle.pem")).unwrap();
        let certificates = |pem: &str| {
            let bodies = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
            let body = |text: &str| text.split("-----END").next().unwrap().split_whitespace().collect::<String>();
            let mut all: Vec<_> = bodies.map(body).collect();
            all.sort();
            all
        };
        assert_eq!(certificates(&listed), certificates(&bundle), "{}", text(&keytool));
        let trusted = listed.matches("Entry type: trustedCertEntry").count();
        assert_eq!(trusted, certificates(&bundle).len(), "{listed:.1000}");
        assert_ne!(bundle, before);
        before = bundle;
        daemon.kill().unwrap();
        daemon.launch().unwrap();
    }
    // A name that a reload brings is for a further authority, and both are in the files then.
    let read = || fs::read_to_string(daemon.path("run/trust/ca.pem")).unwrap();
    let (first, file) = (read(), daemon.path("policies/bot.toml"));
    let policy = fs::read_to_string(&file).unwrap();
    fs::write(&file, policy.replace("[\"localhost:", "[\"other.example:443\", \"localhost:")).unwrap();
    daemon.ok(&["reload"]).unwrap();
    assert!(read().starts_with(&first) && read().matches("BEGIN CERTIFICATE").count() == 2, "{}", daemon.log());
    assert_eq!(daemon.status().unwrap()["ca"]["count"], 2);
    let store = fs::metadata(daemon.path("run/trust/ca-bundle.p12")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&store.permissions()) & 0o777, 0o644);
}
