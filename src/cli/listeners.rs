//! `portward listeners`.

use super::input::{dynamic_report, identity};
use super::output::{Answer, BOLD, Code, FAINT, GREEN, styled, table};
use super::{Error, Options};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::listeners::{Identity, Listener, user_name};
use crate::plan::{Direction, Plan};
use crate::policy::{Exposure, Ports};
use crate::trackers::{Look, Report, shown};
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Show which ports are in use here, by which process, and who may reach them
///
/// Lists every socket that listens (TCP) or is bound (UDP) in this network namespace, with its process, unit and user, and
/// the row of the policy that exposes it and to whom, or why it is closed. Dynamic ports are those that the running
/// daemon has opened. Without root the processes of other users stay unknown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward listeners
  portward listeners --open
  portward listeners --json")]
pub(super) struct Listeners {
    /// Show only what somebody else can reach
    #[arg(long)]
    open: bool,

    /// The daemon's control socket, for the dynamic ports
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A listener as it is told. The fields are documented in docs/json.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    port: u16,
    protocol: &'static str,
    /// `any`, `ipv4`, `ipv6` or an address.
    address: String,
    /// The index of the interface that it is bound to.
    interface: Option<u32>,
    user: u32,
    processes: Vec<ProcessLine>,
    exposure: Exposed,
    /// Who may reach it, and by what.
    open: Vec<Opening>,
    /// Why nobody may.
    closed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ProcessLine {
    pid: u32,
    name: String,
    unit: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Exposed {
    /// Somebody else may reach it.
    Open,
    /// The policy lets nobody reach it.
    Closed,
    /// Only the host itself can, whatever the policy says.
    Local,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Opening {
    /// The row, such as `ssh` or `allow monitoring`.
    row: String,
    /// What a dynamic port is, in its service's words.
    dynamic: Option<String>,
    /// The groups that may reach it.
    groups: Vec<String>,
}

impl Listeners {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        let plan = site.plan(host);
        let look = Look::now()?;
        let report = dynamic_report(&self.control_socket);
        let lines: Vec<Line> = look
            .listeners()
            .iter()
            .map(|(listener, processes)| line(&plan, report.as_ref(), listener, processes))
            .filter(|line| !self.open || line.exposure == Exposed::Open)
            .collect();
        if self.json {
            let value = serde_json::json!({
                "host": host.name,
                "found": found,
                "daemon": report.is_some(),
                "trouble": look.trouble,
                "listeners": lines,
            });
            return Answer::json(&value, Code::Fine);
        }
        let mut text = render(&lines);
        let mut note = |note: &str| text.push_str(&format!("\n{}\n", styled(FAINT, note)));
        if let Some(trouble) = &look.trouble {
            note(trouble);
        }
        if report.is_none() && !plan.dynamic.is_empty() {
            note("no daemon answers, so dynamic ports are shown as closed");
        }
        Ok(Answer::fine(text))
    }
}

fn line(plan: &Plan<'_>, report: Option<&Report>, listener: &Listener, processes: &[&Identity]) -> Line {
    let mut open = static_openings(plan, listener);
    open.extend(report.into_iter().flat_map(|report| dynamic_openings(plan, report, listener)));
    let (exposure, closed) = if listener.is_loopback() {
        open.clear();
        (Exposed::Local, None)
    } else if open.is_empty() {
        (Exposed::Closed, Some(why_closed(plan, report, listener)))
    } else {
        (Exposed::Open, None)
    };
    Line {
        port: listener.port,
        protocol: listener.protocol.name(),
        address: listener.scope.to_string(),
        interface: listener.interface,
        user: listener.uid,
        processes: processes
            .iter()
            .map(|process| ProcessLine { pid: process.pid, name: shown(&process.name), unit: process.unit.clone() })
            .collect(),
        exposure,
        open,
        closed,
    }
}

fn has(ports: &[Ports], listener: &Listener) -> bool {
    ports.iter().any(|ports| {
        matches!(ports, Ports::Range(protocol, range) if *protocol == listener.protocol && range.contains(listener.port))
    })
}

fn static_openings(plan: &Plan<'_>, listener: &Listener) -> Vec<Opening> {
    let mut openings: Vec<Opening> = Vec::new();
    let ingress = plan.allowances.iter().filter(|allowance| allowance.direction == Direction::Ingress);
    for allowance in ingress.filter(|allowance| has(&allowance.ports, listener)) {
        let (row, group) = (allowance.row.to_string(), allowance.peers.group.clone());
        match openings.iter_mut().find(|opening| opening.row == row) {
            Some(opening) if opening.groups.contains(&group) => {}
            Some(opening) => opening.groups.push(group),
            None => openings.push(Opening { row, dynamic: None, groups: vec![group] }),
        }
    }
    openings
}

fn dynamic_openings(plan: &Plan<'_>, report: &Report, listener: &Listener) -> Vec<Opening> {
    let port = name(listener);
    let scope = listener.scope.to_string();
    let mut openings = Vec::new();
    for service in &report.services {
        let Some(opened) = service.open.iter().find(|opened| opened.port == port && opened.scope == scope) else {
            continue;
        };
        let exposed = plan.dynamic.iter().find(|exposed| exposed.service.name == service.name);
        let Some(exposed) = exposed else { continue };
        let row = match &exposed.service.exposure {
            Exposure::Row(row) => row.clone(),
            Exposure::From(_) => format!("dynamic {}", service.name),
        };
        let groups: BTreeSet<String> =
            exposed.permissions.iter().map(|permission| permission.peers.group.clone()).collect();
        openings.push(Opening { row, dynamic: Some(opened.what.clone()), groups: groups.into_iter().collect() });
    }
    openings
}

fn why_closed(plan: &Plan<'_>, report: Option<&Report>, listener: &Listener) -> String {
    let port = name(listener);
    let refused = report.into_iter().flat_map(|report| &report.services).find_map(|service| {
        let refused = service.refused.iter().find(|refused| refused.port == port)?;
        Some(format!("{}: {}", service.name, refused.why))
    });
    refused
        .or_else(|| {
            let closed = plan.closed.iter().find(|closed| has(closed.ports, listener))?;
            Some(format!("row {}: {}", closed.row, closed.reason))
        })
        .unwrap_or_else(|| "no row has this port".to_owned())
}

fn name(listener: &Listener) -> String {
    format!("{}/{}", listener.port, listener.protocol.name())
}

fn render(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "nothing listens here\n".to_owned();
    }
    let heading = ["PORT", "ADDRESS", "PROCESS", "UNIT", "USER", "WHO MAY REACH IT"].map(str::to_owned);
    let mut cells = vec![(heading, BOLD)];
    for line in lines {
        let first = line.processes.first();
        let process = first.map_or_else(|| "-".to_owned(), |process| format!("{} ({})", process.name, process.pid));
        let more = line.processes.len().saturating_sub(1);
        let who = match line.exposure {
            Exposed::Open => line.open.iter().map(opening).collect::<Vec<_>>().join("; "),
            Exposed::Closed => format!("nobody: {}", line.closed.as_deref().unwrap_or_default()),
            Exposed::Local => "this host itself".to_owned(),
        };
        let style = match line.exposure {
            Exposed::Open => GREEN,
            Exposed::Closed => Style::new(),
            Exposed::Local => FAINT,
        };
        cells.push((
            [
                format!("{}/{}", line.port, line.protocol),
                line.address.clone(),
                if more > 0 { format!("{process} and {more} more") } else { process },
                first.and_then(|process| process.unit.clone()).unwrap_or_else(|| "-".to_owned()),
                user_name(line.user),
                who,
            ],
            style,
        ));
    }
    table(&cells)
}

fn opening(opening: &Opening) -> String {
    let kind = if opening.row.starts_with("dynamic ") { "" } else { "dynamic: " };
    let what = opening.dynamic.as_ref().map(|what| format!(" ({kind}{what})")).unwrap_or_default();
    format!("{}{what} <- {}", opening.row, opening.groups.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LocalScope;
    use crate::policy::{Catalogue, Policy};
    use crate::ruleset::Protocol;
    use crate::trackers::{Opened, RefusedPort, ServiceCondition, ServiceReport};
    use std::net::{IpAddr, Ipv4Addr};

    const POLICY: &str = "format = 1
[groups]
admin = [\"192.0.2.1\"]
[[host]]
name = \"console\"
addresses = [\"198.51.100.1\"]
roles = [\"console\"]
[[host]]
name = \"ep\"
addresses = [\"198.51.100.2\"]
roles = [\"event-processor\"]
";

    fn told(port: u16, scope: LocalScope, report: Option<&Report>) -> Line {
        let catalogue = Catalogue::embedded();
        let policy = Policy::parse(POLICY, "policy.toml", catalogue).unwrap().policy;
        let plan = Plan::new(&policy, catalogue, &policy.hosts["ep"]);
        let listener = Listener { protocol: Protocol::Tcp, port, scope, interface: None, uid: 0, inode: 1, cookie: 1 };
        line(&plan, report, &listener, &[])
    }

    #[test]
    fn each_listener_is_open_closed_or_local() {
        let ssh = told(22, LocalScope::Any, None);
        assert_eq!((ssh.exposure, ssh.open[0].row.as_str()), (Exposed::Open, "ssh"));
        let unknown = told(1, LocalScope::Any, None);
        assert_eq!((unknown.exposure, unknown.closed.as_deref()), (Exposed::Closed, Some("no row has this port")));
        let local = told(22, LocalScope::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), None);
        assert_eq!((local.exposure, local.open.len()), (Exposed::Local, 0));
    }

    #[test]
    fn dynamic_ports_are_what_the_daemon_has_opened() {
        let report = Report {
            services: vec![ServiceReport {
                name: "imq".to_owned(),
                tracker: "imq".to_owned(),
                condition: ServiceCondition::Tracked,
                detail: "java (process 1)".to_owned(),
                open: vec![Opened {
                    port: "40001/tcp".to_owned(),
                    scope: "any".to_owned(),
                    what: "jms".to_owned(),
                    process: "java (process 1)".to_owned(),
                }],
                refused: vec![RefusedPort {
                    port: "40002/tcp".to_owned(),
                    what: "admin".to_owned(),
                    why: "nobody listens on it".to_owned(),
                }],
            }],
            ..Report::default()
        };
        let open = told(40001, LocalScope::Any, Some(&report));
        assert_eq!(open.exposure, Exposed::Open);
        assert_eq!(opening(&open.open[0]), "imq (dynamic: jms) <- console");
        assert_eq!(told(40001, LocalScope::Ipv4, Some(&report)).exposure, Exposed::Closed);
        let closed = told(40002, LocalScope::Any, Some(&report));
        assert_eq!(closed.closed.as_deref(), Some("imq: nobody listens on it"));
    }
}
