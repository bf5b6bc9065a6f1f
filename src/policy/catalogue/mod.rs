//! The catalogue: which role of a JSA deployment talks to which on what port, under which conditions.

mod read;

use super::{Diagnostics, LoadError, ProcessMatch, Version, read_source};
use crate::ruleset::{PortRange, Protocol};
use ipnet::IpNet;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

/// The catalogue that is compiled into the binary.
const EMBEDDED: &str = include_str!("../../../policy/jsa.toml");

/// The role that is not a managed host; every deployment has it.
pub(super) const CONSOLE: &str = "console";

/// The role of hosts that run apps, which the condition `encrypted-app-host` looks at.
pub(super) const APP_HOST: &str = "app-host";

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

impl Catalogue {
    /// The catalogue of the vendor's ports, `policy/jsa.toml`.
    pub fn embedded() -> &'static Self {
        static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
            // A constant of the program: a unit test parses it.
            Catalogue::parse(EMBEDDED, "jsa.toml").unwrap_or_else(|wrong| panic!("the embedded catalogue:\n{wrong}"))
        });
        &CATALOGUE
    }

    /// Reads a catalogue from a file.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = read_source(path)?;
        Self::parse(&text, &path.display().to_string())
            .map_err(|source| LoadError::Invalid { path: path.to_owned(), source })
    }

    /// Reads a catalogue from its text. `label` is what diagnostics call the file.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, label: &str) -> Result<Self, Diagnostics> {
        read::catalogue(text, label)
    }

    /// The row with this id.
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The group that a policy can name so; `public-server` is none of them.
    pub fn group(&self, name: &str) -> Option<Group> {
        match name {
            "appliance" => Some(Group::Appliance),
            "managed-host" => Some(Group::ManagedHost),
            "ha-peer" => Some(Group::HaPeer),
            _ if self.roles.iter().any(|role| role == name) => Some(Group::Role(name.to_owned())),
            _ if self.external.iter().any(|group| group == name) => Some(Group::External(name.to_owned())),
            _ => None,
        }
    }

    /// The names that [`Catalogue::group`] knows: roles, then what stands for several hosts, then outsiders.
    pub fn group_names(&self) -> impl Iterator<Item = &str> {
        let fixed = ["appliance", "managed-host", "ha-peer"];
        self.roles.iter().map(String::as_str).chain(fixed).chain(self.external.iter().map(String::as_str))
    }

    /// The newest version that the catalogue lists; `None` when it lists none.
    pub fn newest_version(&self) -> Option<&Version> {
        self.versions.iter().max()
    }

    /// Whether a version is listed, or is an update pack of a release that is listed.
    pub fn knows_version(&self, version: &Version) -> bool {
        self.versions.iter().any(|known| known.same_release(version))
    }
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
    /// The TCP port whose owner is asked or looked at; every tracker but `rpc` has one.
    pub anchor: Option<Ports>,
    /// The process that must own the anchor (tracker `rpc`: each port), unless the policy names another.
    pub process: ProcessMatch,
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

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.both { "<->" } else { "->" };
        write!(f, "{} {arrow} {}", self.from, self.to)
    }
}

impl Group {
    /// The name as flows and allowances write it.
    pub fn name(&self) -> &str {
        match self {
            Self::Role(name) | Self::External(name) => name,
            Self::Appliance => "appliance",
            Self::ManagedHost => "managed-host",
            Self::HaPeer => "ha-peer",
            Self::PublicServer => "public-server",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(feature) => f.write_str(feature),
            Self::NotFeature(feature) => write!(f, "not {feature}"),
            Self::VersionBefore(version) => write!(f, "version < {version}"),
            Self::EncryptedAppHost => f.write_str("encrypted-app-host"),
        }
    }
}

impl Tracker {
    /// The name as the catalogue writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imq => "imq",
            Self::Rpc => "rpc",
            Self::Rmi => "rmi",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(network) if network.prefix_len() == network.max_prefix_len() => {
                write!(f, "{}", network.addr())
            }
            Self::Address(network) => write!(f, "{network}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests;
