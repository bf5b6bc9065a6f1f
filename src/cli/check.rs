//! `portward check`.

use super::input::identity;
use super::output::{Answer, Code, count, warn};
use super::{Error, Options};
use crate::daemon::load::{self, HostChoice, Site};
use crate::describe;
use crate::plan::HostError;
use crate::policy::Host;
use clap::Args;
use serde_json::{Value, json};

/// Check the policy: does it load, and does it fit this host?
///
/// Prints what is wrong with the file, where, and what was expected; warnings about what may not be meant; and finds out
/// which host of the policy this machine is. On a machine that is none of them, such as an administrator's, the policy is
/// checked for each of its hosts. The exit code is 0 when it is fine, with or without warnings, else 2.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward check
  portward check --policy new.toml && mv new.toml /etc/portward/policy.toml")]
pub(super) struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who the policy was checked for.
enum Checked {
    One { host: String, found: String },
    Each { why: HostError },
}

impl Check {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let result = options.site().and_then(|site| check(&site, &options.choice()).map(|checked| (site, checked)));
        let (site, checked) = match result {
            Ok(checked) => checked,
            Err(error) if self.json => return Answer::json(&failure(&error), Code::Error),
            Err(error) => return Err(error),
        };
        if self.json {
            return Answer::json(&report(&site, &checked), Code::Fine);
        }
        for warning in site.warnings.iter() {
            warn(warning);
        }
        let policy = &site.policy;
        let mut text = format!("{}: fine", site.path.display());
        let sizes = [
            count(policy.hosts.len(), "host"),
            count(policy.groups.len(), "group"),
            count(policy.allows.len(), "row") + " of its own",
        ];
        text.push_str(&format!(": {}; ", sizes.join(", ")));
        text.push_str(&match &checked {
            Checked::One { host, found } => format!("host {host} ({found})\n"),
            Checked::Each { why: HostError::Several { .. } } => {
                "several of its hosts could be this machine, it was checked for each host\n".to_owned()
            }
            Checked::Each { .. } => "this machine is none of its hosts, it was checked for each of them\n".to_owned(),
        });
        Ok(Answer::fine(text))
    }
}

fn check(site: &Site, choice: &HostChoice) -> Result<Checked, Error> {
    let admits = |host: &Host| site.ruleset(host).map(|_| ());
    match site.find(choice, &identity()?) {
        Ok((host, found)) => {
            admits(host)?;
            Ok(Checked::One { host: host.name.clone(), found })
        }
        Err(load::Error::Host { source, .. }) if *choice == HostChoice::Local => {
            site.policy.hosts.values().try_for_each(admits)?;
            Ok(Checked::Each { why: source })
        }
        Err(error) => Err(error.into()),
    }
}

fn report(site: &Site, checked: &Checked) -> Value {
    let (host, found) = match checked {
        Checked::One { host, found } => (Some(host), Some(found)),
        Checked::Each { .. } => (None, None),
    };
    json!({
        "fine": true,
        "policy": site.path,
        "host": host,
        "found": found,
        "hosts": site.policy.hosts.keys().collect::<Vec<_>>(),
        "groups": site.policy.groups.keys().collect::<Vec<_>>(),
        "rows": site.policy.allows.keys().collect::<Vec<_>>(),
        "warnings": site.warnings.list,
    })
}

fn failure(error: &Error) -> Value {
    let diagnostics = match error {
        Error::Load(load::Error::Load(error)) => error.diagnostics(),
        _ => None,
    };
    json!({
        "fine": false,
        "message": describe(error),
        "errors": diagnostics.map(|diagnostics| &diagnostics.list).cloned().unwrap_or_default(),
    })
}
