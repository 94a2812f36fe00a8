use proptest::prelude::*;

use super::*;

fn glob(pattern: &str) -> Glob {
    Glob::new(pattern, '.').unwrap_or_else(|e| panic!("{pattern}: {e}"))
}

#[test]
fn names_match_by_segment() {
    for (pattern, yes, no) in [
        (
            "public.*",
            &["public.orders", "public.\"a.b\"", "public.\"Weird\"\"x\""][..],
            &[
                "public",
                "public.a.b",
                "publica.b",
                "Public.orders",
                "?.orders",
                "public.?",
                "fn:public.orders",
                "\"public.x\"",
                "\"public.x\".y",
            ][..],
        ),
        ("public.orders", &["public.orders", "public.\"orders\""], &["public.orders2", "xpublic.orders", "?.orders"]),
        ("Public.ORDERS", &["public.orders"], &["\"Public\".\"ORDERS\""]),
        ("public.\"Order*\"", &["public.\"Order*\""], &["public.\"Orders\"", "public.order"]),
        ("public.\"a.b\"", &["public.\"a.b\""], &["public.a.b", "public.\"a\".b"]),
        ("public.\"say \"\"hi\"\"\"", &["public.\"say \"\"hi\"\"\""], &["public.\"say hi\""]),
        ("*.*", &["public.orders", "\"a.b\".c"], &["a", "a.b.c", "fn:a.b", "?.x", "\"a.b\""]),
        ("*", &["a", "\"a.b.c\""], &["a.b", "?", "fn:a"]),
        ("**", &["", "a", "a.b.c", "?.x", "fn:?.x", "\"a.b\"", "?"], &[]),
        ("public.**", &["public.a", "public.a.b", "public.\"a.b\".c"], &["public", "publicx.a", "\"public.a\""]),
        ("**.ssn", &["a.ssn", "a.b.ssn", "?.ssn", "\"x.y\".ssn"], &["ssn", "a.xssn", "a.\".ssn\"", "a.\"b.ssn\""]),
        ("*.ssn", &["a.ssn"], &["a.b.ssn", "?.ssn", "a.\".ssn\"", "\"a\".ssn.x"]),
        ("public.customers.email", &["public.customers.email"], &["public.customers", "public.customers.email2"]),
        ("public.pay*", &["public.payroll", "public.pay", "public.\"pay roll\""], &["public.repay", "public.pay.roll"]),
        ("public.*pay*", &["public.prepay", "public.\"x.pay.y\""], &["public.ay", "public.x.pay"]),
        (
            "fn:pg_catalog.*",
            &["fn:pg_catalog.now"],
            &["pg_catalog.now", "fn:public.now", "fn:?.now", "fn:pg_catalog.a.b"],
        ),
        ("fn:*.now", &["fn:pg_catalog.now", "fn:\"A b\".now"], &["pg_catalog.now", "fn:?.now", "gn:pg_catalog.now"]),
        ("f*.now", &["foo.now"], &["fn:pg_catalog.now"]),
        ("**.now", &["fn:pg_catalog.now", "fn:?.now"], &["now"]),
        ("?.x", &["?.x"], &["a.x", "\"?\".x"]),
        ("\"?\".x", &["\"?\".x"], &["?.x"]),
        ("public.order-*", &["public.\"order-items\"", "public.\"order-\""], &["public.order_items"]),
        ("public.größe", &["public.\"größe\""], &["public.\"grösse\""]),
        ("a**b", &["ab", "a.b", "axxx.yyy.b"], &["a", "b", "a.bc"]),
    ] {
        let glob = glob(pattern);
        for target in yes {
            assert!(glob.matches(target), "{pattern} should match {target}");
        }
        for target in no {
            assert!(!glob.matches(target), "{pattern} should not match {target}");
        }
    }
}

#[test]
fn an_unresolved_name_could_be_anything_of_one_segment() {
    for (pattern, yes, no) in [
        (
            "public.payroll",
            &["?.payroll", "public.?", "?.?"][..],
            &["?.orders", "fn:?.payroll", "?", "?.payroll.x"][..],
        ),
        ("public.*", &["?.a", "?.\"b.c\""], &["fn:?.a", "?.a.b"]),
        ("pub*.x", &["?.x"], &["?.y"]),
        ("*.x", &["?.x", "a.x"], &["?.y", "?.a.x"]),
        ("**.x", &["?.x", "a.?.x"], &["?.y"]),
        ("fn:*.dblink", &["fn:?.dblink"], &["?.dblink", "fn:?.dblink2"]),
        ("fn:public.*", &["fn:?.f"], &["?.f"]),
        ("a**b", &["?", "a.?", "?.b", "?.x.?"], &["?.c", "x.?"]),
        ("\"?\".x", &["?.x"], &[]),
    ] {
        let glob = glob(pattern);
        for target in yes {
            assert!(glob.could_match(&Scanned::new(target, '.')), "{pattern} could match {target}");
        }
        for target in no {
            assert!(!glob.could_match(&Scanned::new(target, '.')), "{pattern} could not match {target}");
        }
    }
}

#[test]
fn paths_match_by_segment_without_quotes() {
    let glob = |p: &str| Glob::new(p, '/').expect("valid");
    let bot = glob("portcullis.slice/support-bot/*");
    assert!(bot.matches("portcullis.slice/support-bot/s-1"));
    assert!(!bot.matches("portcullis.slice/support-bot"));
    assert!(!bot.matches("portcullis.slice/support-bot/s-1/inner"));
    assert!(!bot.matches("portcullis.slice/support-bot2/s-1"));
    assert!(!bot.matches("x/portcullis.slice/support-bot/s-1"));
    assert!(glob("a/\"b/c").matches("a/\"b/c"));
    assert!(glob("A/*").matches("A/?") && !glob("A/*").matches("a/b"));
    assert!(glob("a/**").matches("a/b/c:d.scope"));
    assert!(glob("**/x-*.scope").matches("a.slice/b.slice/x-1.scope"));
    assert!(glob(r"sys\x2dfoo/*").matches(r"sys\x2dfoo/1"));
}

#[test]
fn parents_hold_everything_that_can_match() {
    for (pattern, parent) in [
        ("portcullis.slice/support-bot/*", "portcullis.slice/support-bot"),
        ("portcullis.slice/bot-*", "portcullis.slice"),
        ("portcullis.slice/bot-*/inner", "portcullis.slice"),
        ("portcullis.slice/bot", "portcullis.slice"),
        ("*", ""),
        ("bot", ""),
        ("**/x", ""),
    ] {
        assert_eq!(Glob::new(pattern, '/').expect("valid").parent(), parent, "{pattern}");
    }
}

#[test]
fn bad_patterns_say_where() {
    use GlobError as E;
    for (pattern, error) in [
        ("", E::EmptySegment { at: 0 }),
        ("public.", E::EmptySegment { at: 7 }),
        (".x", E::EmptySegment { at: 0 }),
        ("a..b", E::EmptySegment { at: 2 }),
        ("fn:", E::EmptySegment { at: 3 }),
        ("a.\"b", E::OpenQuote { at: 2 }),
        ("a.\"b\"\"", E::OpenQuote { at: 2 }),
        ("a\"b\"", E::StrayQuote { at: 1 }),
        ("\"b\"c", E::StrayQuote { at: 3 }),
        ("\"b\"*", E::StrayQuote { at: 3 }),
        ("a.***", E::Stars { at: 2 }),
        ("a****", E::Stars { at: 1 }),
        ("a b", E::Character { at: 1, what: ' ' }),
        ("a.?x", E::Character { at: 2, what: '?' }),
        ("a.x?", E::Character { at: 3, what: '?' }),
        ("{a,b}.c", E::Character { at: 0, what: '{' }),
        ("a.[bc]", E::Character { at: 2, what: '[' }),
        ("a.b:c", E::Character { at: 3, what: ':' }),
        ("a,b", E::Character { at: 1, what: ',' }),
    ] {
        assert_eq!(Glob::new(pattern, '.'), Err(error), "{pattern}");
    }
    assert_eq!(Glob::new("/a", '/'), Err(E::EmptySegment { at: 0 }));
    assert_eq!(Glob::new("a/", '/'), Err(E::EmptySegment { at: 2 }));
    assert_eq!(Glob::new("a/{b}", '/'), Err(E::Character { at: 2, what: '{' }));
    assert_eq!(Glob::new(&"x".repeat(512), '.'), Err(E::TooLong));
    assert!(Glob::new(&"x".repeat(511), '.').expect("fits").matches(&"x".repeat(511)));
}

#[test]
fn hostile_patterns_and_targets_finish() {
    // Exponential for naive backtracking, and cubic for the two-level kind.
    let pattern = "*a".repeat(120) + "**" + &"a*".repeat(120) + "b";
    let glob = Glob::new(&pattern, '/').expect("fits");
    let long = "a".repeat(1 << 20);
    assert!(!glob.matches(&long));
    assert!(glob.matches(&(long.clone() + "b")));
    let dots = "a/".repeat(1 << 19);
    assert!(!glob.matches(&dots));
    let names = Glob::new(&("**.".to_owned() + &"*.".repeat(200) + "x"), '.').expect("fits");
    assert!(!names.matches(&"\"\"\"\".".repeat(1 << 17)));
    assert!(!names.could_match(&Scanned::new(&"?.".repeat(1 << 10), '.')));
    assert!(names.could_match(&Scanned::new(&("?.".repeat(1 << 10) + "?"), '.')));
}

#[test]
fn odd_targets_never_split_inside_quotes() {
    let two = glob("*.*");
    assert!(!two.matches("\"open.quote"));
    assert!(!two.matches("\"a\"\".b\""));
    assert!(two.matches("\"a\"\"\".b"));
    assert!(!two.matches("a.b\".c\""), "a quote inside a segment does not hide a separator");
    assert!(!glob("a").matches("") && !glob("\"\"").matches("a"));
    assert!(glob("\"\".x").matches("\"\".x"));
}

#[test]
fn overlaps() {
    for (a, b, want) in [
        ("a/*", "a/b", true),
        ("a/*", "b/*", false),
        ("a/*", "a/*/c", false),
        ("a/**", "a/*/c", true),
        ("a/x-*", "a/*-y", true),
        ("a/x-*", "a/y-*", false),
        ("**", "z", true),
        ("a**/q", "*/q", true),
        ("a*b*c", "abc", true),
        ("a*b*c", "acb", false),
        ("*a*", "*b*", true),
    ] {
        let (x, y) = (Glob::new(a, '/').expect(a), Glob::new(b, '/').expect(b));
        assert_eq!((x.overlaps(&y), y.overlaps(&x)), (want, want), "{a} and {b}");
    }
    assert!(!glob("public.*").overlaps(&glob("fn:public.*")));
    assert!(!glob("public.*").overlaps(&glob("?.x")));
    assert!(glob("\"A\".*").overlaps(&glob("**.b")));
}

/// The slow way: cuts by hand, tries everything.
fn naive(pattern: &[Token], target: &[Token]) -> bool {
    match pattern {
        [] => target.is_empty(),
        [star @ (Token::Star | Token::DoubleStar), rest @ ..] => {
            naive(rest, target)
                || target.split_first().is_some_and(|(first, after)| star.covers(*first) && naive(pattern, after))
        }
        [token, rest @ ..] => target.first() == Some(token) && naive(rest, &target[1..]),
    }
}

/// Names as (segments, text): an independent encoder for the automaton's decoder to meet.
fn name() -> impl Strategy<Value = (Vec<Token>, String)> {
    let segment = prop_oneof![
        4 => "[ab]{1,3}".prop_map(Some),
        3 => "[ab.\"*?:A]{1,3}".prop_map(Some),
        1 => Just(None),
    ];
    (any::<bool>(), prop::collection::vec(segment, 1..4)).prop_map(|(function, segments)| {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        if function {
            tokens.extend([Token::Char('f'), Token::Char('n'), Token::Colon]);
            text.push_str("fn:");
        }
        for (i, segment) in segments.iter().enumerate() {
            if i > 0 {
                tokens.push(Token::Separator);
                text.push('.');
            }
            match segment {
                Some(name) => {
                    tokens.extend(name.chars().map(Token::Char));
                    push_identifier(&mut text, name);
                }
                None => {
                    tokens.push(Token::Unresolved);
                    text.push('?');
                }
            }
        }
        (tokens, text)
    })
}

fn pattern() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[ab]{1,2}",
        2 => Just("*".to_owned()),
        1 => Just("**".to_owned()),
        1 => Just("a*b".to_owned()),
        1 => Just("*b".to_owned()),
        1 => Just("?".to_owned()),
        1 => Just("\"a.b\"".to_owned()),
        1 => Just("\"A\"".to_owned()),
        1 => Just("\"*\"".to_owned()),
    ];
    (prop_oneof![4 => Just(""), 1 => Just("fn:")], prop::collection::vec(piece, 1..4))
        .prop_map(|(kind, pieces)| kind.to_owned() + &pieces.join("."))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_a_naive_matcher(pattern in pattern(), (tokens, text) in name()) {
        let compiled = glob(&pattern);
        prop_assert_eq!(compiled.matches(&text), naive(&compiled.tokens, &tokens), "{} on {}", pattern, text);
    }

    #[test]
    fn agrees_on_paths(pattern in "[ab*/]{1,8}", target in "[ab/]{0,10}") {
        let Ok(compiled) = Glob::new(&pattern, '/') else { return Ok(()) };
        let cut = |c| if c == '/' { Token::Separator } else { Token::Char(c) };
        let tokens: Vec<Token> = target.chars().map(cut).collect();
        prop_assert_eq!(compiled.matches(&target), naive(&compiled.tokens, &tokens));
    }

    /// Resolving a name never turns "could not match" into a match, and what matches could match.
    #[test]
    fn could_match_covers_every_resolution(pattern in pattern(), (tokens, text) in name(), filler in "[ab.\"A]{1,3}") {
        let compiled = glob(&pattern);
        let could = compiled.could_match(&Scanned::new(&text, '.'));
        if compiled.matches(&text) {
            prop_assert!(could);
        }
        let resolved: Vec<Token> = tokens.iter().flat_map(|t| match t {
            Token::Unresolved => filler.chars().map(Token::Char).collect(),
            t => vec![*t],
        }).collect();
        if naive(&compiled.tokens, &resolved) {
            prop_assert!(could, "{} on {} as {}", pattern, text, filler);
        }
    }

    #[test]
    fn what_matches_two_patterns_makes_them_overlap(a in pattern(), b in pattern(), (_, text) in name()) {
        let (a, b) = (glob(&a), glob(&b));
        if a.matches(&text) && b.matches(&text) {
            prop_assert!(a.overlaps(&b) && b.overlaps(&a));
        }
    }

    #[test]
    fn total(pattern in ".{0,12}", target in ".{0,24}") {
        for separator in ['.', '/'] {
            if let Ok(compiled) = Glob::new(&pattern, separator) {
                let _ = compiled.matches(&target);
                let _ = compiled.could_match(&Scanned::new(&target, separator));
            }
        }
    }
}
