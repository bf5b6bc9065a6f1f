//! The start of the daemon when all is not well: before the network is up, without a policy that loads, after a trial
//! that was cut short.
//!
//! In this order: the policy file; the table that an earlier daemon left in the kernel, unless it was on trial; the last
//! good policy on disk; the fail-safe. Without any of them the start fails, and nothing is enforced. The table mostly is
//! that of the last good policy, which then says what it means: whose the dynamic ports in it are.

use super::identity::Identity;
use super::load::{self, HostChoice, Site, Sources, Texts};
use super::status::{Enforced, Failure, Source, now};
use super::{Daemon, Desired, Error, can_be_restored};
use crate::describe;
use crate::kernel::Kernel;
use crate::plan::{self, HostError, fail_safe};
use crate::policy::{EgressMode, Host, Policy};
use crate::ruleset::Ruleset;
use crate::ruleset::diff::diff;
use crate::state::{self, Applied, FailSafe};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;
use tracing::{error, info, warn};

/// What is kept on disk of a policy that was applied.
pub(super) struct Keepsake {
    pub(super) texts: Arc<Texts>,
    pub(super) fail_safe: FailSafe,
}

impl Keepsake {
    pub(super) fn new(texts: Arc<Texts>, policy: &Policy, host: &Host) -> Self {
        Self { texts, fail_safe: fail_safe_of(policy, &host.name) }
    }
}

/// What the fail-safe must know of a policy.
fn fail_safe_of(policy: &Policy, host: &str) -> FailSafe {
    let mut admins = Vec::new();
    if let Some(members) = policy.groups.get("admin") {
        admins.extend(members.ipv4.iter().map(|member| IpNet::V4(member.network)));
        admins.extend(members.ipv6.iter().map(|member| IpNet::V6(member.network)));
    }
    FailSafe { host: host.to_owned(), mode: policy.mode, fail: policy.fail, admins }
}

impl<K: Kernel> Daemon<K> {
    /// The host of the policy that this machine is. Before the network is up a machine has no addresses, and its host
    /// name may be none of the policy's: then it is the host that it was before, for the time being.
    pub(super) fn find<'s>(&mut self, site: &'s Site, identity: &Identity) -> Result<(&'s Host, String), load::Error> {
        let error = match site.find(&self.config.host, identity) {
            Err(error @ load::Error::Host { .. }) => error,
            found => return found,
        };
        self.host_unknown = true;
        if !matches!(&error, load::Error::Host { source: HostError::None { .. }, .. }) || has_address(identity) {
            return Err(error);
        }
        let remembered = self.store.fail_safe().ok().flatten();
        match remembered.and_then(|remembered| site.policy.hosts.get(&remembered.host)) {
            Some(host) => Ok((host, "as before; the machine has no address yet".to_owned())),
            None => Err(error),
        }
    }

    /// Keeps what is enforced for the next boot.
    pub(super) fn remember(&mut self, cause: &str, user: &str) {
        let Some(keepsake) = self.desired.as_ref().and_then(|desired| desired.keepsake.as_ref()) else { return };
        let Texts { policy, catalogue } = (*keepsake.texts).clone();
        let (user, cause, host) = (user.to_owned(), cause.to_owned(), keepsake.fail_safe.host.clone());
        let applied = Applied { time: now(), user, cause, host, policy, catalogue };
        // Who may log in comes first: it is what the last resort needs.
        let result = self.store.set_fail_safe(&keepsake.fail_safe).and_then(|()| self.store.record(&applied));
        match result {
            Ok(_) => self.status.send_modify(|status| status.state_error = None),
            Err(error) => {
                self.note_state_error(&error);
            }
        }
    }

    /// Tells that the state on disk is not as it should be.
    pub(super) fn note_state_error(&mut self, error: &state::Error) -> String {
        let message = describe(error);
        let since = match &self.status.borrow().state_error {
            Some(known) if known.message == message => known.since,
            _ => {
                error!("the next boot may not find what is enforced now: {message}");
                now()
            }
        };
        let failure = Failure { since, message: message.clone() };
        self.status.send_modify(|status| status.state_error = Some(failure));
        message
    }

    /// Tells which files of the state are damaged, before they are replaced by the next policy.
    pub(super) fn inspect_state(&self) {
        let entries = self.store.history().map(|entries| entries.into_iter().filter_map(|entry| entry.applied.err()));
        let errors: Vec<_> = match entries {
            Ok(errors) => errors.collect(),
            Err(error) => vec![error],
        };
        let others = [self.store.last_good().err(), self.store.fail_safe().err()];
        for error in errors.into_iter().chain(others.into_iter().flatten()) {
            warn!("the state on disk: {}", describe(&error));
        }
    }

    /// Whether the daemon ended while a policy was on trial, and that was not kept. The table in the kernel, if there
    /// still is one, is then that of the trial.
    pub(super) fn note_interrupted_trial(&mut self) -> bool {
        let (label, since, policy) = match self.store.trial() {
            Ok(None) => return false,
            Ok(Some(pending)) => (pending.label, pending.time, Some(pending.policy)),
            Err(error) => {
                warn!("a policy was on trial: {}", describe(&error));
                ("unknown".to_owned(), 0, None)
            }
        };
        let in_file = Texts::read(&self.config.sources).is_ok_and(|texts| Some(texts.policy) == policy);
        if in_file {
            info!("{label} was on trial when the daemon ended, and stays: the policy file holds it");
            self.note_end_of_trial(label, since, true, "the policy file holds it");
        } else {
            warn!("{label} was on trial when the daemon ended, and is taken back");
            self.note_end_of_trial(label, since, false, "the daemon ended meanwhile");
        }
        !in_file
    }

    /// Finds what to enforce although the policy file is of no use.
    pub(super) async fn start_without_policy(&mut self, error: load::Error, was_trial: bool) -> Result<(), Error> {
        let snapshot = self.reconciler.snapshot()?;
        let table = snapshot.table.clone();
        let can_be_restored = snapshot.foreign.is_empty() && table.as_ref().is_some_and(can_be_restored);
        if (table.is_none() || was_trial)
            && let Some(desired) = self.last_resort()
        {
            self.want(desired);
            self.note_policy_error(&error, true);
            self.bring_into_step("the policy does not load")?;
            return Ok(());
        }
        let Some(table) = table else { return Err(error.into()) };
        if can_be_restored && let Some(desired) = self.policy_of(&table) {
            self.want(desired);
            self.adopt().await?;
            self.note_policy_error(&error, true);
            warn!("the table in the kernel is that of the last good policy, and stays until the policy loads");
            self.bring_into_step("the policy does not load")?;
            return Ok(());
        }
        if can_be_restored {
            let (source, keepsake) = (Source::EarlierDaemon, None);
            // Nobody knows whose ports the dynamic ones were: they are closed.
            let services = Vec::new();
            self.want(Desired { ruleset: table, services, site: None, enforced: None, source, keepsake });
        }
        self.note_policy_error(&error, true);
        warn!("the table that is in the kernel stays until the policy loads");
        self.listen();
        self.status.send_modify(|status| status.source = Source::EarlierDaemon);
        self.publish();
        Ok(())
    }

    /// The last good policy, if this table is what it means, whichever dynamic ports are open in it.
    fn policy_of(&mut self, table: &Ruleset) -> Option<Desired> {
        let applied = self.store.last_good().ok()??;
        let desired = self.desired_of(applied).ok()?;
        let mut closed = table.clone();
        plan::open(&mut closed, &plan::OpenPorts::new());
        diff(Some(&closed), Some(&desired.ruleset)).is_empty().then_some(desired)
    }

    /// The last good policy, else the fail-safe, else nothing.
    fn last_resort(&mut self) -> Option<Desired> {
        match self.store.last_good() {
            Ok(Some(applied)) => match self.desired_of(applied) {
                Ok(desired) => {
                    warn!("the last good policy is enforced until the policy loads");
                    return Some(desired);
                }
                Err(error) => error!("the last good policy does not load: {}", describe(&error)),
            },
            Ok(None) => {}
            Err(error) => {
                self.note_state_error(&error);
            }
        }
        let known = self.known_fail_safe()?;
        error!(
            "the fail-safe is enforced until the policy loads: SSH for the last known administrators, the rest is {}",
            known.fail.name()
        );
        Some(Desired {
            ruleset: fail_safe(&known.admins, known.fail, known.mode),
            services: Vec::new(),
            site: None,
            enforced: Some(Enforced {
                host: known.host,
                found: "as before".to_owned(),
                mode: known.mode.name().to_owned(),
                egress: EgressMode::Off.name().to_owned(),
                loaded: now(),
                warnings: Vec::new(),
            }),
            source: Source::FailSafe,
            keepsake: None,
        })
    }

    /// What a policy that was applied before means. It was found good then, perhaps by force, and is not judged again.
    fn desired_of(&mut self, applied: Applied) -> Result<Desired, load::Error> {
        let name = applied.host.clone();
        let site = site_of(applied, &self.config.sources)?;
        let identity = Identity::of_this_host().map_err(load::Error::Identity)?;
        // The machine may be another host of the policy by now, after a change of its addresses.
        let (host, found) = match site.find(&self.config.host, &identity) {
            Ok(found) => found,
            Err(_) => {
                let (host, _) = site.find(&HostChoice::Named(name), &identity)?;
                (host, "as before".to_owned())
            }
        };
        let warnings = site.warnings.iter().map(ToString::to_string).collect();
        let enforced = Enforced::new(&site, host, found, warnings);
        let ruleset = site.plan(host).ruleset();
        let services = site.watched(host);
        let (source, keepsake) = (Source::LastGood, None);
        Ok(Desired { ruleset, services, site: Some(Arc::new(site)), enforced: Some(enforced), source, keepsake })
    }

    /// Who may log in: as it was kept, else as the newest applied policy that is whole says.
    fn known_fail_safe(&mut self) -> Option<FailSafe> {
        match self.store.fail_safe() {
            Ok(Some(known)) => return Some(known),
            Ok(None) => {}
            Err(error) => {
                self.note_state_error(&error);
            }
        }
        let history = self.store.history().ok()?;
        history.into_iter().filter_map(|entry| entry.applied.ok()).find_map(|applied| {
            let host = applied.host.clone();
            site_of(applied, &self.config.sources).ok().map(|site| fail_safe_of(&site.policy, &host))
        })
    }
}

/// The policy and the catalogue of an applied policy, named for the files that they came from.
fn site_of(applied: Applied, sources: &Sources) -> Result<Site, crate::policy::LoadError> {
    let Applied { policy, catalogue, .. } = applied;
    let mut sources = sources.clone();
    if catalogue.is_some() && sources.catalogue.is_none() {
        sources.catalogue = Some(sources.policy.with_file_name("catalogue.toml"));
    }
    Site::parse(&Texts { policy, catalogue }, &sources)
}

/// Whether the machine has an address that a policy could name. Link-local ones come with every interface.
fn has_address(identity: &Identity) -> bool {
    identity.addresses.iter().any(|address| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}
