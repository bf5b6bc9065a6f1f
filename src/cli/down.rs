//! `portward down`.

use super::Error;
use super::output::{Answer, Code};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::reconcile::Reconciler;
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use crate::kernel::Netlink;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Remove portward's table from the kernel: the host is then open
///
/// Stop the daemon first (`systemctl stop portward`), which otherwise puts the table back at once.
#[derive(Debug, Args)]
pub(super) struct Down {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The daemon's control socket, to say when a daemon would put the table back
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,
}

impl Down {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let outcome = Reconciler::new(Netlink::open()?).remove()?;
        let removed = !outcome.is_nothing();
        if self.json {
            return Answer::json(&json!({ "removed": removed, "generation": outcome.generation }), Code::Fine);
        }
        let mut text = if removed { "the table is removed\n" } else { "there is no table\n" }.to_owned();
        if let Some(pid) = running_daemon(&self.control_socket) {
            text.push_str(&format!(
                "a daemon is running (process {pid}) and puts it back at once: stop it first, then repeat this\n"
            ));
        }
        Ok(Answer::fine(text))
    }
}

/// The process of the daemon that serves this socket, if there is one.
fn running_daemon(socket: &Path) -> Option<u32> {
    match ask(socket, &Request::Status) {
        Ok(Reply::Status(status)) => Some(status.pid),
        _ => None,
    }
}
