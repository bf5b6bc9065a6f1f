//! A process that holds listeners, with who it was when somebody looked.

use super::sockets::{Holder, Identity};
use crate::listeners::{self, Process, ProcessError, user_id};
use crate::policy::ProcessMatch;
use std::sync::Arc;

/// A process and its identity of one moment.
#[derive(Debug)]
pub(super) struct ProcessHolder {
    pub(super) process: Arc<Process>,
    pub(super) identity: listeners::Identity,
}

impl ProcessHolder {
    /// Looks at a process.
    pub(super) fn look(process: &Arc<Process>) -> Result<Self, ProcessError> {
        Ok(Self { process: process.clone(), identity: process.identity()? })
    }
}

impl Holder for ProcessHolder {
    fn identity(&self) -> Identity {
        (self.identity.pid, self.identity.start_time)
    }

    fn unit(&self) -> Option<&str> {
        self.identity.unit.as_deref()
    }

    fn check(&self, wanted: &ProcessMatch) -> Result<(), String> {
        self.identity.matches(wanted).map_err(|mismatch| mismatch.to_string())
    }

    fn check_user(&self, wanted: &ProcessMatch) -> Result<(), String> {
        let only_user = ProcessMatch { user: wanted.user.clone(), ..ProcessMatch::default() };
        self.check(&only_user)
    }

    fn describe(&self) -> String {
        format!("{} (process {})", super::shown(&self.identity.name), self.identity.pid)
    }
}

/// The number of the user that a policy names; `None` when there is none, or no such user.
pub(super) fn wanted_user(wanted: &ProcessMatch) -> Option<u32> {
    user_id(wanted.user.as_deref()?).ok().flatten()
}
