//! `portward rollback`.

use super::flows::note_denied;
use super::history::take;
use super::input::{identity, session_hint};
use super::output::{Answer, Code, note, warn};
use super::{Error, Options, other_answer, status};
use crate::daemon::load::{self, HostChoice, Site, Sources, Texts};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::session::Session;
use crate::daemon::{ClientError, DEFAULT_CONTROL_SOCKET, ask};
use crate::policy::read_source;
use crate::state::{DEFAULT_STATE_DIR, Store, replace_policy, utc};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Go back to a policy that was applied before
///
/// Writes the text of an entry of `portward history` into the policy file, with the file's mode and owner, and has the
/// daemon apply it; without a daemon it is applied at the next start. 0 is the policy that was applied last: it undoes an
/// edit that does not load. 1, the one before it, is the default. What was in the file is kept: in the history if it was
/// applied, else beside the file.
///
/// A policy that would not let your own SSH session in again, or no administrator at all, is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward rollback           back to the policy before this one
  portward rollback 0         undo an edit that does not load
  portward rollback 3         see `portward history` for the numbers")]
pub(super) struct Rollback {
    /// Which entry of the history
    #[arg(default_value_t = 1, value_name = "N")]
    entry: usize,

    /// Apply it even where that cuts your own SSH session, or locks the administrators out
    #[arg(long)]
    force: bool,

    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Where the history is [default: where the running daemon keeps it, else /var/lib/portward]
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Rollback {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let daemon = match status::of_daemon(&self.control_socket) {
            Ok(status) => Some(status),
            Err(Error::Client(ClientError::NoDaemon(_))) => None,
            Err(error) => return Err(error),
        };
        let known = daemon.as_ref().map(|status| status.state_dir.clone());
        let store = Store::new(self.state_dir.clone().or(known).unwrap_or_else(|| DEFAULT_STATE_DIR.into()));
        let applied = take(&mut store.history()?, self.entry)?;
        if daemon.as_ref().is_some_and(|status| status.trial.is_some()) {
            let message = "a policy is on trial: `portward confirm` keeps it, `portward revert` takes it back";
            return Err(Error::Refused(message.to_owned()));
        }
        let mut sources = options.sources();
        if let (None, Some(status)) = (&options.policy, &daemon) {
            sources.policy = status.policy.clone();
        }
        if applied.catalogue.is_some() && sources.catalogue.is_none() {
            note("that policy was applied with a catalogue of its own, which is not brought back");
        }
        // Judged before anything is written, so that a refusal leaves no trace.
        self.judge(&applied.policy, &applied.host, &sources, options)?;

        let history = store.history()?;
        let is_kept = |content: &[u8]| {
            history.iter().flat_map(|entry| &entry.applied).any(|kept| kept.policy.as_bytes() == content)
        };
        let before = read_source(&sources.policy).ok();
        let replaced = replace_policy(&sources.policy, &applied.policy, is_kept)?;
        let cause = format!("rollback to the policy of {}", utc(applied.time));
        let changes = match daemon.map(|_| self.reload(&cause)).transpose() {
            Ok(changes) => changes,
            Err(error) => {
                // What the daemon does not take is not left for it to find at its next start.
                if let Some(before) = before {
                    replace_policy(&sources.policy, &before, |_| true)?;
                }
                return Err(error);
            }
        };
        if self.json {
            let value = json!({
                "rolled_back": true,
                "entry": self.entry,
                "sha256": applied.hash(),
                "policy": sources.policy,
                "backup": replaced.backup,
                "changes": changes,
            });
            return Answer::json(&value, Code::Fine);
        }
        let mut text = format!("{}: the policy of {} is back\n", sources.policy.display(), utc(applied.time));
        if let Some(backup) = replaced.backup {
            text.push_str(&format!("what was in the file is in {}\n", backup.display()));
        }
        text.push_str(&match changes {
            Some(changes) => format!("changed in the kernel: {changes}\n"),
            None => "no daemon is running: the kernel is as it was, and the next start applies it\n".to_owned(),
        });
        Ok(Answer::fine(text))
    }

    /// Whether the policy loads, and lets the caller in again.
    fn judge(&self, policy: &str, host: &str, sources: &Sources, options: &Options) -> Result<(), Error> {
        let texts = Texts::with_policy(policy.to_owned(), sources)?;
        let site = Site::parse(&texts, sources)?;
        site.warnings.iter().for_each(warn);
        let choice = options.host.clone().unwrap_or_else(|| host.to_owned());
        let (host, _) = site.find(&HostChoice::Named(choice), &identity()?)?;
        if self.force {
            return Ok(());
        }
        site.ruleset(host)?;
        let session = Session::of_process(std::process::id()).unwrap_or_else(|error| {
            note(&format!("over which session you ask cannot be found out: {error}"));
            None
        });
        match session.filter(|session| session.is_cut_by(&site.plan(host))) {
            Some(session) => {
                let (policy, host) = (sources.policy.clone(), host.name.clone());
                Err(load::Error::OwnSession { policy, host, session }.into())
            }
            None => Ok(()),
        }
    }

    fn reload(&self, cause: &str) -> Result<String, Error> {
        let request = Request::Reload { force: self.force, session: session_hint(), cause: Some(cause.to_owned()) };
        match ask(&self.control_socket, &request)? {
            Reply::Reloaded { changes, flows } => {
                note_denied(flows.as_ref().filter(|_| !self.json));
                Ok(changes)
            }
            Reply::Error(message) => Err(Error::Refused(message)),
            _ => Err(other_answer()),
        }
    }
}
