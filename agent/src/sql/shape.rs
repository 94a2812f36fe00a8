//! A command without its constants, for grants that cover "the same command with other values".

use super::{
    lexer::{self, Lexeme, Token},
    words::{self, Builtin},
};

/// The command with constants replaced by `?`, blanks and comments normalised.
///
/// Two commands of one shape differ in nothing but constants that are mere values. Where a constant may be more (code
/// of DO, the argument of a function that is not reviewed, anything outside SELECT, INSERT, UPDATE, DELETE and MERGE),
/// it stays. What cannot be read keeps its text.
pub fn shape(text: &str) -> String {
    let Ok(tokens) = lexer::lex(text) else { return format!("text {text}") };
    let mut out = String::with_capacity(text.len());
    for statement in tokens.split(|t| t.is_punct(b';')) {
        let free = values_are_free(statement);
        for token in statement {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
            push(&mut out, token, free);
        }
        out.push_str(" ;");
    }
    out
}

fn values_are_free(tokens: &[Token]) -> bool {
    super::is_data(tokens)
        && tokens.windows(2).enumerate().all(|(i, pair)| {
            !pair[1].is_punct(b'(')
                || inserted_into(tokens, i)
                || match &pair[0].lexeme {
                    Lexeme::Word(w) => {
                        words::opens_syntax(w) || words::grammar_call(w) || words::builtin(w) == Builtin::Safe
                    }
                    Lexeme::Quoted(_) => false,
                    _ => true,
                }
        })
}

/// Whether the identifier at `i` ends the name after INSERT INTO, whose parentheses hold columns.
fn inserted_into(tokens: &[Token], mut i: usize) -> bool {
    while i >= 2 && tokens[i - 1].is_punct(b'.') {
        i -= 2;
    }
    i >= 2 && tokens[i - 1].is("into") && tokens[i - 2].is("insert")
}

fn push(out: &mut String, token: &Token, free: bool) {
    match &token.lexeme {
        Lexeme::Text(_) | Lexeme::Bits(_) | Lexeme::Number(_) if free => out.push('?'),
        Lexeme::Word(w) | Lexeme::Param(w) | Lexeme::Number(w) => out.push_str(w),
        Lexeme::Quoted(q) => quote(out, '"', q),
        Lexeme::Text(t) => quote(out, '\'', t),
        Lexeme::Bits(b) => quote(out, '`', b),
        // An operator with a question mark must not look like a constant; braces are in no other token.
        Lexeme::Op(op) if op.contains(['?', '`']) => {
            out.push('{');
            out.push_str(op);
            out.push('}');
        }
        Lexeme::Op(op) => out.push_str(op),
        Lexeme::Punct(p) => out.push(char::from(*p)),
    }
}

fn quote(out: &mut String, mark: char, text: &str) {
    out.push(mark);
    for c in text.chars() {
        if c == mark {
            out.push(mark);
        }
        out.push(c);
    }
    out.push(mark);
}
