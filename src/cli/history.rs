//! `portward history`.

use super::Error;
use super::output::{Answer, BOLD, Code, FAINT, RED, table};
use crate::describe;
use crate::state::{Applied, DEFAULT_STATE_DIR, Entry, Store, utc};
use anstyle::Style;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show the policies that were applied on this machine
///
/// The last ten, the newest first: when, by whom, why, and the SHA-256 hash of the policy's text, as sha256sum prints it.
/// Entry 0 was applied last. With a number, the text of that entry is printed. Needs root, but no daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward history
  portward history 1 | diff - /etc/portward/policy.toml")]
pub(super) struct History {
    /// Print the policy of this entry
    entry: Option<usize>,

    /// The daemon's state folder
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much of a hash is shown to people.
const HASH_SHOWN: usize = 12;

impl History {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let mut history = Store::new(&self.state_dir).history()?;
        if let Some(number) = self.entry {
            let applied = take(&mut history, number)?;
            return match self.json {
                true => Answer::json(&json!({ "entry": number, "policy": applied.policy }), Code::Fine),
                false => Ok(Answer::fine(applied.policy)),
            };
        }
        if self.json {
            let entries: Vec<Value> = history.iter().enumerate().map(|(number, entry)| value(number, entry)).collect();
            return Answer::json(&json!({ "entries": entries }), Code::Fine);
        }
        if history.is_empty() {
            return Ok(Answer::fine(format!("{} holds no applied policy\n", self.state_dir.display())));
        }
        let mut lines = vec![(["", "applied", "by", "host", "sha256", "cause"].map(str::to_owned), BOLD)];
        lines.extend(history.iter().enumerate().map(|(number, entry)| line(number, entry)));
        Ok(Answer::fine(table(&lines)))
    }
}

/// One entry, if it is there and whole.
pub(super) fn take(history: &mut Vec<Entry>, number: usize) -> Result<Applied, Error> {
    if number >= history.len() {
        return Err(Error::Usage(match history.len() {
            0 => "no policy was applied yet".to_owned(),
            length => format!("there is no entry {number}: `portward history` has 0 to {}", length - 1),
        }));
    }
    Ok(history.swap_remove(number).applied?)
}

fn line(number: usize, entry: &Entry) -> ([String; 6], Style) {
    match &entry.applied {
        Ok(applied) => {
            let hash = applied.hash().chars().take(HASH_SHOWN).collect();
            let cells = [utc(applied.time), applied.user.clone(), applied.host.clone(), hash, applied.cause.clone()];
            let [time, user, host, hash, cause] = cells;
            ([number.to_string(), time, user, host, hash, cause], if number == 0 { Style::new() } else { FAINT })
        }
        Err(error) => {
            let none = String::new;
            ([number.to_string(), "damaged".to_owned(), none(), none(), none(), describe(error)], RED)
        }
    }
}

fn value(number: usize, entry: &Entry) -> Value {
    match &entry.applied {
        Ok(applied) => json!({
            "entry": number,
            "at": applied.time,
            "user": applied.user,
            "cause": applied.cause,
            "host": applied.host,
            "sha256": applied.hash(),
            "bytes": applied.policy.len(),
            "own_catalogue": applied.catalogue.is_some(),
            "file": entry.path,
            "error": null,
        }),
        Err(error) => json!({ "entry": number, "file": entry.path, "error": describe(error) }),
    }
}
