//! Bit-parallel matching: one bit for each token, one pass over the target.

use super::{MAX_TOKENS, Scanned, Token};

const WORDS: usize = (MAX_TOKENS + 1) / 64;

/// What a name that was not resolved may match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// Only itself.
    IsItself,
    /// Any one segment.
    IsAnything,
}

type Bits = [u64; WORDS];

/// Bit `i` of a state set means that the first `i` tokens have matched what was read.
#[derive(Clone)]
pub(super) struct Automaton {
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
    pub(super) fn new(tokens: &[Token]) -> Self {
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

    pub(super) fn run(&self, tokens: &[Token], target: &Scanned<'_>, unresolved: Unresolved) -> bool {
        // Nearly every pattern fits one word.
        if self.words == 1 {
            self.run_in::<1>(tokens, target, unresolved)
        } else {
            self.run_in::<WORDS>(tokens, target, unresolved)
        }
    }

    fn run_in<const W: usize>(&self, tokens: &[Token], target: &Scanned<'_>, unresolved: Unresolved) -> bool {
        let mut state = [0; W];
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
    fn step<const W: usize>(
        &self,
        tokens: &[Token],
        state: &mut [u64; W],
        item: Token,
        unresolved: Unresolved,
    ) -> bool {
        if item == Token::Unresolved && unresolved == Unresolved::IsAnything {
            return self.skip_segment(tokens, state);
        }
        const NONE: &Bits = &[0; WORDS];
        let (exact, stay) = match item {
            Token::Char(c) => {
                let found = self.chars.binary_search_by_key(&c, |(c, _)| *c);
                (found.map_or(NONE, |at| &self.chars[at].1), &self.star)
            }
            Token::Separator => (&self.separator, NONE),
            Token::Colon => (&self.colon, NONE),
            Token::Unresolved => (&self.unresolved, NONE),
            Token::Star | Token::DoubleStar => unreachable!("targets have no wildcards"),
        };
        let mut carry = 0;
        for (w, word) in state.iter_mut().enumerate() {
            let moved = *word & exact[w];
            let stayed = *word & (stay[w] | self.double[w]);
            *word = moved << 1 | carry | stayed;
            carry = moved >> 63;
        }
        self.skip_stars(state);
        state.iter().any(|word| *word != 0)
    }

    /// A wildcard may match nothing. Two never stand side by side, so once is enough.
    fn skip_stars<const W: usize>(&self, state: &mut [u64; W]) {
        let mut carry = 0;
        for (w, word) in state.iter_mut().enumerate() {
            let stars = *word & (self.star[w] | self.double[w]);
            *word |= stars << 1 | carry;
            carry = stars >> 63;
        }
    }

    /// Reads a segment that could be any name.
    fn skip_segment<const W: usize>(&self, tokens: &[Token], state: &mut [u64; W]) -> bool {
        let mut next = [0; W];
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
