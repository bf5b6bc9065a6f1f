//! What a local service says of its ports, in the words that all trackers share.

use super::text::shown;
use crate::ruleset::Protocol;
use thiserror::Error;

/// A port that a local service says is its own. It opens nothing by itself: a listener of the verified process has to
/// confirm it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 1 to 65,535.
    pub port: u16,
    /// What listens there by its own account, such as `jms` or `mountd v3 tcp6`; fit for a log.
    pub what: String,
}

/// Something that a local service says of itself and that is not even a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it is about, as in [`Claim::what`].
    pub what: String,
    /// The port that it names, if it names one.
    pub port: Option<(Protocol, u16)>,
    /// Why it is not believed.
    pub why: Refusal,
}

/// Everything that a local service says of its ports. Two claims may name the same port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// What is to be confirmed, in the order in which the service said it.
    pub claims: Vec<Claim>,
    /// What is not believed, in the same order.
    pub refused: Vec<Refused>,
}

impl Claims {
    /// Adds what the service says of a TCP port; port 0 is no port.
    pub(super) fn add_tcp(&mut self, port: u16, what: String) {
        if port == 0 {
            self.refuse(what, None, Refusal::NoPort);
        } else {
            self.claims.push(Claim { protocol: Protocol::Tcp, port, what });
        }
    }

    pub(super) fn refuse(&mut self, what: String, port: Option<(Protocol, u16)>, why: Refusal) {
        self.refused.push(Refused { what, port, why });
    }
}

/// Why something is not even a claim.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The service has no usable port: it starts, stops, or is not for the network.
    #[error("it has no port at present")]
    NoPort,
    /// Somebody else than root registered it.
    #[error("registered by {}; only what root registers is believed", owner(.0))]
    Owner(String),
    /// Its transport is neither TCP nor UDP.
    #[error("its transport `{}` is neither TCP nor UDP", shown(.0))]
    Transport(String),
    /// Its address is none, or none of its transport.
    #[error("its address `{}` names no port", shown(.0))]
    Address(String),
    /// No reference to a remote object was found where one was expected.
    #[error("there is no reference to a remote object in {0}, so its port is not known")]
    NoStub(&'static str),
    /// The registry was asked for it and did not answer as expected.
    #[error("{0}")]
    NotFound(String),
    /// The service lists more than is looked at.
    #[error("only the first {0} are looked at")]
    Beyond(usize),
}

fn owner(owner: &str) -> String {
    match owner {
        "unknown" => "somebody unknown (not by the local socket)".to_owned(),
        number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("user {}", shown(number))
        }
        other => format!("`{}`", shown(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_who_and_what() {
        let words = [
            (Refusal::Owner("1000".to_owned()), "registered by user 1000; only what root registers is believed"),
            (Refusal::Address("::\x1b".to_owned()), "its address `::\\u{1b}` names no port"),
            (Refusal::Transport("sctp".to_owned()), "its transport `sctp` is neither TCP nor UDP"),
        ];
        for (refusal, expected) in words {
            assert_eq!(refusal.to_string(), expected);
        }
    }
}
