//! Dynamic ports: from a verified process to the ports that may be opened for it.
//!
//! What a local service says of its ports is a claim. Only a claim that is confirmed by a listener of the verified process
//! opens anything.
#![forbid(unsafe_code)]

mod schedule;
mod sockets;
mod state;
mod verify;

pub use state::{Observation, Opened, RefusedPort, Report, ServiceCondition, ServiceReport, Source};

/// A port that a local service says it has. It is believed only as far as a listener of the verified process confirms
/// it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The protocol.
    pub protocol: crate::ruleset::Protocol,
    /// The port.
    pub port: u16,
    /// What it is, in the service's words, such as `jms` or `mountd v3 tcp6`.
    pub what: String,
}
