//! What is wrong with policy files: every finding with its place, as lines for logs and as `miette` reports for people.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};

/// Everything that is wrong with a set of policy files. Never empty.
#[derive(Debug)]
pub struct PolicyErrors(Vec<PolicyError>);

impl PolicyErrors {
    pub(super) fn new(mut errors: Vec<PolicyError>) -> Self {
        debug_assert!(!errors.is_empty());
        errors.sort_by(|a, b| (&a.file, a.start(), &a.message).cmp(&(&b.file, b.start(), &b.message)));
        Self(errors)
    }

    /// Every finding as one line, `file:line:column: what is wrong (what to do)`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(PolicyError::line)
    }

    /// The findings, by file and place.
    pub fn errors(&self) -> &[PolicyError] {
        &self.0
    }
}

/// One line: the first finding, and how many more there are. [`PolicyErrors::lines`] has them all.
impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, more)) = self.0.split_first() else { return f.write_str("no errors") };
        f.write_str(&first.line())?;
        if more.is_empty() { Ok(()) } else { write!(f, ", and {} more", more.len()) }
    }
}

impl std::error::Error for PolicyErrors {}

impl Diagnostic for PolicyErrors {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.0.iter().map(|error| error as &dyn Diagnostic)))
    }
}

/// One finding. Its `Display` is what is wrong, without the place, which `miette` shows.
#[derive(Debug)]
pub struct PolicyError {
    file: Arc<str>,
    place: Option<Box<Place>>,
    message: String,
    label: Option<String>,
    help: Option<String>,
}

#[derive(Debug)]
struct Place {
    source: NamedSource<Arc<str>>,
    span: Range<usize>,
    line: usize,
    column: usize,
}

impl PolicyError {
    /// A finding at a byte range of a source.
    pub(super) fn at(source: &Source, span: Range<usize>, message: impl Into<String>) -> Self {
        let (line, column) = source.position(span.start);
        let named = NamedSource::new(&source.name, source.text.clone());
        Self {
            file: source.name.clone(),
            place: Some(Box::new(Place { source: named, span, line, column })),
            message: message.into(),
            label: None,
            help: None,
        }
    }

    /// A finding about a file or folder as such.
    pub(super) fn file(path: &Path, message: impl Into<String>) -> Self {
        let file = path.to_string_lossy().into();
        Self { file, place: None, message: message.into(), label: None, help: None }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    /// `file:line:column: what is wrong (what to do)`.
    pub fn line(&self) -> String {
        let mut out = self.file.to_string();
        if let Some((line, column)) = self.position() {
            out += &format!(":{line}:{column}");
        }
        out += &format!(": {}", self.message);
        if let Some(help) = &self.help {
            out += &format!(" ({help})");
        }
        out
    }

    /// The file's name, as it was loaded.
    pub fn file_name(&self) -> &str {
        &self.file
    }

    /// Line and column, from 1, columns in characters.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|place| (place.line, place.column))
    }

    /// Byte range in the file.
    pub fn span(&self) -> Option<Range<usize>> {
        self.place.as_ref().map(|place| place.span.clone())
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.help.as_deref()
    }

    fn start(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.span.start)
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PolicyError {}

impl Diagnostic for PolicyError {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|place| &place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        let label = LabeledSpan::new_with_span(self.label.clone(), place.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// A policy file's text under its name.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) text: Arc<str>,
}

impl Source {
    /// Line and column of a byte offset, from 1, columns in characters.
    pub(super) fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
    }

    /// The byte range of `part` of the string value at `value`; all of the value where escapes blur the mapping.
    pub(super) fn inside(&self, value: Range<usize>, content: &str, part: Range<usize>) -> Range<usize> {
        let raw = &self.text[value.clone()];
        let quotes = if raw.starts_with("\"\"\"") || raw.starts_with("'''") { 3 } else { 1 };
        let inner = raw.get(quotes..raw.len().saturating_sub(quotes));
        // A newline right after an opening triple quote is not part of the value.
        let skipped = inner.and_then(|inner| inner.strip_suffix(content)).map(str::len);
        match skipped {
            Some(skipped) if skipped <= 2 && content.is_char_boundary(part.start) => {
                let start = value.start + quotes + skipped + part.start;
                let end = (value.start + quotes + skipped + part.end).min(value.end);
                start..end.max(start)
            }
            _ => value,
        }
    }
}

/// A hint that names the nearest of the known words, if one is near.
pub(super) fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let folded = wrong.to_lowercase();
    let near = |word: &'a str| {
        let likeness = strsim::jaro_winkler(&folded, &word.to_lowercase());
        let edits = strsim::osa_distance(&folded, &word.to_lowercase());
        (edits <= 2 && edits < word.chars().count() || likeness > 0.85).then_some((edits, word))
    };
    known.into_iter().filter_map(near).min().map(|(_, word)| format!("did you mean `{word}`?"))
}
