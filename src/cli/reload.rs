//! `portward reload`.

use super::flows::note_denied;
use super::input::session_hint;
use super::output::{Answer, Code};
use super::{Error, other_answer};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Have the daemon read the policy now, and say how that went
///
/// The daemon follows the file by itself; this is for scripts that must know the outcome, and for a file that it has held
/// back because somebody who is logged in by SSH could not log in again. When the policy does not load, the error is
/// printed, the exit code is 2, and what was enforced stays. So it is, too, when the policy would not let the SSH session
/// in again over which this command is given, or no administrator at all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward reload
  portward reload --force     even if I cannot log in any more")]
pub(super) struct Reload {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Apply it even where that cuts your own SSH session, or locks the administrators out
    #[arg(long)]
    force: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let request = Request::Reload { force: self.force, session: session_hint(), cause: None };
        match ask(&self.control_socket, &request)? {
            Reply::Reloaded { changes, flows } if self.json => {
                Answer::json(&json!({ "reloaded": true, "changes": changes, "flows": flows }), Code::Fine)
            }
            Reply::Error(error) if self.json => {
                Answer::json(&json!({ "reloaded": false, "error": error }), Code::Error)
            }
            Reply::Reloaded { changes, flows } => {
                note_denied(flows.as_ref());
                Ok(Answer::fine(format!("reloaded; changed in the kernel: {changes}\n")))
            }
            Reply::Error(message) => Err(Error::Refused(message)),
            _ => Err(other_answer()),
        }
    }
}
