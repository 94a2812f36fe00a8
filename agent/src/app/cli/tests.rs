use std::sync::Arc;

use clap::{CommandFactory, Parser};
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    action::{ProcessFacts, Target, Verb},
    control::proto::{CaStatus, PolicyStatus, SessionRow, StatusView},
    hold::{Estimate, HoldState, HoldView, Sample, SampleRow},
    record::{DecisionNote, Event, EventBody},
};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent_and_each_command_shows_an_example() {
    Cli::command().debug_assert();
    fn examples(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") || sub.has_subcommands(), "{path} has no example");
            for line in help.lines().filter(|line| line.starts_with("  portcullis")) {
                assert!(line.contains(path.trim_start()), "the example of {path} shows {line}");
            }
            examples(sub, &path);
        }
    }
    examples(&Cli::command(), "portcullis");
}

#[test]
fn the_governed_command_keeps_its_own_flags() {
    let cli = parse("portcullis run -w bot --ttl 1h psql -h db --json -c x").unwrap();
    let Command::Run(run) = cli.command else { panic!("{cli:?}") };
    assert_eq!(run.command, ["psql", "-h", "db", "--json", "-c", "x"]);
    assert_eq!(run.ttl, Some(std::time::Duration::from_secs(3600)));
    let cli = parse("portcullis run --workload bot -- --odd --ttl 9").unwrap();
    let Command::Run(run) = cli.command else { panic!("{cli:?}") };
    assert_eq!(run.command, ["--odd", "--ttl", "9"]);
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "portcullis",
        "portcullis run -- psql",
        "portcullis run -w bot",
        "portcullis run -w bot --ttl 0s -- psql",
        "portcullis run -w bot --user ann --i-know-root-escapes -- psql",
        "portcullis held x --watch",
        "portcullis approve",
        "portcullis approve x --for soon",
        "portcullis replay s --speed 0",
        "portcullis policy explain -w bot 'x'",
        "portcullis completions elvish-ish",
        "portcullis no-such",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
    }
    assert_eq!(parse("portcullis --help").unwrap_err().exit_code(), 0);
    assert!(!parse("portcullis --version").unwrap_err().use_stderr());
}

#[test]
fn exit_codes_tell_what_happened() {
    let refused = |code| CliError::Client(ClientError::Refused(Failure::new(code, "no")));
    let unreachable = |kind: io::ErrorKind| {
        CliError::Client(ClientError::Unreachable { path: "/x.sock".into(), source: kind.into() })
    };
    for (error, exit) in [
        (refused(Code::Denied), Exit::Denied),
        (refused(Code::Usage), Exit::Usage),
        (refused(Code::NotFound), Exit::Failed),
        (refused(Code::Failed), Exit::Failed),
        (unreachable(io::ErrorKind::NotFound), Exit::Unreachable),
        (unreachable(io::ErrorKind::ConnectionRefused), Exit::Unreachable),
        (unreachable(io::ErrorKind::PermissionDenied), Exit::Denied),
        (CliError::Client(ClientError::Broken(None)), Exit::Failed),
        (CliError::Output(io::ErrorKind::BrokenPipe.into()), Exit::Ok),
    ] {
        let mut out = Vec::new();
        assert_eq!(explain(&error, &mut out), exit, "{error:?}");
    }
    let mut out = Vec::new();
    explain(&CliError::Client(ClientError::Refused(Failure::new(Code::Denied, "a\u{1b}[2Jb").help("c\nd"))), &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "portcullis: a\\u{1b}[2Jb\n  help: c d\n");
}

#[test]
fn the_socket_is_named_by_flag_then_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    std::fs::write(&file, "runtime_dir = \"/tmp/other\"\n").unwrap();
    let named = Place { config: Some(file.clone()), socket: Some("/x/y.sock".into()) };
    assert_eq!(named.socket().unwrap(), std::path::Path::new("/x/y.sock"));
    if std::env::var_os("PORTCULLIS_SOCKET").is_none() {
        let by_settings = Place { config: Some(file), socket: None };
        assert_eq!(by_settings.socket().unwrap(), std::path::Path::new("/tmp/other/control.sock"));
    }
}

fn hold(command: &str) -> HoldView {
    let now = Timestamp::UNIX_EPOCH;
    HoldView {
        id: "7k2m".into(),
        state: HoldState::Requested,
        workload: "support-bot-with-a-long-name".into(),
        session: "01JD0000000000000000000000".into(),
        connection_id: 3,
        seq: 9,
        process: ProcessFacts { pid: 4242, uid: 1000, comm: "psql".into(), exe: Some("/usr/bin/psql".into()) },
        intent: Some("refund order 17\u{202e}".into()),
        turns: Vec::new(),
        upstream: "orders".into(),
        database: Some("shop".into()),
        command: command.into(),
        hash: "ab".repeat(32),
        action: vec![(Verb::Write, Target::new("public.orders"))],
        rule: "writes wait".into(),
        reason: "a person looks at changes".into(),
        reviewers: vec!["group:dba".into()],
        required: 2,
        approvals: Vec::new(),
        estimate: Some(Estimate {
            rows: Some(12_345_678),
            note: "the planner's estimate".into(),
            counted: false,
            sample: None,
        }),
        requested_at: now,
        expires_at: now + SignedDuration::from_secs(754),
    }
}

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn tables_fit_80_columns_whatever_is_in_them() {
    let long_word = "x".repeat(500);
    let wide = format!("UPDATE orders SET note = '{}' WHERE id = 17", "word ".repeat(40));
    for command in ["SELECT 1", &wide, &long_word, "", "DROP TABLE \u{1b}[31morders\u{7}\n-- hidden"] {
        let row = held::row(&hold(command), Timestamp::UNIX_EPOCH);
        let header = &["ID", "WHO", "UPSTREAM", "COMMAND", "ROWS", "LEFT"];
        let text = print::table(header, vec![row], Some(80), print::Colour::Never);
        assert!(widest(&text) <= 80, "{}\n{text}", widest(&text));
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert!(text.contains("7k2m") && text.contains("12m 34s"), "{text}");
    }
    let session = SessionRow {
        session: "01JD0000000000000000000000".into(),
        workload: "support-bot".into(),
        state: "expired".into(),
        started_at: "2026-11-21T03:22:11.123456Z".into(),
        ends_at: None,
        intent: Some(long_word.clone()),
        operator: "alice as demo-agent".into(),
        command: vec!["psql".into()],
        commands: 456,
        refused: 7,
        held: 3,
    };
    let header = &["SESSION", "WORKLOAD", "STATE", "STARTED", "SENT", "REFUSED", "INTENT"];
    let text = print::table(header, vec![sessions::row(&session)], Some(80), print::Colour::Never);
    assert!(widest(&text) <= 80, "{text}");
    // An id that is broken over lines cannot be copied.
    assert!(text.contains("01JD000000000 "), "{text}");
    assert!(text.contains("support-bot") && text.contains("11-21 03:22"), "{text}");
}

#[test]
fn colour_is_only_there_when_asked_for() {
    let rows = || vec![vec![print::Field::toned("bad", print::Tone::Bad)]];
    assert!(print::table(&["A"], rows(), Some(80), print::Colour::Always).contains('\u{1b}'));
    assert!(!print::table(&["A"], rows(), Some(80), print::Colour::Never).contains('\u{1b}'));
}

#[test]
fn what_an_agent_wrote_cannot_deceive_a_reviewer() {
    let shown = held::detail(&hold("UPDATE a\nSET b = 1\u{1b}[2K\r\u{200b}\u{202e}"), Timestamp::UNIX_EPOCH);
    assert!(shown.contains("    UPDATE a\n    SET b = 1\\u{1b}[2K\\u{d}\\u{200b}\\u{202e}\n"), "{shown}");
    assert!(shown.contains("refund order 17\\u{202e}"), "{shown}");
    assert!(shown.contains("12345678 rows") && shown.contains("2 must approve"), "{shown}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    let text = |texts: &[&str]| Some(texts.iter().map(|text| Some((*text).to_owned())).collect());
    let rows = vec![
        SampleRow { before: text(&["1", "a\u{1b}[2K"]), after: text(&["1", "b\nhold 7k2m"]) },
        SampleRow { before: None, after: Some(vec![Some("2".into()), None]) },
        SampleRow { before: text(&["3", ""]), after: None },
    ];
    let mut tried = hold("UPDATE a SET b = 'b'");
    let sample = Some(Sample { columns: vec!["id".into(), "b\r".into()], rows });
    tried.estimate = Some(Estimate { rows: Some(9), note: "counted".into(), counted: true, sample });
    let shown = held::detail(&tried, Timestamp::UNIX_EPOCH);
    let expected =
        "dry run: 3 of 9 rows\n  - id=1  b =a\\u{1b}[2K\n  + b =b hold 7k2m\n  + id=2  b =NULL\n  - id=3  b =\n";
    assert!(shown.contains(expected), "{shown}");
    // What is cut is said.
    let cut = print::shorten(&"é".repeat(300), 240);
    assert!(cut.ends_with("… (+60 characters)"), "{cut}");
}

#[test]
fn events_are_one_clean_line_each() {
    let decision = DecisionNote {
        effect: "deny".into(),
        rule: "no drops".into(),
        reviewers: vec!["ann".into(), "bob".into()],
        reason: Some("not\nhere".into()),
    };
    let command = EventBody::Command {
        seq: 1,
        command: Arc::from("DROP TABLE x;\n\u{1b}]0;title\u{7}"),
        hash: String::new(),
        action: Vec::new(),
        decision,
        hold: None,
        waited_ms: Some(1500),
        prompt_ref: None,
    };
    let event = Event {
        timestamp: "2026-11-21T03:22:11.123456Z".into(),
        tenant: None,
        workload: "bot".into(),
        session_id: "s".into(),
        connection_id: 1,
        trace_id: None,
        upstream: None,
        body: command,
    };
    let line = events::line(&event);
    let wanted = "03:22:11 bot deny DROP TABLE x; \\u{1b}]0;title\\u{7} \
         [no drops, by ann and bob: not here] after 1500 ms";
    assert_eq!(line, wanted);
}

#[test]
fn status_says_when_a_newer_policy_set_was_refused() {
    let status = StatusView {
        version: "0.1.0".into(),
        pid: 7,
        uptime_seconds: 3700,
        listen: vec!["127.0.0.1:943".into()],
        policy: PolicyStatus {
            hash: "abcdef0123456789".into(),
            workloads: vec!["bot".into()],
            loaded_at: "2026-11-21T03:22:11Z".into(),
            refused: Some("bot.toml:3: unknown key".into()),
        },
        governed: vec!["portcullis.slice/bot".into()],
        sessions: 2,
        connections: 5,
        holds: 1,
        recorded: 99,
        refused: [("socket".to_owned(), 3), ("bind".to_owned(), 0)].into(),
        ca: Some(CaStatus {
            scope: "2 names and 1 address of the policies".into(),
            is_limited: true,
            count: 2,
            ends_at: "2026-12-21T03:22:11Z".into(),
            problem: None,
        }),
        problems: vec!["link gone".into()],
    };
    let text = status::text(&status);
    for part in [
        "up 1h 1m",
        "abcdef012345)",
        "the one above stays in force",
        "unknown key",
        "problem     link gone",
        "by the kernel: socket 3\n",
        "authority   for 2 names and 1 address of the policies, until 2026-12-21T03:22:11Z; 1 older\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn policies_are_checked_explained_and_tested_without_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    let file = policies.join("bot.toml");
    std::fs::write(
        &file,
        "[workload]\nname = \"bot\"\ncgroup = \"portcullis.slice/bot/*\"\nautonomy = \"autonomous\"\n\
         [[upstream]]\nname = \"orders\"\nprotocol = \"postgres\"\naddress = [\"127.0.0.1:5432\"]\n\
         tls = { mode = \"disable\" }\ncredential = { source = \"none\", user = \"bot\" }\n\
         [[rule]]\nname = \"reads\"\nupstream = \"orders\"\nverbs = [\"read\"]\ntargets = [\"public.*\"]\neffect = \"allow\"\n",
    )
    .unwrap();
    let asked = |words: &[&str]| {
        let cli = Cli::try_parse_from(["portcullis"].iter().chain(words)).unwrap();
        let mut out = Vec::new();
        match run(cli) {
            Ok(exit) => exit,
            Err(error) => {
                let exit = super::explain(&error, &mut out);
                eprintln!("{}", String::from_utf8_lossy(&out));
                exit
            }
        }
    };
    let dir = policies.to_str().unwrap();
    assert_eq!(asked(&["policy", "check", dir]), Exit::Ok);
    assert_eq!(asked(&["policy", "check", file.to_str().unwrap(), "--json"]), Exit::Ok);
    assert_eq!(asked(&["policy", "show", "--policies", dir, "--expanded"]), Exit::Ok);
    let explain = ["policy", "explain", "-w", "bot", "-u", "orders", "--policies", dir];
    assert_eq!(asked(&[&explain[..], &["SELECT * FROM t"]].concat()), Exit::Ok);
    assert_eq!(asked(&[&explain[..], &["SELECT * FROM secret.t"]].concat()), Exit::Denied);
    assert_eq!(asked(&[&explain[..], &["DROP TABLE t"]].concat()), Exit::Denied);
    let wrong = ["policy", "explain", "-w", "bot", "-u", "nope", "--policies", dir, "SELECT 1"];
    assert_eq!(asked(&wrong), Exit::Usage);
    // No cases is not a pass.
    assert_eq!(asked(&["policy", "test", dir]), Exit::Failed);
    let cases = policies.join("bot.cases.toml");
    let case = |expect: &str| format!("[[case]]\nname = \"c\"\ncommand = \"SELECT 1 FROM t\"\nexpect = \"{expect}\"\n");
    std::fs::write(&cases, case("allow")).unwrap();
    assert_eq!(asked(&["policy", "test", dir]), Exit::Ok);
    std::fs::write(&cases, case("deny")).unwrap();
    assert_eq!(asked(&["policy", "test", cases.to_str().unwrap()]), Exit::Failed);
    std::fs::write(&file, "[workload]\nnme = \"bot\"\n").unwrap();
    assert_eq!(asked(&["policy", "check", dir]), Exit::Failed);
    assert_eq!(asked(&["policy", "check", "/no/such/path"]), Exit::Failed);
}

#[test]
fn the_doctors_report_fits_80_columns_and_says_what_to_do() {
    use crate::doctor::Finding;
    let mut open = Finding::open("TCP", "tried 50, reached 1", "the agent connects past the enforcer", "restart it");
    open.reached = vec!["tcp v4".into(), "tcp \u{1b}[2Jv6".into(), "x".repeat(30), "y".repeat(30)];
    open.attempts = Some(50);
    open.workload = Some("support-bot-with-a-long-name".into());
    let lacking = "hooks for unix sockets (Linux 6.7)";
    let findings = [
        Finding::closed("kernel hooks", "17 of 17 load"),
        open,
        Finding::cannot("unix sockets", "tried 8, reached 2 ".repeat(9), "the agent reaches local daemons", lacking),
    ];
    let text = doctor::text(&findings, Some(80), print::Colour::Never);
    assert!(widest(&text) <= 80, "{}\n{text}", widest(&text));
    assert!(!text.contains('\u{1b}'), "{text:?}");
    for wanted in [
        "open: TCP\n  means     the agent connects past the enforcer\n  close it  restart it\n  reached   tcp v4, ",
        "cannot: unix sockets\n",
        "\n  lacks     hooks for unix sockets (Linux 6.7)\n",
        "\n1 closed, 1 open, 1 cannot; attempts 50, reached 4\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} in\n{text}");
    }
}
