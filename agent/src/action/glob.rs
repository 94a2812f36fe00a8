//! The one glob language of policies: `*` within a segment, `**` across segments.
//!
//! With the separator `.` a text is a dotted name and follows PostgreSQL's quoting: `public."a.b"` has two segments, a
//! quoted part of a pattern is literal, and what is not quoted in a pattern folds to lower case. An unquoted `?` as a
//! whole segment is a name that could not be resolved; `*` does not match it. The kind before a `:` (`fn:`) must be
//! named by the pattern, or crossed by `**`. With any other separator there is no quoting and no folding.
//!
//! Patterns run as a bit-parallel automaton: time is linear in the target whatever the pattern, nothing is allocated.
//!
//! Long because it holds matching and its reference model.

mod automaton;
pub mod fuzz;
mod parse;

use std::fmt;

use self::automaton::{Automaton, Unresolved};
use super::push_identifier;

/// Longest pattern, in characters and wildcards.
const MAX_TOKENS: usize = 511;

/// A compiled pattern.
#[derive(Clone)]
pub struct Glob {
    text: Box<str>,
    separator: char,
    tokens: Box<[Token]>,
    /// What every plain match begins and ends with: most targets are refused by these alone.
    ends: (Box<str>, Box<str>),
    shape: Shape,
    automaton: Automaton,
}

/// What is wrong with a pattern. `at` is a byte offset into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Nothing there, or nothing between two separators.
    #[error("a segment of the pattern is empty")]
    EmptySegment {
        /// Where the segment should be.
        at: usize,
    },
    /// A quote that is not closed.
    #[error("this quote is not closed")]
    OpenQuote {
        /// The opening quote.
        at: usize,
    },
    /// A quote that does not enclose a whole segment.
    #[error("a quote must enclose a whole segment")]
    StrayQuote {
        /// The quote, or what follows the closing one.
        at: usize,
    },
    /// Three stars or more.
    #[error("use `*` within a segment or `**` across segments")]
    Stars {
        /// The first of them.
        at: usize,
    },
    /// A character that this language does not give a meaning.
    #[error("`{what}` has no meaning here")]
    Character {
        /// Where it is.
        at: usize,
        /// The character.
        what: char,
    },
    /// More than 511 characters.
    #[error("the pattern is longer than {MAX_TOKENS} characters")]
    TooLong,
}

impl GlobError {
    /// Byte offset into the pattern.
    pub fn at(&self) -> usize {
        match *self {
            Self::EmptySegment { at }
            | Self::OpenQuote { at }
            | Self::StrayQuote { at }
            | Self::Stars { at }
            | Self::Character { at, .. } => at,
            Self::TooLong => 0,
        }
    }
}

impl Glob {
    /// Compiles a pattern over texts whose segments are divided by `separator`.
    ///
    /// # Errors
    /// An empty segment, unbalanced quotes, more than two stars in a row, a character of other glob languages, or a
    /// pattern longer than 511 characters.
    pub fn new(pattern: &str, separator: char) -> Result<Self, GlobError> {
        if separator == '.' {
            Self::of(pattern, separator, parse::names(pattern)?)
        } else {
            Self::of(pattern, separator, parse::segments(pattern, separator, parse::Last::Filled)?)
        }
    }

    /// Compiles a pattern over `METHOD /path`, whose last segment may be empty: `GET /`, `* /orders/`.
    ///
    /// # Errors
    /// As [`Glob::new`].
    pub fn route(pattern: &str) -> Result<Self, GlobError> {
        Self::of(pattern, '/', parse::segments(pattern, '/', parse::Last::MayBeEmpty)?)
    }

    fn of(pattern: &str, separator: char, tokens: Vec<Token>) -> Result<Self, GlobError> {
        if tokens.len() > MAX_TOKENS {
            return Err(GlobError::TooLong);
        }
        Ok(Self {
            text: pattern.into(),
            separator,
            ends: (literal(tokens.iter(), separator).collect(), {
                let mut reversed: Vec<char> = literal(tokens.iter().rev(), separator).collect();
                reversed.reverse();
                reversed.into_iter().collect()
            }),
            shape: Shape::of(&tokens, separator),
            automaton: Automaton::new(&tokens),
            tokens: tokens.into(),
        })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `target` matches.
    pub fn matches(&self, target: &str) -> bool {
        self.matches_scanned(&Scanned::new(target, self.separator))
    }

    /// As [`Glob::matches`], for a target that is compared with many patterns of one separator.
    pub fn matches_scanned(&self, target: &Scanned<'_>) -> bool {
        debug_assert_eq!(target.separator, self.separator);
        match &self.shape {
            Shape::Everything => true,
            Shape::Literal(text) if target.plain => target.text == &**text,
            Shape::LastSegment(prefix) if target.plain => {
                target.tail == prefix.len() && target.text.starts_with(&**prefix)
            }
            _ if target.plain && !self.could_end_like(target.text) => false,
            _ => self.automaton.run(&self.tokens, target, Unresolved::IsItself),
        }
    }

    fn could_end_like(&self, text: &str) -> bool {
        let (first, last) = &self.ends;
        text.starts_with(&**first) && text.ends_with(&**last)
    }

    /// Whether `target` matches, or could match if the names in it that are not resolved (`?`) were. Refusals and
    /// exceptions ask this, permissions ask [`Glob::matches`].
    pub fn could_match(&self, target: &Scanned<'_>) -> bool {
        match &self.shape {
            _ if target.plain => self.matches_scanned(target),
            Shape::Everything => true,
            _ => self.automaton.run(&self.tokens, target, Unresolved::IsAnything),
        }
    }

    /// Whether any text matches both patterns.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (&self.tokens, &other.tokens);
        let width = b.len() + 1;
        let mut seen = vec![false; (a.len() + 1) * width];
        let mut open = vec![(0, 0)];
        while let Some((i, j)) = open.pop() {
            if std::mem::replace(&mut seen[i * width + j], true) {
                continue;
            }
            let (x, y) = (a.get(i), b.get(j));
            if x.is_none() && y.is_none() {
                return true;
            }
            if let Some(x) = x.filter(|x| x.is_star()) {
                open.push((i + 1, j));
                if y.is_some_and(|y| !y.is_star() && x.covers(*y)) {
                    open.push((i, j + 1));
                }
            }
            if let Some(y) = y.filter(|y| y.is_star()) {
                open.push((i, j + 1));
                if x.is_some_and(|x| !x.is_star() && y.covers(*x)) {
                    open.push((i + 1, j));
                }
            }
            if x == y {
                open.push((i + 1, j + 1));
            }
        }
        false
    }

    /// What every plain target (see [`Scanned::as_plain`]) that matches begins and ends with. The two may overlap.
    pub fn ends(&self) -> (&str, &str) {
        (&self.ends.0, &self.ends.1)
    }

    /// How many segments a text needs to match; `None` where `**` leaves that open.
    pub fn segments(&self) -> Option<usize> {
        let open = self.tokens.contains(&Token::DoubleStar);
        (!open).then(|| 1 + self.tokens.iter().filter(|token| **token == Token::Separator).count())
    }

    /// Whether the pattern names the kind of a target (`fn:`).
    pub fn names_kind(&self) -> bool {
        self.tokens.contains(&Token::Colon)
    }

    /// The segments before the first one with a wildcard, without the separator that ends them; all but the last
    /// segment where there is no wildcard. For a path, the folder below which everything that can match lives.
    pub fn parent(&self) -> &str {
        let fixed = self.text.find('*').unwrap_or(self.text.len());
        self.text[..fixed].rfind(self.separator).map_or("", |end| &self.text[..end])
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({:?})", self.text)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.separator == other.separator && self.tokens == other.tokens
    }
}

impl Eq for Glob {}

/// A target looked over once, to be compared with many patterns.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'a> {
    text: &'a str,
    separator: char,
    /// No quotes, nothing unresolved: the text is its own canonical form and bytes may be compared.
    plain: bool,
    /// Where the last segment begins (after its kind).
    tail: usize,
}

impl<'a> Scanned<'a> {
    /// Looks over a target. `separator` is that of the patterns.
    pub fn new(text: &'a str, separator: char) -> Self {
        let mut tail = 0;
        let mut plain = true;
        if separator == '.' {
            for (at, byte) in text.bytes().enumerate() {
                match byte {
                    b'a'..=b'z' | b'0'..=b'9' | b'_' | b'$' => {}
                    b'.' | b':' => tail = at + 1,
                    _ => {
                        plain = false;
                        break;
                    }
                }
            }
        } else {
            tail = text.rfind(separator).map_or(0, |at| at + separator.len_utf8());
        }
        Self { text, separator, plain, tail }
    }

    /// The text, if it has no quotes and nothing unresolved, so that it may be compared byte by byte.
    pub fn as_plain(&self) -> Option<&'a str> {
        self.plain.then_some(self.text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    Separator,
    /// The `:` after a kind.
    Colon,
    /// A `?` segment.
    Unresolved,
    Star,
    DoubleStar,
}

impl Token {
    fn is_star(self) -> bool {
        matches!(self, Self::Star | Self::DoubleStar)
    }

    /// Whether this wildcard matches that item of a target.
    fn covers(self, item: Self) -> bool {
        self == Self::DoubleStar || matches!(item, Self::Char(_))
    }
}

/// The characters of leading tokens, up to a wildcard.
fn literal<'t>(tokens: impl Iterator<Item = &'t Token>, separator: char) -> impl Iterator<Item = char> {
    tokens.map_while(move |token| match token {
        Token::Char(c) => Some(*c),
        Token::Separator => Some(separator),
        Token::Colon => Some(':'),
        Token::Unresolved => Some('?'),
        Token::Star | Token::DoubleStar => None,
    })
}

/// Patterns that need no automaton for plain targets, which are nearly all.
#[derive(Clone, Debug)]
enum Shape {
    Everything,
    Literal(Box<str>),
    /// A literal up to and with a separator, then `*`.
    LastSegment(Box<str>),
    Other,
}

impl Shape {
    fn of(tokens: &[Token], separator: char) -> Self {
        let (literal, shape): (_, fn(Box<str>) -> Self) = match tokens {
            [Token::DoubleStar] => return Self::Everything,
            [rest @ .., Token::Separator, Token::Star] => (&tokens[..=rest.len()], Self::LastSegment),
            _ => (tokens, Self::Literal),
        };
        let mut text = String::new();
        let mut segment = String::new();
        for token in literal {
            match token {
                Token::Char(c) => segment.push(*c),
                Token::Separator | Token::Colon => {
                    close(&mut text, &mut segment, separator);
                    text.push(if *token == Token::Colon { ':' } else { separator });
                }
                Token::Unresolved | Token::Star | Token::DoubleStar => return Self::Other,
            }
        }
        close(&mut text, &mut segment, separator);
        shape(text.into())
    }
}

/// Appends a finished segment in canonical form. An empty one is what follows the last separator.
fn close(text: &mut String, segment: &mut String, separator: char) {
    if separator == '.' && !segment.is_empty() {
        push_identifier(text, segment);
    } else {
        text.push_str(segment);
    }
    segment.clear();
}

#[cfg(test)]
mod tests;
