//! `portward observe-report`.

use super::input::{dynamic_report, identity};
use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, count, note, styled, table};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::daemon::load::Site;
use crate::kernel::Netlink;
use crate::plan::{
    Direction, Finding, MOST_OBSERVED, OpenPorts, ProposedAllow, Review, Sighting, observed_set, short_network,
};
use crate::policy::{Catalogue, EgressMode, Host, Mode, Policy, Ports};
use crate::ruleset::{Family, Hook, PortRange, Record};
use crate::state::{DEFAULT_STATE_DIR, Store, utc};
use anstyle::Style;
use clap::Args;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Say what enforcement would have denied since observation began, and what would admit it
///
/// A policy in mode `observe` lets everything pass, and notes in the kernel who was let pass by nothing but that: each peer and
/// port once. Here that is held against the policy as it is now, and what it would still deny is listed, with the group
/// that the peer would have to join, or an [[allow]] to paste into the policy. Look at every line before you admit it:
/// it may be just what the firewall is for. The notes go with the table: at a boot, and with the mode. Root is needed.
///
/// The exit code is 0 when nothing would be denied, 1 when something would.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward observe-report
  portward enforce            when nothing is left that you miss")]
pub(super) struct ObserveReport {
    /// List all ports, not only the first 50
    #[arg(long)]
    all: bool,

    /// The daemon's control socket, for the dynamic ports that are open
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// The folder with the policies that were applied
    #[arg(long, value_name = "PATH", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// So many lines are shown without `--all`.
const LISTED: usize = 50;
/// So many peers are named in a line.
const PEERS_NAMED: usize = 4;
/// So many rows are named in a line.
const ROWS_NAMED: usize = 3;

impl ObserveReport {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        let observed = Observed::read(&site, host, &self.control_socket)?;
        let since = since(&self.state_dir);
        let Observed { review, full, is_observed } = &observed;
        let code = if review.findings.is_empty() { Code::Fine } else { Code::No };
        if self.json {
            let value = json!({
                "host": host.name,
                "found": found,
                "mode": site.policy.mode.name(),
                "egress": site.policy.egress.name(),
                "observed": is_observed,
                "since": since,
                "full": full,
                "denied": review.findings.iter().map(finding_json).collect::<Vec<_>>(),
                "join": joins_json(review),
                "allow": review.allows.iter().map(ProposedAllow::to_toml).collect::<Vec<_>>().join("\n"),
                "scanners": review.scanners,
            });
            return Answer::json(&value, code);
        }
        if !is_observed {
            note("the kernel holds no notes of an observing policy: nothing was observed");
        }
        for set in full {
            note(&format!("{set} is full ({MOST_OBSERVED} elements): what came later was not noted"));
        }
        let since = since.map(|since| format!(", observed since {}", utc(since))).unwrap_or_default();
        let text = format!("host {} ({found}){since}: {}\n{}", host.name, observed.in_short(), self.render(review));
        Ok(Answer { text, code })
    }

    fn render(&self, review: &Review) -> String {
        let limit = if self.all { usize::MAX } else { LISTED };
        let mut text = table(&review.findings.iter().take(limit).map(line).collect::<Vec<_>>());
        let missing = review.findings.len().saturating_sub(limit);
        if missing > 0 {
            text.push_str(&styled(FAINT, &format!("  and {missing} more (--all shows them)\n")));
        }
        if !review.scanners.is_empty() {
            let peers: BTreeSet<IpNet> = review.scanners.iter().copied().map(IpNet::from).collect();
            text.push_str(&format!(
                "nothing is proposed for who tried very many ports: {}\n",
                names(&peers, PEERS_NAMED)
            ));
        }
        if !review.joins.is_empty() {
            text.push_str(&styled(BOLD, "to admit by rows that have the port, add to [groups]"));
            text.push('\n');
            for (group, members) in &review.joins {
                text.push_str(&format!("  {group}: {}\n", quoted(members)));
            }
        }
        if !review.allows.is_empty() {
            text.push_str(&styled(BOLD, "to admit what no row does, add to the policy"));
            for allow in &review.allows {
                text.push_str(&format!("\n{}", allow.to_toml()));
            }
        }
        text
    }
}

/// What was noted, held against a policy.
pub(super) struct Observed {
    pub(super) review: Review,
    /// Sets without room.
    full: Vec<String>,
    /// Whether there is anything that observes.
    is_observed: bool,
}

impl Observed {
    /// Reads the notes from the kernel, and judges them as if the policy were enforced.
    pub(super) fn read(site: &Site, host: &Host, control_socket: &Path) -> Result<Self, Error> {
        let mut kernel = Netlink::open()?;
        let (mut seen, mut full, mut is_observed) = (BTreeSet::new(), Vec::new(), false);
        for hook in [Hook::Input, Hook::Forward, Hook::Output] {
            for (family, with_port) in
                [(Family::Ipv4, true), (Family::Ipv6, true), (Family::Ipv4, false), (Family::Ipv6, false)]
            {
                let record = Record { family, with_port };
                let set = observed_set(hook, record);
                let Some(notes) = kernel.notes(&set, record)? else { continue };
                is_observed = true;
                if notes.len() >= MOST_OBSERVED as usize {
                    full.push(set.to_string());
                }
                seen.extend(notes.into_iter().map(|note| Sighting {
                    hook,
                    peer: note.peer,
                    port: note.port.map(|(protocol, port)| Ports::Range(protocol, PortRange::single(port))),
                }));
            }
        }
        let open: OpenPorts = dynamic_report(control_socket).map(|report| report.open_ports()).unwrap_or_default();
        Ok(Self { review: site.plan(host).review(seen, &open), full, is_observed })
    }

    /// Such as `3 ports of 5 peers would be denied`.
    pub(super) fn in_short(&self) -> String {
        let findings = &self.review.findings;
        if findings.is_empty() {
            return styled(GREEN, "nothing would be denied");
        }
        let peers: BTreeSet<IpNet> = findings.iter().flat_map(|finding| &finding.peers).copied().collect();
        let (ports, peers) = (count(findings.len(), "port"), count(peers.len(), "peer"));
        styled(RED, &format!("enforcement would deny {ports} to {peers}"))
    }
}

/// Since when the policies that were applied only observe, as far as that is known: since the first of the newest ones
/// without a break, and not from before the last boot, which took the table with it.
fn since(state_dir: &Path) -> Option<u64> {
    let history = Store::new(state_dir).history().ok()?;
    let observes = |policy: &str, catalogue: Option<&str>| {
        let own = catalogue.map(|text| Catalogue::parse(text, "catalogue.toml"));
        let catalogue = match &own {
            Some(Ok(own)) => own,
            Some(Err(_)) => return false,
            None => Catalogue::embedded(),
        };
        Policy::parse(policy, "policy.toml", catalogue)
            .is_ok_and(|loaded| loaded.policy.mode == Mode::Observe || loaded.policy.egress == EgressMode::Observe)
    };
    let applied = history.iter().map_while(|entry| entry.applied.as_ref().ok());
    let first = applied.take_while(|applied| observes(&applied.policy, applied.catalogue.as_deref())).last()?;
    Some(first.time.max(booted().unwrap_or_default()))
}

/// When the machine was booted: `btime` of /proc/stat (proc(5)).
fn booted() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn line(finding: &Finding) -> ([String; 4], Style) {
    let verb = if finding.direction == Direction::Egress { "to" } else { "from" };
    let rows = match (finding.port, finding.rows.as_slice()) {
        (None, _) => "ICMP or another protocol; `echo/icmp` in an [[allow]] admits echo requests".to_owned(),
        (_, []) => "no row has the port".to_owned(),
        (_, [row]) => format!("row {row}"),
        (_, rows) if rows.len() > ROWS_NAMED => format!("rows {} and more", rows[..ROWS_NAMED].join(", ")),
        (_, rows) => format!("rows {}", rows.join(", ")),
    };
    let group = finding.group.as_ref().map(|group| format!(": not in {group}")).unwrap_or_default();
    let cells = [
        format!("  {}", port_name(finding.port)),
        verb.to_owned(),
        names(&finding.peers, PEERS_NAMED),
        format!("{rows}{group}"),
    ];
    (cells, Style::new())
}

fn port_name(port: Option<Ports>) -> String {
    port.map_or_else(|| "no port".to_owned(), |port| port.to_string())
}

fn names(peers: &BTreeSet<IpNet>, most: usize) -> String {
    let mut text = peers.iter().take(most).copied().map(short_network).collect::<Vec<_>>().join(", ");
    if peers.len() > most {
        text.push_str(&format!(" and {} more", peers.len() - most));
    }
    text
}

fn quoted(members: &BTreeSet<IpNet>) -> String {
    members.iter().map(|member| format!("\"{}\"", short_network(*member))).collect::<Vec<_>>().join(", ")
}

fn joins_json(review: &Review) -> BTreeMap<&str, Vec<String>> {
    let words = |members: &BTreeSet<IpNet>| members.iter().copied().map(short_network).collect();
    review.joins.iter().map(|(group, members)| (group.as_str(), words(members))).collect()
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "direction": if finding.direction == Direction::Egress { "out" } else { "in" },
        "port": finding.port.map(|port| port.to_string()),
        "peers": finding.peers.iter().copied().map(short_network).collect::<Vec<_>>(),
        "addresses": finding.addresses,
        "rows": finding.rows,
        "group": finding.group,
    })
}
