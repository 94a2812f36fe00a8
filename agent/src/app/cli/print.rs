//! Tables that fit, colours where they are wanted, and text that cannot play tricks on a terminal.
//!
//! Commands, intents and rows come from the agent, and a reviewer decides by what the terminal shows: so everything is
//! stripped of control and direction characters before it is printed.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table};

/// Width where there is no terminal to ask.
pub const WIDTH: u16 = 80;
/// Blanks around a column.
const PADDING: u16 = 2;
/// Columns that the longest text of a row needs to be read.
const ROOM: u16 = 14;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// Escape sequences.
    Always,
}

impl Colour {
    /// On a terminal, unless `NO_COLOR` is set to anything (no-color.org) or the terminal is dumb.
    pub fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        if io::stdout().is_terminal() && !unwanted { Self::Always } else { Self::Never }
    }
}

/// How much a cell wants to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As the rest.
    Plain,
    /// An id, to be copied.
    Key,
    /// All is well.
    Good,
    /// Somebody should look.
    Warn,
    /// Refused or broken.
    Bad,
}

/// A cell's text, cleaned, and its tone.
#[derive(Clone, Debug)]
pub struct Field(String, Tone);

impl Field {
    /// A cell with a tone.
    pub fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self(one_line(text.as_ref()), tone)
    }
}

impl<T: AsRef<str>> From<T> for Field {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Lays a table out in `width` columns, or in the terminal's own where `None`.
pub fn table(header: &[&str], rows: Vec<Vec<Field>>, width: Option<u16>, colour: Colour) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let width = width.unwrap_or_else(terminal_width);
    table.force_no_tty().set_width(width);
    match colour {
        Colour::Always => table.enforce_styling(),
        Colour::Never => table.force_no_tty(),
    };
    let keys: Vec<usize> = rows.first().map_or_else(Vec::new, |row| {
        row.iter().enumerate().filter(|(_, Field(_, tone))| *tone == Tone::Key).map(|(at, _)| at).collect()
    });
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.into_iter().map(|Field(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                Tone::Plain => cell,
                Tone::Key => cell.add_attribute(Attribute::Bold),
                Tone::Good => cell.fg(Color::Green),
                Tone::Warn => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
            }
        }));
    }
    let widths = table.column_max_content_widths();
    let widest = (0..widths.len()).max_by_key(|at| widths[*at]);
    let others: u16 = (0..widths.len()).filter(|at| Some(*at) != widest).map(|at| widths[at] + PADDING).sum();
    for at in 0..widths.len() {
        // Only the longest text is broken into lines, where the others leave it room. An id that is broken over two
        // lines cannot be copied, so ids never are.
        let whole = Some(at) != widest && others + ROOM <= width;
        if (whole || keys.contains(&at))
            && let Some(column) = table.column_mut(at)
        {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

/// Prints a table, or a sentence where it would be empty.
pub fn show(header: &[&str], rows: Vec<Vec<Field>>, empty: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if rows.is_empty() {
        return writeln!(out, "{empty}");
    }
    let width = (!io::stdout().is_terminal()).then_some(WIDTH);
    writeln!(out, "{}", table(header, rows, width, Colour::of_stdout()))
}

/// `COLUMNS` where the shell exports it, else the terminal's own width, else 80.
fn terminal_width() -> u16 {
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || Table::new().set_content_arrangement(ContentArrangement::Dynamic).width();
    named.or_else(asked).filter(|width| *width >= 40).unwrap_or(WIDTH)
}

/// Text as one line, without anything that a terminal would obey. Line breaks and tabs become blanks.
pub fn one_line(text: &str) -> String {
    clean(text, |c| if matches!(c, '\n' | '\r' | '\t') { Some(' ') } else { None })
}

/// Text that keeps its lines, without anything else that a terminal would obey.
pub fn lines(text: &str) -> String {
    clean(text, |c| if matches!(c, '\n' | '\t') { Some(c) } else { None })
}

fn clean(text: &str, keep: impl Fn(char) -> Option<char>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match keep(c) {
            Some(kept) => out.push(kept),
            None if deceives(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            None => out.push(c),
        }
    }
    out
}

/// Control characters, and those that reorder or hide their neighbours (Unicode's Bidi_Control and invisible ones).
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text in lines of at most `width` columns, the first behind `lead`, the others below its end. A longer word has a line
/// of its own.
pub fn wrapped(lead: &str, text: &str, width: u16) -> String {
    let indent = lead.chars().count();
    let mut out = lead.to_owned();
    let mut column = indent;
    for word in one_line(text).split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if column > indent && column + 1 + length > usize::from(width) {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

/// The first `max` characters, and how many are missing.
pub fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… (+{} characters)", &text[..at], text[at..].chars().count()),
    }
}

/// A length of time for people: `42s`, `3m 5s`, `2h 10m`, `3d 4h`.
pub fn span(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}
