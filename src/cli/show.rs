//! `portward show`.

use super::input::identity;
use super::output::{Answer, BOLD, Code, FAINT, count, styled, table, warn};
use super::{Error, Options};
use crate::plan::{Allowance, Closed, Direction, Peers, Plan, Reason, RowRef, Tunnel, short_network};
use crate::policy::{DynamicService, Exposure, Group, Ports, Server, Tracker};
use crate::policy::{EgressMode, Mode};
use crate::ruleset::nft;
use anstyle::Style;
use clap::{Args, ValueEnum};
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
    let closed: Vec<_> = plan.closed_dynamic.iter().filter(|closed| all || closed.service.line.is_some()).collect();
    if plan.dynamic.is_empty() && closed.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}  open only while their process listens on them\n", styled(BOLD, "dynamic")));
    let mut lines: Vec<_> = plan
        .dynamic
        .iter()
        .map(|exposed| {
            let service = exposed.service;
            let what = format!("{}, at most {} of {}", tracker(service), service.limit, ports(&service.ports));
            let mut groups: Vec<String> = Vec::new();
            for permission in &exposed.permissions {
                let group = peers(&permission.peers);
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
            ([format!("  {}", service.name), what, "<-".to_owned(), groups.join("; ")], Style::new())
        })
        .collect();
    lines.extend(closed.into_iter().map(|closed| {
        let what = format!("closed: {}", closed.reason);
        ([format!("  {}", closed.service.name), what, String::new(), String::new()], FAINT)
    }));
    text.push_str(&table(&lines));
}

fn tracker(service: &DynamicService) -> String {
    let anchor = service.anchor.map_or_else(String::new, |port| format!("{port}/tcp"));
    match service.tracker {
        Tracker::Imq => format!("the message broker on {anchor}"),
        Tracker::Rpc => {
            let programs: Vec<_> = service.programs.iter().map(ToString::to_string).collect();
            format!("rpcbind, programs {}", programs.join(" "))
        }
        Tracker::Rmi => format!("the RMI registry on {anchor}"),
        Tracker::Process => format!("the process that listens on {anchor}"),
    }
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
    text.push_str(&format!("\n{}  known by name; declared, not opened yet\n", styled(BOLD, "servers")));
    let lines: Vec<_> = rows
        .into_iter()
        .map(|(row, row_ports, names)| {
            ([format!("  {row}"), ports(row_ports), "->".to_owned(), names.join(", ")], Style::new())
        })
        .collect();
    text.push_str(&table(&lines));
}

fn closed(text: &mut String, closed: &[Closed<'_>], all: bool) {
    let is_ordinary = |closed: &&Closed<'_>| matches!(closed.reason, Reason::Internal | Reason::NotConcerned);
    let lines: Vec<_> = closed
        .iter()
        .filter(|closed| all || !is_ordinary(closed))
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

fn json_of(plan: &Plan<'_>, found: &str) -> Value {
    let words = |ports: &[Ports]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
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
            let members: Vec<_> = members(&allowance.peers)
                .map(|(network, line)| json!({ "network": network.to_string(), "line": line }))
                .collect();
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
                "link": match allowance.peers.tunnel {
                    Tunnel::Any => "any",
                    Tunnel::Clear => "clear",
                    Tunnel::Encrypted => "encrypted",
                },
                "members": members,
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
    let dynamic: Vec<_> = plan
        .dynamic
        .iter()
        .map(|exposed| {
            let service = exposed.service;
            let mut groups: Vec<&str> = Vec::new();
            for permission in &exposed.permissions {
                if !groups.contains(&permission.peers.group.as_str()) {
                    groups.push(&permission.peers.group);
                }
            }
            json!({
                "service": service.name,
                "row": match &service.exposure {
                    Exposure::Row(row) => Some(row),
                    Exposure::From(_) => None,
                },
                "tracker": service.tracker.name(),
                "anchor": service.anchor.map(|port| format!("{port}/tcp")),
                "ports": words(&service.ports),
                "limit": service.limit,
                "groups": groups,
            })
        })
        .collect();
    let closed_dynamic: Vec<_> = plan
        .closed_dynamic
        .iter()
        .map(|closed| json!({ "service": closed.service.name, "reason": closed.reason.to_string() }))
        .collect();
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
        "closed_dynamic": closed_dynamic,
        "named_servers": servers,
    })
}
