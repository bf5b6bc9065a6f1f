//! From a policy to what one host may exchange with whom, and from that to the ruleset. Pure: no input or output, no
//! clock, no randomness; the same inputs give the same result byte for byte.
//!
//! [`Plan::new`] applies the catalogue's semantics once and keeps the answer as [`Allowance`]s, and as [`Exposed`] services
//! for ports that only a running process knows, with the reason for everything that stays closed. The ruleset
//! ([`Plan::ruleset`]), the table that people read, and the explanation of a single packet ([`Plan::explain`]) are three
//! views of that. What verified processes listen on right now is put into a ruleset by [`open`].
#![forbid(unsafe_code)]

mod allowance;
mod dynamic;
mod explain;
mod fail_safe;
mod find_host;
mod flows;
mod lower;
mod observed;
mod open;
mod peers;
mod ports;
#[cfg(test)]
mod tests;

pub use allowance::{Allowance, Closed, ClosedDynamic, Direction, Exposed, Permission, Reason, RowRef};
pub use dynamic::{LocalScope, OpenPort, OpenPorts};
pub use explain::{Explanation, Grant, NearMiss, Query, Remedy, Verdict};
pub use fail_safe::fail_safe;
pub use find_host::{Candidate, HostError, find_host};
pub use flows::{DynamicPorts, FlowJudge, FlowKind, FlowStart, Judgement, Pass, Way};
pub use lower::{MOST_OBSERVED, observed_set};
pub use observed::{Finding, ProposedAllow, Review, Sighting};
pub use open::{Part, open, opened};
pub use peers::{Peers, Tunnel, short_network};

use crate::policy::{Catalogue, Host, Policy, Ports};
use crate::ruleset::{PortRange, Protocol};
use peers::View;

/// What one host may exchange with whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// The catalogue.
    pub catalogue: &'a Catalogue,
    /// The host, one of the policy's.
    pub host: &'a Host,
    /// What is allowed: the catalogue's rows in their order, then the policy's own by name.
    pub allowances: Vec<Allowance<'a>>,
    /// The rows that open nothing here, in the same order.
    pub closed: Vec<Closed<'a>>,
    /// The services with dynamic ports that others may reach here, by name.
    pub dynamic: Vec<Exposed<'a>>,
    /// Those of which nothing is opened here, by name.
    pub closed_dynamic: Vec<ClosedDynamic<'a>>,
}

impl<'a> Plan<'a> {
    /// Works out what the policy and the catalogue allow on this host.
    pub fn new(policy: &'a Policy, catalogue: &'a Catalogue, host: &'a Host) -> Self {
        let mut plan = Self {
            policy,
            catalogue,
            host,
            allowances: Vec::new(),
            closed: Vec::new(),
            dynamic: Vec::new(),
            closed_dynamic: Vec::new(),
        };
        for row in &catalogue.rows {
            plan.add_row(row);
        }
        for allow in policy.allows.values() {
            plan.add_allow(allow);
        }
        for service in policy.dynamic.values() {
            plan.add_service(service);
        }
        plan
    }

    /// Whether the policy would lock its administrators out of this host: nobody in the group `admin` can reach 22/tcp,
    /// and the policy does not say that this is meant.
    pub fn locks_out_admin(&self) -> bool {
        /// Secure Shell (IANA service names and port numbers).
        const SSH: Ports = Ports::Range(Protocol::Tcp, PortRange { first: 22, last: 22 });
        let admits_admin = |allowance: &Allowance<'_>| {
            allowance.direction == Direction::Ingress
                && allowance.ports.iter().any(|ports| ports::contains(*ports, SSH))
                && allowance.peers.group == "admin"
                && !allowance.peers.is_empty()
        };
        !self.policy.allow_lockout && !self.allowances.iter().any(admits_admin)
    }

    fn view(&self) -> View<'a> {
        View { policy: self.policy, host: self.host }
    }
}
