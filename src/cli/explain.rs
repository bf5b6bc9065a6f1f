//! `portward explain`.

use super::input::{dynamic_report, identity};
use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, styled};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::plan::{Direction, Explanation, Grant, LocalScope, Query, Verdict};
use crate::policy::Ports;
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Explain one packet: may this address reach this port, and by what?
///
/// With --from: may the address open a connection to the port of this host? With --to: may this host open one to the port
/// of the address? The answer names the row, the flow, the group and the line of the policy that allow it, or what would
/// have to change. It is worked out from the policy, without root and without the kernel; of dynamic ports, which exist
/// only while a process listens, those count that the running daemon has opened. The exit code is 0 when the packet is allowed, 1 when it is denied.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("peer").required(true).args(["from", "to"]),
    after_help = "Examples:
  portward explain --from 192.0.2.7 --port 514/udp
  portward explain --from 192.0.2.7 --port echo/icmp --host ep1
  portward explain --to 198.51.100.25 --port 25/tcp --json"
)]
pub(super) struct Explain {
    /// The address that opens the connection to this host
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,

    /// The address that this host opens the connection to
    #[arg(long, value_name = "ADDRESS")]
    to: Option<IpAddr>,

    /// The port with its protocol, such as 514/udp, or echo/icmp
    #[arg(long, value_name = "PORT", value_parser = port)]
    port: Ports,

    /// The daemon's control socket, for the dynamic ports that are open
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn port(word: &str) -> Result<Ports, String> {
    match word.parse::<Ports>().map_err(|error| error.to_string())? {
        Ports::Range(_, range) if range.count() > 1 => Err("one port is asked for, not a range".to_owned()),
        ports => Ok(ports),
    }
}

impl Explain {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let (direction, peer) = match (self.from, self.to) {
            (Some(from), _) => (Direction::Ingress, from),
            (None, Some(to)) => (Direction::Egress, to),
            (None, None) => return Err(Error::Usage("--from or --to is missing".to_owned())),
        };
        // A mapped address never stands in a packet; people copy it from the logs of programs.
        let peer = peer.to_canonical();
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        let query = Query { direction, peer, port: self.port, local: None };
        let plan = site.plan(host);
        // What the daemon has open counts where this is the host that it runs on.
        let own = options.host.is_none() || identity()?.addresses.iter().any(|own| host.addresses.contains(own));
        let report = if own && !plan.dynamic.is_empty() { dynamic_report(&self.control_socket) } else { None };
        let known = report.is_some() || plan.dynamic.is_empty() || direction == Direction::Egress;
        let open = report.map(|report| report.open_ports()).unwrap_or_default();
        let mut explanation = plan.explain(&query, &open);
        if !known && explanation.verdict == Verdict::Denied {
            explanation.notes.push("no daemon answers, so that dynamic ports count as closed".to_owned());
        }
        let code = match explanation.verdict {
            Verdict::Allowed => Code::Fine,
            Verdict::Denied => Code::No,
        };
        if self.json {
            return Answer::json(&json_of(&explanation, &query, &host.name, &found), code);
        }
        Ok(Answer { text: render(&explanation, &query, &host.name, &site.path), code })
    }
}

fn render(explanation: &Explanation, query: &Query, host: &str, policy: &Path) -> String {
    let file = policy.file_name().unwrap_or(policy.as_os_str()).to_string_lossy();
    let mut text = match explanation.verdict {
        Verdict::Allowed => styled(GREEN, "allowed"),
        Verdict::Denied => styled(RED, "denied"),
    };
    match query.direction {
        Direction::Ingress => text.push_str(&format!(": from {} to {} on {host}\n", query.peer, query.port)),
        Direction::Egress => text.push_str(&format!(": from {host} to {} on {}\n", query.port, query.peer)),
    }
    for grant in &explanation.grants {
        text.push_str(&match grant {
            Grant::Row { row, flow, group, member, line } => {
                let place = line.map_or_else(|| "in the catalogue".to_owned(), |line| format!("at {file}:{line}"));
                let member = crate::plan::short_network(*member);
                format!("  {}{}, flow {flow}, group {group}, {member} {place}\n", kind(row), styled(BOLD, row))
            }
            Grant::Dynamic { service, scope, flow, group, member, line } => {
                let place = line.map_or_else(|| "in the catalogue".to_owned(), |line| format!("at {file}:{line}"));
                let member = crate::plan::short_network(*member);
                let only = match scope {
                    LocalScope::Any => String::new(),
                    LocalScope::Ipv4 => ", to IPv4 addresses of the host".to_owned(),
                    LocalScope::Ipv6 => ", to IPv6 addresses of the host".to_owned(),
                    LocalScope::Address(address) => format!(", to {address} only"),
                };
                let service = styled(BOLD, service);
                format!(
                    "  dynamic {service}, flow {flow}, group {group}, {member} {place}: its process listens now{only}\n"
                )
            }
            Grant::Loopback => "  the address is the host's own; loopback traffic is always allowed\n".to_owned(),
            Grant::EgressOff => "  the policy does not control what leaves: egress = \"off\"\n".to_owned(),
        });
    }
    if explanation.verdict == Verdict::Denied && explanation.near_misses.is_empty() {
        text.push_str(&format!(
            "  no row has this port for this pair of addresses; an [[allow]] in {file} would open it\n"
        ));
    }
    for (index, miss) in explanation.near_misses.iter().enumerate() {
        text.push_str(&format!("  {}{}: {}\n", kind(&miss.row), styled(BOLD, &miss.row), miss.why));
        let next = explanation.near_misses.get(index + 1);
        // Several flows of a row often want the same change.
        let again = next.is_some_and(|next| (&next.row, &next.remedy) == (&miss.row, &miss.remedy));
        if let Some(remedy) = miss.remedy.as_ref().filter(|_| !again) {
            text.push_str(&format!("    to allow it: {remedy}\n"));
        }
    }
    for note in &explanation.notes {
        text.push_str(&format!("  {}\n", styled(FAINT, note)));
    }
    text
}

/// What stands before a name: those that are no rows of the catalogue say themselves what they are, `allow NAME` and
/// `dynamic NAME`.
fn kind(name: &str) -> &'static str {
    if name.contains(' ') { "" } else { "row " }
}

fn json_of(explanation: &Explanation, query: &Query, host: &str, found: &str) -> Value {
    let grants: Vec<_> = explanation
        .grants
        .iter()
        .map(|grant| match grant {
            Grant::Row { row, flow, group, member, line } => json!({
                "kind": "row",
                "row": row,
                "flow": flow,
                "group": group,
                "member": member.to_string(),
                "line": line,
            }),
            Grant::Dynamic { service, scope, flow, group, member, line } => json!({
                "kind": "dynamic",
                "service": service,
                "scope": scope.to_string(),
                "flow": flow,
                "group": group,
                "member": member.to_string(),
                "line": line,
            }),
            Grant::Loopback => json!({ "kind": "loopback" }),
            Grant::EgressOff => json!({ "kind": "egress-off" }),
        })
        .collect();
    let near_misses: Vec<_> = explanation
        .near_misses
        .iter()
        .map(|miss| json!({ "row": miss.row, "why": miss.why, "remedy": miss.remedy }))
        .collect();
    json!({
        "allowed": explanation.verdict == Verdict::Allowed,
        "host": host,
        "found": found,
        "direction": match query.direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        },
        "peer": query.peer.to_string(),
        "port": query.port.to_string(),
        "grants": grants,
        "near_misses": near_misses,
        "notes": explanation.notes,
    })
}
