use super::*;
use crate::action::Fields;

fn error(text: &str) -> WhenError {
    When::new(text).expect_err(text)
}

#[test]
fn names_that_do_not_exist_are_found_at_load() {
    for (text, at, message, help) in [
        ("sql.has_were", 4..12, "unknown fact of `sql`: `has_were`", Some("did you mean `has_where`?")),
        ("!sql.has_where && sqll.verb == 'x'", 18..22, "unknown variable `sqll`", Some("did you mean `sql`?")),
        ("session.user == 'x'", 8..12, "unknown fact of `session`: `user`", Some("known: intent")),
        ("workload.name == 'x'", 9..13, "`workload` is a text and has no fields", None),
        ("sql.text.matches('x')", 9..16, "unknown function `matches`", None),
        ("sql.text.startswith('x')", 9..19, "unknown function `startswith`", Some("did you mean `startsWith`?")),
        ("sql.tables.exists(t, u == 'x')", 21..22, "unknown variable `u`", None),
        ("has(sql.wher)", 8..12, "unknown fact of `sql`: `wher`", None),
    ] {
        let error = error(text);
        assert_eq!((error.at.clone(), &*error.message), (at, message), "{text}");
        if help.is_some() {
            assert_eq!(error.help.as_deref(), help, "{text}");
        }
    }
}

#[test]
fn types_are_checked_at_load() {
    for text in ["sql.verb", "1", "sql.tables", "sql.verb && true", "sql.has_where > 3", "sql.statements == 'x' + 1"] {
        let error = error(text);
        assert!(error.message.starts_with("the expression "), "{text}: {}", error.message);
    }
}

#[test]
fn syntax_errors_have_a_place() {
    for text in ["sql.verb ==", "(sql.has_where", "sql.has_where &", "", "'open", "sql..verb", "a b"] {
        let error = error(text);
        assert!(error.at.end <= text.len() && error.at.start <= error.at.end, "{text}: {:?}", error.at);
        assert!(!error.message.is_empty());
    }
    assert!(When::new(&"(".repeat(10_000)).is_err());
    let _ = When::new(&format!("{}true", "!".repeat(10_000)));
    assert!(When::new(&format!("{}true{}", "[".repeat(10_000), "]".repeat(10_000))).is_err());
}

#[test]
fn expressions_hold_or_do_not() {
    let sql = SqlFacts {
        verb: "update".into(),
        tables: vec![Target::new("public.orders"), Target::new("public.\"A b\"")],
        functions: vec!["pg_catalog.now".into()],
        statements: 2,
        text: "update orders set a = 1".into(),
        ..SqlFacts::default()
    };
    let mut facts = CelFacts::of("bot", Some("close tickets"), "db", None);
    facts.add_sql(&sql);
    for (text, want) in [
        ("sql.verb in ['update', 'delete'] && !sql.has_where", Verdict::True),
        ("sql.has_limit", Verdict::False),
        ("sql.tables.exists(t, t == 'public.\"A b\"')", Verdict::True),
        ("sql.tables.all(t, t.startsWith('public.'))", Verdict::True),
        ("size(sql.functions) == 1 && sql.functions[0] == 'pg_catalog.now'", Verdict::True),
        ("sql.statements > 1", Verdict::True),
        ("sql.text.contains('orders')", Verdict::True),
        ("session.intent.contains('ticket') && workload == 'bot' && upstream == 'db'", Verdict::True),
        ("has(session.intent)", Verdict::True),
        ("database == 'shop'", Verdict::Unanswered),
        ("sql.tables[5] == 'x'", Verdict::Unanswered),
        ("upstream == 'db' || database == 'shop'", Verdict::True),
        ("upstream == 'x' && database == 'shop'", Verdict::False),
    ] {
        assert_eq!(When::new(text).unwrap_or_else(|e| panic!("{text}: {e:?}")).holds(&facts), want, "{text}");
    }
    for (params, want) in [
        (Params::Known([Some("7".into()), None].into()), [Verdict::True, Verdict::True]),
        (Params::Known([Some("8".into())].into()), [Verdict::False, Verdict::Unanswered]),
        (Params::None, [Verdict::Unanswered; 2]),
        (Params::Pending, [Verdict::Unanswered; 2]),
        (Params::Unknown, [Verdict::Unanswered; 2]),
    ] {
        let sql = SqlFacts { params, ..sql.clone() };
        let mut facts = CelFacts::of("bot", None, "db", None);
        facts.add_sql(&sql);
        let holds =
            ["sql.params[0] == '7'", "sql.params[1] == null"].map(|text| When::new(text).expect(text).holds(&facts));
        assert_eq!(holds, want, "{:?}", sql.params);
    }
    assert!(When::new("sql.params[0] == '7'").expect("it is right").asks_params);
    assert!(!When::new("sql.text == 'params'").expect("it is right").asks_params);
    let none = CelFacts::of("bot", None, "db", Some("shop"));
    for (text, want) in [
        ("sql.has_where", Verdict::Unanswered),
        ("!sql.has_where", Verdict::Unanswered),
        ("has(session.intent)", Verdict::False),
        ("session.intent == 'x'", Verdict::Unanswered),
        ("database == 'shop'", Verdict::True),
    ] {
        assert_eq!(When::new(text).unwrap_or_else(|e| panic!("{text}: {e:?}")).holds(&none), want, "{text}");
    }
}

#[test]
fn requests_have_facts() {
    let mut headers = Fields::default();
    for (name, value) in [("x-from", "here"), ("x-two", "a: b"), ("x-two", "c")] {
        headers.push(name, value);
    }
    let http = HttpFacts {
        method: "POST".into(),
        host: "api".into(),
        path: "/pay".into(),
        query: [("a".to_owned(), Some("1".to_owned())), ("twice".to_owned(), None)].into(),
        headers,
        upgrade: "websocket".into(),
        body: Body::Json(serde_json::json!({"amount": 100, "price": 1.5, "items": [{"id": "x"}], "none": null})),
        llm: None,
    };
    let mut facts = CelFacts::of("bot", None, "api", None);
    facts.add_http(&http);
    for (text, verdict) in [
        ("http.method == 'POST' && http.path == '/pay'", Verdict::True),
        ("http.upgrade == 'websocket'", Verdict::True),
        ("http.body_json.amount > 100", Verdict::False),
        ("http.body_json.amount == 100", Verdict::True),
        ("http.body_json.price > 1.0", Verdict::True),
        ("http.body_json.items[0].id == 'x'", Verdict::True),
        ("http.body_json.items.exists(i, i.id == 'y')", Verdict::False),
        ("http.body_json.none == null", Verdict::True),
        ("has(http.body_json.amount)", Verdict::True),
        ("has(http.body_json.other)", Verdict::False),
        ("http.body_json.other > 1", Verdict::Unanswered),
        ("http.query.a == '1'", Verdict::True),
        ("http.query.twice == '1'", Verdict::Unanswered),
        ("http.headers['x-from'] == 'here'", Verdict::True),
        ("http.headers['x-two'] == 'a: b, c'", Verdict::True),
        ("http.headers['x-other'] == 'here'", Verdict::Unanswered),
        ("sql.verb == 'select'", Verdict::Unanswered),
    ] {
        assert_eq!(When::new(text).expect("it is right").holds(&facts), verdict, "{text}");
    }
    assert!(When::new("http.body_json.a == 1").expect("it is right").asks_body);
    assert!(!When::new("http.path == '/body_json'").expect("it is right").asks_body);
}
