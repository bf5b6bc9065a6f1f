//! What is said on the control socket: one line of JSON asks, one line of JSON answers. A policy to try follows its
//! request as it is, byte for byte: no path that the daemon would have to reach, and no file that could be another one
//! by then. See docs/json.md.

use super::flows::DeniedFlows;
use super::status::Status;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The longest request that is read, in bytes, its line end included.
pub const LONGEST_REQUEST: usize = 4096;

/// For how long a policy may be tried, in seconds.
pub const TRIAL_SECONDS: RangeInclusive<u32> = 1..=86_400;

/// What a client may ask, written `{"command":"status"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// What the daemon does and how it fares.
    Status,
    /// Read the policy now and apply it.
    Reload {
        /// Even where that cuts the caller's session or locks the administrators out.
        #[serde(default)]
        force: bool,
        /// The client's `SSH_CONNECTION`, should its session not be found otherwise.
        #[serde(default)]
        session: Option<String>,
        /// What led to it, for the history; `None`: just the request.
        #[serde(default)]
        cause: Option<String>,
    },
    /// Apply a policy for the time being.
    Try {
        /// How many bytes of policy follow the line.
        length: u64,
        /// After how many seconds it is taken back unless it is confirmed; see [`TRIAL_SECONDS`].
        timeout: u32,
        /// What the policy is called, such as its file.
        label: String,
        /// As for a reload.
        #[serde(default)]
        force: bool,
        /// As for a reload.
        #[serde(default)]
        session: Option<String>,
    },
    /// The policy file holds now what is on trial: keep it.
    Confirm,
    /// Take back what is on trial.
    Revert,
}

impl Request {
    /// A plain reload.
    pub const RELOAD: Self = Self::Reload { force: false, session: None, cause: None };

    /// How many bytes follow the line.
    pub fn body_length(&self) -> u64 {
        match self {
            Self::Try { length, .. } => *length,
            _ => 0,
        }
    }
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
        /// The established flows that the policy denies; `None`: it cannot deny more than the one before, or enforces
        /// nothing, or counting them takes too long.
        #[serde(default)]
        flows: Option<DeniedFlows>,
    },
    /// To [`Request::Try`]: the policy is applied for the time being.
    Trying {
        /// What changed in the kernel.
        changes: String,
        /// After how many seconds it is taken back.
        timeout: u32,
        /// Warnings about the policy.
        warnings: Vec<String>,
    },
    /// To [`Request::Confirm`]: what was on trial stays.
    Confirmed {
        /// As for a reload.
        #[serde(default)]
        flows: Option<DeniedFlows>,
    },
    /// To [`Request::Revert`]: what was on trial is gone.
    Reverted {
        /// What changed in the kernel.
        changes: String,
        /// As for a reload.
        #[serde(default)]
        flows: Option<DeniedFlows>,
    },
    /// The request was not understood or not carried out, and why.
    Error(String),
}

impl Reply {
    /// The same with these counts, where it has a place for them.
    pub fn with_flows(mut self, counts: Option<DeniedFlows>) -> Self {
        if let Self::Reloaded { flows, .. } | Self::Confirmed { flows } | Self::Reverted { flows, .. } = &mut self {
            *flows = counts;
        }
        self
    }
}

/// Reads one request.
///
/// # Errors
///
/// What is wrong with it, for the client.
pub fn parse(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| {
        format!("not understood: {error}; expected {{\"command\":\"status\"}} or another command of docs/json.md")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read() {
        assert_eq!(parse(b"{\"command\":\"status\"}\n").unwrap(), Request::Status);
        assert_eq!(parse(b" { \"command\" : \"reload\" } ").unwrap(), Request::RELOAD);
        assert_eq!(parse(b"{\"command\":\"confirm\"}").unwrap(), Request::Confirm);
        let label = "new.toml".to_owned();
        let tried = Request::Try { length: 7, timeout: 60, label, force: false, session: None };
        let line = br#"{"command":"try","length":7,"timeout":60,"label":"new.toml"}"#;
        assert_eq!(parse(line).unwrap(), tried);
        assert_eq!(parse(&serde_json::to_vec(&tried).unwrap()).unwrap(), tried);
        for malformed in [
            "",
            "\n",
            "status",
            "{}",
            "{\"command\":\"stop\"}",
            "{\"command\":1}",
            "{\"command\":\"try\"}",
            "{\"command\":\"try\",\"length\":-1,\"timeout\":60,\"label\":\"\"}",
            "[]",
            "\"status\"",
        ] {
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
