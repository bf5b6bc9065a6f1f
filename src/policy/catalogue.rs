//! The catalogue: which role of a JSA deployment talks to which on what port, under which conditions.

use super::Version;
use crate::ruleset::{PortRange, Protocol};
use ipnet::IpNet;

/// All rows that portward knows, with the vocabulary they use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// The roles that an appliance can have, such as `console`.
    pub roles: Vec<String>,
    /// The groups of outsiders that a policy can fill, such as `log-source`.
    pub external: Vec<String>,
    /// The features that a policy can switch on, such as `nfs`.
    pub features: Vec<String>,
    /// The known versions of JSA, oldest first.
    pub versions: Vec<Version>,
    /// The rows in the order of the file: the vendor's rows, its public servers, and what every host needs besides.
    pub rows: Vec<Row>,
}

/// One row of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name, `[a-z][a-z0-9-]*`, unique among all rows.
    pub id: String,
    /// Which list of the catalogue it stands in.
    pub kind: RowKind,
    /// What the ports are for, in a few words.
    pub description: String,
    /// The ports; never empty.
    pub ports: Vec<Ports>,
    /// Who may talk to whom. Empty exactly when the scope is internal.
    pub flows: Vec<Flow>,
    /// The conditions that must all hold.
    pub when: Vec<Condition>,
    /// Whether other hosts can be concerned at all.
    pub scope: Scope,
    /// The roles on which an internal port is used; empty: any. For display only.
    pub roles: Vec<String>,
    /// What happens to the flows between a console and a managed host whose link is encrypted.
    pub tunnelled: Tunnelled,
    /// Ports that exist only while a local process listens on them.
    pub dynamic: Option<Dynamic>,
    /// The servers that the group `public-server` of this row's flows stands for; empty for other kinds.
    pub servers: Vec<Server>,
}

/// Which list of the catalogue a row stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A row of the vendor's table of listening ports (`[[row]]`).
    Port,
    /// A row of the vendor's table of public servers (`[[public-server]]`).
    PublicServer,
    /// What the vendor's page takes for granted, such as DNS (`[[base]]`).
    Base,
}

/// What a row or an allowance opens, written `514/udp`, `20000-23000/tcp` or `echo/icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// A range of ports of a protocol; a single port is a range of one.
    Range(Protocol, PortRange),
    /// Echo requests, ICMP and ICMPv6.
    Echo,
}

/// `from -> to`, or `from <-> to`: both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who opens the connection.
    pub from: Group,
    /// Who listens.
    pub to: Group,
    /// Whether `to` may open connections to `from` as well.
    pub both: bool,
}

/// A group of hosts, as flows and allowances name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Appliances with this role.
    Role(String),
    /// Every appliance.
    Appliance,
    /// Every appliance without the role `console`.
    ManagedHost,
    /// The other host of the same high-availability pair.
    HaPeer,
    /// Outsiders, named by addresses in the policy.
    External(String),
    /// The servers that the row itself names.
    PublicServer,
}

/// Whether a row concerns other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Open to its flows.
    Network,
    /// Serves the host itself; opens nothing.
    Internal,
}

/// What happens to flows between a console and a managed host with `encrypted = true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnelled {
    /// They travel inside SSH: the flow between these two is removed.
    Closed,
    /// They stay.
    Kept,
    /// They exist only between such pairs.
    Only,
}

/// A condition of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The feature is switched on in the policy.
    Feature(String),
    /// The feature is not switched on, written `not fips`.
    NotFeature(String),
    /// The deployment's version is older, written `version < 7.5.0-up6`.
    VersionBefore(Version),
    /// An app host whose link is encrypted is in the deployment, written `encrypted-app-host`.
    EncryptedAppHost,
}

/// Ports that only a running process knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// Who finds the ports out.
    pub tracker: Tracker,
    /// The range in which ports may be opened.
    pub ports: Vec<Ports>,
    /// How many ports may be open at once.
    pub limit: u16,
    /// Conditions beyond those of the row.
    pub when: Vec<Condition>,
    /// What may be reached on the far side, whose random ports this host cannot know, when egress is controlled.
    pub egress: Vec<Ports>,
    /// RPC programs by number, for the tracker `rpc`.
    pub programs: Vec<u32>,
    /// The port whose owner is looked at, for the trackers `rmi` and `process`.
    pub anchor: Option<Ports>,
}

/// How dynamic ports are found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// The message broker's portmapper.
    Imq,
    /// rpcbind.
    Rpc,
    /// The Java RMI registry.
    Rmi,
    /// The listeners of the process that owns a port.
    Process,
}

/// A server of the row `public-server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Named by address; enforced.
    Address(IpNet),
    /// Named by DNS name; shown.
    Name(String),
}
