//! Patterns to tokens.

use super::{GlobError, Token};

/// Whether the last segment must say something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Filled,
    MayBeEmpty,
}

/// Compiles a pattern over plain segments.
pub(super) fn segments(pattern: &str, separator: char, last: Last) -> Result<Vec<Token>, GlobError> {
    let mut tokens = Vec::new();
    let mut chars = pattern.char_indices().peekable();
    let mut empty = true;
    while let Some((at, c)) = chars.next() {
        if c == separator {
            if std::mem::replace(&mut empty, true) {
                return Err(GlobError::EmptySegment { at });
            }
            tokens.push(Token::Separator);
            continue;
        }
        empty = false;
        tokens.push(match c {
            '*' => stars(at, &mut chars)?,
            '[' | ']' | '{' | '}' | '\0' => return Err(GlobError::Character { at, what: c }),
            c => Token::Char(c),
        });
    }
    let missing = empty && (last == Last::Filled || tokens.is_empty());
    if missing { Err(GlobError::EmptySegment { at: pattern.len() }) } else { Ok(tokens) }
}

/// Compiles a pattern over dotted names.
pub(super) fn names(pattern: &str) -> Result<Vec<Token>, GlobError> {
    let mut tokens = Vec::new();
    let mut chars = pattern.char_indices().peekable();
    let mut empty = true;
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | ':' => {
                if std::mem::replace(&mut empty, true) {
                    return Err(GlobError::EmptySegment { at });
                }
                if c == ':' && tokens.iter().any(|t| !matches!(t, Token::Char(_) | Token::Star | Token::DoubleStar)) {
                    return Err(GlobError::Character { at, what: c });
                }
                tokens.push(if c == '.' { Token::Separator } else { Token::Colon });
                continue;
            }
            '"' if empty => {
                quoted(at, &mut chars, &mut tokens)?;
                if let Some((at, _)) = chars.peek().filter(|(_, c)| *c != '.') {
                    return Err(GlobError::StrayQuote { at: *at });
                }
            }
            '"' => return Err(GlobError::StrayQuote { at }),
            '*' => tokens.push(stars(at, &mut chars)?),
            '?' if empty && chars.peek().is_none_or(|(_, c)| *c == '.') => tokens.push(Token::Unresolved),
            'A'..='Z' => tokens.push(Token::Char(c.to_ascii_lowercase())),
            c if c.is_alphanumeric() || matches!(c, '_' | '$' | '-') => tokens.push(Token::Char(c)),
            c => return Err(GlobError::Character { at, what: c }),
        }
        empty = false;
    }
    if empty { Err(GlobError::EmptySegment { at: pattern.len() }) } else { Ok(tokens) }
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

/// Reads a quoted segment, whose opening quote at `open` was read.
fn quoted(open: usize, chars: &mut Chars<'_>, tokens: &mut Vec<Token>) -> Result<(), GlobError> {
    loop {
        match chars.next() {
            None => return Err(GlobError::OpenQuote { at: open }),
            Some((_, '"')) if chars.next_if(|(_, c)| *c == '"').is_none() => return Ok(()),
            Some((_, c)) => tokens.push(Token::Char(c)),
        }
    }
}

/// Reads the stars that follow one.
fn stars(at: usize, chars: &mut Chars<'_>) -> Result<Token, GlobError> {
    if chars.next_if(|(_, c)| *c == '*').is_none() {
        return Ok(Token::Star);
    }
    if chars.next_if(|(_, c)| *c == '*').is_some() { Err(GlobError::Stars { at }) } else { Ok(Token::DoubleStar) }
}
