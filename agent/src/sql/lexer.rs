//! PostgreSQL's lexical rules, exactly (`src/backend/parser/scan.l`), with `standard_conforming_strings` on.
//!
//! Tokens from here feed the parser, so the two cannot disagree on where a string or a comment ends. Whatever the
//! server versions in use read differently (`1a`, `$1a`), whatever depends on the server's encoding, and whatever is
//! unterminated is an error: the caller then judges the text as opaque.
//!
//! Long because it holds PostgreSQL's token rules, kept in one place to be read beside its scan.l.

use std::ops::Range;

/// Deepest nesting of parentheses, brackets and comments that is looked into.
pub(super) const MAX_DEPTH: usize = 500;
/// Longest text that is looked into, in bytes.
pub(super) const MAX_TEXT: usize = 1 << 20;
/// Most tokens that are looked into: a syntax tree takes up to a kilobyte for each.
pub(super) const MAX_TOKENS: usize = 1 << 17;
/// Longest identifier and operator in bytes (NAMEDATALEN - 1).
const MAX_NAME: usize = 63;

/// Why text was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LexError {
    #[error("longer than the inspection limit")]
    TooLong,
    #[error("nested too deeply")]
    TooDeep,
    #[error("a string, identifier or comment does not end")]
    Unterminated,
    #[error("brackets do not match")]
    Unbalanced,
    #[error("a character or escape that is not SQL")]
    Malformed,
    #[error("server versions or encodings would read it differently")]
    Ambiguous,
}

/// What a token is. Texts are decoded and folded as the server would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lexeme {
    /// Unquoted identifier or keyword, folded to lower case and cut to the server's length.
    Word(String),
    /// Quoted identifier, decoded.
    Quoted(String),
    /// String constant of any notation, decoded.
    Text(String),
    /// `B'...'` or `X'...'`, digits as written.
    Bits(String),
    /// Number as written.
    Number(String),
    /// `$1`.
    Param(String),
    /// Operator of one or more operator characters, `::`, `:=`, `=>` and `:` included.
    Op(String),
    /// `( ) [ ] , . ;`
    Punct(u8),
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) lexeme: Lexeme,
    pub(super) span: Range<usize>,
}

impl Token {
    /// Whether it is this unquoted word (lower case).
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(&self.lexeme, Lexeme::Word(w) if w == word)
    }

    /// Whether it is this punctuation.
    pub(super) fn is_punct(&self, punct: u8) -> bool {
        self.lexeme == Lexeme::Punct(punct)
    }

    /// Whether it is this operator.
    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(&self.lexeme, Lexeme::Op(o) if o == op)
    }

    /// The unquoted word, if it is one.
    pub(super) fn word(&self) -> Option<&str> {
        match &self.lexeme {
            Lexeme::Word(w) => Some(w),
            _ => None,
        }
    }

    /// The identifier's text, quoted or not.
    pub(super) fn identifier(&self) -> Option<&str> {
        match &self.lexeme {
            Lexeme::Word(w) | Lexeme::Quoted(w) => Some(w),
            _ => None,
        }
    }
}

/// Reads all tokens of a text.
pub(super) fn lex(text: &str) -> Result<Vec<Token>, LexError> {
    if text.len() > MAX_TEXT {
        return Err(LexError::TooLong);
    }
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0 };
    let mut tokens = Vec::with_capacity((text.len() / 5 + 4).min(MAX_TOKENS));
    let mut open: Vec<u8> = Vec::new();
    while let Some(token) = lexer.next()? {
        match token.lexeme {
            Lexeme::Punct(b'(') => open.push(b')'),
            Lexeme::Punct(b'[') => open.push(b']'),
            Lexeme::Punct(close @ (b')' | b']')) if open.pop() != Some(close) => return Err(LexError::Unbalanced),
            // Only CREATE RULE nests statements in parentheses, and nothing here reads those.
            Lexeme::Punct(b';') if !open.is_empty() => return Err(LexError::Unbalanced),
            _ => {}
        }
        if open.len() > MAX_DEPTH {
            return Err(LexError::TooDeep);
        }
        if tokens.len() == MAX_TOKENS {
            return Err(LexError::TooLong);
        }
        tokens.push(token);
    }
    if open.is_empty() { Ok(tokens) } else { Err(LexError::Unbalanced) }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)
}

fn starts_identifier(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn continues_identifier(b: u8) -> bool {
    starts_identifier(b) || b.is_ascii_digit() || b == b'$'
}

fn is_operator(b: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&b)
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        // NUL stands for the end: a real NUL is refused wherever it is met.
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Result<Option<Token>, LexError> {
        self.skip_blanks()?;
        let start = self.at;
        if start == self.bytes.len() {
            return Ok(None);
        }
        let lexeme = match self.peek(0) {
            b'\'' => self.string()?,
            b'e' | b'E' if self.peek(1) == b'\'' => {
                self.at += 1;
                self.escape_string()?
            }
            b'b' | b'B' | b'x' | b'X' if self.peek(1) == b'\'' => {
                self.at += 1;
                match self.string()? {
                    Lexeme::Text(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => Lexeme::Bits(digits),
                    _ => return Err(LexError::Malformed),
                }
            }
            // N'...' is read as the keyword NCHAR and a string.
            b'n' | b'N' if self.peek(1) == b'\'' => {
                self.at += 1;
                Lexeme::Word("nchar".to_owned())
            }
            b'u' | b'U' if self.peek(1) == b'&' && matches!(self.peek(2), b'\'' | b'"') => {
                self.at += 2;
                self.unicode()?
            }
            b'"' => Lexeme::Quoted(cut(self.quoted()?)?),
            b'$' => self.dollar()?,
            b if starts_identifier(b) => self.word()?,
            b if b.is_ascii_digit() || (b == b'.' && self.peek(1).is_ascii_digit()) => self.number()?,
            b'.' if self.peek(1) == b'.' => return Err(LexError::Malformed),
            b @ (b'(' | b')' | b'[' | b']' | b',' | b';' | b'.') => {
                self.at += 1;
                Lexeme::Punct(b)
            }
            b':' => {
                let op = match self.peek(1) {
                    b':' => "::",
                    b'=' => ":=",
                    _ => ":",
                };
                self.at += op.len();
                Lexeme::Op(op.to_owned())
            }
            b if is_operator(b) => self.operator()?,
            _ => return Err(LexError::Malformed),
        };
        Ok(Some(Token { lexeme, span: start..self.at }))
    }

    fn skip_blanks(&mut self) -> Result<(), LexError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b, _) if is_space(b) => self.at += 1,
                (b'-', b'-') => self.line_comment(),
                (b'/', b'*') => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn line_comment(&mut self) {
        while self.at < self.bytes.len() && !matches!(self.peek(0), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) -> Result<(), LexError> {
        let mut depth = 0usize;
        loop {
            if self.at >= self.bytes.len() {
                return Err(LexError::Unterminated);
            }
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                    if depth > MAX_DEPTH {
                        return Err(LexError::TooDeep);
                    }
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (0, _) => return Err(LexError::Malformed),
                _ => self.at += 1,
            }
        }
    }

    /// After a closing quote: a string goes on in the next quote if blanks with a newline are all that is between.
    fn continues(&mut self) -> bool {
        let mut at = self.at;
        let mut newline = false;
        loop {
            match self.bytes.get(at) {
                Some(b'\n' | b'\r') => {
                    newline = true;
                    at += 1;
                }
                Some(b) if is_space(*b) => at += 1,
                Some(b'-') if self.bytes.get(at + 1) == Some(&b'-') => {
                    while at < self.bytes.len() && !matches!(self.bytes[at], b'\n' | b'\r') {
                        at += 1;
                    }
                }
                Some(b'\'') if newline => {
                    self.at = at;
                    return true;
                }
                _ => return false,
            }
        }
    }

    /// A standard string, at its opening quote.
    fn string(&mut self) -> Result<Lexeme, LexError> {
        let mut out = String::new();
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let Some(quote) = memchr::memchr2(b'\'', 0, rest) else { return Err(LexError::Unterminated) };
            if rest[quote] == 0 {
                return Err(LexError::Malformed);
            }
            out.push_str(&self.text[self.at..self.at + quote]);
            self.at += quote + 1;
            if self.peek(0) == b'\'' {
                out.push('\'');
                self.at += 1;
            } else if self.continues() {
                self.at += 1;
            } else {
                return Ok(Lexeme::Text(out));
            }
        }
    }

    /// An `E'...'` string, at its opening quote.
    fn escape_string(&mut self) -> Result<Lexeme, LexError> {
        let mut out: Vec<u8> = Vec::new();
        let mut high: Option<u32> = None;
        self.at += 1;
        loop {
            if self.at >= self.bytes.len() {
                return Err(LexError::Unterminated);
            }
            let b = self.peek(0);
            self.at += 1;
            if high.is_some() && !(b == b'\\' && matches!(self.peek(0), b'u' | b'U')) {
                return Err(LexError::Malformed);
            }
            match b {
                0 => return Err(LexError::Malformed),
                b'\'' if self.peek(0) == b'\'' => {
                    out.push(b'\'');
                    self.at += 1;
                }
                b'\'' => {
                    if self.continues() {
                        self.at += 1;
                        continue;
                    }
                    // Byte escapes that do not make UTF-8 are an error of the server's too.
                    return String::from_utf8(out).map(Lexeme::Text).map_err(|_| LexError::Malformed);
                }
                b'\\' => {
                    let e = self.peek(0);
                    self.at += 1;
                    match e {
                        b'b' => out.push(8),
                        b'f' => out.push(12),
                        b'n' => out.push(b'\n'),
                        b'r' => out.push(b'\r'),
                        b't' => out.push(b'\t'),
                        b'0'..=b'7' => {
                            let mut value = u32::from(e - b'0');
                            for _ in 0..2 {
                                if !matches!(self.peek(0), b'0'..=b'7') {
                                    break;
                                }
                                value = value * 8 + u32::from(self.peek(0) - b'0');
                                self.at += 1;
                            }
                            out.push(byte(value & 0xff)?);
                        }
                        b'x' if self.peek(0).is_ascii_hexdigit() => {
                            let mut value = 0;
                            for _ in 0..2 {
                                let Some(digit) = char::from(self.peek(0)).to_digit(16) else { break };
                                value = value * 16 + digit;
                                self.at += 1;
                            }
                            out.push(byte(value)?);
                        }
                        b'u' | b'U' => {
                            let value = self.hex(if e == b'u' { 4 } else { 8 })?;
                            push_unicode(&mut out, &mut high, value)?;
                        }
                        0 => return Err(LexError::Unterminated),
                        other => out.push(other),
                    }
                }
                other => out.push(other),
            }
        }
    }

    fn hex(&mut self, digits: usize) -> Result<u32, LexError> {
        let mut value: u32 = 0;
        for _ in 0..digits {
            let digit = char::from(self.peek(0)).to_digit(16).ok_or(LexError::Malformed)?;
            value = value.checked_mul(16).ok_or(LexError::Malformed)? + digit;
            self.at += 1;
        }
        Ok(value)
    }

    /// `U&'...'` or `U&"..."`, at the opening quote.
    fn unicode(&mut self) -> Result<Lexeme, LexError> {
        let identifier = self.peek(0) == b'"';
        let raw = if identifier {
            self.quoted()?
        } else {
            match self.string()? {
                Lexeme::Text(text) => text,
                _ => return Err(LexError::Malformed),
            }
        };
        // A UESCAPE clause would change what the escapes mean.
        let end = self.at;
        self.skip_blanks()?;
        let escape = self.text[self.at..].get(..7).is_some_and(|w| w.eq_ignore_ascii_case("uescape"));
        self.at = end;
        if escape {
            return Err(LexError::Ambiguous);
        }
        let mut out = Vec::new();
        let mut high = None;
        let mut inner = Lexer { text: &raw, bytes: raw.as_bytes(), at: 0 };
        while inner.at < inner.bytes.len() {
            let b = inner.peek(0);
            inner.at += 1;
            if b == b'\\' && inner.peek(0) != b'\\' {
                let value = if inner.peek(0) == b'+' {
                    inner.at += 1;
                    inner.hex(6)?
                } else {
                    inner.hex(4)?
                };
                push_unicode(&mut out, &mut high, value)?;
                continue;
            }
            if high.is_some() {
                return Err(LexError::Malformed);
            }
            if b == b'\\' {
                inner.at += 1;
            }
            out.push(b);
        }
        if high.is_some() {
            return Err(LexError::Malformed);
        }
        let text = String::from_utf8(out).map_err(|_| LexError::Malformed)?;
        if identifier { Ok(Lexeme::Quoted(cut(text)?)) } else { Ok(Lexeme::Text(text)) }
    }

    /// A quoted identifier, at its opening quote.
    fn quoted(&mut self) -> Result<String, LexError> {
        let mut out = String::new();
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let Some(quote) = memchr::memchr2(b'"', 0, rest) else { return Err(LexError::Unterminated) };
            if rest[quote] == 0 {
                return Err(LexError::Malformed);
            }
            out.push_str(&self.text[self.at..self.at + quote]);
            self.at += quote + 1;
            if self.peek(0) != b'"' {
                return if out.is_empty() { Err(LexError::Malformed) } else { Ok(out) };
            }
            out.push('"');
            self.at += 1;
        }
    }

    fn dollar(&mut self) -> Result<Lexeme, LexError> {
        if self.peek(1).is_ascii_digit() {
            let start = self.at;
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            if continues_identifier(self.peek(0)) {
                return Err(LexError::Ambiguous);
            }
            return Ok(Lexeme::Param(self.text[start..self.at].to_owned()));
        }
        let mut end = self.at + 1;
        if self.bytes.get(end).is_some_and(|b| starts_identifier(*b)) {
            while self.bytes.get(end).is_some_and(|b| starts_identifier(*b) || b.is_ascii_digit()) {
                end += 1;
            }
        }
        if self.bytes.get(end) != Some(&b'$') {
            return Err(LexError::Malformed);
        }
        let tag = &self.bytes[self.at..=end];
        let body = end + 1;
        let Some(length) = memchr::memmem::find(&self.bytes[body..], tag) else { return Err(LexError::Unterminated) };
        let text = &self.text[body..body + length];
        self.at = body + length + tag.len();
        if text.contains('\0') { Err(LexError::Malformed) } else { Ok(Lexeme::Text(text.to_owned())) }
    }

    fn word(&mut self) -> Result<Lexeme, LexError> {
        let start = self.at;
        while continues_identifier(self.peek(0)) {
            self.at += 1;
        }
        let written = &self.text[start..self.at];
        // Only ASCII folds on a UTF-8 server; others fold by locale, so a letter that could fold is in doubt.
        if !written.is_ascii() && written.chars().any(|c| !c.is_ascii() && !c.to_lowercase().eq(std::iter::once(c))) {
            return Err(LexError::Ambiguous);
        }
        Ok(Lexeme::Word(cut(written.to_ascii_lowercase())?))
    }

    fn number(&mut self) -> Result<Lexeme, LexError> {
        let start = self.at;
        let digits = |lexer: &mut Self| {
            while lexer.peek(0).is_ascii_digit() {
                lexer.at += 1;
            }
        };
        digits(self);
        if self.peek(0) == b'.' {
            if self.peek(1) == b'.' {
                return Err(LexError::Ambiguous);
            }
            self.at += 1;
            digits(self);
        }
        if matches!(self.peek(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                digits(self);
            }
        }
        if continues_identifier(self.peek(0)) || self.peek(0) == b'.' {
            return Err(LexError::Ambiguous);
        }
        Ok(Lexeme::Number(self.text[start..self.at].to_owned()))
    }

    fn operator(&mut self) -> Result<Lexeme, LexError> {
        let start = self.at;
        let mut end = start;
        while self.bytes.get(end).is_some_and(|b| is_operator(*b)) {
            let pair = (self.bytes[end], self.bytes.get(end + 1).copied().unwrap_or(0));
            if end > start && matches!(pair, (b'/', b'*') | (b'-', b'-')) {
                break;
            }
            end += 1;
        }
        // A trailing + or - belongs to what follows, unless a character that SQL does not use makes it an operator.
        let op = &self.bytes[start..end];
        if op.len() > 1 && matches!(op[op.len() - 1], b'+' | b'-') {
            let keeps = op[..op.len() - 1].iter().any(|b| b"~!@#^&|`?%".contains(b));
            if !keeps {
                while end - start > 1 && matches!(self.bytes[end - 1], b'+' | b'-') {
                    end -= 1;
                }
            }
        }
        if end - start > MAX_NAME {
            return Err(LexError::Malformed);
        }
        self.at = end;
        Ok(Lexeme::Op(self.text[start..end].to_owned()))
    }
}

/// A byte of an escape; NUL is an error of the server's too.
fn byte(value: u32) -> Result<u8, LexError> {
    u8::try_from(value).ok().filter(|b| *b != 0).ok_or(LexError::Malformed)
}

fn push_unicode(out: &mut Vec<u8>, high: &mut Option<u32>, value: u32) -> Result<(), LexError> {
    let code = match (high.take(), value) {
        (None, 0xd800..=0xdbff) => {
            *high = Some(value);
            return Ok(());
        }
        (Some(h), 0xdc00..=0xdfff) => 0x10000 + ((h - 0xd800) << 10) + (value - 0xdc00),
        (None, v) if v != 0 => v,
        _ => return Err(LexError::Malformed),
    };
    let c = char::from_u32(code).ok_or(LexError::Malformed)?;
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}

/// Cuts an identifier to the server's length. Where it cuts others than ASCII depends on the server's encoding.
fn cut(mut name: String) -> Result<String, LexError> {
    if name.len() > MAX_NAME {
        if !name.is_ascii() {
            return Err(LexError::Ambiguous);
        }
        name.truncate(MAX_NAME);
    }
    Ok(name)
}
