//! What is said on the control socket: one line of JSON asks, one line of JSON answers. See docs/json.md.

use super::status::Status;
use serde::{Deserialize, Serialize};

/// The longest request that is read, in bytes, its line end included.
pub const LONGEST_REQUEST: usize = 4096;

/// What a client may ask, written `{"command":"status"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// What the daemon does and how it fares.
    Status,
    /// Read the policy now and apply it.
    Reload,
}

/// The answer: an object with one field, named for its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Reload`]: it succeeded, with what changed in the kernel in a few words.
    Reloaded {
        /// Such as `3 elements added`, or `nothing`.
        changes: String,
    },
    /// The request was not understood or not carried out, and why.
    Error(String),
}

/// Reads one request.
///
/// # Errors
///
/// What is wrong with it, for the client.
pub fn parse(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| {
        format!("not understood: {error}; expected {{\"command\":\"status\"}} or {{\"command\":\"reload\"}}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_two_requests() {
        assert_eq!(parse(b"{\"command\":\"status\"}\n").unwrap(), Request::Status);
        assert_eq!(parse(b" { \"command\" : \"reload\" } ").unwrap(), Request::Reload);
        for malformed in ["", "\n", "status", "{}", "{\"command\":\"stop\"}", "{\"command\":1}", "[]", "\"status\""] {
            assert!(parse(malformed.as_bytes()).is_err(), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_an_answer_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST_REQUEST)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn deep_nesting_is_refused(depth in 1..LONGEST_REQUEST) {
            prop_assert!(parse("[".repeat(depth).as_bytes()).is_err());
        }
    }
}
