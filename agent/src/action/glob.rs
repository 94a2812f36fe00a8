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

use std::fmt;

use super::push_identifier;

/// Longest pattern, in characters and wildcards.
const MAX_TOKENS: usize = 511;
const WORDS: usize = (MAX_TOKENS + 1) / 64;

/// A compiled pattern.
#[derive(Clone)]
pub struct Glob {
    text: Box<str>,
    separator: char,
    tokens: Box<[Token]>,
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
        let tokens = if separator == '.' { names(pattern)? } else { segments(pattern, separator)? };
        if tokens.len() > MAX_TOKENS {
            return Err(GlobError::TooLong);
        }
        Ok(Self {
            text: pattern.into(),
            separator,
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
            _ => self.automaton.run(&self.tokens, target, Unresolved::IsItself),
        }
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unresolved {
    IsItself,
    IsAnything,
}

type Bits = [u64; WORDS];

/// Bit `i` of a state set means that the first `i` tokens have matched what was read.
#[derive(Clone)]
struct Automaton {
    words: usize,
    accept: usize,
    star: Bits,
    double: Bits,
    separator: Bits,
    colon: Bits,
    unresolved: Bits,
    /// Sorted by character.
    chars: Box<[(char, Bits)]>,
}

impl Automaton {
    fn new(tokens: &[Token]) -> Self {
        let mut chars: Vec<(char, Bits)> = Vec::new();
        let mut new = Self {
            words: tokens.len() / 64 + 1,
            accept: tokens.len(),
            star: [0; WORDS],
            double: [0; WORDS],
            separator: [0; WORDS],
            colon: [0; WORDS],
            unresolved: [0; WORDS],
            chars: Box::default(),
        };
        for (i, token) in tokens.iter().enumerate() {
            let bits = match token {
                Token::Char(c) => match chars.binary_search_by_key(c, |(c, _)| *c) {
                    Ok(found) => &mut chars[found].1,
                    Err(place) => {
                        chars.insert(place, (*c, [0; WORDS]));
                        &mut chars[place].1
                    }
                },
                Token::Separator => &mut new.separator,
                Token::Colon => &mut new.colon,
                Token::Unresolved => &mut new.unresolved,
                Token::Star => &mut new.star,
                Token::DoubleStar => &mut new.double,
            };
            bits[i / 64] |= 1 << (i % 64);
        }
        new.chars = chars.into();
        new
    }

    fn run(&self, tokens: &[Token], target: &Scanned<'_>, unresolved: Unresolved) -> bool {
        let mut state = [0; WORDS];
        state[0] = 1;
        self.skip_stars(&mut state);
        let alive = if target.separator == '.' {
            NameItems::new(target.text).all(|item| self.step(tokens, &mut state, item, unresolved))
        } else {
            let item = |c| if c == target.separator { Token::Separator } else { Token::Char(c) };
            target.text.chars().all(|c| self.step(tokens, &mut state, item(c), unresolved))
        };
        alive && state[self.accept / 64] >> (self.accept % 64) & 1 == 1
    }

    /// Reads one item; false once nothing can match any more.
    fn step(&self, tokens: &[Token], state: &mut Bits, item: Token, unresolved: Unresolved) -> bool {
        if item == Token::Unresolved && unresolved == Unresolved::IsAnything {
            return self.skip_segment(tokens, state);
        }
        const NONE: Bits = [0; WORDS];
        let (exact, stay) = match item {
            Token::Char(c) => {
                let found = self.chars.binary_search_by_key(&c, |(c, _)| *c);
                (found.map_or(&NONE, |at| &self.chars[at].1), &self.star)
            }
            Token::Separator => (&self.separator, &NONE),
            Token::Colon => (&self.colon, &NONE),
            Token::Unresolved => (&self.unresolved, &NONE),
            Token::Star | Token::DoubleStar => unreachable!("targets have no wildcards"),
        };
        let mut carry = 0;
        let mut any = 0;
        for w in 0..self.words {
            let moved = state[w] & exact[w];
            let stayed = state[w] & (stay[w] | self.double[w]);
            state[w] = moved << 1 | carry | stayed;
            carry = moved >> 63;
            any |= state[w];
        }
        self.skip_stars(state);
        any != 0
    }

    /// A wildcard may match nothing. Two never stand side by side, so once is enough.
    fn skip_stars(&self, state: &mut Bits) {
        let mut carry = 0;
        for (word, (star, double)) in state.iter_mut().zip(self.star.iter().zip(&self.double)).take(self.words) {
            let stars = *word & (star | double);
            *word |= stars << 1 | carry;
            carry = stars >> 63;
        }
    }

    /// Reads a segment that could be any name.
    fn skip_segment(&self, tokens: &[Token], state: &mut Bits) -> bool {
        let mut next = [0; WORDS];
        let mut inside = false;
        for (i, token) in tokens.iter().enumerate() {
            inside |= state[i / 64] >> (i % 64) & 1 == 1;
            inside &= !matches!(token, Token::Separator | Token::Colon);
            if inside {
                // The name may end at the wildcard, or after the token.
                let stay = if token.is_star() { i } else { i + 1 };
                for end in [stay, i + 1] {
                    next[end / 64] |= 1 << (end % 64);
                }
            }
        }
        *state = next;
        self.skip_stars(state);
        state.iter().any(|word| *word != 0)
    }
}

/// Cuts a dotted name into items, undoing its quotes.
struct NameItems<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Inside,
    Quoted,
}

impl<'a> NameItems<'a> {
    fn new(text: &'a str) -> Self {
        Self { chars: text.chars().peekable(), place: Place::Start }
    }
}

impl Iterator for NameItems<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let c = self.chars.next()?;
            let place = std::mem::replace(&mut self.place, Place::Inside);
            match (place, c) {
                (Place::Start, '"') => self.place = Place::Quoted,
                (Place::Quoted, '"') => {
                    if self.chars.next_if_eq(&'"').is_some() {
                        self.place = Place::Quoted;
                        return Some(Token::Char('"'));
                    }
                }
                (Place::Quoted, c) => {
                    self.place = Place::Quoted;
                    return Some(Token::Char(c));
                }
                (_, '.' | ':') => {
                    self.place = Place::Start;
                    return Some(if c == '.' { Token::Separator } else { Token::Colon });
                }
                (Place::Start, '?') if self.chars.peek().is_none_or(|c| *c == '.') => return Some(Token::Unresolved),
                (_, c) => return Some(Token::Char(c)),
            }
        }
    }
}

/// Compiles a pattern over plain segments.
fn segments(pattern: &str, separator: char) -> Result<Vec<Token>, GlobError> {
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
    if empty { Err(GlobError::EmptySegment { at: pattern.len() }) } else { Ok(tokens) }
}

/// Compiles a pattern over dotted names.
fn names(pattern: &str) -> Result<Vec<Token>, GlobError> {
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

#[cfg(test)]
mod tests;
