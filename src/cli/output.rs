//! How answers look.

use super::Error;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// What a command ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// All is well.
    Fine = 0,
    /// The answer is no.
    No = 1,
    /// There is no answer.
    Error = 2,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// What a command says on standard output, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) code: Code,
}

impl Answer {
    pub(super) fn fine(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: Code::Fine }
    }

    pub(super) fn new(text: impl Into<String>, yes: bool) -> Self {
        Self { text: text.into(), code: if yes { Code::Fine } else { Code::No } }
    }

    /// An answer for programs: indented JSON.
    pub(super) fn json(value: &impl Serialize, code: Code) -> Result<Self, Error> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(Self { text, code })
    }

    /// Prints it. Whoever stops reading early, such as `head`, does not change the exit code.
    pub(super) fn print(self) -> Result<Code, Error> {
        match print(&self.text) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::Write { path: Path::new("standard output").to_owned(), source: error })
            }
            _ => Ok(self.code),
        }
    }
}

/// Writes to standard output, without colours unless that is a terminal.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Tells an error on standard error.
pub(super) fn complain(message: &str) {
    tell("error", AnsiColor::Red, message);
}

/// Tells something that may not be meant on standard error.
pub(super) fn note(message: &str) {
    tell("note", AnsiColor::Yellow, message);
}

fn tell(kind: &str, colour: AnsiColor, message: &str) {
    let style = Style::new().bold().fg_color(Some(colour.into()));
    // When even standard error is closed, the exit code has to do.
    let _ = writeln!(anstream::stderr(), "{style}{kind}:{style:#} {message}");
}

/// Warnings about a policy, which say themselves what they are.
pub(super) fn warn(warning: impl Display) {
    let _ = writeln!(anstream::stderr(), "{warning}");
}

/// Bold.
pub(super) const BOLD: Style = Style::new().bold();
/// For what is less important.
pub(super) const FAINT: Style = Style::new().dimmed();
/// For what is allowed or comes.
pub(super) const GREEN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
/// For what may not be meant.
pub(super) const YELLOW: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
/// For what is denied or goes.
pub(super) const RED: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));

/// Text in a style.
pub(super) fn styled(style: Style, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{style}{text}{style:#}") }
}

/// Lines of cells, aligned in columns that are as wide as their widest cell; the last column is as wide as it likes.
/// Each line may have a style.
pub(super) fn table<const N: usize>(lines: &[([String; N], Style)]) -> String {
    let mut widths = [0; N];
    for (cells, _) in lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (cells, style) in lines {
        let line =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>().join("  ");
        text.push_str(&styled(*style, line.trim_end()));
        text.push('\n');
    }
    text
}

/// `1 host`, `2 hosts`.
pub(super) fn count(number: impl TryInto<u64>, one: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let lines = [
            (["a".into(), "long".into(), "x".into()], Style::new()),
            (["abc".into(), "b".into(), String::new()], Style::new()),
        ];
        assert_eq!(table::<3>(&lines), "a    long  x\nabc  b\n");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            (count(0, "host"), count(1, "host"), count(2, "host")),
            ("0 hosts".into(), "1 host".into(), "2 hosts".into())
        );
    }
}
