//! `portward flows`.

use super::input::{dynamic_report, identity};
use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, count, note, styled, table};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::daemon::flows::{Cut, Cutter, DeniedFlows, FlowReader, SeenFlow, Tally, port_name, way_name};
use crate::kernel::Conntrack;
use crate::kernel::conntrack::Flow;
use crate::plan::{DynamicPorts, FlowJudge, FlowKind, Way};
use crate::policy::Ports;
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// List the flows of this host, and which of them the policy denies
///
/// Connection tracking lets an established flow go on although a policy that has become tighter would not let it begin.
/// Here every tracked flow of the host is judged as if it began now: it is listed with the row that allows it, or as
/// denied. Root is needed. Dynamic ports count as open when the running daemon has opened them; when no daemon answers, all
/// that the policy may open do. The exit code is 0 when no flow is
/// denied or all denied ones were cut, 1 when there are denied ones.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward flows                              what passes, and by which row?
  portward flows --denied                     which flows does the policy deny?
  portward flows --denied --policy new.toml   which would a new policy deny?
  portward flows --cut                        end those that it denies")]
pub(super) struct Flows {
    /// List only the flows that the policy denies
    #[arg(long)]
    denied: bool,

    /// End the flows that the policy denies
    ///
    /// The kernel forgets them, and TCP connections to this host are reset. Where the policy only observes, nothing is
    /// ended.
    #[arg(long)]
    cut: bool,

    /// List all flows, not only the first 50
    #[arg(long)]
    all: bool,

    /// The daemon's control socket, for the dynamic ports that are open
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// So many flows are listed without `--all`.
const LISTED: usize = 50;
/// So many pairs of peer and port are summed up.
const GROUPS_SHOWN: usize = 10;

impl Flows {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let identity = identity()?;
        let (host, found) = site.find(&options.choice(), &identity)?;
        let plan = site.plan(host);
        let open = dynamic_report(&self.control_socket).map(|report| report.open_ports());
        // Without a daemon to ask, whatever may be open counts as open, so that nothing is ended by mistake.
        let dynamic = open.as_ref().map_or(DynamicPorts::Possible, DynamicPorts::Open);
        let judge = plan.flow_judge(dynamic, &identity.addresses);
        let report = self.report(&judge)?;

        let remaining = report.denied.denied - report.ended;
        let code = if remaining == 0 { Code::Fine } else { Code::No };
        if self.json {
            let value = json!({
                "host": host.name,
                "found": found,
                "flows": report.total,
                "denied": report.denied,
                "passing": report.passing_json(),
                "listed": report.listed,
            });
            return Answer::json(&value, code);
        }
        if self.cut && report.denied.observed > 0 {
            note(&format!("{} not ended: the policy only observes them", count(report.denied.observed, "flow")));
        }
        if report.denied.revivable > 0 {
            note(&format!(
                "this kernel cannot end the host's own sockets (CONFIG_INET_DIAG_DESTROY): {} may come back when the host \
                 sends first; restart the service to be sure",
                count(report.denied.revivable, "flow")
            ));
        }
        let mut text = format!("host {} ({found}): {}", host.name, count(report.total, "flow"));
        text.push_str(&match (report.denied.denied, self.cut) {
            (0, _) => format!(", {}\n", styled(GREEN, "none denied")),
            (denied, false) => format!(", {}\n", styled(RED, &format!("{denied} denied"))),
            (denied, true) => format!(", {denied} denied, {} cut\n", report.denied.cut),
        });
        text.push_str(&report.render(self.denied || self.cut));
        Ok(Answer { text, code })
    }

    /// Looks at the flows, and ends the denied ones if that is asked for.
    fn report(&self, judge: &FlowJudge<'_>) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut tally = Tally::default();
        let mut reader = FlowReader::open(judge)?;
        let mut cutter = if self.cut { Some(Cutter::open()?) } else { None };
        let limit = if self.all { usize::MAX } else { LISTED };
        Conntrack::open()?.flows(|flow| {
            report.total += 1;
            let seen = reader.judge(flow)?;
            let judgement = &seen.judgement;
            let Some(pass) = judgement.pass else {
                tally.add(flow, judgement);
                let cut = match cutter.as_mut().filter(|_| judgement.enforced) {
                    Some(cutter) => Some(cutter.cut(flow, &seen)?),
                    None => None,
                };
                report.ended += u64::from(cut.is_some());
                tally.count_cut(cut);
                if report.denied_lines.len() < limit {
                    report.denied_lines.push(Line::new(flow, &seen, cut));
                }
                return Ok(());
            };
            *report.passing.entry((judgement.way, pass.to_string())).or_default() += 1;
            // What the host says to itself is in the summary.
            if !self.denied && !self.cut && judgement.way != Way::Loopback && report.listed.len() < limit {
                report.listed.push(Line::new(flow, &seen, None));
            }
            Ok(())
        })?;
        report.denied = tally.finish();
        report.denied_lines.sort_by_key(Line::order);
        report.listed.sort_by_key(Line::order);
        report.listed.splice(..0, report.denied_lines.drain(..));
        report.listed.truncate(limit);
        Ok(report)
    }
}

/// What was found.
#[derive(Debug, Default)]
struct Report {
    total: u64,
    denied: DeniedFlows,
    /// Denied flows that are ended now, by this command or by themselves.
    ended: u64,
    /// How many flows pass, by way and reason.
    passing: BTreeMap<(Way, String), u64>,
    denied_lines: Vec<Line>,
    /// The denied ones first.
    listed: Vec<Line>,
}

/// One flow, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    direction: &'static str,
    /// The address at the other end.
    peer: IpAddr,
    /// Its port; `null` for protocols without.
    peer_port: Option<u16>,
    /// The address at this end, or where the flow goes through this host.
    address: IpAddr,
    /// The port that was opened to, with its protocol.
    port: String,
    /// The same, to sort by.
    #[serde(skip)]
    ports: Option<Ports>,
    /// The port before it was rewritten on this host.
    rewritten_from: Option<u16>,
    state: String,
    /// What allows it; `null` when nothing does.
    allowed_by: Option<String>,
    /// Whether it was ended.
    cut: bool,
    /// Seconds until it is forgotten unless packets come.
    timeout: Option<u32>,
}

impl Line {
    fn new(flow: &Flow, SeenFlow { start, judgement, .. }: &SeenFlow<'_>, cut: Option<Cut>) -> Self {
        let (address, peer_port) = match (judgement.way, start.kind) {
            (Way::Out, _) => (start.source, None),
            (_, FlowKind::Ports(_, source, _)) => (start.destination, Some(source)),
            _ => (start.destination, None),
        };
        Self {
            direction: way_name(judgement.way),
            peer: judgement.peer,
            peer_port,
            address,
            port: port_name(judgement.port, flow.protocol),
            ports: judgement.port,
            rewritten_from: start.rewritten_from.filter(|port| *port != 0),
            state: flow.state(),
            allowed_by: judgement.pass.map(|pass| pass.to_string()),
            cut: matches!(cut, Some(Cut::Yes | Cut::Revivable)),
            timeout: flow.timeout,
        }
    }

    fn order(&self) -> (&'static str, Option<Ports>, IpAddr, Option<u16>) {
        (self.direction, self.ports, self.peer, self.peer_port)
    }

    fn cells(&self) -> ([String; 5], Style) {
        let peer = match self.peer_port {
            Some(port) => SocketAddr::new(self.peer, port).to_string(),
            None => self.peer.to_string(),
        };
        let mut port = self.port.clone();
        if let Some(original) = self.rewritten_from.filter(|original| !port.starts_with(&format!("{original}/"))) {
            port.push_str(&format!(" (as {original})"));
        }
        let (style, verdict) = match (&self.allowed_by, self.cut) {
            (Some(pass), _) => (Style::new(), pass.clone()),
            (None, false) => (RED, "denied: no row allows it".to_owned()),
            (None, true) => (RED, "cut: no row allows it".to_owned()),
        };
        ([format!("  {}", self.direction), peer, port, self.state.clone(), verdict], style)
    }
}

impl Report {
    fn render(&self, only_denied: bool) -> String {
        let mut text = table(&self.listed.iter().map(Line::cells).collect::<Vec<_>>());
        let loopback: u64 = self.passing.iter().filter(|((way, _), _)| *way == Way::Loopback).map(|(_, n)| n).sum();
        let listable = if only_denied { self.denied.denied } else { self.total - loopback };
        let missing = listable.saturating_sub(self.listed.len() as u64);
        if missing > 0 {
            text.push_str(&styled(FAINT, &format!("  and {missing} more (--all shows them)")));
            text.push('\n');
        }
        let summary = if only_denied { self.denied_summary(missing > 0) } else { self.passing_summary(missing > 0) };
        if !summary.is_empty() {
            text.push_str(&format!("{}\n{}", styled(BOLD, "in all"), table(&summary)));
        }
        if let Some(line) = self.listed.first().filter(|line| line.allowed_by.is_none() && !line.cut)
            && line.ports.is_some()
        {
            let end = if line.direction == "out" { "--to" } else { "--from" };
            let hint = format!("`portward explain {end} {} --port {}` says why it is denied", line.peer, line.port);
            text.push_str(&styled(FAINT, &hint));
            text.push('\n');
        }
        text
    }

    /// Who is denied what in several flows, where not every one is listed.
    fn denied_summary(&self, is_shortened: bool) -> Vec<([String; 4], Style)> {
        let shown = if is_shortened { GROUPS_SHOWN } else { 0 };
        let lines = self.denied.groups.iter().filter(|group| group.flows > 1).take(shown).map(|group| {
            let cells = [
                format!("  {}", group.flows),
                way_name(group.direction).to_owned(),
                group.peer.to_string(),
                group.port.clone(),
            ];
            (cells, Style::new())
        });
        lines.collect()
    }

    /// What passes by what, where not every flow is listed. The host's own traffic with itself never is.
    fn passing_summary(&self, is_shortened: bool) -> Vec<([String; 4], Style)> {
        let shown = self.passing.iter().filter(|((way, _), _)| is_shortened || *way == Way::Loopback);
        let lines = shown.map(|((way, pass), flows)| {
            // What the host says to itself passes because it does.
            let pass = if *way == Way::Loopback { String::new() } else { pass.clone() };
            ([format!("  {flows}"), way_name(*way).to_owned(), pass, String::new()], Style::new())
        });
        lines.collect()
    }

    fn passing_json(&self) -> serde_json::Value {
        let line = |((way, pass), flows): (&(Way, String), &u64)| json!({ "direction": way_name(*way), "allowed_by": pass, "flows": flows });
        self.passing.iter().map(line).collect()
    }
}

/// Tells of the established flows that a policy denies which has just been applied.
pub(super) fn note_denied(flows: Option<&DeniedFlows>) {
    let Some(flows) = flows.filter(|flows| flows.denied > 0) else { return };
    let goes_on = if flows.cut < flows.denied { "; `portward flows --denied` lists what goes on" } else { "" };
    note(&format!("{flows}{goes_on}"));
}
