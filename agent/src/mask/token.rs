//! Tokens of services by their published prefixes, JSON web tokens, and PEM private keys.

use std::ops::Range;

/// What may follow a prefix.
#[derive(Clone, Copy)]
pub(super) enum Class {
    /// `A-Z0-9`
    Upper,
    /// `A-Za-z0-9`
    Alphanumeric,
    /// `A-Za-z0-9_`
    Word,
    /// `A-Za-z0-9_-`
    Url,
    /// `A-Za-z0-9_.-`
    Dotted,
    /// `a-f0-9`
    Hex,
    /// `A-Za-z0-9+/=_-`
    Base64,
}

impl Class {
    pub(super) fn has(self, b: u8) -> bool {
        match self {
            Self::Upper => b.is_ascii_uppercase() || b.is_ascii_digit(),
            Self::Alphanumeric => b.is_ascii_alphanumeric(),
            Self::Word => b.is_ascii_alphanumeric() || b == b'_',
            Self::Url => b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'),
            Self::Dotted => b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'),
            Self::Hex => matches!(b, b'a'..=b'f' | b'0'..=b'9'),
            Self::Base64 => b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'/' | b'='),
        }
    }
}

/// A token's looks: a prefix, then at least `min` bytes of a class, to the end of their run.
struct Shape {
    prefix: &'static str,
    class: Class,
    min: usize,
    body: Body,
}

/// What more is asked of the first bytes after the prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Nothing: the prefix is telling enough.
    Any,
    /// Exactly `min` bytes.
    Exact,
    /// A digit and a letter among the first `min` bytes, against words and identifiers that happen to start so.
    Mixed,
    /// A JSON web token: a dot within the first [`HEADER_MAX`] bytes, and then more.
    Jwt,
}

const fn shape(prefix: &'static str, class: Class, min: usize, body: Body) -> Shape {
    Shape { prefix, class, min, body }
}

/// Where one prefix begins with another, the longer one comes first.
const SHAPES: &[Shape] = &[
    // Amazon Web Services: access key ids (long term, temporary, bearer, context)
    shape("AKIA", Class::Upper, 16, Body::Exact),
    shape("ASIA", Class::Upper, 16, Body::Exact),
    shape("ABIA", Class::Upper, 16, Body::Exact),
    shape("ACCA", Class::Upper, 16, Body::Exact),
    // GitHub
    shape("github_pat_", Class::Word, 22, Body::Any),
    shape("ghp_", Class::Alphanumeric, 36, Body::Any),
    shape("gho_", Class::Alphanumeric, 36, Body::Any),
    shape("ghu_", Class::Alphanumeric, 36, Body::Any),
    shape("ghs_", Class::Dotted, 36, Body::Any),
    shape("ghr_", Class::Alphanumeric, 36, Body::Any),
    // GitLab
    shape("glpat-", Class::Dotted, 20, Body::Any),
    shape("gldt-", Class::Url, 20, Body::Any),
    shape("glrt-", Class::Dotted, 20, Body::Any),
    shape("glptt-", Class::Url, 20, Body::Any),
    shape("glcbt-", Class::Url, 20, Body::Any),
    // Slack
    shape("xoxa-", Class::Url, 10, Body::Any),
    shape("xoxb-", Class::Url, 10, Body::Any),
    shape("xoxc-", Class::Url, 10, Body::Any),
    shape("xoxd-", Class::Base64, 10, Body::Any),
    shape("xoxe-", Class::Url, 10, Body::Any),
    shape("xoxe.", Class::Dotted, 10, Body::Any),
    shape("xoxp-", Class::Url, 10, Body::Any),
    shape("xoxr-", Class::Url, 10, Body::Any),
    shape("xoxs-", Class::Url, 10, Body::Any),
    shape("xapp-", Class::Url, 10, Body::Any),
    // Stripe
    shape("sk_live_", Class::Alphanumeric, 10, Body::Any),
    shape("rk_live_", Class::Alphanumeric, 10, Body::Any),
    shape("sk_test_", Class::Alphanumeric, 10, Body::Any),
    shape("rk_test_", Class::Alphanumeric, 10, Body::Any),
    shape("whsec_", Class::Base64, 24, Body::Any),
    // Google
    shape("AIza", Class::Url, 35, Body::Exact),
    shape("ya29.", Class::Dotted, 20, Body::Any),
    shape("GOCSPX-", Class::Url, 20, Body::Any),
    // Model providers
    shape("sk-ant-", Class::Url, 20, Body::Any),
    shape("sk-proj-", Class::Url, 20, Body::Any),
    shape("sk-svcacct-", Class::Url, 20, Body::Any),
    shape("sk-or-v1-", Class::Alphanumeric, 20, Body::Any),
    shape("sk-", Class::Url, 20, Body::Mixed),
    shape("hf_", Class::Alphanumeric, 30, Body::Any),
    shape("gsk_", Class::Alphanumeric, 40, Body::Any),
    shape("xai-", Class::Alphanumeric, 40, Body::Any),
    shape("pplx-", Class::Alphanumeric, 40, Body::Any),
    shape("r8_", Class::Alphanumeric, 37, Body::Any),
    // Registries and build services
    shape("npm_", Class::Alphanumeric, 36, Body::Any),
    shape("pypi-", Class::Url, 50, Body::Any),
    shape("dckr_pat_", Class::Url, 20, Body::Any),
    shape("rubygems_", Class::Hex, 48, Body::Any),
    // Clouds and other services
    shape("dop_v1_", Class::Hex, 64, Body::Any),
    shape("doo_v1_", Class::Hex, 64, Body::Any),
    shape("dor_v1_", Class::Hex, 64, Body::Any),
    shape("shpat_", Class::Alphanumeric, 32, Body::Any),
    shape("shpca_", Class::Alphanumeric, 32, Body::Any),
    shape("shppa_", Class::Alphanumeric, 32, Body::Any),
    shape("shpss_", Class::Alphanumeric, 32, Body::Any),
    shape("SG.", Class::Dotted, 40, Body::Mixed),
    shape("key-", Class::Hex, 32, Body::Any),
    shape("lin_api_", Class::Alphanumeric, 32, Body::Any),
    shape("hvs.", Class::Dotted, 24, Body::Any),
    shape("hvb.", Class::Dotted, 24, Body::Any),
    shape("glsa_", Class::Word, 32, Body::Any),
    shape("ATATT3", Class::Base64, 40, Body::Any),
    shape("ntn_", Class::Alphanumeric, 40, Body::Any),
    shape("sntrys_", Class::Base64, 40, Body::Any),
    shape("AGE-SECRET-KEY-1", Class::Upper, 40, Body::Any),
    shape("AGE-PLUGIN-", Class::Url, 40, Body::Any),
    shape("eyJ", Class::Url, 13, Body::Jwt),
];

/// The first byte of each shape's prefix.
const INITIALS: [u8; SHAPES.len()] = {
    let mut initials = [0; SHAPES.len()];
    let mut i = 0;
    while i < SHAPES.len() {
        initials[i] = SHAPES[i].prefix.as_bytes()[0];
        i += 1;
    }
    initials
};

/// Longest header of a JSON web token, in characters of base64.
const HEADER_MAX: usize = 1024;

const PEM: &[u8] = b"-----BEGIN";
/// Three bytes of [`PEM`] that are rare elsewhere, and how many bytes there are before their last.
pub(super) const KEY_ANCHOR: [u8; 3] = *b"--B";
const KEY_ANCHOR_LAST: usize = 5;
/// Longest `-----BEGIN ...-----` or `-----END ...-----` line.
pub(super) const PEM_LINE_MAX: usize = 80;

/// The first three bytes of every prefix.
pub(super) fn anchors() -> impl Iterator<Item = [u8; 3]> {
    SHAPES.iter().filter_map(|shape| shape.prefix.as_bytes().first_chunk().copied())
}

/// The token that starts at `start`.
pub(super) fn token(text: &[u8], start: usize) -> Option<Range<usize>> {
    if start > 0 && text[start - 1].is_ascii_alphanumeric() {
        return None;
    }
    let rest = &text[start..];
    let mut alike = memchr::memchr_iter(*rest.first()?, &INITIALS).map(|i| &SHAPES[i]);
    let shape = alike.find(|shape| rest.starts_with(shape.prefix.as_bytes()))?;
    token_end(shape, text, start + shape.prefix.len()).map(|end| start..end)
}

/// The private key whose [`KEY_ANCHOR`] ends at `at`.
pub(super) fn key(text: &[u8], at: usize) -> Option<Range<usize>> {
    let start = at.checked_sub(KEY_ANCHOR_LAST)?;
    if !text[start..].starts_with(PEM) {
        return None;
    }
    key_end(text, start).map(|end| start..end)
}

/// The end of a token whose prefix ends at `end`.
fn token_end(shape: &Shape, text: &[u8], end: usize) -> Option<usize> {
    let run = |from: usize, class: Class| text[from..].iter().take_while(|b| class.has(**b)).count();
    let enough = text[end..].iter().take(shape.min).take_while(|b| shape.class.has(**b)).count() == shape.min;
    if !enough {
        return None;
    }
    let head = &text[end..end + shape.min];
    match shape.body {
        Body::Any => {}
        Body::Exact => {
            let end = end + shape.min;
            return (!text.get(end).is_some_and(|b| Class::Url.has(*b))).then_some(end);
        }
        Body::Mixed => {
            if !(head.iter().any(u8::is_ascii_digit) && head.iter().any(u8::is_ascii_alphabetic)) {
                return None;
            }
        }
        Body::Jwt => {
            let header = text[end..].iter().take(HEADER_MAX + 1).take_while(|b| shape.class.has(**b)).count();
            let claims = text.get(end + header..)?.strip_prefix(b".")?;
            let telling = claims.len() >= 4 && claims[..4].iter().all(|b| Class::Url.has(*b));
            return telling.then(|| end + run(end, Class::Dotted));
        }
    }
    Some(end + run(end, shape.class))
}

/// The end of a PEM private key that starts at `start`: behind its END line, or the end of the text.
fn key_end(text: &[u8], start: usize) -> Option<usize> {
    let line = &text[start..text.len().min(start + PEM_LINE_MAX)];
    let label_end = PEM.len() + memchr::memmem::find(line.get(PEM.len()..)?, b"-----")?;
    let label = &line[PEM.len()..label_end];
    memchr::memmem::find(label, b"PRIVATE KEY")?;
    let body = start + label_end + 5;
    Some(closing(&text[body..]).map_or(text.len(), |end| body + end))
}

/// The end of the first END line, the line's own text excepted.
pub(super) fn closing(text: &[u8]) -> Option<usize> {
    const END: &[u8] = b"-----END";
    let end = memchr::memmem::find(text, END)? + END.len();
    let line = &text[end..text.len().min(end + PEM_LINE_MAX)];
    Some(end + memchr::memmem::find(line, b"-----")? + 5)
}
