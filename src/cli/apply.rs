//! `portward apply`.

use super::input::{identity, keep_open};
use super::output::{Answer, Code, note, warn};
use super::{Error, Options, status};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::daemon::reconcile::Reconciler;
use crate::kernel::Netlink;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Enforce the policy once, without a daemon
///
/// Brings table `inet portward` to what the policy says, by the difference and in one transaction, and ends. Nobody then
/// follows the policy file; that is what `portward run` does. A running daemon takes the table back to its own policy;
/// the dynamic ports that it has open stay open.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  portward apply --policy new.toml")]
pub(super) struct Apply {
    /// The daemon's control socket, for the dynamic ports that are open
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Apply {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let site = options.site()?;
        let (host, found) = site.find(&options.choice(), &identity()?)?;
        let mut ruleset = site.ruleset(host)?;
        keep_open(&mut ruleset, &self.control_socket);
        site.warnings.iter().for_each(warn);
        let outcome = Reconciler::new(Netlink::open()?).apply(&ruleset)?;
        if self.json {
            let value = json!({
                "host": host.name,
                "found": found,
                "changes": outcome.changes,
                "count": outcome.count,
                "generation": outcome.generation,
                "foreign": outcome.foreign,
            });
            return Answer::json(&value, Code::Fine);
        }
        let mut text = String::new();
        for object in &outcome.foreign {
            text.push_str(&format!("was in the table and is gone: {object}\n"));
        }
        let name = &host.name;
        text.push_str(&match outcome.is_nothing() {
            true => format!("host {name} ({found}): the kernel already holds what the policy says\n"),
            false => format!("host {name} ({found}): {}\n", outcome.changes),
        });
        if let (false, Ok(daemon)) = (outcome.is_nothing(), status::of_daemon(&self.control_socket)) {
            note(&format!(
                "a daemon is running (process {}) and takes the table back to {}; `portward try` is for another policy",
                daemon.pid,
                daemon.policy.display()
            ));
        }
        Ok(Answer::fine(text))
    }
}
