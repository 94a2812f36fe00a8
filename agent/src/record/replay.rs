//! A session as it happened, for a person.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    io,
    sync::Arc,
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;

use super::{
    DecisionNote, Event, EventBody, MaskedNote, RecordError, Recorded,
    printable::{printable, printable_line, wrap},
};
use crate::action::{ProcessFacts, PromptRef, TurnNote};

/// Columns of the time at the left.
const MARGIN: usize = 11;
/// Tables with more columns are shown value by value.
const MAX_COLUMNS: usize = 8;

/// Whether to use terminal colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    #[default]
    Never,
    /// ANSI colours.
    Always,
}

/// How a replay looks.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Columns of the terminal.
    pub width: usize,
    /// Colours.
    pub colour: Colour,
    /// Sample rows to show of each result.
    pub rows: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { width: 80, colour: Colour::Never, rows: 10 }
    }
}

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The output could not be written.
    #[error("cannot write the replay")]
    Output(#[source] io::Error),
}

/// One event of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// How long after the one before it happened.
    pub delay: Duration,
    /// What to show; ends in a newline. Empty for an event that is not shown.
    pub text: String,
}

/// Writes a session, or any events, at once.
pub fn render(
    events: impl IntoIterator<Item = Result<Recorded, RecordError>>,
    options: &ReplayOptions,
    out: &mut dyn io::Write,
) -> Result<(), ReplayError> {
    for frame in frames(events, options.clone()) {
        out.write_all(frame?.text.as_bytes()).map_err(ReplayError::Output)?;
    }
    out.flush().map_err(ReplayError::Output)
}

/// The same event by event, with the time between them, so that a caller may pace it.
pub fn frames(
    events: impl IntoIterator<Item = Result<Recorded, RecordError>>,
    options: ReplayOptions,
) -> impl Iterator<Item = Result<Frame, RecordError>> {
    let mut renderer = Renderer::new(options);
    events.into_iter().map(move |item| item.map(|recorded| renderer.frame(&recorded.event)))
}

/// Turns events into text, remembering what was shown.
pub struct Renderer {
    options: ReplayOptions,
    start: Option<Timestamp>,
    last: Option<Timestamp>,
    /// Commands whose text was shown when they began to wait.
    shown: HashSet<(u64, u64)>,
    /// Turns of conversations with models.
    turns: HashMap<Arc<str>, TurnNote>,
}

#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Good,
    Wait,
    Bad,
    Dim,
}

impl Renderer {
    /// A renderer for one session.
    pub fn new(options: ReplayOptions) -> Self {
        Self { options, start: None, last: None, shown: HashSet::new(), turns: HashMap::new() }
    }

    /// The next event.
    pub fn frame(&mut self, event: &Event) -> Frame {
        let at = event.timestamp.parse::<Timestamp>().ok().or(self.last);
        let delay = match (self.last, at) {
            (Some(last), Some(at)) => Duration::try_from(at.duration_since(last)).unwrap_or_default(),
            _ => Duration::ZERO,
        };
        self.last = at;
        self.start = self.start.or(at);
        Frame { delay, text: self.text(event) }
    }

    /// The turn that a command belongs to, or those that it may.
    fn why(&self, prompt: &PromptRef) -> String {
        let shown = |id: &Arc<str>| self.turns.get(id).map_or_else(|| format!("[{id}]"), ToString::to_string);
        match &prompt.turns[..] {
            [one] => format!("why: {}", shown(one)),
            several => format!("why, one of: {}", several.iter().map(shown).collect::<Vec<_>>().join("; ")),
        }
    }

    fn text(&mut self, event: &Event) -> String {
        let mut out =
            Lines { width: self.options.width, colour: self.options.colour, stamp: self.stamp(), out: String::new() };
        let upstream = || event.upstream.as_deref().map_or("?".to_owned(), printable_line);
        match &event.body {
            EventBody::SessionStart { intent, command, operator, ttl_seconds, .. } => {
                out.stamp = None;
                let tenant = event.tenant.as_deref().map_or(String::new(), |t| format!(" ({})", printable_line(t)));
                out.head(&format!("Session {} of {}{tenant}", event.session_id, printable_line(&event.workload)));
                let started = event.timestamp.get(..19).unwrap_or(&event.timestamp).replace('T', " ");
                out.field("started", &format!("{started} UTC by {}", printable_line(operator)));
                out.field("intent", intent.as_deref().unwrap_or("(none given)"));
                out.field("command", &command.join(" "));
                if let Some(seconds) = ttl_seconds {
                    out.field("may live", &span(Duration::from_secs(*seconds)));
                }
                if let Some(trace) = &event.trace_id {
                    out.field("trace", trace);
                }
                out.out.push('\n');
            }
            EventBody::SessionEnd { why } => out.line(Tone::Dim, &format!("session ended: {}", printable_line(why))),
            EventBody::Connect { address, protocol, database, process, decision } => {
                let protocol = protocol.as_deref().unwrap_or("unknown protocol");
                let database = database.as_deref().map_or(String::new(), |d| format!(", database {d}"));
                let what = match decision.passed() {
                    true => format!("connection {} to {}", event.connection_id, upstream()),
                    false => format!("connection {} to {} REFUSED", event.connection_id, upstream()),
                };
                let what = format!("{what} ({protocol}{database}) at {address} by {}", who(process));
                out.line(Tone::Plain, &printable_line(&what));
                out.verdict(decision, None);
            }
            EventBody::Disconnect { why, bytes_in, bytes_out } => out.line(
                Tone::Dim,
                &printable_line(&format!(
                    "connection {} closed: {why} ({} in, {} out)",
                    event.connection_id,
                    size(*bytes_in),
                    size(*bytes_out)
                )),
            ),
            EventBody::Command { seq, command, decision, hold, waited_ms, prompt_ref, .. } => {
                let label = label(event, *seq);
                if self.shown.remove(&(event.connection_id, *seq)) {
                    out.line(Tone::Plain, &format!("{label} goes on"));
                } else {
                    out.line(Tone::Plain, &format!("{label} {}", printable(command)));
                }
                if let Some(prompt) = prompt_ref {
                    out.line(Tone::Dim, &printable_line(&self.why(prompt)));
                }
                let waited = hold.as_ref().map(|id| (id, Duration::from_millis(waited_ms.unwrap_or(0))));
                out.verdict(decision, waited);
            }
            EventBody::Hold { id, seq, state, command, rule, reviewer, reason, estimated_rows, .. } => {
                let label = label(event, *seq);
                if &**state == "requested" {
                    self.shown.insert((event.connection_id, *seq));
                    out.line(Tone::Plain, &format!("{label} {}", printable(command)));
                }
                let mut text = format!("hold {id} {}", hold_state(state));
                if let Some(rows) = estimated_rows.filter(|_| &**state == "estimated") {
                    let _ = write!(text, " at {}", count(rows, "row"));
                }
                if let Some(reviewer) = reviewer {
                    let _ = write!(text, " by {reviewer}");
                }
                if let Some(reason) = reason {
                    let _ = write!(text, ": \"{reason}\"");
                }
                if &**state == "requested" {
                    let _ = write!(text, " (rule \"{rule}\")");
                }
                let tone = match &**state {
                    "granted" => Tone::Good,
                    "requested" | "estimated" | "approved" => Tone::Wait,
                    _ => Tone::Bad,
                };
                out.line(tone, &printable_line(&text));
            }
            EventBody::Result { seq, result, failed, columns, sample, rows, bytes, masked, duration_us } => {
                let tone = if *failed { Tone::Bad } else { Tone::Dim };
                let took = span(Duration::from_micros(*duration_us));
                let mut text = format!("{} -> {result}", label(event, *seq));
                let _ = write!(text, " ({}, {}, {took})", count(*rows, "row"), size(*bytes));
                out.line(tone, &printable_line(&text));
                out.masked(masked);
                out.sample(columns, sample, *rows, self.options.rows);
            }
            EventBody::Turn { seq, turn, tools, injection, .. } => {
                let (label, said) = (label(event, *seq), turn.to_string());
                // Its id is the label.
                let said = said.strip_prefix(&label).unwrap_or(&said).trim_start();
                let mut text = format!("{label} asks {}: {said}", turn.model);
                if !tools.is_empty() {
                    let _ = write!(text, " (offers {})", tools.join(", "));
                }
                out.line(Tone::Plain, &printable_line(&text));
                if !injection.is_empty() {
                    let text = format!("reads like other orders for the model: {}", injection.join(", "));
                    out.line(Tone::Bad, &printable_line(&text));
                }
                self.turns.insert(Arc::clone(&turn.id), turn.clone());
            }
            EventBody::Answer { seq, turn, stop, failed, calls, usage, duration_us, .. } => {
                let mut text = format!("{} answered: {}", label(event, *seq), stop.as_deref().unwrap_or("ended"));
                for call in calls {
                    let _ = write!(text, ", calls {}({})", call.name, shorten(&call.arguments));
                }
                let about = if usage.estimated { "about " } else { "" };
                let _ = write!(text, " ({about}{} tokens in, {} out", usage.input, usage.output);
                if let Some(cost) = usage.cost {
                    let _ = write!(text, ", cost {}.{:06}", cost / 1_000_000, cost % 1_000_000);
                }
                let _ = write!(text, ", {})", span(Duration::from_micros(*duration_us)));
                out.line(if *failed { Tone::Bad } else { Tone::Dim }, &printable_line(&text));
                if let Some(known) = self.turns.get_mut(turn) {
                    known.calls.clone_from(calls);
                }
            }
            EventBody::Refused { what, process } => {
                out.line(Tone::Bad, &printable_line(&format!("REFUSED: {what}, by {}", who(process))));
            }
            EventBody::Daemon { what } => out.line(Tone::Dim, &printable_line(&format!("daemon: {what}"))),
        }
        out.out
    }

    fn stamp(&self) -> Option<String> {
        let since = self.last?.duration_since(self.start?).as_millis().max(0);
        let (minutes, seconds) = (since / 60_000, since % 60_000);
        Some(format!("{minutes:>3}:{:02}.{:03}", seconds / 1000, seconds % 1000))
    }
}

/// Builds the text of one event.
struct Lines {
    width: usize,
    colour: Colour,
    /// Shown before the first line.
    stamp: Option<String>,
    out: String,
}

impl Lines {
    fn head(&mut self, text: &str) {
        for line in wrap(text, self.width) {
            let line = self.paint(Tone::Good, &line);
            self.out.push_str(&line);
            self.out.push('\n');
        }
    }

    fn field(&mut self, name: &str, value: &str) {
        for (index, line) in wrap(&printable_line(value), self.width.saturating_sub(12)).into_iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            let _ = writeln!(self.out, "  {name:<9} {line}");
        }
    }

    /// Text beside the time; further lines below it. The text must be printable.
    fn line(&mut self, tone: Tone, text: &str) {
        for line in wrap(text, self.width.saturating_sub(MARGIN)) {
            let stamp = self.stamp.take().unwrap_or_default();
            let line = self.paint(tone, &line);
            let _ = writeln!(self.out, "{stamp:>width$} {line}", width = MARGIN - 1);
        }
    }

    fn verdict(&mut self, decision: &DecisionNote, waited: Option<(&Arc<str>, Duration)>) {
        let rule = &decision.rule;
        let (tone, mut text) = match &*decision.effect {
            "allow" => (Tone::Good, format!("allowed by rule \"{rule}\"")),
            "notify" => (Tone::Good, format!("allowed by rule \"{rule}\", reviewers are told")),
            "hold" => (Tone::Good, format!("approved under rule \"{rule}\"")),
            "suggest" => (Tone::Bad, format!("NOT FORWARDED, only suggested, by rule \"{rule}\"")),
            _ => (Tone::Bad, format!("DENIED by rule \"{rule}\"")),
        };
        if !decision.reviewers.is_empty() {
            let _ = write!(text, " by {}", decision.reviewers.join(", "));
        }
        if let Some((id, waited)) = waited {
            let _ = write!(text, " after {} (hold {id})", span(waited));
        }
        if let Some(reason) = &decision.reason {
            let _ = write!(text, ": {reason}");
        }
        self.line(tone, &printable_line(&text));
    }

    fn masked(&mut self, masked: &MaskedNote) {
        if masked.count > 0 {
            let text = format!("masked {}: {}", count(masked.count, "value"), masked.detectors.join(", "));
            self.line(Tone::Dim, &printable_line(&text));
        }
    }

    /// The first rows as a table, or value by value where they are too wide for one.
    fn sample(&mut self, columns: &[Arc<str>], sample: &[Vec<Option<String>>], rows: u64, limit: usize) {
        let shown = sample.len().min(limit);
        if shown == 0 {
            return;
        }
        let cell = |value: &Option<String>| value.as_deref().map_or("NULL".to_owned(), |v| printable_line(&shorten(v)));
        let width = self.width.saturating_sub(MARGIN);
        if columns.len() <= MAX_COLUMNS {
            let mut table = Table::new();
            table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
            table.set_header(columns.iter().map(|name| printable_line(name)));
            for row in &sample[..shown] {
                table.add_row(row.iter().map(cell));
            }
            for line in table.lines() {
                let _ = writeln!(self.out, "{:MARGIN$}{}", "", line.trim_end());
            }
        } else {
            for (index, row) in sample[..shown].iter().enumerate() {
                self.line(Tone::Dim, &format!("row {}", index + 1));
                for (name, value) in columns.iter().zip(row) {
                    self.line(Tone::Plain, &format!("  {}: {}", printable_line(name), cell(value)));
                }
            }
        }
        let more = rows.saturating_sub(shown as u64);
        if more > 0 {
            self.line(Tone::Dim, &format!("and {}", count(more, "more row")));
        }
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match (self.colour, tone) {
            (Colour::Never, _) | (_, Tone::Plain) => return text.to_owned(),
            (_, Tone::Good) => 32,
            (_, Tone::Wait) => 33,
            (_, Tone::Bad) => 31,
            (_, Tone::Dim) => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

fn label(event: &Event, seq: u64) -> String {
    format!("[{}.{seq}]", event.connection_id)
}

fn hold_state(state: &str) -> &str {
    match state {
        "requested" => "waits for a reviewer",
        "approved" => "approved once, waits for a second reviewer",
        "granted" => "approved",
        "withdrawn" => "withdrawn: the client went away or cancelled",
        "expired" => "expired: nobody answered",
        other => other,
    }
}

fn who(process: &ProcessFacts) -> String {
    match process.pid {
        0 => "an unknown process".to_owned(),
        pid => format!("{} (pid {pid}, uid {})", process.comm, process.uid),
    }
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time < Duration::from_millis(1) => format!("{} us", time.as_micros()),
        0 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A value of a table cell, cut where it is long.
fn shorten(value: &str) -> String {
    match value.char_indices().nth(120) {
        Some((at, _)) => format!("{}...", &value[..at]),
        None => value.to_owned(),
    }
}
