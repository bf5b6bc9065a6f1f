//! The options that name files and the host, and what comes of them.

use super::{Error, Options};
use crate::daemon::DEFAULT_POLICY_PATH;
use crate::daemon::ask;
use crate::daemon::identity::Identity;
use crate::daemon::load::{self, HostChoice, Site, Sources};
use crate::daemon::protocol::{Reply, Request};
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

/// What this machine knows of itself.
pub(super) fn identity() -> Result<Identity, Error> {
    Ok(Identity::of_this_host().map_err(load::Error::Identity)?)
}

/// What the daemon says of dynamic ports; `None` when none answers.
pub(super) fn dynamic_report(control_socket: &Path) -> Option<Report> {
    match ask(control_socket, Request::Status) {
        Ok(Reply::Status(status)) => Some(status.dynamic),
        _ => None,
    }
}
