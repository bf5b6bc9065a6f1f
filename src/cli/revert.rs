//! `portward revert`.

use super::flows::note_denied;
use super::output::{Answer, Code};
use super::{Error, other_answer};
use crate::daemon::protocol::{Reply, Request};
use crate::daemon::{DEFAULT_CONTROL_SOCKET, ask};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Take back the policy that is on trial, without waiting
///
/// What was enforced before `portward try` is enforced again. Ctrl-C in the terminal where `portward try` waits does the
/// same.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward revert")]
pub(super) struct Revert {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Revert {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        match ask(&self.control_socket, &Request::Revert)? {
            Reply::Reverted { changes, flows } if self.json => {
                Answer::json(&json!({ "reverted": true, "changes": changes, "flows": flows }), Code::Fine)
            }
            Reply::Error(error) if self.json => {
                Answer::json(&json!({ "reverted": false, "error": error }), Code::Error)
            }
            Reply::Reverted { changes, flows } => {
                note_denied(flows.as_ref());
                Ok(Answer::fine(format!("taken back; changed in the kernel: {changes}\n")))
            }
            Reply::Error(message) => Err(Error::Refused(message)),
            _ => Err(other_answer()),
        }
    }
}
