use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::action::{Detector, MaskSpec, MaskWith};

const KEY: [u8; 32] = [7; 32];

fn columns(patterns: &[(&str, MaskWith)]) -> MaskSet {
    let spec = |(p, with): &(&str, MaskWith)| MaskSpec { columns: vec![(*p).into()], ..MaskSpec::new(*with) };
    MaskSet::compile(&patterns.iter().map(spec).collect::<Vec<_>>(), KEY).unwrap()
}

fn detectors(detect: &[Detector], with: MaskWith) -> MaskSet {
    MaskSet::compile(&[MaskSpec { detect: detect.to_vec(), ..MaskSpec::new(with) }], KEY).unwrap()
}

fn all() -> MaskSet {
    detectors(&detect::ALL, MaskWith::Redact)
}

fn scrub(set: &MaskSet, text: impl AsRef<[u8]>) -> String {
    scrub_with(set, &KnownSecrets::empty(), text)
}

fn scrub_with(set: &MaskSet, secrets: &KnownSecrets, text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    let mut hits = Hits::default();
    let masked = set.scrub(text, secrets, &mut hits);
    assert_eq!(masked == Masked::Unchanged, hits.count == 0);
    String::from_utf8_lossy(&masked.or_text(text)).into_owned()
}

#[test]
fn the_strictest_column_mask_wins() {
    let set = columns(&[
        ("public.customers.email", MaskWith::Partial),
        ("*.ssn", MaskWith::Hash),
        ("public.customers.*", MaskWith::Hash),
        ("hr.**", MaskWith::Null),
        ("staff.pay", MaskWith::Redact),
    ]);
    let with = |s, t, c| set.column(s, t, c).map(|m| (m.with, m.label.to_string()));
    assert_eq!(with("public", "customers", "email"), Some((MaskWith::Hash, "column:public.customers.*".into())));
    assert_eq!(with("hr", "people", "ssn"), Some((MaskWith::Null, "column:hr.**".into())));
    assert_eq!(with("any", "thing", "ssn"), Some((MaskWith::Hash, "column:*.ssn".into())));
    assert_eq!(with("x", "staff", "pay"), Some((MaskWith::Redact, "column:staff.pay".into())));
    assert_eq!(with("public", "orders", "email"), None);
    assert_eq!(with("public", "customers2", "email"), None);
    // A dot inside a name is no separator, so these are other columns.
    assert_eq!(with("public", "customers.email", "x"), None);
    assert_eq!(with("public.customers", "x", "email"), None);
}

#[test]
fn case_and_quotes_hide_no_column() {
    let set = columns(&[("*.Email", MaskWith::Redact), (r#"public."User"."Full Name""#, MaskWith::Redact)]);
    for name in ["email", "EMAIL", "Email"] {
        assert!(set.column("public", "t", name).is_some(), "{name}");
        assert!(set.may_name_column(name), "{name}");
    }
    assert!(set.column("public", "User", "Full Name").is_some());
    assert!(set.column("PUBLIC", "user", "full name").is_some());
    assert!(set.may_name_column("full NAME"));
    assert!(!set.may_name_column("name"));
    assert!(!set.may_name_column("emails"));
    // A quoted star is a name.
    let star = columns(&[(r#"a.b."*""#, MaskWith::Redact)]);
    assert!(star.column("a", "b", "*").is_some() && star.column("a", "b", "c").is_none());
    // One segment is a column of any table.
    assert!(columns(&[("ssn", MaskWith::Redact)]).column("s", "t", "SSN").is_some());
}

#[test]
fn any_column_may_be_named_where_a_pattern_ends_in_a_wildcard() {
    for pattern in ["hr.**", "hr.people.*", "**"] {
        assert!(columns(&[(pattern, MaskWith::Null)]).may_name_column("Whatever"), "{pattern}");
    }
    assert!(columns(&[("t.pass*", MaskWith::Null)]).may_name_column("password"));
    assert!(!MaskSet::none().may_name_column("password"));
}

#[test]
fn a_bad_pattern_is_named() {
    for pattern in ["", "a..b", "\"open", "a.***"] {
        let spec = MaskSpec { columns: vec![pattern.into()], ..MaskSpec::new(MaskWith::Null) };
        let error = MaskSet::compile(&[spec], KEY).expect_err(pattern);
        assert!(error.to_string().contains(&format!("`{pattern}`")), "{error}");
    }
}

fn partial(value: impl AsRef<[u8]>) -> String {
    let mask = columns(&[("c", MaskWith::Partial)]).column("s", "t", "c").unwrap();
    String::from_utf8(mask.apply_text(value.as_ref()).or_text(value.as_ref()).into_owned()).unwrap()
}

#[test]
fn partial_keeps_the_shape() {
    assert_eq!(partial("alice@example.com"), "a***@e***.com");
    assert_eq!(partial("al@x.co.uk"), "***@x***.uk");
    assert_eq!(partial("4111 1111 1111 1111"), "**** **** **** 1111");
    assert_eq!(partial("378282246310005"), "***********0005");
    assert_eq!(partial("123-45-6789"), "***-**-****");
    assert_eq!(partial("Alice Smith"), "A**** *****");
    assert_eq!(partial("Berlin"), "B*****");
    assert_eq!(partial("abc"), "***");
    assert_eq!(partial(""), "");
    assert_eq!(partial("Zoë Ångström-Łukasz"), "Z** ********-*****z");
    assert_eq!(partial("x".repeat(65)), "********");
    assert_eq!(partial("x".repeat(1 << 20)), "********");
}

#[test]
fn partial_survives_what_is_not_utf8() {
    assert_eq!(partial(b"\xff\xfe\xfd\xfcabcdefgh"), "***********h");
    assert_eq!(partial(b"ab\xc3"), "***");
    assert_eq!(partial(b"a@\xff"), "***");
}

#[test]
fn other_masks_tell_nothing() {
    let mask = |with| columns(&[("c", with)]).column("s", "t", "c").unwrap();
    assert_eq!(mask(MaskWith::Null).apply_text(b"x"), Masked::Null);
    assert_eq!(mask(MaskWith::Redact).apply_text(b"x").or_text(b"x"), &b"[redacted]"[..]);
    let hash = |value: &[u8]| mask(MaskWith::Hash).apply_text(value).or_text(value).into_owned();
    assert_eq!(hash(b"a"), hash(b"a"));
    assert_ne!(hash(b"a"), hash(b"b"));
    assert_eq!(hash(b"a"), blake3::keyed_hash(&KEY, b"a").to_hex()[..16].as_bytes());
    assert!(!format!("{:?}", mask(MaskWith::Hash)).contains('7'));
}

proptest! {
    #[test]
    fn partial_shows_a_quarter_at_most(value in ".{0,80}") {
        prop_assume!(detect::whole_email(value.as_bytes()).is_none() && !detect::is_card(value.as_bytes()));
        let masked = partial(&value);
        let kept = value.chars().zip(masked.chars()).filter(|(a, b)| a == b && *a != '*').count();
        prop_assert!(kept * 4 <= value.chars().count(), "{value:?} {masked:?}");
    }
}

#[test]
fn cards_are_found() {
    let set = detectors(&[Detector::CreditCard], MaskWith::Redact);
    for card in [
        "4111111111111111",
        "4222222222222",
        "4000000000000000006",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "30569309025904",
        "6011111111111117",
        "3530111333300000",
        "6200000000000005",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "3782 822463 10005",
        "3056 930902 5904",
    ] {
        assert_eq!(scrub(&set, card), "[redacted]", "{card}");
        for (before, after) in
            [("", "."), ("card: ", ", thanks"), ("\"", "\""), ("1 ", ""), ("a\n\t", "\n"), ("=", "&x=1")]
        {
            let text = format!("{before}{card}{after}");
            assert_eq!(scrub(&set, &text), format!("{before}[redacted]{after}"), "{text}");
        }
    }
    // Two in a row, and one behind a group that is none of it.
    assert_eq!(scrub(&set, "4111111111111111,5555555555554444"), "[redacted],[redacted]");
    assert_eq!(scrub(&set, "1234 4111 1111 1111 1111"), "1234 [redacted]");
    assert_eq!(scrub(&set, b"\xff4111111111111111\xfe"), "\u{fffd}[redacted]\u{fffd}");
}

#[test]
fn what_is_no_card_stays() {
    let set = detectors(&[Detector::CreditCard], MaskWith::Redact);
    for text in [
        "4111111111111112",
        "9999999999999995",
        "0000000000000000",
        "41111111111111110000",
        "x4111111111111111",
        "4111111111111111x",
        "0.4111111111111111",
        "4111 1111-1111 1111",
        "2024-11-21 02:35:57.123456",
        "411111111111",
        "",
        "1",
        "4111  1111  1111  1111",
    ] {
        assert_eq!(scrub(&set, text), text);
    }
}

#[test]
fn cards_are_found_wherever_they_start() {
    let set = detectors(&[Detector::CreditCard, Detector::Iban], MaskWith::Redact);
    for lead in 0..40 {
        for (filler, value) in [
            ("x,", "4111111111111111"),
            ("7 ", "4111 1111 1111 1111"),
            (" ", "DE89370400440532013000"),
            ("12 ", "GB29 NWBK 6016 1331 9268 19"),
        ] {
            let lead = filler.repeat(lead);
            assert_eq!(scrub(&set, format!("{lead}{value};")), format!("{lead}[redacted];"));
        }
    }
}

#[test]
fn ibans_are_found_by_their_check_digits() {
    let set = detectors(&[Detector::Iban], MaskWith::Redact);
    for iban in [
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "GB29NWBK60161331926819",
        "gb29nwbk60161331926819",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
        "DE89-3704-0044-0532-0130-00",
    ] {
        assert_eq!(scrub(&set, format!("pay {iban} now")), "pay [redacted] now", "{iban}");
        assert_eq!(scrub(&set, iban), "[redacted]", "{iban}");
    }
    for text in [
        "DE88370400440532013000",
        "XX89370400440532013000",
        "DE8937040044053201300",
        "ADE89370400440532013000",
        "DE89370400440532013000X",
    ] {
        assert_eq!(scrub(&set, text), text);
    }
}

#[test]
fn emails_are_found() {
    let set = detectors(&[Detector::Email], MaskWith::Redact);
    for (text, masked) in [
        ("a@b.de", "[redacted]"),
        ("<first.last+tag@sub.example.co.uk>", "<[redacted]>"),
        ("mail: bob@example.com.", "mail: [redacted]."),
        ("a@b.de.", "[redacted]."),
        ("a@b.example.123", "[redacted].123"),
        ("a@b.de..", "[redacted].."),
        ("a@b.de-", "[redacted]-"),
        ("a@b.de,c@d.org;", "[redacted],[redacted];"),
        ("jürgen@bücher.example", "[redacted]"),
        ("{\"m\":\"x_y@e-x.io\"}", "{\"m\":\"[redacted]\"}"),
        ("'o'brien@example.com'", "'[redacted]'"),
        ("a@xn--bcher-kva.xn--p1ai", "[redacted]"),
    ] {
        assert_eq!(scrub(&set, text), masked);
    }
    for text in
        ["@", "a@", "@b.de", "a@b", "user@localhost", "a@b.1", "a @ b.de", "git@-x.de", "a@.de", "a@b..de", "@@@@"]
    {
        assert_eq!(scrub(&set, text), text);
    }
    assert_eq!(scrub(&detectors(&[Detector::Email], MaskWith::Partial), "to alice@example.com!"), "to a***@e***.com!");
}

fn body(alphabet: &str, len: usize) -> String {
    alphabet.chars().cycle().take(len).collect()
}

#[test]
fn tokens_are_found_by_their_prefixes() {
    let set = detectors(&[Detector::ApiToken], MaskWith::Redact);
    let mixed = "aB3dE5gH7jK9";
    let tokens = [
        format!("AKIA{}", body("IOSFODNN7EXAMPLE", 16)),
        format!("ASIA{}", body("IOSFODNN7EXAMPLE", 16)),
        format!("ghp_{}", body(mixed, 36)),
        format!("gho_{}", body(mixed, 36)),
        format!("ghs_{}", body(mixed, 36)),
        format!("github_pat_{}_{}", body(mixed, 22), body(mixed, 59)),
        format!("glpat-{}", body(mixed, 20)),
        format!("xoxb-{}-{}", body("1234567890", 12), body(mixed, 24)),
        format!("sk_live_{}", body(mixed, 24)),
        format!("AIza{}", body(mixed, 35)),
        format!("sk-{}", body(mixed, 48)),
        format!("sk-ant-api03-{}", body(mixed, 93)),
        format!("sk-proj-{}", body(mixed, 60)),
        format!("hf_{}", body(mixed, 34)),
        format!("npm_{}", body(mixed, 36)),
        format!("pypi-{}", body(mixed, 150)),
        format!("dop_v1_{}", body("0123456789abcdef", 64)),
        format!("shpat_{}", body("0123456789abcdef", 32)),
        format!("SG.{}.{}", body(mixed, 22), body(mixed, 43)),
        format!("hvs.{}", body(mixed, 90)),
        format!("AGE-SECRET-KEY-1{}", body("QPZRY9X8GF2TVDW0S3JN", 58)),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U".to_owned(),
    ];
    for token in &tokens {
        for (before, after) in [("", ""), ("token=", "&next=1"), ("\"", "\""), ("Bearer ", "\r\n"), ("a_", " b")] {
            assert_eq!(scrub(&set, format!("{before}{token}{after}")), format!("{before}[redacted]{after}"));
        }
        // Cut short, or part of a word.
        let short: String = token.chars().take(12).collect();
        assert_eq!(scrub(&set, format!("{short} ")), format!("{short} "));
        if !token.starts_with("eyJ") {
            assert_eq!(scrub(&set, format!("x{token}")), format!("x{token}"));
        }
    }
    for text in [
        "task-force-of-twenty-two-people",
        "sk-learn-is-a-library-for-people-and-more",
        "eyJ.eyJ.x",
        "AKIAIOSFODNN7EXAMPLES",
        "risk-a1b2c3d4e5f6g7h8i9j0k1",
        "the_ghp_thing",
    ] {
        assert_eq!(scrub(&set, text), text);
    }
}

const PEM: &str = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/IBAAKCAQEA\nq83\n-----END RSA PRIVATE KEY-----";

#[test]
fn private_keys_are_masked_whole_or_cut() {
    let set = detectors(&[Detector::PrivateKey], MaskWith::Redact);
    assert_eq!(scrub(&set, format!("a {PEM}\nb")), "a [redacted]\nb");
    assert_eq!(scrub(&set, format!("{PEM}{PEM}")), "[redacted][redacted]");
    let one_line = PEM.replace('\n', "\\n");
    assert_eq!(scrub(&set, format!("{{\"k\":\"{one_line}\"}}")), "{\"k\":\"[redacted]\"}");
    for kind in
        ["PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PGP PRIVATE KEY BLOCK"]
    {
        let pem = format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----");
        assert_eq!(scrub(&set, format!("{pem}.")), "[redacted].", "{kind}");
    }
    // Without its end, to the end of the text.
    for cut in 31..PEM.len() {
        assert_eq!(scrub(&set, format!("a {}", &PEM[..cut])), "a [redacted]", "{cut}");
    }
    for text in [
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nA",
        "----- BEGIN PRIVATE KEY",
        "-----BEGIN",
    ] {
        assert_eq!(scrub(&set, text), text);
    }
}

#[test]
fn of_two_cards_that_overlap_nothing_of_either_stays() {
    let text = "4111 1111 0006 5500-0000-0000-0004";
    assert_eq!(scrub(&all(), text), REDACTED);
    let partly = scrub(&detectors(&[Detector::CreditCard], MaskWith::Partial), text);
    assert!(!partly.contains("5500") && !partly.contains("1111"), "{partly}");
}

#[test]
fn detectors_that_are_off_find_nothing() {
    let values =
        ["4111111111111111", "DE89370400440532013000", "a@b.de", PEM, "ghp_aB3dE5gH7jK9aB3dE5gH7jK9aB3dE5gH7jK9"];
    for (i, value) in values.iter().enumerate() {
        for (j, detector) in detect::ALL.iter().enumerate() {
            let found = scrub(&detectors(&[*detector], MaskWith::Redact), value) != *value;
            assert_eq!(found, i == j, "{value} {detector:?}");
        }
    }
}

#[test]
fn overlaps_merge_into_the_stricter_mask() {
    let specs = [
        MaskSpec { detect: vec![Detector::Email], ..MaskSpec::new(MaskWith::Partial) },
        MaskSpec { detect: vec![Detector::CreditCard], ..MaskSpec::new(MaskWith::Hash) },
        MaskSpec { detect: vec![Detector::CreditCard], ..MaskSpec::new(MaskWith::Partial) },
    ];
    let set = MaskSet::compile(&specs, KEY).unwrap();
    let mut hits = Hits::default();
    let text = b"4111111111111111@example.com and 4111111111111111";
    let masked = set.scrub(text, &KnownSecrets::empty(), &mut hits).or_text(text).into_owned();
    let masked = String::from_utf8(masked).unwrap();
    let hash = |text: &str| blake3::keyed_hash(&KEY, text.as_bytes()).to_hex()[..16].to_owned();
    assert_eq!(masked, format!("{} and {}", hash("4111111111111111@example.com"), hash("4111111111111111")));
    assert_eq!(hits.count, 2);
    let secrets = KnownSecrets::new([&b"1111111@exam"[..]]);
    let mut hits = Hits::default();
    assert_eq!(set.scrub(text, &secrets, &mut hits).or_text(text)[..10], b"[redacted]"[..]);
    assert_eq!(hits.detectors.iter().map(|d| &**d).collect::<Vec<_>>(), ["known_secret", "credit_card"]);
    let null = detectors(&[Detector::Email], MaskWith::Null);
    assert_eq!(null.scrub(b"x a@b.de", &KnownSecrets::empty(), &mut hits), Masked::Null);
    assert_eq!(null.scrub(b"x", &KnownSecrets::empty(), &mut hits), Masked::Unchanged);
}

#[test]
fn hits_name_each_mask_once() {
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let mut one = Hits::default();
    one.add(&a);
    one.add(&a);
    let mut two = Hits::default();
    two.add(&b);
    two.add(&a);
    one.merge(&two);
    assert_eq!((one.count, one.detectors.as_slice()), (4, &[a, b][..]));
}

const SECRET: &str = "p\u{e4}ss w/\"o\\rd'+1";

#[test]
fn known_secrets_are_found_in_every_encoding() {
    let set = MaskSet::none();
    let secrets = KnownSecrets::new([SECRET.as_bytes(), b"another"]);
    assert!(!secrets.is_empty() && KnownSecrets::empty().is_empty() && KnownSecrets::new([&b""[..]]).is_empty());
    let s = SECRET.as_bytes();
    let json = serde_json::to_string(SECRET).unwrap();
    let json = json[1..json.len() - 1].to_owned();
    // In a string that lies in another.
    let again = |string: String| string.replace('\\', "\\\\").replace('"', "\\\"");
    for text in [
        again(json.clone()),
        again(json.replace('/', "\\/")),
        again(json.replace('\u{e4}', "\\u00e4")),
        SECRET.to_owned(),
        data_encoding::HEXLOWER.encode(s),
        data_encoding::HEXUPPER.encode(s),
        "p%C3%A4ss%20w%2F%22o%5Crd%27%2B1".to_owned(),
        "p%c3%a4ss+w%2f%22o%5crd%27%2b1".to_owned(),
        json.replace('/', "\\/"),
        json.replace('\u{e4}', "\\u00e4"),
        json.replace('\u{e4}', "\\u00E4"),
        json,
        SECRET.replace('\'', "''"),
        SECRET.replace('"', "\"\""),
        SECRET.replace('\\', "\\\\"),
    ] {
        assert_eq!(scrub_with(&set, &secrets, format!("[{text}]")), "[[redacted]]", "{text}");
    }
}

#[test]
fn no_bit_of_a_known_secret_shows_in_base64() {
    let set = MaskSet::none();
    for len in 4..40 {
        let secret: Vec<u8> = (0..len).map(|i| (i * 37 + 11) as u8).collect();
        let secrets = KnownSecrets::new([secret.as_slice()]);
        for (lead, trail) in (0..7).flat_map(|a| (0..7).map(move |b| (a, b))) {
            let text = [vec![b'<'; lead], secret.clone(), vec![b'>'; trail]].concat();
            for encoding in [&data_encoding::BASE64, &data_encoding::BASE64URL, &data_encoding::BASE64_NOPAD] {
                let encoded = encoding.encode(&text);
                let masked = scrub_with(&set, &secrets, &encoded);
                let (before, after) = masked.split_once(REDACTED).expect("found");
                // What is left holds only bytes that are not the secret's.
                assert!(before.len() * 6 <= lead * 8, "{encoded} {masked}");
                let left = after.trim_end_matches('=').len();
                let bits = encoded.trim_end_matches('=').len() * 6;
                assert!(bits - left * 6 >= (lead + len) * 8, "{encoded} {masked}");
            }
        }
    }
}

#[test]
fn overlapping_and_short_secrets_leave_nothing() {
    let set = MaskSet::none();
    let secrets = KnownSecrets::new([&b"abcdef"[..], b"defghi", b"abcd", b"hij"]);
    assert_eq!(scrub_with(&set, &secrets, "xabcdefghijx"), "x[redacted]x");
    assert_eq!(scrub_with(&set, &secrets, "abcabcdabc"), "abc[redacted]abc");
    let short = KnownSecrets::new([&b"q"[..], b"zz"]);
    assert_eq!(scrub_with(&set, &short, "a q zzz"), "a [redacted] [redacted]");
    assert!(!format!("{secrets:?}").contains("abc"));
    // Longer than the widest window.
    let long = body("abcdefghij0123456789_", 5000);
    assert_eq!(scrub_with(&set, &KnownSecrets::new([long.as_bytes()]), format!("..{long}..")), "..[redacted]..");
}

proptest! {
    /// The search against the plainest search there is.
    #[test]
    fn known_secrets_are_found_as_by_looking_everywhere(
        values in prop::collection::vec("[ab]{3,9}", 1..6), text in "[abc]{0,200}",
    ) {
        let secrets = KnownSecrets::new(values.iter().map(|v| v.as_bytes()));
        let mut hidden = vec![false; text.len()];
        for value in &values {
            for at in 0..text.len() {
                if text[at..].starts_with(value.as_str()) {
                    hidden[at..at + value.len()].fill(true);
                }
            }
        }
        let mut found = vec![false; text.len()];
        secrets.find(text.as_bytes(), |range| found[range].fill(true));
        // Base64 of letters never consists of these letters alone for all of a value, but may for some.
        for (at, hidden) in hidden.iter().enumerate() {
            prop_assert!(found[at] || !hidden);
        }
        let plain = MaskSet::none();
        let masked = scrub_with(&plain, &secrets, &text);
        for value in &values {
            prop_assert!(!masked.contains(value.as_str()), "{masked}");
        }
    }

    #[test]
    fn scrubbing_never_fails(text in prop::collection::vec(any::<u8>(), 0..400), secret in prop::collection::vec(any::<u8>(), 0..9)) {
        scrub_with(&all(), &KnownSecrets::new([secret.as_slice()]), &text);
    }

    #[test]
    fn pieces_are_scrubbed_as_the_whole(
        parts in prop::collection::vec(prop::sample::select(PARTS), 0..40),
        gaps in prop::collection::vec(0_usize..3000, 4), cuts in prop::collection::vec(1_usize..9000, 1..6),
    ) {
        let mut text = String::new();
        for (i, part) in parts.iter().enumerate() {
            text.push_str(part);
            if i % 10 == 9 {
                text.push_str(&body("lorem ipsum 12 ", gaps[i / 10]));
            }
        }
        let (set, secrets) = (Arc::new(all()), Arc::new(KnownSecrets::new([&b"hunter22"[..]])));
        let mut streamed = StreamScrubber::new(set.clone(), secrets.clone());
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            streamed.push(piece, &mut out);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let hits = streamed.finish(&mut out);
        let mut whole_hits = Hits::default();
        let whole = set.scrub(text.as_bytes(), &secrets, &mut whole_hits).or_text(text.as_bytes()).into_owned();
        // A key without an end swallows all that follows, in one piece or another.
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole));
        prop_assert_eq!(hits.count, whole_hits.count);
    }
}

const PARTS: &[&str] = &[
    " ",
    "\n",
    "-",
    ".",
    "@",
    "4111",
    " 1111",
    "4111111111111111",
    "DE89",
    "370400440532013000",
    "DE89370400440532013000",
    "alice",
    "@example.com",
    "alice@example.com",
    "ghp_",
    "aB3dE5gH7jK9aB3dE5gH7jK9aB3dE5gH7jK9",
    "sk-",
    "eyJhbGciOiJIUzI1NiJ9",
    ".eyJzdWIiOiIxMjM0NTY3ODkwIn0",
    "-----BEGIN ",
    "PRIVATE KEY-----",
    "-----END ",
    "MIIEow",
    "hunter",
    "22",
    "hunter22",
    "aHVudGVyMjI",
    "ü",
    "[redacted]",
    "lorem ipsum dolor",
];

/// Streams `text` in two pieces, so cut that the first scan happens at every offset of the interesting part.
fn streamed(set: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>, pieces: &[&[u8]]) -> String {
    let mut scrubber = StreamScrubber::new(set.clone(), secrets.clone());
    let mut out = Vec::new();
    for piece in pieces {
        scrubber.push(piece, &mut out);
    }
    scrubber.finish(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn a_secret_cut_anywhere_is_still_found() {
    let secrets = Arc::new(KnownSecrets::new([&b"correct-horse-battery"[..]]));
    let set = Arc::new(all());
    let value = "<correct-horse-battery 4111 1111 1111 1111 bob@example.com>";
    let expected_value = "<[redacted] [redacted] [redacted]>";
    let held = 4 * (detect::DECIDES + secrets.longest());
    // The scrubber looks at its text whenever `held` bytes have gathered, so sliding the value slides that cut.
    for lead in held - value.len() - 2100..held + 3 {
        if lead % 7 != 0 && !(held - 2100 - value.len()..held - 1980).contains(&lead) && lead + 80 < held {
            continue;
        }
        let before = ".".repeat(lead);
        let text = format!("{before}{value}{before}");
        let expected = format!("{before}{expected_value}{before}");
        assert_eq!(streamed(&set, &secrets, &[text.as_bytes()]), expected, "{lead}");
        let (a, b) = text.as_bytes().split_at(lead + 9);
        assert_eq!(streamed(&set, &secrets, &[a, b]), expected, "{lead}");
    }
}

#[test]
fn every_split_point_of_a_short_text() {
    let secrets = Arc::new(KnownSecrets::new([&b"correct-horse"[..]]));
    let set = Arc::new(all());
    let text = format!("a correct-horse {PEM} b 4111111111111111 c");
    for cut in 0..=text.len() {
        let (a, b) = text.as_bytes().split_at(cut);
        assert_eq!(streamed(&set, &secrets, &[a, b]), "a [redacted] [redacted] b [redacted] c");
    }
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    assert_eq!(streamed(&set, &secrets, &bytes), "a [redacted] [redacted] b [redacted] c");
}

#[test]
fn what_outgrows_the_buffer_is_swallowed_to_its_end() {
    let (set, secrets) = (Arc::new(all()), Arc::new(KnownSecrets::empty()));
    for size in [2_000, 8_000, 8_191, 8_192, 8_193, 20_000, 100_000] {
        let base64 = body("MIIEow+/IBAAKCAQEAq83\n", size);
        let key = format!("a -----BEGIN PRIVATE KEY-----\n{base64}-----END PRIVATE KEY----- b");
        let token = format!("a sk-ant-{} b", body("aB3-_", size));
        for piece in [1_000, 7_919, 1 << 20] {
            for text in [&key, &token] {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(piece).collect();
                assert_eq!(streamed(&set, &secrets, &pieces), "a [redacted] b", "{size} {piece}");
            }
        }
        let cut = streamed(&set, &secrets, &[&key.as_bytes()[..key.len() - 20]]);
        assert_eq!(cut, "a [redacted]", "{size}");
    }
}

#[test]
fn a_known_key_that_outgrows_the_buffer_is_swallowed_too() {
    let key = format!("-----BEGIN PRIVATE KEY-----\n{}-----END PRIVATE KEY-----\n", body("MIIEow+/\n", 30_000));
    let (set, secrets) = (Arc::new(all()), Arc::new(KnownSecrets::new([key.trim_end().as_bytes()])));
    let text = format!("a {key}b");
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(5000).collect();
    assert_eq!(streamed(&set, &secrets, &pieces), "a [redacted]\nb");
}

#[test]
fn a_stream_holds_a_bounded_amount() {
    let (set, secrets) = (Arc::new(all()), Arc::new(KnownSecrets::new([&b"correct-horse"[..]])));
    let mut scrubber = StreamScrubber::new(set, secrets);
    let held = 4 * (detect::DECIDES + 64);
    let mut out = Vec::new();
    let mut sent = 0;
    for filler in ["x", "sk-ant-aaaaaaaaaaaaaaaaaaaaaaaaa", "-----BEGIN PRIVATE KEY-----", "4111 ", "a@", "eyJ"] {
        let piece = body(filler, 1 << 20);
        sent += piece.len();
        scrubber.push(piece.as_bytes(), &mut out);
        assert!(scrubber.buffer.capacity() <= 4 * held, "{} {filler}", scrubber.buffer.capacity());
    }
    assert!(sent > out.len());
}

#[test]
fn what_stands_beside_a_secret_is_found() {
    let secrets = KnownSecrets::new([&b"Zq81-upstream-9fK"[..]]);
    for text in ["ann@example.orgZq81-upstream-9fK", "Zq81-upstream-9fKann@example.org"] {
        let out = scrub_with(&all(), &secrets, text);
        assert!(!out.contains("ann@") && !out.contains("9fK"), "{text}: {out}");
    }
}

#[test]
fn a_text_holds_a_secret_or_is_one() {
    let secrets = KnownSecrets::new([&b"correct-horse"[..], b"dev"]);
    for held in
        ["correct-horse", "postgres://u:correct-horse@h/d", "Y29ycmVjdC1ob3JzZQ==", "636f72726563742d686f727365", "dev"]
    {
        assert!(secrets.are_in(held.as_bytes()), "{held}");
    }
    for free in ["", "correct", "correct horse", "/dev/null", "developer"] {
        assert!(!secrets.are_in(free.as_bytes()), "{free}");
    }
    assert!(!KnownSecrets::empty().are_in(b"correct-horse"));
}
