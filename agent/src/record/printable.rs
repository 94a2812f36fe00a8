//! Text of agents and servers, made safe for a person's terminal.

use std::borrow::Cow;

/// Escapes everything that a terminal would act on or that would show text in another order than it has: control
/// characters (but newline), and Unicode's bidirectional and invisible format characters. A tab becomes a space.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c == '\n' || !is_unsafe(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            '\n' => out.push('\n'),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// As [`printable`], on one line.
pub fn printable_line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Columns that a character takes on a terminal, near enough to wrap by.
fn columns(c: char) -> usize {
    let wide = matches!(c,
        '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}');
    if wide { 2 } else { 1 }
}

/// Breaks printable text into lines of at most `width` columns, at a space where one is near.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut used, mut space) = (String::new(), 0, None);
        for c in paragraph.chars() {
            if used + columns(c) > width {
                let rest = match space {
                    // A break far back would waste the line.
                    Some(at) if at > line.len() / 2 => line.split_off(at),
                    _ => String::new(),
                };
                lines.push(line.trim_end().to_owned());
                line = rest.trim_start().to_owned();
                used = line.chars().map(columns).sum();
                space = None;
            }
            line.push(c);
            used += columns(c);
            if c == ' ' {
                space = Some(line.len());
            }
        }
        lines.push(line);
    }
    lines
}
