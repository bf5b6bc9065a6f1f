//! `portward down`.

use super::Error;
use super::output::{Answer, Code};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::reconcile::Reconciler;
use crate::daemon::session::network_namespace;
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use crate::kernel::Netlink;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Remove portward's table from the kernel: the host is then open
///
/// Stop the daemon first (`systemctl stop portward`): while it runs it would put the table back at once, so this is refused.
#[derive(Debug, Args)]
pub(super) struct Down {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The socket of the daemon that must not run
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,
}

impl Down {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        if let Some(pid) = running_daemon(&self.control_socket) {
            return Err(Error::Refused(format!(
                "the daemon is running (process {pid}) and would put the table back at once: stop it first, such as by \
                 `systemctl stop portward`; nothing was removed"
            )));
        }
        let outcome = Reconciler::new(Netlink::open()?).remove()?;
        let removed = !outcome.is_nothing();
        if self.json {
            return Answer::json(&json!({ "removed": removed, "generation": outcome.generation }), Code::Fine);
        }
        Ok(Answer::fine(if removed { "the table is removed\n" } else { "there is no table\n" }.to_owned()))
    }
}

/// The process of the daemon that serves this socket and guards the table of this network namespace, if it answers.
fn running_daemon(socket: &Path) -> Option<u32> {
    let Ok(Reply::Status(status)) = ask(socket, &Request::Status) else { return None };
    let namespace = |process: &str| network_namespace(&Path::new("/proc").join(process)).ok();
    (namespace(&status.pid.to_string()) == namespace("self")).then_some(status.pid)
}
