//! `portward confirm`.

use super::flows::note_denied;
use super::output::{Answer, Code};
use super::{Error, other_answer, status};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use crate::state::{Store, replace_policy};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Keep the policy that is on trial
///
/// The tried policy is written into the policy file, with the file's mode and owner, and becomes the last good one. Give
/// this command from a new SSH session: that you could log in proves the policy.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward confirm")]
pub(super) struct Confirm {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Confirm {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let daemon = status::of_daemon(&self.control_socket)?;
        if daemon.trial.is_none() {
            return Err(Error::Refused("nothing is on trial".to_owned()));
        }
        let store = Store::new(&daemon.state_dir);
        let pending = store.trial()?.ok_or_else(|| {
            Error::Refused(format!("the daemon tries a policy, but {} holds none", daemon.state_dir.display()))
        })?;
        let history = store.history()?;
        let is_kept = |content: &[u8]| {
            history.iter().flat_map(|entry| &entry.applied).any(|kept| kept.policy.as_bytes() == content)
        };
        let replaced = replace_policy(&daemon.policy, &pending.policy, is_kept)?;
        let flows = match ask(&self.control_socket, &Request::Confirm)? {
            Reply::Confirmed { flows } => flows,
            // The file is what counts: the daemon follows it, and says in its status how that went.
            Reply::Error(message) => {
                return Err(Error::Refused(format!(
                    "{message}; {} holds the tried policy now all the same, and the daemon follows it: see `portward \
                     status`",
                    daemon.policy.display()
                )));
            }
            _ => return Err(other_answer()),
        };
        if self.json {
            let value =
                json!({ "confirmed": true, "policy": daemon.policy, "backup": replaced.backup, "flows": flows });
            return Answer::json(&value, Code::Fine);
        }
        note_denied(flows.as_ref());
        let mut text = format!("confirmed: {} holds {} now\n", daemon.policy.display(), pending.label);
        if let Some(backup) = replaced.backup {
            text.push_str(&format!("what was in the file is in {}\n", backup.display()));
        }
        Ok(Answer::fine(text))
    }
}
