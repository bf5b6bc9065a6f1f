//! `portward down`.

use super::Error;
use super::output::{Answer, Code};
use crate::daemon::reconcile::Reconciler;
use crate::kernel::Netlink;
use clap::Args;
use serde_json::json;

/// Remove portward's table from the kernel: the host is then open
///
/// Stop the daemon first (`systemctl stop portward`), which otherwise puts the table back at once.
#[derive(Debug, Args)]
pub(super) struct Down {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Down {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let outcome = Reconciler::new(Netlink::open()?).remove()?;
        let removed = !outcome.is_nothing();
        if self.json {
            return Answer::json(&json!({ "removed": removed, "generation": outcome.generation }), Code::Fine);
        }
        Ok(Answer::fine(if removed { "the table is removed\n" } else { "there is no table\n" }))
    }
}
