//! What is wrong with a file, told to a person: the place, the line with a mark, the expectation and the remedy.

use serde::Serialize;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;

/// A place in a text, in bytes.
pub(super) type Span = Range<usize>;

/// So many diagnostics of a file are kept; the rest is only counted.
const MOST_KEPT: usize = 100;

/// So many characters of a line are shown.
const WIDEST_LINE: usize = 120;

/// When a line is cut, so many characters before the mark stay.
const BEFORE_MARK: usize = 30;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but something in it is probably not meant.
    Warning,
}

/// One thing that is wrong with a file. `Display` gives several lines without a final line feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named by whoever asked to read it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, counted in characters.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What was expected at this place.
    pub expected: Option<String>,
    /// What to do.
    pub help: Option<String>,
    #[serde(skip)]
    excerpt: Excerpt,
}

/// A line of the file, perhaps cut, and which of its characters are marked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Excerpt {
    line: String,
    mark: Range<usize>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        writeln!(f, "{}:{}:{}: {severity}{}", self.file, self.line, self.column, self.message)?;
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{margin} |")?;
        writeln!(f, "{}", format_args!("{number} | {}", self.excerpt.line).to_string().trim_end())?;
        // Tabs stay tabs, so that the mark stands under what it marks whatever their width.
        let before: String = self.excerpt.line.chars().take(self.excerpt.mark.start).map(blank).collect();
        write!(f, "{margin} | {before}{}", "^".repeat(self.excerpt.mark.len().max(1)))?;
        if let Some(expected) = &self.expected {
            write!(f, " expected {expected}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{margin} = {help}")?;
        }
        Ok(())
    }
}

fn blank(character: char) -> char {
    if character == '\t' { '\t' } else { ' ' }
}

/// What is wrong with a file, in the order of the file. `Display` separates them by an empty line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// The first of them.
    pub list: Vec<Diagnostic>,
    /// How many more there are.
    pub omitted: usize,
}

impl Diagnostics {
    /// Whether there is nothing wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Those that are listed, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        if self.omitted > 0 {
            write!(f, "\n\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// What is wrong with a word, before it is known where the word stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    message: String,
    expected: Option<String>,
    help: Option<String>,
}

impl Mistake {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), expected: None, help: None }
    }

    /// Says what was expected; reads on after the word "expected".
    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Says what to do.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the known name that the word resembles, if there is one.
    pub(super) fn suggest<'n>(mut self, word: &str, known: impl IntoIterator<Item = &'n str>) -> Self {
        if let Some(name) = nearest(word, known) {
            self.help = Some(format!("did you mean `{name}`?"));
        }
        self
    }
}

/// In one line, for a word that stands in no file.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// The known name that differs least from a word, when it differs little.
fn nearest<'n>(word: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let word: String = word.chars().take(80).map(plain).collect();
    let most = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word, &name.chars().map(plain).collect::<String>()), name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

fn plain(character: char) -> char {
    if character == '_' { '-' } else { character.to_ascii_lowercase() }
}

/// A word of the file within a message: bounded, and without characters that change how a terminal shows the rest.
pub(super) fn quoted(word: &str) -> String {
    let mut text = String::from("`");
    for (index, character) in word.chars().enumerate() {
        if index == 80 {
            text.push_str("...");
            break;
        }
        match character {
            '"' | '\'' | '\\' => text.push(character),
            _ => text.extend(character.escape_debug()),
        }
    }
    text.push('`');
    text
}

/// Several names within a message.
pub(super) fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// A text that is being read, and what was found wrong with it so far.
pub(super) struct Report<'s> {
    text: &'s str,
    label: &'s str,
    /// A place whose line was asked for, and that line: most questions come in the order of the text, so that the next
    /// answer is a short walk away.
    last: Cell<(usize, u32)>,
    errors: Diagnostics,
    warnings: Diagnostics,
}

impl<'s> Report<'s> {
    pub(super) fn new(text: &'s str, label: &'s str) -> Self {
        Self { text, label, last: Cell::new((0, 1)), errors: Diagnostics::default(), warnings: Diagnostics::default() }
    }

    pub(super) fn text(&self) -> &'s str {
        self.text
    }

    /// The line, from 1, of a place in the text.
    pub(super) fn line(&self, offset: usize) -> u32 {
        let (place, line) = match self.last.get() {
            (place, line) if place <= offset => (place, line),
            _ => (0, 1),
        };
        let walked = self.text.as_bytes().get(place..offset).unwrap_or_default();
        let breaks = walked.iter().filter(|byte| **byte == b'\n').count();
        let line = line.saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX));
        self.last.set((offset, line));
        line
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    pub(super) fn error(&mut self, span: Span, mistake: Mistake) {
        if self.errors.list.len() < MOST_KEPT {
            let diagnostic = self.diagnostic(Severity::Error, span, mistake);
            self.errors.list.push(diagnostic);
        } else {
            self.errors.omitted += 1;
        }
    }

    pub(super) fn warning(&mut self, span: Span, mistake: Mistake) {
        if self.warnings.list.len() < MOST_KEPT {
            let diagnostic = self.diagnostic(Severity::Warning, span, mistake);
            self.warnings.list.push(diagnostic);
        } else {
            self.warnings.omitted += 1;
        }
    }

    /// The value, if nothing was wrong with the text, and the warnings. Warnings are not told beside errors.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Diagnostics), Diagnostics> {
        let by_place = |diagnostic: &Diagnostic| (diagnostic.line, diagnostic.column);
        self.errors.list.sort_by_key(by_place);
        self.warnings.list.sort_by_key(by_place);
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            _ => Err(self.errors),
        }
    }

    fn diagnostic(&self, severity: Severity, span: Span, mistake: Mistake) -> Diagnostic {
        let start = span.start.min(self.text.len());
        let begin = self.text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let rest = self.text.get(begin..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let characters_before =
            |offset: usize| line.char_indices().take_while(|(place, _)| begin + place < offset).count();
        let mark = characters_before(span.start)..characters_before(span.end);
        Diagnostic {
            severity,
            file: self.label.to_owned(),
            line: self.line(start),
            column: u32::try_from(mark.start + 1).unwrap_or(u32::MAX),
            message: mistake.message,
            expected: mistake.expected,
            help: mistake.help,
            excerpt: excerpt(line, mark),
        }
    }
}

/// The part of a line around a mark that is worth showing.
fn excerpt(line: &str, mark: Range<usize>) -> Excerpt {
    let length = line.chars().count();
    let first = if length <= WIDEST_LINE { 0 } else { mark.start.saturating_sub(BEFORE_MARK) };
    let last = length.min(first + WIDEST_LINE);
    let mut shown = String::new();
    if first > 0 {
        shown.push_str("...");
    }
    let moved = |place: usize| place.clamp(first, last) - first + if first > 0 { 3 } else { 0 };
    let mark = moved(mark.start)..moved(mark.end);
    shown.extend(line.chars().skip(first).take(last - first).map(visible));
    if last < length {
        shown.push_str("...");
    }
    Excerpt { line: shown, mark }
}

fn visible(character: char) -> char {
    // What `escape_debug` would write as an escape could move the cursor or turn the direction of writing.
    let harmless = matches!(character, '\t' | '"' | '\'' | '\\') || character.escape_debug().len() == 1;
    if harmless { character } else { char::REPLACEMENT_CHARACTER }
}
