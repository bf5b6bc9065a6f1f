//! What could keep portward from doing its work on this machine, and what to do about it.
//!
//! Each subject is a file. It has a type with what was seen, a function `look` that sees it and changes nothing, and a
//! function `findings` that judges it: pure, so that a nearly full table or a wrong clock can be tested anywhere. What
//! cannot be seen, such as without root, is a finding, too.
#![forbid(unsafe_code)]

mod clock;
mod connections;
mod enforcement;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod kernel;
mod neighbours;
mod processes;
mod service;

use crate::daemon::load::{HostChoice, Sources};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::status::Status;
use crate::daemon::{ClientError, ask};
use crate::describe;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know, or not to be seen.
    Note,
    /// Will do harm some day, or does less than it should.
    Warning,
    /// Something does not work.
    Problem,
}

/// Something about this machine. The fields are documented in docs/json.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `conntrack`: stable words.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do; `None` when there is nothing to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, severity: Severity, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        Self { check, severity, found: found.into(), remedy }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, found, "")
    }

    fn note(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Note, found, remedy)
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, found, remedy)
    }

    fn problem(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Severity::Problem, found, remedy)
    }

    /// Something that could not be looked at, and why.
    fn unseen(check: &'static str, why: impl std::fmt::Display) -> Self {
        Self::new(check, Severity::Note, format!("could not be looked at: {why}"), "")
    }
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The policy that was asked for; `None`: the daemon's, else the usual one.
    pub policy: Option<PathBuf>,
    /// The catalogue in place of the embedded one.
    pub catalogue: Option<PathBuf>,
    /// The host of the policy.
    pub host: HostChoice,
    /// Where the daemon answers.
    pub control_socket: PathBuf,
}

/// Looks at everything, from the kernel up to the service. Changes nothing on this machine: what the kernel can do is
/// tried out in a network namespace that is thrown away.
pub fn examine(place: &Place) -> Vec<Finding> {
    let daemon = Daemon::ask(&place.control_socket);
    let status = daemon.status();
    let mut findings = kernel::Kernel::look().findings();
    findings.extend(processes::Processes::look(status).findings());
    findings.extend(enforcement::Enforcement::look(place, &daemon).findings());
    findings.extend(service::Service::look(status).findings());
    findings.extend(neighbours::Neighbours::look().findings());
    findings.extend(connections::Connections::look().findings());
    findings.extend(clock::Clock::look().findings());
    findings
}

/// What the control socket answers.
enum Daemon {
    /// It runs.
    Runs(Box<Status>),
    /// Nobody answers.
    None,
    /// It may run, but the caller may not ask.
    Unseen(String),
    /// It does not answer as it should.
    Broken(String),
}

impl Daemon {
    fn ask(control_socket: &Path) -> Self {
        match ask(control_socket, &Request::Status) {
            Ok(Reply::Status(status)) => Self::Runs(status),
            // Whoever may connect and is not root is told so.
            Ok(Reply::Error(message)) => Self::Unseen(message),
            Ok(_) => Self::Broken("it answered another question".to_owned()),
            Err(ClientError::NoDaemon(_)) => Self::None,
            Err(error @ ClientError::NotAllowed(_)) => Self::Unseen(error.to_string()),
            Err(error) => Self::Broken(describe(&error)),
        }
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Runs(status) => Some(status),
            _ => None,
        }
    }
}

impl Place {
    /// The files that the daemon enforces, or would.
    fn sources(&self, status: Option<&Status>) -> Sources {
        let policy = self.policy.clone().or_else(|| status.map(|status| status.policy.clone()));
        let policy = policy.unwrap_or_else(|| PathBuf::from(crate::daemon::DEFAULT_POLICY_PATH));
        Sources { policy, catalogue: self.catalogue.clone() }
    }
}

/// `1 day`, `2 days`.
fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// The severities of findings, for tests.
#[cfg(test)]
fn severities(findings: &[Finding]) -> Vec<Severity> {
    findings.iter().map(|finding| finding.severity).collect()
}
