//! From our tokens to the parser's, and one parse.
//!
//! The parser never sees text: it gets tokens whose bounds and decoding are PostgreSQL's, and only PostgreSQL's keywords
//! as keywords, so `TOP`, `QUALIFY` and the like stay identifiers. A few PostgreSQL spellings it does not know are
//! replaced by others of the same meaning.

use std::{any::TypeId, cell::Cell, sync::LazyLock};

use sqlparser::{
    ast::{Expr, Statement},
    dialect::{Dialect, PostgreSqlDialect, Precedence},
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Span, Token as Theirs, TokenWithSpan, Word},
};

use super::{
    cursor::nameable,
    lexer::{Lexeme, Token},
    words,
};

/// Nesting that the parser follows.
const PARSER_DEPTH: usize = 200;
/// Tokens that can nest an expression without a bracket, per statement: bounds the depth of the tree.
pub(super) const MAX_CHAIN: usize = 8192;
/// Expressions the parser may start for each token: bounds its backtracking.
const FUEL_PER_TOKEN: usize = 24;

/// Why a statement was not parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is none that the parser knows.
    NotUnderstood,
    /// It would take too much to read.
    TooComplex,
}

/// Parses one statement (no semicolons).
pub(super) fn parse(tokens: &[Token]) -> Result<Statement, Refused> {
    if chain_length(tokens) > MAX_CHAIN {
        return Err(Refused::TooComplex);
    }
    let theirs = translate(tokens).ok_or(Refused::NotUnderstood)?;
    let dialect = Dialectal { base: PostgreSqlDialect {}, fuel: Cell::new(FUEL_PER_TOKEN * (theirs.len() + 40)) };
    let mut parser = Parser::new(&dialect).with_recursion_limit(PARSER_DEPTH).with_tokens_with_locations(theirs);
    let statement = parser.parse_statement().map_err(|error| match error {
        ParserError::RecursionLimitExceeded => Refused::TooComplex,
        _ => Refused::NotUnderstood,
    })?;
    if parser.peek_token().token == Theirs::EOF { Ok(statement) } else { Err(Refused::NotUnderstood) }
}

/// How deep a tree these tokens could make, at most.
pub(super) fn chain_length(tokens: &[Token]) -> usize {
    tokens
        .iter()
        .filter(|t| match &t.lexeme {
            Lexeme::Op(_) | Lexeme::Punct(b'(' | b'[' | b'.') => true,
            Lexeme::Word(w) => words::category(w).is_some(),
            _ => false,
        })
        .count()
}

/// Words the parser needs as keywords though PostgreSQL has them as plain type names.
const TYPE_WORDS: &[&str] = &["date", "json", "jsonb", "uuid", "timestamptz", "timetz", "bytea", "text"];

fn translate(tokens: &[Token]) -> Option<Vec<TokenWithSpan>> {
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len() + 1);
    let mut i = 0;
    while let Some(token) = tokens.get(i) {
        let ahead = |n: usize| tokens.get(i + n);
        let word_ahead = |n: usize| ahead(n).and_then(Token::word).unwrap_or("");
        let before = i.checked_sub(1).and_then(|b| tokens.get(b));
        let theirs = match &token.lexeme {
            Lexeme::Word(w) => match w.as_str() {
                // TABLE t is SELECT * FROM t; in SELECT INTO TABLE the word says nothing.
                "table" if is_command(before) => {
                    out.extend([word("select"), Theirs::Mul, word("from")].map(bare));
                    i += 1;
                    continue;
                }
                "only" if ahead(1).is_some_and(|t| t.is_punct(b'(')) => {
                    let close = tokens[i..].iter().position(|t| t.is_punct(b')'))?;
                    for inside in &tokens[i + 2..i + close] {
                        out.push(bare(match &inside.lexeme {
                            Lexeme::Word(w) if !words::reserved(w) => quoted(w),
                            Lexeme::Quoted(q) => quoted(q),
                            Lexeme::Punct(b'.') => Theirs::Period,
                            _ => return None,
                        }));
                    }
                    i += close + 1;
                    continue;
                }
                // FROM ONLY t reads less than FROM t.
                "only"
                    if !before.is_some_and(|b| b.is("row") || b.is("rows") || b.is("read"))
                        && ahead(1).is_some_and(|t| t.identifier().is_some()) =>
                {
                    i += 1;
                    continue;
                }
                "variadic" => {
                    i += 1;
                    continue;
                }
                "operator" if ahead(1).is_some_and(|t| t.is_punct(b'(')) => {
                    let (op, used) = qualified_operator(&tokens[i..])?;
                    i += used;
                    out.push(bare(operator(op)));
                    continue;
                }
                "collate" => {
                    let mut used = 1;
                    // Before a reserved word COLLATE is a label, and what follows is no collation.
                    tokens.get(i + used).filter(|t| nameable(t))?;
                    used += 1;
                    while tokens.get(i + used).is_some_and(|t| t.is_punct(b'.')) {
                        tokens.get(i + used + 1)?.identifier()?;
                        used += 2;
                    }
                    i += used;
                    continue;
                }
                "overriding" if matches!(word_ahead(1), "system" | "user") && word_ahead(2) == "value" => {
                    i += 3;
                    continue;
                }
                "no" if before.is_some_and(|b| b.is("for")) && word_ahead(1) == "key" && word_ahead(2) == "update" => {
                    i += 2;
                    continue;
                }
                "key" if before.is_some_and(|b| b.is("for")) && word_ahead(1) == "share" => {
                    i += 1;
                    continue;
                }
                // A label after AS or a dot may be any keyword.
                _ if before.is_some_and(|b| b.is_punct(b'.')) => quoted(w),
                _ if before.is_some_and(|b| b.is("as"))
                    && words::reserved(w)
                    && !matches!(w.as_str(), "select" | "with" | "not" | "table") =>
                {
                    quoted(w)
                }
                _ => word(w),
            },
            Lexeme::Quoted(name) => quoted(name),
            // The parser would take the second for a label or join them.
            Lexeme::Text(_) if before.is_some_and(|b| matches!(b.lexeme, Lexeme::Text(_))) => return None,
            Lexeme::Text(text) => Theirs::SingleQuotedString(text.clone()),
            // Both notations are constants; which digits matters to nobody here.
            Lexeme::Bits(digits) => Theirs::HexStringLiteral(digits.clone()),
            Lexeme::Number(n) => Theirs::Number(n.clone(), false),
            Lexeme::Param(p) => Theirs::Placeholder(p.clone()),
            Lexeme::Op(op) => operator(op),
            Lexeme::Punct(p) => match p {
                b'(' => Theirs::LParen,
                b')' => Theirs::RParen,
                b'[' => Theirs::LBracket,
                b']' => Theirs::RBracket,
                b',' => Theirs::Comma,
                b'.' => Theirs::Period,
                _ => return None,
            },
        };
        out.push(bare(theirs));
        i += 1;
    }
    Some(out)
}

/// Whether TABLE after this token is the command.
fn is_command(before: Option<&Token>) -> bool {
    !before.is_some_and(|b| {
        b.is_punct(b'.') || ["as", "into", "temp", "temporary", "unlogged", "local", "global"].iter().any(|w| b.is(w))
    })
}

/// How many `TABLE t` were written as a SELECT.
pub(super) fn table_commands(tokens: &[Token]) -> usize {
    (0..tokens.len())
        .filter(|i| tokens[*i].is("table") && is_command(i.checked_sub(1).and_then(|b| tokens.get(b))))
        .count()
}

fn bare(token: Theirs) -> TokenWithSpan {
    TokenWithSpan { token, span: Span::empty() }
}

/// What the parser is told of each keyword.
static THEIRS: LazyLock<words::Table<Keyword>> = LazyLock::new(|| {
    words::Table::new(words::keywords().chain(TYPE_WORDS.iter().copied()).map(|known| {
        let keyword = match Theirs::make_word(known, None) {
            Theirs::Word(word) => word.keyword,
            _ => Keyword::NoKeyword,
        };
        (known, keyword)
    }))
});

fn word(w: &str) -> Theirs {
    let keyword = THEIRS.get(w).copied().unwrap_or(Keyword::NoKeyword);
    Theirs::Word(Word { value: w.to_owned(), quote_style: None, keyword })
}

fn quoted(name: &str) -> Theirs {
    Theirs::Word(Word { value: name.to_owned(), quote_style: Some('"'), keyword: Keyword::NoKeyword })
}

/// `OPERATOR(pg_catalog.op)`, at the keyword: the operator and the tokens used. Other schemas hold others' operators.
fn qualified_operator(tokens: &[Token]) -> Option<(&str, usize)> {
    let [_, open, schema, dot, op, close, ..] = tokens else { return None };
    let Lexeme::Op(op) = &op.lexeme else { return None };
    let builtin =
        open.is_punct(b'(') && schema.identifier() == Some("pg_catalog") && dot.is_punct(b'.') && close.is_punct(b')');
    builtin.then_some((op.as_str(), 6))
}

fn operator(op: &str) -> Theirs {
    match op {
        "=" => Theirs::Eq,
        "<>" | "!=" => Theirs::Neq,
        "<" => Theirs::Lt,
        ">" => Theirs::Gt,
        "<=" => Theirs::LtEq,
        ">=" => Theirs::GtEq,
        "+" => Theirs::Plus,
        "-" => Theirs::Minus,
        "*" => Theirs::Mul,
        "/" => Theirs::Div,
        "%" => Theirs::Mod,
        "^" => Theirs::Caret,
        "||" => Theirs::StringConcat,
        "::" => Theirs::DoubleColon,
        ":=" => Theirs::Assignment,
        "=>" => Theirs::RArrow,
        ":" => Theirs::Colon,
        "&" => Theirs::Ampersand,
        "|" => Theirs::Pipe,
        "#" => Theirs::Sharp,
        "~" => Theirs::Tilde,
        "~*" => Theirs::TildeAsterisk,
        "!~" => Theirs::ExclamationMarkTilde,
        "!~*" => Theirs::ExclamationMarkTildeAsterisk,
        "~~" => Theirs::DoubleTilde,
        "~~*" => Theirs::DoubleTildeAsterisk,
        "!~~" => Theirs::ExclamationMarkDoubleTilde,
        "!~~*" => Theirs::ExclamationMarkDoubleTildeAsterisk,
        "<<" => Theirs::ShiftLeft,
        ">>" => Theirs::ShiftRight,
        "&&" => Theirs::Overlap,
        "->" => Theirs::Arrow,
        "->>" => Theirs::LongArrow,
        "#>" => Theirs::HashArrow,
        "#>>" => Theirs::HashLongArrow,
        "@>" => Theirs::AtArrow,
        "<@" => Theirs::ArrowAt,
        "#-" => Theirs::HashMinus,
        "@?" => Theirs::AtQuestion,
        "@@" => Theirs::AtAt,
        "?" => Theirs::Question,
        "?&" => Theirs::QuestionAnd,
        "?|" => Theirs::QuestionPipe,
        "^@" => Theirs::CaretAt,
        "@" => Theirs::AtSign,
        "|/" => Theirs::PGSquareRoot,
        "||/" => Theirs::PGCubeRoot,
        other => Theirs::CustomBinaryOperator(other.to_owned()),
    }
}

/// PostgreSQL's dialect with a bound on the parser's work.
#[derive(Debug)]
struct Dialectal {
    base: PostgreSqlDialect,
    fuel: Cell<usize>,
}

macro_rules! as_postgres {
    ($($name:ident),* $(,)?) => { $(fn $name(&self) -> bool { self.base.$name() })* };
}

impl Dialect for Dialectal {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    // Called for every expression the parser starts. This error is the one that its backtracking does not swallow.
    fn parse_prefix(&self, _parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        let left = self.fuel.get();
        self.fuel.set(left.saturating_sub(1));
        (left == 0).then_some(Err(ParserError::RecursionLimitExceeded))
    }

    fn parse_statement(&self, _parser: &mut Parser) -> Option<Result<Statement, ParserError>> {
        let left = self.fuel.get();
        self.fuel.set(left.saturating_sub(1));
        (left == 0).then_some(Err(ParserError::RecursionLimitExceeded))
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.base.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.base.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.base.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.base.is_identifier_part(ch)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.base.is_custom_operator_part(ch)
    }

    fn is_reserved_for_identifier(&self, kw: Keyword) -> bool {
        self.base.is_reserved_for_identifier(kw)
    }

    fn is_table_alias(&self, kw: &Keyword, parser: &mut Parser) -> bool {
        self.base.is_table_alias(kw, parser)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        self.base.get_next_precedence(parser)
    }

    fn prec_value(&self, prec: Precedence) -> u8 {
        self.base.prec_value(prec)
    }

    as_postgres!(
        supports_unicode_string_literal,
        supports_filter_during_aggregation,
        supports_group_by_expr,
        supports_alter_user_as_alter_role,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_listen_notify,
        supports_exclude_constraint,
        supports_factorial_operator,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_colon_operator,
        supports_named_fn_args_with_expr_name,
        supports_empty_projections,
        supports_nested_comments,
        supports_string_escape_constant,
        supports_numeric_literal_underscores,
        supports_array_typedef_with_brackets,
        supports_geometric_types,
        supports_order_by_using_operator,
        supports_set_names,
        supports_alter_column_type_using,
        supports_left_associative_joins_without_parens,
        supports_notnull_operator,
        supports_interval_options,
        supports_insert_table_alias,
        supports_create_table_like_parenthesized,
        supports_select_wildcard_with_alias,
        supports_comma_separated_trim,
        supports_xml_expressions,
        supports_aliased_function_args,
    );
}
