//! TOML tables with places, read key by key; whatever is not as expected goes to the report.

use super::diagnostic::{Mistake, Report, Span, listed, quoted};
use std::ops::RangeInclusive;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table, or the whole document.
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    /// The header of the table, or the braces of an inline one.
    pub(super) span: Span,
}

/// A value with its place.
pub(super) struct Placed<'t, T: ?Sized> {
    pub(super) value: &'t T,
    pub(super) span: Span,
}

/// A string of the document.
pub(super) type Text<'t> = Placed<'t, str>;

/// An array of the document.
pub(super) type List<'t> = Placed<'t, [Spanned<DeValue<'t>>]>;

/// Parses a text as TOML; a text that is none is reported.
pub(super) fn parse<'s>(report: &mut Report<'s>) -> Option<Spanned<DeTable<'s>>> {
    match DeTable::parse(report.text()) {
        Ok(document) => Some(document),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let message = error.message();
            let named = report.text().get(span.clone()).filter(|_| message == "duplicate key");
            let mistake = match (named, message.split_once(", expected ")) {
                (Some(key), _) => Mistake::new(format!("{} is already in this table", quoted(key)))
                    .expected("every key once")
                    .help("put both into one"),
                (None, Some((message, expected))) => {
                    Mistake::new(format!("not valid TOML: {message}")).expected(expected)
                }
                (None, None) => Mistake::new(format!("not valid TOML: {message}")),
            };
            report.error(span, mistake);
            None
        }
    }
}

impl<'t> Table<'t> {
    /// The whole document.
    pub(super) fn document(document: &'t Spanned<DeTable<'t>>, report: &Report<'_>) -> Self {
        Self { entries: document.get_ref(), span: first_word(report.text()) }
    }

    /// Reports the keys that are not among the known ones. `place` reads on after "in", such as `a [[host]]`.
    pub(super) fn check_keys(&self, report: &mut Report<'_>, place: &str, known: &[&str]) {
        for key in self.keys().filter(|key| !known.contains(&key.value)) {
            report_unknown_key(report, &key, place, known);
        }
    }

    /// The keys, by name.
    pub(super) fn keys(&self) -> impl Iterator<Item = Text<'t>> + use<'t> {
        self.entries.keys().map(|key| Placed { value: key.get_ref().as_ref(), span: key.span() })
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.entries.get(key)
    }

    /// Reports that a key must be there.
    pub(super) fn report_missing(&self, report: &mut Report<'_>, key: &str, example: &str) {
        let mistake = Mistake::new(format!("`{key}` is missing")).expected(format!("`{key} = {example}`"));
        report.error(self.span.clone(), mistake);
    }

    /// Reports a list that is missing or empty; whether it is neither.
    pub(super) fn require_entries(&self, report: &mut Report<'_>, key: &str, example: &str) -> bool {
        if self.get(key).is_none() {
            self.report_missing(report, key, example);
            return false;
        }
        self.refuse_empty(report, key, example)
    }

    /// Reports a list that is there and empty; whether it has entries. Anything but an array is reported where it is
    /// read.
    pub(super) fn refuse_empty(&self, report: &mut Report<'_>, key: &str, example: &str) -> bool {
        let Some(value) = self.get(key) else { return false };
        let Some(items) = value.get_ref().as_array() else { return false };
        if items.is_empty() {
            let mistake =
                Mistake::new(format!("`{key}` is empty")).expected(format!("at least one, as in `{example}`"));
            report.error(value.span(), mistake);
        }
        !items.is_empty()
    }

    pub(super) fn text(&self, report: &mut Report<'_>, key: &str) -> Option<Text<'t>> {
        text(report, self.get(key)?)
    }

    /// The strings of an array, if the key is there.
    pub(super) fn texts(&self, report: &mut Report<'_>, key: &str) -> Vec<Text<'t>> {
        self.list(report, key).map(|list| texts(report, &list)).unwrap_or_default()
    }

    /// The strings of a key that takes one string as well as an array of them, if the key is there.
    pub(super) fn text_or_texts(&self, report: &mut Report<'_>, key: &str) -> Vec<Text<'t>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::String(_) => text(report, value).into_iter().collect(),
            DeValue::Array(_) => self.texts(report, key),
            _ => {
                report_kind(report, value, "a string, or an array of strings");
                Vec::new()
            }
        }
    }

    pub(super) fn boolean(&self, report: &mut Report<'_>, key: &str, default: bool) -> bool {
        let Some(value) = self.get(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            report_kind(report, value, "true or false");
            default
        })
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, report: &mut Report<'_>, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let word = self.text(report, key)?;
        choice(report, key, &word, choices)
    }

    /// A whole number within a range.
    pub(super) fn number(&self, report: &mut Report<'_>, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.get(key)?;
        number(report, value, range)
    }

    /// The array of a key; an empty one too.
    pub(super) fn list(&self, report: &mut Report<'_>, key: &str) -> Option<List<'t>> {
        let value = self.get(key)?;
        let list = value.get_ref().as_array();
        if list.is_none() {
            let wanted = match value.get_ref() {
                DeValue::String(_) => "an array; put the string in brackets",
                _ => "an array of strings",
            };
            report_kind(report, value, wanted);
        }
        list.map(|items| Placed { value: &**items, span: value.span() })
    }

    pub(super) fn table(&self, report: &mut Report<'_>, key: &str) -> Option<Table<'t>> {
        table(report, self.get(key)?, &format!("a table, `[{key}]`"))
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(&self, report: &mut Report<'_>, key: &str) -> Vec<Table<'t>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let wanted = format!("tables, each headed `[[{key}]]`");
        match value.get_ref() {
            DeValue::Array(items) => items.iter().filter_map(|item| table(report, item, &wanted)).collect(),
            _ => {
                report_kind(report, value, &wanted);
                Vec::new()
            }
        }
    }
}

/// Reports a key that is not among the known ones. `place` reads on after "in".
pub(super) fn report_unknown_key(report: &mut Report<'_>, key: &Text<'_>, place: &str, known: &[&str]) {
    let mistake = Mistake::new(format!("unknown key {} in {place}", quoted(key.value)))
        .expected(format!("one of: {}", listed(known.iter().copied())))
        .suggest(key.value, known.iter().copied());
    report.error(key.span.clone(), mistake);
}

/// Reports, as a warning, an entry of a list that is there already.
pub(super) fn report_twice(report: &mut Report<'_>, word: &Text<'_>) {
    let mistake = Mistake::new(format!("{} is listed twice", quoted(word.value))).help("one of the two can go");
    report.warning(word.span.clone(), mistake);
}

/// The strings of an array; what is no string is reported.
pub(super) fn texts<'t>(report: &mut Report<'_>, list: &List<'t>) -> Vec<Text<'t>> {
    list.value.iter().filter_map(|value| text(report, value)).collect()
}

/// A value that must be a string.
pub(super) fn text<'t>(report: &mut Report<'_>, value: &'t Spanned<DeValue<'t>>) -> Option<Text<'t>> {
    let text = value.get_ref().as_str();
    if text.is_none() {
        report_kind(report, value, "a string, in quotation marks");
    }
    text.map(|text| Placed { value: text, span: value.span() })
}

/// A value that must be a table. `wanted` reads on after "expected".
pub(super) fn table<'t>(report: &mut Report<'_>, value: &'t Spanned<DeValue<'t>>, wanted: &str) -> Option<Table<'t>> {
    let entries = value.get_ref().as_table();
    if entries.is_none() {
        report_kind(report, value, wanted);
    }
    entries.map(|entries| Table { entries, span: value.span() })
}

/// A value that must be a whole number within a range.
pub(super) fn number(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>, range: RangeInclusive<u32>) -> Option<u32> {
    let wanted = format!("a whole number from {} to {}", range.start(), range.end());
    let Some(integer) = value.get_ref().as_integer() else {
        report_kind(report, value, &wanted);
        return None;
    };
    let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|number| range.contains(number));
    if number.is_none() {
        report.error(value.span(), Mistake::new("the number is out of range").expected(wanted));
    }
    number
}

fn choice<T: Copy>(report: &mut Report<'_>, key: &str, word: &Text<'_>, choices: &[(&str, T)]) -> Option<T> {
    let names = || choices.iter().map(|(name, _)| *name);
    let chosen = choices.iter().find(|(name, _)| *name == word.value);
    if chosen.is_none() {
        let mistake = Mistake::new(format!("unknown {key} {}", quoted(word.value)))
            .expected(format!("one of: {}", listed(names())))
            .suggest(word.value, names());
        report.error(word.span.clone(), mistake);
    }
    chosen.map(|(_, value)| *value)
}

fn report_kind(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>, wanted: &str) {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a floating-point number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    report.error(value.span(), Mistake::new(format!("this is {found}")).expected(wanted));
}

/// The place of the first line that is neither blank nor a comment, for what is wrong with the document as a whole.
fn first_word(text: &str) -> Span {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if !content.is_empty() && !content.starts_with('#') {
            let begin = offset + line.len() - line.trim_start().len();
            return begin..begin + content.len();
        }
        offset += line.len();
    }
    0..0
}
