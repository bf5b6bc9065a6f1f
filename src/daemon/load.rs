//! From files to a policy and the host that it is applied to: what the daemon and every subcommand begin with.

use super::identity::Identity;
use super::session::Session;
use crate::plan::{HostError, Plan, find_host};
use crate::policy::{Catalogue, Diagnostics, DynamicService, Exposure, Host, LoadError, Policy, read_source};
use crate::ruleset::Ruleset;
use crate::trackers::Watched;
use nix::errno::Errno;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The files that a ruleset comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The policy.
    pub policy: PathBuf,
    /// The catalogue in place of the embedded one.
    pub catalogue: Option<PathBuf>,
}

/// How the host of the policy that this machine is gets chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostChoice {
    /// The one with this name.
    Named(String),
    /// By the machine's addresses, else by its name.
    Local,
    /// The first console in the order of names: for a sandbox, which is nobody.
    FirstConsole,
}

/// Why there is nothing to enforce.
#[derive(Debug, Error)]
pub enum Error {
    /// A file does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The host is not in the policy.
    #[error("{}: {source}", .policy.display())]
    Host {
        /// The policy.
        policy: PathBuf,
        /// Why.
        source: HostError,
    },
    /// The policy has no console for a sandbox.
    #[error("{}: the policy has no host with the role `console`; say with --host which host the sandbox shall be", .0.display())]
    NoConsole(PathBuf),
    /// Under the policy no administrator could log in any more.
    #[error(
        "{}: no address of the group `admin` could reach 22/tcp on host {host} under this policy; add the administrators' \
         addresses to `admin` in [groups], or write `allow-lockout = true` at the top of the file if that is meant",
        .policy.display()
    )]
    Lockout {
        /// The policy.
        policy: PathBuf,
        /// The host.
        host: String,
    },
    /// Under the policy whoever asked for it could not log in again.
    #[error(
        "{}: your own SSH session ({session}) could not be opened again on host {host} under this policy, so it is not \
         applied; add that address to `admin` in [groups], or repeat the command with --force if that is meant",
        .policy.display()
    )]
    OwnSession {
        /// The policy.
        policy: PathBuf,
        /// The host.
        host: String,
        /// The session.
        session: Session,
    },
    /// Under the policy one of those who are logged in could not log in again, and it may have been that one who changed the
    /// file or asked.
    #[error(
        "{}: the SSH session {session} could not be opened again on host {host} under this policy, and whoever changed it \
         may sit there, so it is not applied; add that address to `admin` in [groups], or give \
         `portward reload --force` if that is meant",
        .policy.display()
    )]
    OpenSession {
        /// The policy.
        policy: PathBuf,
        /// The host.
        host: String,
        /// The session.
        session: Session,
    },
    /// The kernel does not tell the machine's addresses or name.
    #[error("this machine's addresses and name cannot be read")]
    Identity(#[source] Errno),
}

/// The texts of the files, to see whether they differ from what was loaded before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// The policy's.
    pub policy: String,
    /// The catalogue's, unless the built-in one serves.
    pub catalogue: Option<String>,
}

impl Texts {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// One of them cannot be read.
    pub fn read(sources: &Sources) -> Result<Self, LoadError> {
        Self::with_policy(read_source(&sources.policy)?, sources)
    }

    /// Reads the catalogue for a policy that is at hand.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn with_policy(policy: String, sources: &Sources) -> Result<Self, LoadError> {
        Ok(Self { policy, catalogue: sources.catalogue.as_deref().map(read_source).transpose()? })
    }
}

/// A policy with the catalogue that it refers to.
#[derive(Debug, Clone)]
pub struct Site {
    /// The policy.
    pub policy: Policy,
    /// The catalogue.
    pub catalogue: Cow<'static, Catalogue>,
    /// Where the policy was read.
    pub path: PathBuf,
    /// What may not be meant.
    pub warnings: Diagnostics,
}

impl Site {
    /// Reads and checks the files.
    ///
    /// # Errors
    ///
    /// A file does not load.
    pub fn load(sources: &Sources) -> Result<Self, LoadError> {
        Self::parse(&Texts::read(sources)?, sources)
    }

    /// Checks texts that were read from these files.
    ///
    /// # Errors
    ///
    /// A text is wrong.
    pub fn parse(texts: &Texts, sources: &Sources) -> Result<Self, LoadError> {
        let invalid = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Invalid { path, source }
        };
        let catalogue = match (&texts.catalogue, &sources.catalogue) {
            (Some(text), Some(path)) => {
                Cow::Owned(Catalogue::parse(text, &path.display().to_string()).map_err(invalid(path))?)
            }
            _ => Cow::Borrowed(Catalogue::embedded()),
        };
        let path = &sources.policy;
        let loaded = Policy::parse(&texts.policy, &path.display().to_string(), &catalogue).map_err(invalid(path))?;
        Ok(Self { policy: loaded.policy, catalogue, path: path.clone(), warnings: loaded.warnings })
    }

    /// The host of the policy that is chosen, and how it was found, such as `by address 10.0.0.10`.
    ///
    /// # Errors
    ///
    /// None or several.
    pub fn find(&self, choice: &HostChoice, identity: &Identity) -> Result<(&Host, String), Error> {
        let failed = |source| Error::Host { policy: self.path.clone(), source };
        match choice {
            HostChoice::Named(name) => {
                let host = find_host(&self.policy, Some(name), &[], "").map_err(failed)?;
                Ok((host, "by --host".to_owned()))
            }
            HostChoice::Local => {
                let host = find_host(&self.policy, None, &identity.addresses, &identity.hostname).map_err(failed)?;
                let address = host.addresses.iter().find(|address| identity.addresses.contains(address));
                Ok((
                    host,
                    match address {
                        Some(address) => format!("by address {address}"),
                        None => format!("by host name {}", identity.hostname),
                    },
                ))
            }
            HostChoice::FirstConsole => {
                let host = self.policy.hosts.values().find(|host| host.is_console());
                let host = host.ok_or_else(|| Error::NoConsole(self.path.clone()))?;
                Ok((host, "the policy's first console".to_owned()))
            }
        }
    }

    /// What is planned for a host.
    pub fn plan<'a>(&'a self, host: &'a Host) -> Plan<'a> {
        Plan::new(&self.policy, &self.catalogue, host)
    }

    /// What the kernel of a host shall hold.
    ///
    /// # Errors
    ///
    /// The policy would lock the administrators out.
    pub fn ruleset(&self, host: &Host) -> Result<Ruleset, Error> {
        let plan = self.plan(host);
        admits_admin(&plan, &self.path)?;
        Ok(plan.ruleset())
    }

    /// The services with dynamic ports that the host exposes.
    pub fn watched(&self, host: &Host) -> Vec<Watched> {
        let own_ports = |service: &DynamicService| match &service.exposure {
            Exposure::Row(row) => self.catalogue.row(row).map_or_else(Vec::new, |row| row.ports.clone()),
            Exposure::From(_) => Vec::new(),
        };
        let exposed = self.plan(host).dynamic;
        let services = exposed.into_iter().map(|exposed| exposed.service);
        services.map(|service| Watched { service: service.clone(), own_ports: own_ports(service) }).collect()
    }
}

/// Whether the administrators can log in under a plan, or that is not meant.
///
/// # Errors
///
/// They are locked out.
pub(super) fn admits_admin(plan: &Plan<'_>, policy: &Path) -> Result<(), Error> {
    if plan.locks_out_admin() {
        return Err(Error::Lockout { policy: policy.to_owned(), host: plan.host.name.clone() });
    }
    Ok(())
}
