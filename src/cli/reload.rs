//! `portward reload`.

use super::Error;
use super::output::{Answer, Code};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Have the daemon read the policy now, and say how that went
///
/// The daemon follows the file by itself; this is for scripts that must know the outcome. When the policy does not load,
/// the error is printed, the exit code is 2, and what was enforced stays.
#[derive(Debug, Args)]
pub(super) struct Reload {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        match ask(&self.control_socket, Request::Reload)? {
            Reply::Reloaded { changes } if self.json => {
                Answer::json(&json!({ "reloaded": true, "changes": changes }), Code::Fine)
            }
            Reply::Error(error) if self.json => {
                Answer::json(&json!({ "reloaded": false, "error": error }), Code::Error)
            }
            Reply::Reloaded { changes } => Ok(Answer::fine(format!("reloaded; changed in the kernel: {changes}\n"))),
            Reply::Error(message) => Err(Error::Refused(message)),
            Reply::Status(_) => Err(Error::Refused("the daemon answered another question".to_owned())),
        }
    }
}
