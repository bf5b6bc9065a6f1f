//! What the vendor's matrix says, worked out once more and in the simplest way: who may reach which port of whom. It
//! reads the fixture and a description of a deployment and shares nothing with portward's planner.

use anyhow::{Context, Result, bail, ensure};
use portward_integration_tests::Kind;
use std::collections::BTreeSet;
use std::net::IpAddr;
use toml::{Table, Value};

/// The versions of JSA that the matrix names, oldest first.
const VERSIONS: [&str; 6] = ["2014.5", "2014.6", "7.3.0", "7.5.0", "7.5.0-up6", "7.5.0-up7"];

/// A row of the matrix or of its public servers.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) id: String,
    /// Its ports.
    pub(crate) ports: Vec<Ports>,
    /// Its flows, with `A <-> B` as two.
    pub(crate) flows: Vec<Flow>,
    tunnelled: String,
    when: Vec<String>,
    /// Whether it is never reachable from another host.
    pub(crate) internal: bool,
    /// The addresses of the public servers of the row.
    pub(crate) servers: Vec<IpAddr>,
}

/// One direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    /// Who opens the connection.
    pub(crate) from: String,
    /// Who listens.
    pub(crate) to: String,
}

/// Ports of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// First and last port.
    Tcp(u16, u16),
    /// First and last port.
    Udp(u16, u16),
    /// Echo requests.
    Echo,
}

impl Ports {
    /// Whether a probe of this kind goes to one of the ports.
    pub(crate) fn contain(self, kind: Kind) -> bool {
        match (self, kind) {
            (Self::Tcp(first, last), Kind::Tcp(port)) | (Self::Udp(first, last), Kind::Udp(port)) => {
                (first..=last).contains(&port)
            }
            (Self::Echo, Kind::Echo) => true,
            _ => false,
        }
    }

    /// What is worth a probe: a single port itself; of a range the ends, the middle, and the neighbours outside.
    pub(crate) fn probed(self) -> Vec<Kind> {
        let ports = |first: u16, last: u16| {
            if first == last { vec![first] } else { vec![first - 1, first, first + (last - first) / 2, last, last + 1] }
        };
        match self {
            Self::Tcp(first, last) => ports(first, last).into_iter().map(Kind::Tcp).collect(),
            Self::Udp(first, last) => ports(first, last).into_iter().map(Kind::Udp).collect(),
            Self::Echo => vec![Kind::Echo],
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// Its name, unique.
    pub(crate) name: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// The roles of an appliance; empty for an outsider.
    pub(crate) roles: BTreeSet<String>,
    /// The groups of an outsider.
    pub(crate) groups: BTreeSet<String>,
    /// The other host of the pair.
    pub(crate) ha_peer: Option<String>,
    /// Whether the link to the console is encrypted.
    pub(crate) encrypted: bool,
}

impl End {
    /// Whether it is an appliance.
    pub(crate) fn is_appliance(&self) -> bool {
        !self.roles.is_empty()
    }

    fn is_console(&self) -> bool {
        self.roles.contains("console")
    }

    /// Whether it belongs to a group, seen from the other end.
    fn is_in(&self, group: &str, other: &End, row: &Row) -> bool {
        match group {
            "appliance" => self.is_appliance(),
            "managed-host" => self.is_appliance() && !self.is_console(),
            "ha-peer" => self.ha_peer.as_ref() == Some(&other.name),
            "public-server" => self.addresses.iter().any(|address| row.servers.contains(address)),
            _ => self.roles.contains(group) || self.groups.contains(group),
        }
    }
}

/// What a deployment switches on.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// The features.
    pub(crate) features: BTreeSet<String>,
    /// The version.
    pub(crate) version: &'static str,
    /// Whether an app host has an encrypted link.
    pub(crate) encrypted_app_host: bool,
}

impl Conditions {
    fn hold(&self, condition: &str) -> bool {
        let age = |version: &str| {
            VERSIONS.iter().position(|known| *known == version).unwrap_or_else(|| panic!("version {version}"))
        };
        if let Some(limit) = condition.strip_prefix("version < ") {
            return age(self.version) < age(limit);
        }
        if let Some(feature) = condition.strip_prefix("not ") {
            return !self.features.contains(feature);
        }
        if condition == "an app-host with an encrypted link is in the deployment" {
            return self.encrypted_app_host;
        }
        self.features.contains(condition)
    }
}

impl Row {
    /// The flows of the row by which `from` may reach `to` on such a port.
    pub(crate) fn flows_for(&self, conditions: &Conditions, from: &End, to: &End, kind: Kind) -> Vec<&Flow> {
        let open = !self.internal && self.when.iter().all(|condition| conditions.hold(condition));
        if !open || from.name == to.name || !self.ports.iter().any(|ports| ports.contain(kind)) {
            return Vec::new();
        }
        let link = |console: &End, managed: &End| console.is_console() && !managed.is_console() && managed.encrypted;
        let through_ssh = from.is_appliance() && to.is_appliance() && (link(from, to) || link(to, from));
        let exists = match self.tunnelled.as_str() {
            "kept" => true,
            "only" => through_ssh,
            _ => !through_ssh,
        };
        let concerned = |flow: &&Flow| from.is_in(&flow.from, to, self) && to.is_in(&flow.to, from, self);
        if exists { self.flows.iter().filter(concerned).collect() } else { Vec::new() }
    }
}

/// Reads the fixture, and adds what the product promises beside it: `dns-server` opens egress to port 53.
pub(crate) fn rows(fixture: &str) -> Result<Vec<Row>> {
    let fixture: Table = fixture.parse()?;
    let mut rows = Vec::new();
    for list in ["row", "public-server"] {
        for row in fixture.get(list).and_then(Value::as_array).context("a list of rows")? {
            rows.push(parse_row(row.as_table().context("a row is a table")?)?);
        }
    }
    rows.push(Row {
        id: "dns".to_owned(),
        ports: vec![Ports::Tcp(53, 53), Ports::Udp(53, 53)],
        flows: vec![Flow { from: "appliance".to_owned(), to: "dns-server".to_owned() }],
        tunnelled: "closed".to_owned(),
        when: Vec::new(),
        internal: false,
        servers: Vec::new(),
    });
    Ok(rows)
}

fn parse_row(row: &Table) -> Result<Row> {
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    let texts = |key: &str| -> Vec<&str> {
        row.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let id = text("id").context("a row without an id")?.to_owned();
    let ports = text("ports").with_context(|| format!("row {id} without ports"))?;
    let ports = if ports == "icmp echo" { Ok(vec![Ports::Echo]) } else { ports.split(' ').map(parse_ports).collect() };
    let mut flows = Vec::new();
    for flow in texts("flows") {
        let (from, to, both) = match (flow.split_once(" <-> "), flow.split_once(" -> ")) {
            (Some((from, to)), _) => (from, to, true),
            (None, Some((from, to))) => (from, to, false),
            (None, None) => bail!("row {id}: flow {flow:?}"),
        };
        flows.push(Flow { from: from.to_owned(), to: to.to_owned() });
        if both && from != to {
            flows.push(Flow { from: to.to_owned(), to: from.to_owned() });
        }
    }
    let internal = text("scope") == Some("internal");
    ensure!(internal == flows.is_empty(), "row {id} has either flows or the scope internal");
    Ok(Row {
        ports: ports.with_context(|| format!("row {id}"))?,
        flows,
        tunnelled: text("tunnelled").unwrap_or("closed").to_owned(),
        when: texts("when").into_iter().map(str::to_owned).collect(),
        internal,
        servers: texts("hosts").into_iter().filter_map(|host| host.parse().ok()).collect(),
        id,
    })
}

fn parse_ports(text: &str) -> Result<Ports> {
    let (ports, protocol) = text.split_once('/').with_context(|| format!("ports {text:?}"))?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (first.parse()?, last.parse()?);
    match protocol {
        "tcp" => Ok(Ports::Tcp(first, last)),
        "udp" => Ok(Ports::Udp(first, last)),
        _ => bail!("protocol {protocol:?}"),
    }
}
