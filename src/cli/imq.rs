//! `portward imq`.

use super::input::identity;
use super::output::{Answer, BOLD, Code, FAINT, GREEN, RED, styled, table};
use super::{Error, Options};
use crate::describe;
use crate::policy::{DynamicService, Tracker};
use crate::trackers::imq::{self, PortTable};
use crate::trackers::{Look, Opened, Owner, RefusedPort};
use anstyle::Style;
use clap::Args;
use serde::Serialize;
use serde_json::json;

/// Show the message broker's port table, and which of its ports are verified
///
/// Asks the portmapper of the broker on this host (IMQ, 7676/tcp), as the vendor's page does with telnet, and compares
/// what it says with the sockets of its process. A port is verified when the process that the policy names for the
/// broker listens on it, within the range and the limit: these the daemon opens to the row's peers. Needs root. The exit code
/// is 0 when the broker is verified, 1 when it does not run or is not the process that the policy names.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward imq")]
pub(super) struct Imq {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of the table. The fields are documented in docs/json.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    service: String,
    protocol: String,
    kind: String,
    /// As the broker prints it; 0: no port of its own.
    port: u16,
    /// The port that stands in the stub of `jmxrmi`.
    stub_port: Option<u16>,
    verified: bool,
    /// Why it is not.
    why: Option<String>,
}

impl Imq {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, _) = site.find(&options.choice(), &identity()?)?;
        let services = site.policy.dynamic.values();
        let Some(service) = services.filter(|service| service.tracker == Tracker::Imq).find(|service| service.enabled)
        else {
            return Err(Error::Usage(
                "the policy has no service with the tracker `imq`, or it is switched off in [dynamic]".to_owned(),
            ));
        };
        let anchor = service.anchor.map_or_else(String::new, |port| format!("{port}/tcp"));
        let look = Look::now()?;
        let (owner, unverified, address) = match look.owner(service) {
            Owner::Absent => return self.nobody(&anchor),
            Owner::Unverified(why, address) => (None, Some(why), address),
            Owner::Verified(owner, address) => (Some(owner), None, address),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let answer = runtime.block_on(imq::ask(address)).map_err(|error| Error::Refused(describe(&error)))?;
        let claims = imq::claims(&answer);
        let (open, refused) = match &owner {
            Some(owner) => look.judge(service, owner, &claims.claims),
            None => (Vec::new(), Vec::new()),
        };
        let lines = lines(&answer, service, &claims, &open, &refused, unverified.as_deref());
        let code = if owner.is_some() { Code::Fine } else { Code::No };
        let process = owner.as_ref().map(|owner| owner.describe());
        if self.json {
            let value = json!({
                "host": host.name,
                "anchor": anchor,
                "instance": answer.instance,
                "version": answer.version,
                "complete": answer.complete,
                "process": process,
                "unverified": unverified,
                "services": lines,
            });
            return Answer::json(&value, code);
        }
        let title = format!("broker {}, version {}, on {anchor}", answer.instance, answer.version);
        let mut text = styled(BOLD, &title);
        match (&process, &unverified) {
            (Some(process), _) => text.push_str(&format!(": {process}\n\n")),
            (None, why) => {
                let why = why.as_deref().unwrap_or_default();
                text.push_str(&format!("\n{}\n\n", styled(RED, &format!("not verified, so nothing is opened: {why}"))));
            }
        }
        text.push_str(&render(&lines));
        if !answer.complete {
            text.push_str(&styled(FAINT, "the table ends early: the broker is starting or stopping\n"));
        }
        if let Some(trouble) = &look.trouble {
            text.push_str(&styled(FAINT, &format!("{trouble}\n")));
        }
        Ok(Answer { text, code })
    }

    fn nobody(&self, anchor: &str) -> Result<Answer, Error> {
        if self.json {
            return Answer::json(&json!({ "anchor": anchor, "services": [] }), Code::No);
        }
        Ok(Answer::new(format!("nobody listens on {anchor}: no message broker runs here\n"), false))
    }
}

fn lines(
    answer: &PortTable,
    service: &DynamicService,
    claims: &crate::trackers::Claims,
    open: &[Opened],
    refused: &[RefusedPort],
    unverified: Option<&str>,
) -> Vec<Line> {
    answer
        .services
        .iter()
        .map(|entry| {
            let claimed = claims.claims.iter().find(|claim| claim.what == entry.name).map(|claim| claim.port);
            let stub_port = claimed.filter(|_| entry.port == 0);
            let port = stub_port.unwrap_or(entry.port);
            let name = format!("{port}/tcp");
            let is_anchor = Some(port) == service.anchor;
            let verified = unverified.is_none() && (is_anchor || open.iter().any(|opened| opened.port == name));
            let why = || {
                let of_port = refused.iter().find(|refused| refused.port == name).map(|refused| refused.why.clone());
                let of_name = claims.refused.iter().find(|refused| refused.what == entry.name);
                of_port.or_else(|| of_name.map(|refused| refused.why.to_string()))
            };
            Line {
                service: entry.name.clone(),
                protocol: entry.protocol.clone(),
                kind: entry.kind.clone(),
                port: entry.port,
                stub_port,
                verified,
                why: if verified { None } else { why() },
            }
        })
        .collect()
}

fn render(lines: &[Line]) -> String {
    let heading = ["SERVICE", "PROTOCOL", "TYPE", "PORT", ""].map(str::to_owned);
    let mut cells = vec![(heading, BOLD)];
    cells.extend(lines.iter().map(|line| {
        let port = match line.stub_port {
            Some(port) => format!("{port} (from its stub)"),
            None => line.port.to_string(),
        };
        let (word, style) = match (line.verified, &line.why) {
            (true, _) => ("verified".to_owned(), GREEN),
            (false, Some(why)) => (format!("not opened: {why}"), Style::new()),
            (false, None) => (String::new(), FAINT),
        };
        ([line.service.clone(), line.protocol.clone(), line.kind.clone(), port, word], style)
    }));
    table(&cells)
}
