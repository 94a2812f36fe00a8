//! What mistakes look like.

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;

fn errors(files: &[(&str, &str)]) -> PolicyErrors {
    PolicySet::from_texts(files.iter().copied()).expect_err("the set has errors")
}

fn of(text: &str) -> PolicyErrors {
    errors(&[("bot.toml", text)])
}

/// Messages of the usual head and this.
fn lines(rest: &str) -> Vec<String> {
    of(&format!("{HEAD}{rest}")).lines().collect()
}

fn rendered(errors: &PolicyErrors) -> String {
    let mut out = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .render_report(&mut out, errors)
        .expect("rendered");
    out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

const MANY: &str = r#"[workload]
name = "support bot"
cgroup = "/portcullis.slice/bot/*"
autonomie = "confirm"

[[upstream]]
name = "orders"
protocol = "mysql"
address = ["db", "db:0", "[::1]:5432"]
teir = "staging"
tls = { mode = "verify-ful" }
credential = { source = "file", argv = ["x"] }

[[rule]]
name = "reads"
upstream = "order"
verbs = ["read", "writ"]
targets = ["public.[ab]", "orders", "public.t.c"]
effect = "allow"
expires = "15m"

[[rule]]
name = "reads"
effect = "hold"
reviewers = ["dba"]
when = "sql.verb == 'delete' && !sql.has_were"
expires = "15 minutes"

[[rule]]
name = "no effect"

[[mask]]
columns = ["*.ssn"]
with = "partial"

[[mask]]
columns = ["*.ssn"]
with = "null"
"#;

#[test]
fn all_mistakes_of_a_file_are_found_at_once() {
    let errors = of(MANY);
    insta::assert_snapshot!("many_lines", errors.lines().collect::<Vec<_>>().join("\n"));
    insta::assert_snapshot!("many_rendered", rendered(&errors));
}

#[test]
fn one_mistake_is_shown_with_its_place() {
    insta::assert_snapshot!(rendered(&of(&format!("{HEAD}[[rule]]\nname = \"r\"\nefect = \"deny\"\n"))));
}

#[test]
fn places_are_exact() {
    for (rest, line, column, length, message) in [
        ("[[rule]]\nname = \"r\"\neffect = \"alow\"\n", 3, 10, 6, "unknown value `alow`"),
        (
            "[[rule]]\nname = \"r\"\neffect = \"allow\"\nverbs = [\"read\", \"wriet\"]\n",
            4,
            18,
            7,
            "unknown value `wriet`",
        ),
        (
            "[[rule]]\nname = \"r\"\neffect = \"deny\"\ntargets = [\"public.{a}\"]\n",
            4,
            20,
            1,
            "bad target pattern: `{` has no meaning here",
        ),
        (
            "[[rule]]\nname = \"r\"\neffect = \"deny\"\ntargets = ['public.\"a']\n",
            4,
            20,
            1,
            "bad target pattern: this quote is not closed",
        ),
        (
            "[[rule]]\nname = \"é\"\neffect = \"deny\"\nwhen = \"sql.verb == 'é' && sql.nope\"\n",
            4,
            32,
            4,
            "bad `when`: unknown fact of `sql`: `nope`",
        ),
        (
            "[[rule]]\nname = \"r\"\neffect = \"deny\"\nwhen = '''\nsql.nope'''\n",
            5,
            5,
            4,
            "bad `when`: unknown fact of `sql`: `nope`",
        ),
        ("[[rule]]\neffect = \"deny\"\n", 1, 1, 8, "missing key `name`"),
        ("[[rule]]\nname = \"r\"\neffect = \"deny\"\nupstream = [\"db\", \"bd\"]\n", 4, 19, 4, "unknown upstream `bd`"),
        ("tls = { mode = \"verify-full\", ca = \"rel\" }\n", 1, 36, 5, "`ca` must be an absolute path"),
    ] {
        let text = format!("{HEAD}{rest}");
        let found = of(&text);
        let [error] = found.errors() else { panic!("{rest}: {found}") };
        let head = HEAD.matches('\n').count();
        assert_eq!(error.message(), message, "{rest}");
        assert_eq!(error.position(), Some((head + line, column)), "{rest}: {error}");
        assert_eq!(error.span().map(|span| span.len()), Some(length), "{rest}");
    }
}

#[test]
fn each_kind_of_mistake_is_refused() {
    let rule = |rest: &str| format!("[[rule]]\nname = \"r\"\n{rest}\n");
    for (rest, message) in [
        (rule("effect = \"allow\"\nverbs = []"), "`verbs` is an empty list"),
        (rule("effect = \"allow\"\ntargets = []"), "`targets` is an empty list"),
        (rule("effect = \"allow\"\nexcept = []"), "`except` is an empty list"),
        (rule("effect = \"allow\"\nupstream = []"), "`upstream` is an empty list"),
        (rule("effect = \"allow\"\nexcept = [\"payroll\"]"), "a target is `schema.name`, and this has one segment"),
        (rule("effect = \"allow\"\nexcept = [\"a.b.c\"]"), "a target is `schema.name`, and this has more segments"),
        (rule("effect = \"allow\"\nprotocol = \"mysql\""), "protocol `mysql` is not supported"),
        (rule("effect = \"allow\"\nrequired = \"two\""), "`required` needs `effect = \"hold\"`"),
        (rule("effect = \"notify\"\ndry_run = true"), "`dry_run` needs `effect = \"hold\"`"),
        (rule("effect = \"hold\"\ndry_run = \"yes\""), "invalid type"),
        (rule("effect = \"deny\"\nreviewers = [\"user:a\"]"), "`reviewers` needs `effect = \"hold\"`"),
        (rule("effect = \"hold\"\nreviewers = [\"role:a\"]"), "a reviewer is `user:NAME`"),
        (rule("effect = \"hold\"\nreviewers = [\"user:\"]"), "a reviewer is `user:NAME`"),
        (rule("effect = \"hold\"\nreviewers = []"), "`reviewers` is an empty list"),
        (rule("effect = \"hold\"\nexpires = \"0s\""), "`0s` is not a duration"),
        (rule("effect = \"hold\"\nexpires = 15"), "invalid type"),
        (rule("effect = \"hold\"\nrequired = \"three\""), "unknown value `three`"),
        (rule("effect = \"hold\"\nscope = \"session-reads\""), "`session-reads` is for rules about reads"),
        (rule("effect = \"hold\"\nverbs = [\"write\"]\nscope = \"session-reads\""), "`session-reads` is for rules"),
        (rule("effect = \"allow\"\ntier = \"staging\""), "no upstream has the tier `staging`"),
        (rule("effect = \"allow\"\nupstream = \"db\"\ntier = \"staging\""), "upstream `db` does not have the tier"),
        (rule("effect = \"allow\"\nwhen = \"sql.verb\""), "bad `when`: the expression gives a string"),
        (rule("effect = \"allow\"\nreason = \" \""), "the reason is empty"),
        (rule("effect = \"allow\"\nreason = \"a\\u0007\""), "the reason has control characters"),
        ("[[rule]]\nname = \"\"\neffect = \"allow\"".into(), "the rule's name is empty"),
        ("[[rule]]\nname = \"implicit\"\neffect = \"allow\"".into(), "the name `implicit` is taken"),
        ("[[rule]]\nname = \"tier:x\"\neffect = \"allow\"".into(), "the name `tier:x` is taken"),
        (rule("effect = \"allow\"") + &rule("effect = \"deny\""), "two rules are named `r`"),
        ("[[upstream]]\nname = \"db\"\nprotocol = \"postgres\"\naddress = \"x:1\"".into(), "two upstreams are named `db`"),
        ("[[upstream]]\nname = \"b\"\nprotocol = \"postgres\"\naddress = \"DB:5432\"".into(), "the address `DB:5432` is listed twice"),
        ("[[upstream]]\nname = \"b\"\nprotocol = \"postgres\"\naddress = []".into(), "an upstream needs an address"),
        ("[[upstream]]\nname = \"b/c\"\nprotocol = \"postgres\"\naddress = \"x:1\"".into(), "`b/c` cannot be the name"),
        ("databases = []".into(), "`databases` is an empty list"),
        ("tls = { mode = \"disable\", ca = \"/x\" }".into(), "`ca` means nothing with mode `disable`"),
        ("tls = { mode = \"require\", ca = \"/x\" }".into(), "mode `require` checks no certificate"),
        ("tls = { cert = \"/x\" }".into(), "a client certificate needs both"),
        ("credential = { source = \"file\" }".into(), "this source needs `path`"),
        ("credential = { source = \"file\", path = \"../x\" }".into(), "a relative path is below"),
        ("credential = { source = \"file\", path = \"x\", timeout = \"1s\" }".into(), "`timeout` means nothing"),
        ("credential = { source = \"exec\" }".into(), "this source needs `argv`"),
        ("credential = { source = \"exec\", argv = [] }".into(), "`argv` is an empty list"),
        ("credential = { source = \"exec\", argv = [\"vault\"] }".into(), "`vault` is not an absolute path"),
        ("credential = { source = \"none\", path = \"/x\" }".into(), "`path` means nothing"),
        ("credential = { source = \"vault\" }".into(), "unknown value `vault`"),
        ("credential = { source = \"none\", password = \"x\" }".into(), "unknown key `password`"),
        ("client_tls = \"maybe\"".into(), "unknown value `maybe`"),
        ("[[mask]]\nwith = \"null\"".into(), "a mask needs `columns`, `json` or `detect`"),
        ("[[mask]]\ncolumns = [\"a.b.c.d\"]\nwith = \"null\"".into(), "a column is `schema.table.column`"),
        ("[[mask]]\ncolumns = [\"fn:a.b\"]\nwith = \"null\"".into(), "a column has no kind before it"),
        ("[[mask]]\ndetect = [\"cc\"]\nwith = \"null\"".into(), "unknown value `cc`"),
        (
            "[[mask]]\ndetect = [\"iban\"]\nwith = \"null\"\n[[mask]]\nupstream = \"db\"\ndetect = [\"iban\"]\nwith = \"hash\"".into(),
            "this is masked in two different ways",
        ),
        ("[[mask]]\njson = [\"a\"]\nwith = \"null\"".into(), "`json` is for upstreams of the protocol `http`"),
        ("credential = { source = \"none\", inject = \"bearer\" }".into(), "`inject` means nothing with `postgres`"),
        ("credential = { source = \"none\", inject = \"body\" }".into(), "`bearer`, `basic`, `header:NAME`"),
        ("credential = { source = \"none\", token_url = \"https://x/\" }".into(), "`token_url` means nothing"),
        (rule("effect = \"allow\"\nwhen = \"http.methd == 'GET'\""), "unknown fact of `http`: `methd`"),
        ("[workload]".into(), "duplicate key"),
        ("[[rule".into(), "unclosed"),
        ("[extra]\na = 1".into(), "unknown key `extra`"),
    ] {
        let found = lines(&rest);
        assert_eq!(found.len(), 1, "{rest}: {found:#?}");
        assert!(found[0].contains(message), "{rest}: {found:#?}");
    }
}

#[test]
fn addresses_need_host_and_port() {
    for (address, ok) in [
        ("db:5432", true),
        ("db.internal.:5432", true),
        ("my_db-1:1", true),
        ("10.0.0.1:65535", true),
        ("[2001:db8::1]:5432", true),
        ("db", false),
        ("db:", false),
        ("db:0", false),
        ("db:65536", false),
        ("db:+5", false),
        (":5432", false),
        ("2001:db8::1", false),
        ("2001:db8::1:5432", false),
        ("[2001:db8::1]", false),
        ("[2001:db8::1:5432", false),
        ("[db]:5432", false),
        ("300.0.0.1:5", false),
        ("1.2.3:5", false),
        ("a b:5", false),
        ("a..b:5", false),
        ("-a:5", false),
        ("user@db:5", false),
        ("postgres://db:5", false),
        ("", false),
    ] {
        let text = HEAD.replace("db:5432", address);
        assert_eq!(PolicySet::from_texts([("a.toml", text)]).is_ok(), ok, "{address}");
    }
}

#[test]
fn cgroup_patterns_need_a_fixed_folder() {
    for (pattern, ok) in [
        ("portcullis.slice/bot/*", true),
        ("a/b", true),
        ("a/bot-*.scope", true),
        ("*", false),
        ("**", false),
        ("bot", false),
        ("*/bot", false),
        ("/a/*", false),
        ("a/../b/*", false),
        ("a//*", false),
        ("a/{b,c}", false),
        ("", false),
    ] {
        let text = HEAD.replace("portcullis.slice/bot/*", pattern);
        assert_eq!(PolicySet::from_texts([("a.toml", text)]).is_ok(), ok, "{pattern}");
    }
}

#[test]
fn files_are_checked_together() {
    let overlap = HEAD.replace("\"bot\"", "\"other\"").replace("/bot/*", "/*/x-*");
    let same = HEAD.replace("/bot/*", "/bot2/*");
    let found = errors(&[("a.toml", HEAD), ("b.toml", &overlap), ("c.toml", &same), ("d.toml", "x = 1")]);
    insta::assert_snapshot!(found.lines().collect::<Vec<_>>().join("\n"));
}

#[test]
fn one_mistake_does_not_make_others() {
    // The upstream's table is lost; rules about it are not said to be wrong.
    let lost = "[workload]\nname = \"bot\"\ncgroup = \"a/*\"\n[[upstream]]\nname = \"db\"\n[[rule]]\nname = \"r\"\nupstream = \"db\"\neffect = \"allow\"\n";
    let found: Vec<_> = of(lost).errors().iter().map(|error| error.message().to_owned()).collect();
    assert_eq!(found, ["missing key `protocol`"], "{found:#?}");
    // A list whose only value was bad is not also said to be empty.
    assert_eq!(lines("[[rule]]\nname = \"r\"\neffect = \"deny\"\nverbs = [\"raed\"]\n").len(), 1);
    assert_eq!(lines("[[rule]]\nname = \"r\"\neffect = \"hold\"\nreviewers = [\"dba\"]\n").len(), 1);
}

#[test]
fn hostile_files_are_refused_in_bounded_work() {
    let many: String = (0..5_000).map(|i| format!("key{i} = 1\n")).collect();
    assert!(of(&many).errors().len() <= 60);
    let deep = format!("x = {}1{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(!of(&deep).errors().is_empty());
    for text in ["", "\0", "\u{feff}", "[workload]\nname = \"\\uD800\"", "= 1", "a.b.c", "[[workload]]\nname = \"x\""] {
        assert!(!of(text).errors().is_empty(), "{text:?}");
    }
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::write(dir.path().join("big.toml"), vec![b'#'; (1 << 20) + 1]).expect("written");
    std::fs::write(dir.path().join("latin1.toml"), b"# \xff").expect("written");
    let found = PolicySet::load(dir.path()).expect_err("refused");
    assert_eq!(found.errors().len(), 2, "{found}");
}

#[test]
fn unix_sockets_are_paths_that_can_be_written_in_one_way() {
    let with = |list: &str| HEAD.replace("autonomy =", &format!("unix = {list}\nautonomy ="));
    let long = format!("/{}", "p".repeat(107));
    for (list, wanted) in [("[]", vec![]), (r#"["/run/a", "/run/b c.sock"]"#, vec!["/run/a", "/run/b c.sock"])] {
        assert_eq!(load(&with(list)).workload().unix, wanted, "{list}");
    }
    assert_eq!(load(HEAD).workload().unix, Vec::<String>::new());
    assert_eq!(load(&with(&format!("[{long:?}]"))).workload().unix, std::slice::from_ref(&long));
    for (path, wrong) in [
        ("", "absolute"),
        ("run/a", "absolute"),
        ("@name", "abstract"),
        (r"\u0000name", "abstract"),
        (r"/run/a\u0000b", "NUL"),
        ("/run//a", "each folder once"),
        ("/run/./a", "each folder once"),
        ("/run/../a", "each folder once"),
        ("/run/a/", "each folder once"),
        ("/", "each folder once"),
        ("/run/*.sock", "no pattern"),
        ("/ok", "listed twice"),
        (&format!("{long}p"), "at most 108 bytes"),
    ] {
        let lines: Vec<String> = of(&with(&format!("[\"/ok\", \"{path}\"]"))).lines().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("bot.toml:5:16: ") && lines[0].contains(wrong), "{path}: {lines:?}");
    }
    let many: Vec<String> = (0..65).map(|i| format!("/run/{i}")).collect();
    let lines: Vec<String> = of(&with(&format!("{many:?}"))).lines().collect();
    assert!(lines[0].contains("at most 64 unix sockets"), "{lines:?}");
}

#[test]
fn limits_are_what_a_host_can_give() {
    let with = |limits: &str| HEAD.replace("autonomy =", &format!("limits = {limits}\nautonomy ="));
    let limits = load(&with("{ memory = '2GiB', pids = 500, cpu = 1.5, wall = '2h' }")).workload().limits.clone();
    let wall = Some(std::time::Duration::from_secs(7200));
    assert_eq!(limits, LimitSpec { memory: Some(2 << 30), pids: Some(500), cpu: Some(150), wall });
    assert_eq!(load(&with("{ cpu = 2 }")).workload().limits.cpu, Some(200));
    assert_eq!(load(HEAD).workload().limits, LimitSpec::default());
    for (bad, says, help) in [
        ("{ memory = '2GB' }", "is not a size", "such as `512MiB`"),
        ("{ memory = 2147483648 }", "invalid type", "string"),
        ("{ memory = '64KiB' }", "so little memory", "`4MiB`"),
        ("{ pids = 0 }", "from 1 to 4194304", ""),
        ("{ pids = -1 }", "invalid value", ""),
        ("{ cpu = 0.001 }", "from 0.01 to 1024", "`0.5`"),
        ("{ cpu = nan }", "from 0.01 to 1024", ""),
        ("{ cpu = inf }", "from 0.01 to 1024", ""),
        ("{ wall = '0s' }", "is not a duration", ""),
        ("{ memroy = '2GiB' }", "unknown key `memroy`", "did you mean `memory`?"),
    ] {
        let lines: Vec<String> = of(&with(bad)).lines().collect();
        assert_eq!(lines.len(), 1, "{bad}: {lines:?}");
        assert!(lines[0].contains(says) && lines[0].contains(help), "{bad}: {lines:?}");
        assert!(lines[0].starts_with("bot.toml:5:"), "{bad}: {lines:?}");
    }
}

#[test]
fn what_only_the_launcher_does_is_not_asked_of_claimed_cgroups() {
    let claimed = |rest: &str| {
        let head = HEAD.replacen("[workload]\n", "[workload]\nclaim = true\n", 1);
        assert_ne!(head, HEAD);
        PolicySet::from_texts([("bot.toml", format!("{head}{rest}").as_str())].iter().copied())
    };
    assert!(claimed("").is_ok());
    assert!(claimed("[workload.limits]\nwall = \"1h\"\n").is_ok());
    for (rest, what) in [
        ("[workload.limits]\npids = 5\n", "who makes a cgroup sets its limits"),
        ("[workload.session]\nrequire_intent = true\n", "nobody states an intent"),
    ] {
        let errors = claimed(rest).expect_err(rest);
        assert!(errors.lines().any(|line| line.contains(what)), "{errors}");
    }
}

#[test]
fn files_of_their_own_are_not_given_to_claimed_cgroups() {
    for key in ["private_tmp = true", "private_tmp = true\nfilesystem = 'read-only'"] {
        let text = HEAD.replacen("[workload]\n", &format!("[workload]\nclaim = true\n{key}\n"), 1);
        let lines: Vec<String> = of(&text).lines().collect();
        assert!(lines.len() == 1 && lines[0].contains("says what its processes see"), "{lines:?}");
    }
}

#[test]
fn files_of_the_host_are_shared_unless_the_policy_says_so() {
    let with = |keys: &str| HEAD.replace("autonomy =", &format!("{keys}\nautonomy ="));
    let of_host = |keys: &str| {
        let policy = load(&with(keys));
        (policy.workload().temporary, policy.workload().filesystem)
    };
    assert_eq!(of_host(""), (Temporary::Shared, Filesystem::Host));
    assert_eq!(of_host("private_tmp = false\nfilesystem = 'host'"), (Temporary::Shared, Filesystem::Host));
    assert_eq!(of_host("private_tmp = true"), (Temporary::Private, Filesystem::Host));
    assert_eq!(of_host("private_tmp = true\nfilesystem = 'read-only'"), (Temporary::Private, Filesystem::ReadOnly));
    for (user, run_as) in [("caller", RunAs::Caller), ("dedicated", RunAs::Dedicated), ("root", RunAs::Root)] {
        let policy = load(&with(&format!("private_tmp = true\nuser = '{user}'")));
        assert_eq!(policy.workload().run_as, run_as);
    }
    for (bad, says, help) in [
        ("filesystem = 'read-only'", "without temporary folders", "`private_tmp = true`"),
        ("private_tmp = false\nfilesystem = 'read-only'", "without temporary folders", "`private_tmp = true`"),
        ("private_tmp = true\nfilesystem = 'readonly'", "unknown value `readonly`", "did you mean `read-only`?"),
        ("private_tmp = 'yes'", "invalid type", ""),
        ("user = 'dedicated'", "would outlive the session", "`private_tmp = true`"),
        ("user = 'root'", "would outlive the session", "`private_tmp = true`"),
        ("private_tmp = true\nuser = 'dedicatd'", "unknown value `dedicatd`", "did you mean `dedicated`?"),
        ("private_tpm = true", "unknown key `private_tpm`", "did you mean `private_tmp`?"),
        ("private_tmp = true\nunix = ['/run/a', '/tmp/s']", "that folder is another", "`/run`"),
    ] {
        let lines: Vec<String> = of(&with(bad)).lines().collect();
        assert_eq!(lines.len(), 1, "{bad}: {lines:?}");
        assert!(lines[0].contains(says) && lines[0].contains(help), "{bad}: {lines:?}");
    }
}

#[test]
fn each_kind_of_mistake_about_http_is_refused() {
    let api = "[[upstream]]\nname = \"api\"\nprotocol = \"http\"\naddress = \"api:443\"\n";
    let rule = |rest: &str| format!("{api}[[rule]]\nname = \"r\"\neffect = \"allow\"\n{rest}\n");
    for (rest, message) in [
        (rule("upstream = \"api\"\ntargets = [\"/orders\"]"), "a target is `METHOD /path`"),
        (rule("upstream = \"api\"\ntargets = [\"GET\"]"), "a target is `METHOD /path`"),
        (rule("upstream = \"api\"\ntargets = [\"get /orders\"]"), "methods are written in capitals"),
        (rule("upstream = \"api\"\ntargets = [\"GET /orders?x=1\"]"), "no path that is judged has such characters"),
        (rule("upstream = \"api\"\nexcept = [\"GET //a\"]"), "bad target pattern: a segment of the pattern is empty"),
        (rule("when = \"sql.has_where\""), "this asks for facts that commands of `http` do not have"),
        (rule("upstream = \"db\"\nwhen = \"http.path == '/'\""), "this asks for facts that commands of `postgres`"),
        (rule("targets = [\"GET /orders\"]"), "this rule is about upstreams of several protocols"),
        (format!("{api}databases = [\"x\"]"), "HTTP has no databases"),
        (
            format!("{api}credential = {{ source = \"file\", path = \"x\", inject = \"basic\" }}"),
            "`basic` needs a `user`",
        ),
        (
            format!("{api}credential = {{ source = \"file\", path = \"x\", user = \"u\" }}"),
            "an HTTP request carries a user only",
        ),
        (
            format!("{api}credential = {{ source = \"file\", path = \"x\", inject = \"sigv4\" }}"),
            "`sigv4:REGION/SERVICE`",
        ),
        (
            format!("{api}credential = {{ source = \"file\", path = \"x\", inject = \"sigv4:eu-1/S 3\" }}"),
            "`sigv4:REGION/SERVICE`, such as",
        ),
        (
            format!(
                "{api}credential = {{ source = \"file\", path = \"x\", user = \"A/B\", inject = \"sigv4:eu-1/s3\" }}"
            ),
            "an access key's id has letters and digits only",
        ),
        (
            format!(
                "{api}credential = {{ source = \"file\", path = \"x\", session_token = {{ source = \"file\", path = \"y\" }} }}"
            ),
            "`session_token` means nothing here",
        ),
        (
            format!("{api}[[mask]]\nupstream = \"api\"\ncolumns = [\"a\"]\nwith = \"null\""),
            "`columns` is for upstreams",
        ),
        (
            format!("{api}[[mask]]\njson = [\"a\"]\ninference = \"deny\"\nwith = \"null\""),
            "this is for masks of columns",
        ),
        (format!("{api}[[mask]]\njson = [\"/a\"]\nwith = \"null\""), "bad pattern of a JSON path"),
    ] {
        let found = lines(&rest);
        assert_eq!(found.len(), 1, "{rest}: {found:#?}");
        assert!(found[0].contains(message), "{rest}: {found:#?}");
    }
    for fine in [
        rule("upstream = \"api\"\ntargets = [\"GET /\", \"* /orders/\", \"POST /a/**\", \"**\", \"GET **\"]"),
        rule("protocol = \"http\"\ntargets = [\"GET /*\"]"),
        format!("{api}credential = {{ source = \"file\", path = \"x\", inject = \"header:X-Key\" }}"),
        format!(
            "{api}[[mask]]\njson = [\"**/email\"]\nunresolved = \"mask\"\ncolumns = [\"a.b.email\"]\nwith = \"null\""
        ),
    ] {
        load(&format!("{HEAD}{fine}"));
    }
}

#[test]
fn each_kind_of_mistake_about_tokens_is_refused() {
    let api = "[[upstream]]\nname = \"api\"\nprotocol = \"http\"\naddress = \"api:443\"\n";
    let token = |rest: &str| format!("{api}[upstream.credential]\nsource = \"oauth2\"\n{rest}\n");
    let (url, id) = ("token_url = \"https://login.example/token\"\n", "client_id = \"bot\"\n");
    let secret = "client_secret = { source = \"file\", path = \"x\" }\n";
    for (rest, message) in [
        (token(&format!("{id}{secret}")), "this source needs `token_url`"),
        (token(&format!("{url}{secret}")), "this source needs `client_id`"),
        (
            format!(
                "{api}client_certificate = {{ source = \"file\", path = \"x\" }}\ntls = {{ mode = \"disable\" }}\n"
            ),
            "`client_certificate` means nothing without TLS",
        ),
        (
            format!(
                "{api}client_certificate = {{ source = \"file\", path = \"x\" }}\n\
                 tls = {{ cert = \"/x\", key = \"/y\" }}\n"
            ),
            "`tls` names another client certificate",
        ),
        (format!("{api}client_certificate = {{ source = \"exec\" }}\n"), "this source needs `argv`"),
        (
            format!("{api}client_certificate = {{ source = \"file\", path = \"x\" }}\n").replace("http", "postgres"),
            "`client_certificate` means nothing with `postgres`",
        ),
        (token(&format!("{url}{id}")), "nothing here shows who the client is"),
        (token(&format!("{url}{id}{secret}path = \"x\"")), "`path` means nothing with this source"),
        (token(&format!("{url}{id}{secret}inject = \"basic\"")), "does not go with `basic`"),
        (token(&format!("{url}{id}{secret}scopes = [\"a b\"]")), "this is no scope"),
        (token(&format!("{url}{id}{secret}scopes = []")), "`scopes` is an empty list"),
        (token(&format!("{url}{id}{secret}token_tls = {{ mode = \"require\" }}")), "its certificate must be checked"),
        (token(&format!("{url}{id}{secret}client_auth = \"basic\"")), "unknown value `basic`"),
        (token(&format!("{url}{id}client_secret = {{ source = \"file\" }}")), "this source needs `path`"),
        (
            token(&format!(
                "{url}{id}refresh_token = {{ source = \"file\", path = \"x\" }}\nclient_secret = {{ source = \"none\" }}"
            )),
            "unknown value `none`",
        ),
        (token(&format!("{id}{secret}token_url = \"http://login.example/\"")), "it must be `https`"),
        (token(&format!("{id}{secret}token_url = \"login.example\"")), "it does not begin with `https://`"),
        (
            token(&format!(
                "{url}{id}client_auth = \"client_secret_post\"\nrefresh_token = {{ source = \"file\", path = \"x\" }}"
            )),
            "a client without a secret has nothing to send",
        ),
        (
            token(&format!("{id}{secret}token_url = \"http://[::1]:8080/t\"\ntoken_tls = {{ ca = \"/x\" }}")),
            "`token_tls` means nothing with `http`",
        ),
    ] {
        let found = lines(&rest);
        assert_eq!(found.len(), 1, "{rest}: {found:#?}");
        assert!(found[0].contains(message), "{rest}: {found:#?}");
    }
    for fine in [
        token(&format!("{url}{id}{secret}scopes = [\"a:b\", \"https://x/y\"]\naudience = \"z\"\ntimeout = \"5s\"")),
        token(&format!("{url}{id}refresh_token = {{ source = \"exec\", argv = [\"/bin/x\"], timeout = \"1s\" }}")),
        token(&format!("{url}{id}{secret}inject = \"header:X-Token\"")),
    ] {
        load(&format!("{HEAD}{fine}"));
    }
}

#[test]
fn each_kind_of_mistake_about_placeholders_is_refused() {
    let api = "[[upstream]]\nname = \"api\"\nprotocol = \"http\"\naddress = \"api:443\"\n";
    let one = |rest: &str| format!("{api}[[upstream.placeholder]]\nsource = \"file\"\npath = \"x\"\n{rest}\n");
    for (rest, message) in [
        (one("name = \"a-b\"\nin = [\"header\"]"), "`a-b` cannot be the name of a placeholder"),
        (one("name = \"\"\nin = [\"header\"]"), "`` cannot be the name of a placeholder"),
        (one("name = \"PORTCULLIS_SECRET_a\"\nin = [\"header\"]"), "this is the whole placeholder"),
        (one("name = \"a\"\nin = []"), "a placeholder that may stand nowhere"),
        (one("name = \"a\"\nin = [\"path\"]"), "`header`, `header:NAME`, `query`"),
        (one("name = \"a\"\nin = [\"body\"]\nargv = [\"/x\"]"), "`argv` means nothing with this source"),
        (
            format!(
                "{}{}",
                one("name = \"a\"\nin = [\"body\"]"),
                one("name = \"a\"\nin = [\"body\"]").trim_start_matches(api)
            ),
            "two placeholders of this upstream are named `a`",
        ),
        (
            one("name = \"a\"\nin = [\"body\"]").replace("\"http\"", "\"postgres\""),
            "only requests of HTTP have placeholders",
        ),
    ] {
        let found = lines(&rest);
        assert_eq!(found.len(), 1, "{rest}: {found:#?}");
        assert!(found[0].contains(message), "{rest}: {found:#?}");
    }
    load(&format!("{HEAD}{}", one("name = \"a_1\"\nin = [\"header:X-Key\", \"query\", \"query:k\", \"body\"]")));
}
