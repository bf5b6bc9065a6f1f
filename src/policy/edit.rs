//! A change of one key in the text of a policy that leaves everything else as it is: comments, order, spaces.

use super::Mode;
use std::ops::Range;
use toml::de::DeTable;

/// What some editors put before the text.
const BYTE_ORDER_MARK: char = '\u{feff}';
const KEY: &str = "mode";

/// The text with another `mode`: in the place of the old value, else as the first key of the file.
///
/// The text must be TOML; where it is not, or `mode` is no string, it comes back unchanged, for the reader to report.
pub fn with_mode(text: &str, wanted: Mode) -> String {
    if let Some(text) = text.strip_prefix(BYTE_ORDER_MARK) {
        return format!("{BYTE_ORDER_MARK}{}", with_mode(text, wanted));
    }
    let mode = format!("\"{}\"", wanted.name());
    let Ok(document) = DeTable::parse(text) else { return text.to_owned() };
    let value = document.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).map(|(_, value)| value);
    match value {
        Some(value) if value.get_ref().as_str().is_some() => replaced(text, value.span(), &mode),
        Some(_) => text.to_owned(),
        None => {
            let start = first_line_of_content(text);
            replaced(text, start..start, &format!("{} = {mode}\n", KEY))
        }
    }
}

fn replaced(text: &str, span: Range<usize>, by: &str) -> String {
    let (Some(before), Some(after)) = (text.get(..span.start), text.get(span.end..)) else { return text.to_owned() };
    format!("{before}{by}{after}")
}

/// Where the first line begins that holds more than a comment; the end where there is none.
fn first_line_of_content(text: &str) -> usize {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if !content.is_empty() && !content.starts_with('#') {
            break;
        }
        start += line.len();
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_value_changes() {
        let text = "# mode = \"enforce\"\nformat = 1\nmode   = 'observe' # for now\n[x]\nmode = \"observe\"\n";
        let expected = "# mode = \"enforce\"\nformat = 1\nmode   = \"enforce\" # for now\n[x]\nmode = \"observe\"\n";
        assert_eq!(with_mode(text, Mode::Enforce), expected);
        assert_eq!(with_mode(expected, Mode::Enforce), expected);
        assert_eq!(with_mode("\"mode\" = \"\"\"observe\"\"\"", Mode::Enforce), "\"mode\" = \"enforce\"");
    }

    #[test]
    fn a_missing_key_comes_before_every_other() {
        assert_eq!(with_mode("# x\n\nformat = 1\n", Mode::Enforce), "# x\n\nmode = \"enforce\"\nformat = 1\n");
        assert_eq!(with_mode("[groups]\nmode = []\n", Mode::Observe), "mode = \"observe\"\n[groups]\nmode = []\n");
        assert_eq!(with_mode("", Mode::Enforce), "mode = \"enforce\"\n");
    }

    #[test]
    fn what_cannot_be_read_stays() {
        for text in ["mode = ", "mode = 1\n", "format = = 1\n"] {
            assert_eq!(with_mode(text, Mode::Enforce), text);
        }
    }

    proptest! {
        #[test]
        fn the_rest_reads_the_same(comment in "[ -~]{0,20}", other in any::<i64>(), has: bool, group in "[a-z]{1,8}") {
            let mode = if has { "mode = \"observe\"\n" } else { "" };
            let text = format!("# {comment}\nother = {other}\n{mode}[groups]\n{group} = [\"a\"] # {comment}\n");
            let mut before: toml::Table = text.parse().unwrap();
            before.insert("mode".to_owned(), "enforce".into());
            prop_assert_eq!(with_mode(&text, Mode::Enforce).parse::<toml::Table>().unwrap(), before);
        }
    }
}
