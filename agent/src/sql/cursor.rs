//! A cursor over one statement's tokens, for the statements that are recognised by hand.

use super::{
    build::Name,
    lexer::{Lexeme, Token},
    words::{self, Category},
};

/// Position in a statement's tokens.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    tokens: &'t [Token],
}

impl<'t> Cursor<'t> {
    pub(super) fn new(tokens: &'t [Token]) -> Self {
        Self { tokens }
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'t [Token] {
        self.tokens
    }

    pub(super) fn done(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn peek(&self) -> Option<&'t Token> {
        self.tokens.first()
    }

    pub(super) fn next(&mut self) -> Option<&'t Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// Takes these words if all follow.
    pub(super) fn eat(&mut self, words: &[&str]) -> bool {
        let there = self.tokens.len() >= words.len() && words.iter().zip(self.tokens).all(|(w, t)| t.is(w));
        if there {
            self.tokens = &self.tokens[words.len()..];
        }
        there
    }

    /// Takes any run of these words, and says whether there was one.
    pub(super) fn eat_any(&mut self, words: &[&str]) -> bool {
        let mut any = false;
        while self.peek().and_then(Token::word).is_some_and(|w| words.contains(&w)) {
            self.next();
            any = true;
        }
        any
    }

    pub(super) fn eat_punct(&mut self, punct: u8) -> bool {
        let there = self.peek().is_some_and(|t| t.is_punct(punct));
        if there {
            self.next();
        }
        there
    }

    pub(super) fn eat_op(&mut self, op: &str) -> bool {
        let there = self.peek().is_some_and(|t| t.is_op(op));
        if there {
            self.next();
        }
        there
    }

    /// An identifier that is no reserved word.
    pub(super) fn identifier(&mut self) -> Option<&'t str> {
        match &self.peek()?.lexeme {
            Lexeme::Word(w) if !words::reserved(w) => {
                self.next();
                Some(w)
            }
            Lexeme::Quoted(q) => {
                self.next();
                Some(q)
            }
            _ => None,
        }
    }

    /// `name`, `schema.name` or `database.schema.name`.
    pub(super) fn name(&mut self) -> Option<Name> {
        let bare = matches!(self.peek()?.lexeme, Lexeme::Word(_));
        let mut parts = vec![self.identifier()?.to_owned()];
        while self.eat_punct(b'.') {
            // After a dot any keyword is a name.
            parts.push(self.next()?.identifier()?.to_owned());
        }
        let name = parts.pop()?;
        match parts.len() {
            0 => Some(Name { schema: None, name, bare }),
            1 | 2 => Some(Name { schema: parts.pop(), name, bare: false }),
            _ => None,
        }
    }

    /// A constant of a string, as decoded.
    pub(super) fn text(&mut self) -> Option<&'t str> {
        match &self.peek()?.lexeme {
            Lexeme::Text(text) => {
                self.next();
                Some(text)
            }
            _ => None,
        }
    }

    /// What stands between a parenthesis that opens here and its match, which is taken too.
    pub(super) fn group(&mut self) -> Option<&'t [Token]> {
        if !self.peek()?.is_punct(b'(') {
            return None;
        }
        let mut depth = 0usize;
        for (i, token) in self.tokens.iter().enumerate() {
            match token.lexeme {
                Lexeme::Punct(b'(') => depth += 1,
                Lexeme::Punct(b')') => {
                    depth -= 1;
                    if depth == 0 {
                        let inside = &self.tokens[1..i];
                        self.tokens = &self.tokens[i + 1..];
                        return Some(inside);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The index, outside parentheses, of the first of these words.
    pub(super) fn find(&self, word: &str) -> Option<usize> {
        let mut depth = 0usize;
        self.tokens.iter().position(|t| {
            match t.lexeme {
                Lexeme::Punct(b'(') => depth += 1,
                Lexeme::Punct(b')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && t.is(word)
        })
    }

    /// The index, outside parentheses, of the first such punctuation.
    pub(super) fn find_punct(&self, punct: u8) -> Option<usize> {
        let mut depth = 0usize;
        self.tokens.iter().position(|t| {
            match t.lexeme {
                Lexeme::Punct(b'(') => depth += 1,
                Lexeme::Punct(b')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && t.is_punct(punct)
        })
    }

    /// The cursor after `n` tokens.
    pub(super) fn skip(&self, n: usize) -> Self {
        Self { tokens: self.tokens.get(n..).unwrap_or(&[]) }
    }
}

/// Whether a token could name a column or the like: not a reserved word.
pub(super) fn nameable(token: &Token) -> bool {
    match &token.lexeme {
        Lexeme::Word(w) => words::category(w) != Some(Category::Reserved),
        Lexeme::Quoted(_) => true,
        _ => false,
    }
}

/// Where the qualified name that ends at `i` starts.
pub(super) fn name_start(tokens: &[Token], i: usize) -> usize {
    let mut start = i;
    while start >= 2 && tokens[start - 1].is_punct(b'.') && tokens[start - 2].identifier().is_some() {
        start -= 2;
    }
    start
}
