//! Errors as people read them.

/// An error with its causes, in one text.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some errors already say what their cause says, without the name of its number.
        if !text.contains(without_number(&cause)) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// `Permission denied` of `EACCES: Permission denied`, as nix shows a number of the system.
fn without_number(cause: &str) -> &str {
    let is_name = |name: &str| {
        name.starts_with('E') && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    match cause.split_once(": ") {
        Some((name, words)) if is_name(name) => words,
        _ => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: Errno,
    }

    #[test]
    fn a_cause_is_told_once() {
        let described = |text| describe(&Outer { text, source: Errno::EACCES });
        assert_eq!(described("mounting: Permission denied"), "mounting: Permission denied");
        assert_eq!(described("mounting"), "mounting: EACCES: Permission denied");
    }
}
