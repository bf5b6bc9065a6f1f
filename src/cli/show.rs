//! `portward show`.

use super::input::identity;
use super::output::{Answer, BOLD, Code, FAINT, count, styled, table, warn};
use super::{Error, Options};
use crate::plan::{
    Allowance, Closed, ClosedDynamic, Direction, Exposed, Peers, Permission, Plan, Reason, RowRef, Tunnel,
    short_network,
};
use crate::policy::{DynamicService, EgressMode, Exposure, Group, Mode, OnClose, Ports, ProcessMatch, Server, Tracker};
use crate::ruleset::nft;
use anstyle::Style;
use clap::{Args, ValueEnum};
use glob::Pattern;
use ipnet::IpNet;
use serde_json::{Value, json};

/// Show what is enforced on a host: which rows open which ports to whom
///
/// Reads the policy only, so it works anywhere, for any host of the policy and without root. What stays closed is shown
/// with the reason.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward show
  portward show --host ep1 --all
  portward show --format nft | nft -c -f -")]
pub(super) struct Show {
    /// The form of the answer
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,

    /// Show every row that stays closed, and what could leave while egress is not controlled
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: by row, with ports and peers
    Table,
    /// The text of an nft script
    Nft,
    /// For programs
    Json,
}

/// So many addresses of a group are named; of more, only the number is.
const ADDRESSES_NAMED: usize = 4;

impl Show {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        site.warnings.iter().for_each(warn);
        let plan = site.plan(host);
        if plan.locks_out_admin() {
            super::output::note(
                "nobody in the group `admin` could reach 22/tcp on this host, so portward would not apply this policy \
                 (allow-lockout = true says it is meant)",
            );
        }
        match self.format {
            Format::Table => Ok(Answer::fine(table_of(&plan, &found, self.all))),
            Format::Nft => Ok(Answer::fine(nft::render(&plan.ruleset()))),
            Format::Json => Answer::json(&json_of(&plan, &found), Code::Fine),
        }
    }
}

/// The plan as a table for people. `all`: with every row that stays closed.
pub(super) fn table_of(plan: &Plan<'_>, found: &str, all: bool) -> String {
    let roles: Vec<_> = plan.host.roles.iter().map(String::as_str).collect();
    let mut text = format!("{} ({found}): {}\n", styled(BOLD, &format!("host {}", plan.host.name)), roles.join(", "));
    let mode = match plan.policy.mode {
        Mode::Enforce => "what nothing below opens is denied",
        Mode::Observe => "observed only: what nothing below opens passes, and is counted and logged",
    };
    section(&mut text, "in", mode, &plan.allowances, Direction::Ingress);
    match plan.policy.egress {
        EgressMode::Off if !all => {
            text.push_str(&format!("\n{}  not controlled: egress = \"off\"\n", styled(BOLD, "out")))
        }
        EgressMode::Off => {
            let mode = "not controlled: egress = \"off\"; if it were, this could leave";
            section(&mut text, "out", mode, &plan.allowances, Direction::Egress);
        }
        EgressMode::Observe => {
            let mode = "observed only: what nothing below opens passes, and is counted and logged";
            section(&mut text, "out", mode, &plan.allowances, Direction::Egress);
        }
        EgressMode::Enforce => {
            section(&mut text, "out", "what nothing below opens is denied", &plan.allowances, Direction::Egress);
        }
    }
    dynamic(&mut text, plan, all);
    named_servers(&mut text, plan);
    closed(&mut text, &plan.closed, all);
    text
}

fn section(text: &mut String, title: &str, mode: &str, allowances: &[Allowance<'_>], direction: Direction) {
    text.push_str(&format!("\n{}  {mode}\n", styled(BOLD, title)));
    let mut lines: Vec<([String; 4], Style)> = Vec::new();
    let mut last: Option<(RowRef<'_>, &[Ports])> = None;
    for allowance in allowances.iter().filter(|allowance| allowance.direction == direction) {
        let (peers, now) = (peers(&allowance.peers), Some((allowance.row, allowance.ports.as_slice())));
        match lines.last_mut() {
            Some(([_, _, _, before], _)) if last == now => before.push_str(&format!("; {peers}")),
            _ => {
                let arrow = if direction == Direction::Ingress { "<-" } else { "->" };
                lines.push((
                    [format!("  {}", allowance.row), ports(&allowance.ports), arrow.to_owned(), peers],
                    Style::new(),
                ));
            }
        }
        last = now;
    }
    if lines.is_empty() {
        text.push_str("  nothing\n");
    }
    text.push_str(&table(&lines));
}

fn peers(peers: &Peers<'_>) -> String {
    let link = match peers.tunnel {
        Tunnel::Any => "",
        Tunnel::Clear => ", link not encrypted",
        Tunnel::Encrypted => ", link encrypted",
    };
    let members: Vec<String> = members(peers).map(|(network, _)| short_network(network)).collect();
    match members.len() {
        0..=ADDRESSES_NAMED => {
            let members = members.join(", ");
            if members == peers.group { members } else { format!("{}{link} ({members})", peers.group) }
        }
        number => format!("{}{link} ({number} addresses and networks)", peers.group),
    }
}

fn members<'a>(peers: &'a Peers<'_>) -> impl Iterator<Item = (IpNet, Option<u32>)> + 'a {
    let ipv4 = peers.members.ipv4.iter().map(|member| (IpNet::V4(member.network), member.line));
    let ipv6 = peers.members.ipv6.iter().map(|member| (IpNet::V6(member.network), member.line));
    // Line 0: the address stands in the catalogue.
    ipv4.chain(ipv6).map(|(network, line)| (network, Some(line).filter(|line| *line > 0)))
}

fn ports(ports: &[Ports]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn dynamic(text: &mut String, plan: &Plan<'_>, all: bool) {
    let closed = plan.closed_dynamic.iter().filter(|service| all || !is_ordinary(&service.reason));
    let closed: Vec<_> = closed
        .map(|ClosedDynamic { service, reason }| {
            ([format!("  {}", service.name), ports(&service.ports), reason.to_string()], FAINT)
        })
        .collect();
    if plan.dynamic.is_empty() && closed.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}  open while a verified process listens on them\n", styled(BOLD, "dynamic")));
    let lines: Vec<_> = plan
        .dynamic
        .iter()
        .map(|Exposed { service, permissions }| {
            let what = format!("at most {} of {}", service.limit, ports(&service.ports));
            let peers: Vec<_> = permissions.iter().map(|permission| peers(&permission.peers)).collect();
            ([format!("  {}", service.name), what, "<-".to_owned(), peers.join("; ")], Style::new())
        })
        .collect();
    for (line, Exposed { service, .. }) in table(&lines).lines().zip(&plan.dynamic) {
        let process = format!("    {}, if it is {}", tracker(service), process(&service.process));
        text.push_str(&format!("{line}\n{}\n", styled(FAINT, &process)));
    }
    text.push_str(&table(&closed));
}

/// Where the ports are learnt.
fn tracker(service: &DynamicService) -> String {
    let anchor = service.anchor.map(|port| format!(" on {port}/tcp")).unwrap_or_default();
    match service.tracker {
        Tracker::Imq => format!("asks the message broker{anchor}"),
        Tracker::Rpc => {
            let programs: Vec<_> = service.programs.iter().map(ToString::to_string).collect();
            format!("asks rpcbind for the programs {}", programs.join(", "))
        }
        Tracker::Rmi => format!("asks the RMI registry{anchor}"),
        Tracker::Process => format!("looks at the listeners of the process{anchor}"),
    }
}

/// What the process must be, in the words of the policy.
fn process(process: &ProcessMatch) -> String {
    let quoted = |patterns: &[Pattern], and: &str| {
        patterns.iter().map(|pattern| format!("\"{}\"", pattern.as_str())).collect::<Vec<_>>().join(and)
    };
    let mut words = Vec::new();
    words.extend(process.user.as_ref().map(|user| format!("of user {user}")));
    words.extend(process.unit.as_ref().map(|unit| format!("in unit {unit}")));
    if !process.exe.is_empty() {
        words.push(format!("the program {}", quoted(&process.exe, " or ")));
    }
    if !process.args.is_empty() {
        words.push(format!("run with {}", quoted(&process.args, " and ")));
    }
    if words.is_empty() { "any process".to_owned() } else { words.join(", ") }
}

/// Rows of the catalogue that lead to servers which are known by name only, with these names.
fn by_name<'p>(plan: &Plan<'p>) -> Vec<(&'p str, &'p [Ports], Vec<&'p str>)> {
    let concerns_host = |group: &Group| match group {
        Group::Role(role) => plan.host.roles.contains(role),
        Group::Appliance => true,
        Group::ManagedHost => !plan.host.is_console(),
        Group::HaPeer => plan.host.ha_peer.is_some(),
        Group::External(_) | Group::PublicServer => false,
    };
    let rows = plan.catalogue.rows.iter().filter(|row| {
        row.flows.iter().any(|flow| flow.to == Group::PublicServer && concerns_host(&flow.from))
            && plan.policy.rows.get(&row.id).is_none_or(|adjustment| adjustment.enabled)
    });
    rows.map(|row| {
        let names = row.servers.iter().filter_map(|server| match server {
            Server::Name(name) => Some(name.as_str()),
            Server::Address(_) => None,
        });
        (row.id.as_str(), row.ports.as_slice(), names.collect::<Vec<_>>())
    })
    .filter(|(_, _, names)| !names.is_empty())
    .collect()
}

fn named_servers(text: &mut String, plan: &Plan<'_>) {
    let rows = by_name(plan);
    if rows.is_empty() || plan.policy.egress == EgressMode::Off {
        return;
    }
    text.push_str(&format!("\n{}  known by name: declared, and opened by nothing\n", styled(BOLD, "servers")));
    let lines: Vec<_> = rows
        .into_iter()
        .map(|(row, row_ports, names)| {
            ([format!("  {row}"), ports(row_ports), "->".to_owned(), names.join(", ")], Style::new())
        })
        .collect();
    text.push_str(&table(&lines));
}

/// Whether most hosts have that reason for something.
fn is_ordinary(reason: &Reason) -> bool {
    matches!(reason, Reason::Internal | Reason::NotConcerned)
}

fn closed(text: &mut String, closed: &[Closed<'_>], all: bool) {
    let lines: Vec<_> = closed
        .iter()
        .filter(|closed| all || !is_ordinary(&closed.reason))
        .map(|closed| ([format!("  {}", closed.row), ports(closed.ports), closed.reason.to_string()], FAINT))
        .collect();
    if closed.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}\n{}", styled(BOLD, "closed"), table(&lines)));
    if !all {
        let number = |wanted: fn(&Reason) -> bool| closed.iter().filter(|closed| wanted(&closed.reason)).count();
        let internal = number(|reason| *reason == Reason::Internal);
        let elsewhere = number(|reason| *reason == Reason::NotConcerned);
        let rest = format!(
            "  and {} that serve the host itself only, {} that concern other hosts (--all shows them)",
            count(internal, "row"),
            elsewhere
        );
        if internal + elsewhere > 0 {
            text.push_str(&styled(FAINT, &rest));
            text.push('\n');
        }
    }
}

fn words(ports: &[Ports]) -> Vec<String> {
    ports.iter().map(ToString::to_string).collect()
}

fn json_members(peers: &Peers<'_>) -> Vec<Value> {
    members(peers).map(|(network, line)| json!({ "network": network.to_string(), "line": line })).collect()
}

fn link(peers: &Peers<'_>) -> &'static str {
    match peers.tunnel {
        Tunnel::Any => "any",
        Tunnel::Clear => "clear",
        Tunnel::Encrypted => "encrypted",
    }
}

fn json_of_service(service: &DynamicService, permissions: &[Permission<'_>], closed: Option<&Reason>) -> Value {
    let patterns =
        |patterns: &[Pattern]| patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect::<Vec<_>>();
    let row = match &service.exposure {
        Exposure::Row(row) => Some(row),
        Exposure::From(_) => None,
    };
    let mut groups: Vec<&str> = Vec::new();
    for Permission { peers, .. } in permissions {
        if !groups.contains(&peers.group.as_str()) {
            groups.push(&peers.group);
        }
    }
    let permissions: Vec<_> = permissions
        .iter()
        .map(|Permission { flow, peers }| {
            json!({ "flow": flow, "group": peers.group, "link": link(peers), "members": json_members(peers) })
        })
        .collect();
    json!({
        "service": service.name,
        "row": row,
        "tracker": service.tracker.name(),
        "anchor": service.anchor.map(|port| format!("{port}/tcp")),
        "programs": service.programs,
        "process": {
            "exe": patterns(&service.process.exe),
            "user": service.process.user,
            "unit": service.process.unit,
            "args": patterns(&service.process.args),
        },
        "ports": words(&service.ports),
        "limit": service.limit,
        "on_close": match service.on_close {
            OnClose::Keep => "keep",
            OnClose::Cut => "cut",
        },
        "groups": groups,
        "permissions": permissions,
        "closed": closed.map(ToString::to_string),
    })
}

fn json_of(plan: &Plan<'_>, found: &str) -> Value {
    let kind = |row: &RowRef<'_>| match row {
        RowRef::Catalogue(_) => "catalogue",
        RowRef::Allow(_) => "allow",
    };
    let name = |row: &RowRef<'_>| match *row {
        RowRef::Catalogue(name) | RowRef::Allow(name) => name.to_owned(),
    };
    let allowances: Vec<_> = plan
        .allowances
        .iter()
        .map(|allowance| {
            json!({
                "row": name(&allowance.row),
                "kind": kind(&allowance.row),
                "direction": match allowance.direction {
                    Direction::Ingress => "in",
                    Direction::Egress => "out",
                },
                "ports": words(&allowance.ports),
                "flow": allowance.flow,
                "group": allowance.peers.group,
                "link": link(&allowance.peers),
                "members": json_members(&allowance.peers),
                "dynamic": allowance.dynamic,
            })
        })
        .collect();
    let closed: Vec<_> = plan
        .closed
        .iter()
        .map(|closed| {
            json!({
                "row": name(&closed.row),
                "kind": kind(&closed.row),
                "ports": words(closed.ports),
                "reason": closed.reason.to_string(),
            })
        })
        .collect();
    let exposed = plan.dynamic.iter().map(|exposed| json_of_service(exposed.service, &exposed.permissions, None));
    let closed_dynamic =
        plan.closed_dynamic.iter().map(|closed| json_of_service(closed.service, &[], Some(&closed.reason)));
    let dynamic: Vec<_> = exposed.chain(closed_dynamic).collect();
    let servers: Vec<_> = by_name(plan)
        .into_iter()
        .map(|(row, ports, names)| json!({ "row": row, "ports": words(ports), "names": names }))
        .collect();
    json!({
        "host": plan.host.name,
        "found": found,
        "roles": plan.host.roles,
        "mode": plan.policy.mode.name(),
        "egress": plan.policy.egress.name(),
        "locks_out_admin": plan.locks_out_admin(),
        "allowances": allowances,
        "closed": closed,
        "dynamic": dynamic,
        "named_servers": servers,
    })
}
