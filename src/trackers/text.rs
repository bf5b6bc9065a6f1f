//! Text of local services, as it may stand in a message.

/// So many characters of a text are shown.
const LONGEST: usize = 80;

/// A service's text within a message or a log: at most 80 characters of it, and none that changes how a terminal shows
/// the rest.
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST).flat_map(escaped).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The same for bytes that should be text.
pub(super) fn shown_bytes(bytes: &[u8]) -> String {
    // A character has at most four bytes, so the rest would not be shown anyway.
    let cut = bytes.get(..4 * (LONGEST + 1)).unwrap_or(bytes);
    shown(&String::from_utf8_lossy(cut))
}

/// A whole text without characters that a terminal obeys, for what is kept and not only shown.
pub(super) fn harmless(text: &str) -> String {
    text.chars().flat_map(escaped).collect()
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let plain = matches!(character, '"' | '\'' | '\\').then_some(character);
    let escape = plain.is_none().then(|| character.escape_debug());
    plain.into_iter().chain(escape.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stays_and_control_characters_are_written_out() {
        assert_eq!(shown("jms \"1\" \\ 'é'"), "jms \"1\" \\ 'é'");
        assert_eq!(shown("a\x1b[31m\u{202e}\n"), "a\\u{1b}[31m\\u{202e}\\n");
        assert_eq!(shown(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(shown(&"x".repeat(81)), format!("{}...", "x".repeat(80)));
        assert_eq!(shown_bytes(b"\xffjms\0"), "\u{fffd}jms\\0");
    }

    proptest! {
        #[test]
        fn shown_text_is_short_and_obeyed_by_no_terminal(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let shown = shown_bytes(&bytes);
            prop_assert!(shown.chars().count() <= LONGEST * 10 + 3);
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
