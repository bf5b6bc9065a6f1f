//! The site's policy: which appliances exist, who the outsiders are, and what differs from the catalogue.

mod dynamic;
mod members;
mod parties;
mod read;

use super::catalogue::CONSOLE;
use super::{Catalogue, Diagnostics, DynamicService, Group, LoadError, Ports, Version, read_source};
use crate::ruleset::LogTarget;
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

/// A policy that was read and found consistent. Collections are ordered by name, so that the order of things in the
/// file never matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What happens to incoming packets that nothing allows.
    pub mode: Mode,
    /// The same for packets that this host sends.
    pub egress: EgressMode,
    /// How a denied packet is refused.
    pub deny: Deny,
    /// What happens to established flows that a new policy denies.
    pub on_tighten: OnTighten,
    /// What the fail-safe does, should no policy be usable one day.
    pub fail: Fail,
    /// How denied packets are logged.
    pub logging: Logging,
    /// The version of JSA.
    pub version: Version,
    /// The features that are switched on.
    pub features: BTreeSet<String>,
    /// Whether it is meant that no `admin` may reach 22/tcp.
    pub allow_lockout: bool,
    /// The outsiders, by the name of their group; a group that the file leaves out or empty is missing.
    pub groups: BTreeMap<String, Members>,
    /// The appliances, by name.
    pub hosts: BTreeMap<String, Host>,
    /// The site's own rows, by name.
    pub allows: BTreeMap<String, Allow>,
    /// Adjustments of rows of the catalogue, by id.
    pub rows: BTreeMap<String, RowAdjustment>,
    /// Services with dynamic ports, by name: the catalogue's and the site's own.
    pub dynamic: BTreeMap<String, DynamicService>,
}

/// A policy that was read, and what in its file is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// Warnings; often none.
    pub warnings: Diagnostics,
}

impl Policy {
    /// Reads a policy from a file.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path, catalogue: &Catalogue) -> Result<Loaded, LoadError> {
        let text = read_source(path)?;
        Self::parse(&text, &path.display().to_string(), catalogue)
            .map_err(|source| LoadError::Invalid { path: path.to_owned(), source })
    }

    /// Reads a policy from its text. `label` is what diagnostics call the file.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, label: &str, catalogue: &Catalogue) -> Result<Loaded, Diagnostics> {
        read::policy(text, label, catalogue)
    }
}

/// What happens to packets that nothing allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are refused.
    Enforce,
    /// They are counted and logged, and pass.
    Observe,
}

impl Mode {
    /// The name as the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

/// What happens to outgoing packets that nothing allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressMode {
    /// Nobody looks.
    Off,
    /// They are counted and logged, and pass.
    Observe,
    /// They are refused.
    Enforce,
}

impl EgressMode {
    /// The name as the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// How a denied packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deny {
    /// Silently.
    Drop,
    /// With a TCP reset or an ICMP error.
    Reject,
}

/// What happens to established flows that a policy denies when it takes effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnTighten {
    /// They are counted, and go on until they end by themselves.
    #[default]
    Keep,
    /// They are ended.
    Cut,
}

/// What happens to everything but Secure Shell when the machine boots and neither the policy file nor the last good
/// policy can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fail {
    /// It is refused.
    Closed,
    /// It passes.
    Open,
}

impl Fail {
    /// The name as the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// How denied packets are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logging {
    /// Where to; `None`: not at all.
    pub target: Option<LogTarget>,
    /// At most so many packets a second, a hook.
    pub per_second: u32,
    /// So many beyond the rate at once.
    pub burst: u32,
}

/// An appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, unique.
    pub name: String,
    /// Its addresses, sorted; no other host has them. Never empty.
    pub addresses: Vec<IpAddr>,
    /// Its roles; never empty.
    pub roles: BTreeSet<String>,
    /// Whether the link to the console runs in SSH.
    pub encrypted: bool,
    /// The other host of its high-availability pair, whichever of the two names the other in the file.
    pub ha_peer: Option<String>,
    /// The line of the policy file at which it begins.
    pub line: u32,
}

impl Host {
    /// Whether the host has the role `console`.
    pub fn is_console(&self) -> bool {
        self.roles.contains(CONSOLE)
    }
}

/// Addresses and networks of both families, each sorted and free of duplicates, with the lines they stand on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// IPv4 addresses (prefix length 32) and networks.
    pub ipv4: Vec<Member<Ipv4Net>>,
    /// IPv6 addresses (prefix length 128) and networks.
    pub ipv6: Vec<Member<Ipv6Net>>,
}

impl Members {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

/// One address or network of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member<N> {
    /// The network, without host bits.
    pub network: N,
    /// The line of the policy file on which it stands.
    pub line: u32,
}

/// A row of the site's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Its name, `[a-z][a-z0-9-]*`, unique among the allowances.
    pub name: String,
    /// What it opens, sorted.
    pub ports: Vec<Ports>,
    /// Who may open a connection, sorted.
    pub from: Vec<Party>,
    /// To whom, sorted.
    pub to: Vec<Party>,
    /// The line of the policy file at which it begins.
    pub line: u32,
}

/// One end of an allowance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Party {
    /// Who.
    pub kind: PartyKind,
    /// The line of the policy file on which it is named.
    pub line: u32,
}

/// Who is at one end of an allowance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartyKind {
    /// A role or group.
    Group(Group),
    /// A host of the policy, by name.
    Host(String),
    /// An IPv4 address or network.
    Ipv4(Ipv4Net),
    /// An IPv6 address or network.
    Ipv6(Ipv6Net),
}

/// What a policy changes about a row of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowAdjustment {
    /// Whether the row opens anything at all.
    pub enabled: bool,
    /// Ingress of the row is narrowed to these; `None`: it is not.
    pub only_from: Option<Members>,
    /// The line of the policy file at which the adjustment begins.
    pub line: u32,
}

impl fmt::Display for PartyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "{group}"),
            Self::Host(name) => f.write_str(name),
            Self::Ipv4(network) if network.prefix_len() == 32 => write!(f, "{}", network.addr()),
            Self::Ipv4(network) => write!(f, "{network}"),
            Self::Ipv6(network) if network.prefix_len() == 128 => write!(f, "{}", network.addr()),
            Self::Ipv6(network) => write!(f, "{network}"),
        }
    }
}

#[cfg(test)]
mod documented;
#[cfg(test)]
mod tests;
