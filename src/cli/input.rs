//! The options that name files and the host, and what comes of them.

use super::{Error, Options};
use crate::daemon::DEFAULT_POLICY_PATH;
use crate::daemon::ask;
use crate::daemon::identity::Identity;
use crate::daemon::load::{self, HostChoice, Site, Sources};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::session::Session;
use crate::plan;
use crate::ruleset::Ruleset;
use crate::trackers::Report;
use std::path::{Path, PathBuf};

impl Options {
    /// The files, by default those of the system.
    pub(super) fn sources(&self) -> Sources {
        let policy = self.policy.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_POLICY_PATH));
        Sources { policy, catalogue: self.catalogue.clone() }
    }

    /// The host that was asked for.
    pub(super) fn choice(&self) -> HostChoice {
        self.host.clone().map_or(HostChoice::Local, HostChoice::Named)
    }

    /// Loads the policy.
    pub(super) fn site(&self) -> Result<Site, Error> {
        Ok(Site::load(&self.sources())?)
    }
}

/// What this process knows of the session that it belongs to, in the form of `SSH_CONNECTION`: from its ancestors'
/// sockets, which the daemon may lack the capability to see, else what sshd has told. The daemon believes it only where
/// the kernel has such a connection.
pub(super) fn session_hint() -> Option<String> {
    let found = Session::of_process(std::process::id()).ok().flatten();
    found.map(|session| session.as_hint()).or_else(|| std::env::var("SSH_CONNECTION").ok())
}

/// What this machine knows of itself.
pub(super) fn identity() -> Result<Identity, Error> {
    Ok(Identity::of_this_host().map_err(load::Error::Identity)?)
}

/// What the daemon says of dynamic ports; `None` when none answers.
pub(super) fn dynamic_report(control_socket: &Path) -> Option<Report> {
    match ask(control_socket, &Request::Status) {
        Ok(Reply::Status(status)) => Some(status.dynamic),
        _ => None,
    }
}

/// Opens in a ruleset the dynamic ports that the daemon has open: they belong to what the kernel should hold. Without a
/// daemon none do.
pub(super) fn keep_open(ruleset: &mut Ruleset, control_socket: &Path) {
    if let Some(report) = dynamic_report(control_socket) {
        plan::open(ruleset, &report.open_ports());
    }
}
