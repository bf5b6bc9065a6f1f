//! `portward enforce`.

use super::input::identity;
use super::observe_report::Observed;
use super::output::{Answer, Code, note, print};
use super::try_policy::Try;
use super::{Error, Options, status};
use crate::daemon::DEFAULT_CONTROL_SOCKET;
use crate::daemon::load::{HostChoice, Site, Sources, Texts};
use crate::daemon::protocol::TRIAL_SECONDS;
use crate::policy::{Mode, read_source, with_mode};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Go from observing to enforcing, and back unless it is confirmed
///
/// Tries the policy file with `mode = "enforce"` in it, as `portward try` does: log in anew, and give `portward confirm`
/// there. Only that writes the file, in which nothing but the mode changes. `portward observe-report` says beforehand what
/// would be denied. The mode of outgoing traffic, `egress`, stays as it is.
///
/// The exit code is 0 when it was confirmed or the policy enforces already, 1 when it was taken back, 2 when it was not
/// tried at all.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward enforce --timeout 60      then, from a new SSH session: portward confirm")]
pub(super) struct Enforce {
    /// After how many seconds to go back
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u32).range(i64::from(*TRIAL_SECONDS.start())..=i64::from(*TRIAL_SECONDS.end())))]
    timeout: u32,

    /// Try it even where that cuts your own SSH session, or locks the administrators out
    #[arg(long)]
    force: bool,

    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Enforce {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let daemon = status::of_daemon(&self.control_socket)?;
        let path = options.policy.clone().unwrap_or_else(|| daemon.policy.clone());
        let sources = Sources { policy: path.clone(), catalogue: options.catalogue.clone() };
        let parse =
            |text: &str| Ok::<_, Error>(Site::parse(&Texts::with_policy(text.to_owned(), &sources)?, &sources)?);
        let text = read_source(&path)?;
        let enforces_already = daemon.trial.is_none()
            && daemon.enforced.as_ref().is_some_and(|enforced| enforced.mode == Mode::Enforce.name())
            && parse(&text)?.policy.mode == Mode::Enforce;
        if enforces_already {
            let text = format!("{} enforces already\n", path.display());
            return if self.json {
                Answer::json(&json!({ "confirmed": true, "reason": text.trim_end() }), Code::Fine)
            } else {
                Ok(Answer::fine(text))
            };
        }
        let text = with_mode(&text, Mode::Enforce);
        let site = parse(&text)?;
        let known = daemon.enforced.map(|enforced| enforced.host).filter(|name| site.policy.hosts.contains_key(name));
        let choice = options.host.clone().or(known).map_or(HostChoice::Local, HostChoice::Named);
        let (host, _) = site.find(&choice, &identity()?)?;
        let in_short = Observed::read(&site, host, &self.control_socket)?.in_short();
        let told = format!("of what was observed: {in_short}; `portward observe-report` lists it\n");
        if self.json {
            note(told.trim_end());
        } else {
            // Where nobody reads it, the policy is tried all the same.
            let _ = print(&told);
        }
        let label = format!("{} with mode = \"enforce\"", path.display());
        let attempt = Try {
            file: path,
            timeout: self.timeout,
            force: self.force,
            control_socket: self.control_socket.clone(),
            json: self.json,
        };
        attempt.attempt(&text, &label, options)
    }
}
