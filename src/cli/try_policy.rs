//! `portward try`.

use super::input::{identity, session_hint};
use super::output::{Answer, Code, print, warn};
use super::{Error, Options, diff, other_answer, status};
use crate::daemon::load::{HostChoice, Site, Sources, Texts};
use crate::daemon::protocol::{Reply, Request, TRIAL_SECONDS};
use crate::daemon::status::{LastTrial, Status};
use crate::daemon::{ClientError, DEFAULT_CONTROL_SOCKET, ask, ask_with};
use crate::plan;
use crate::policy::read_source;
use clap::Args;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

/// Enforce another policy for the time being, and go back unless it is confirmed
///
/// Checks the file, shows what it would change, and has the daemon apply it. Then log in anew, from another terminal, and
/// give `portward confirm` there: the file's content then becomes the policy. Without that, what was enforced before comes
/// back when the time is over; at once when this command is ended by Ctrl-C or by the end of its terminal; and at the
/// next start of the daemon when the daemon or the machine fails meanwhile. Changes of the policy file wait until the
/// trial is over.
///
/// A policy that would not let your own SSH session in again, or no administrator at all, is refused. The exit code is 0
/// when the policy was confirmed, 1 when it was taken back, 2 when it was not tried at all.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward try new.toml --timeout 60      then, from a new SSH session: portward confirm")]
pub(super) struct Try {
    /// The policy to try
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// After how many seconds to go back
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u32).range(i64::from(*TRIAL_SECONDS.start())..=i64::from(*TRIAL_SECONDS.end())))]
    pub(super) timeout: u32,

    /// Try it even where that cuts your own SSH session, or locks the administrators out
    #[arg(long)]
    pub(super) force: bool,

    /// The daemon's control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    pub(super) control_socket: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How often the daemon is asked whether the trial is over.
const POLL: Duration = Duration::from_millis(250);
/// How long a daemon that does not answer may be restarting.
const PATIENCE: Duration = Duration::from_secs(15);

/// How it went.
struct End {
    confirmed: bool,
    reason: String,
}

impl From<LastTrial> for End {
    fn from(last: LastTrial) -> Self {
        Self { confirmed: last.confirmed, reason: last.reason }
    }
}

impl Try {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        self.attempt(&read_source(&self.file)?, &self.file.display().to_string(), options)
    }

    /// Tries a text that came from the file, under a name for people.
    pub(super) fn attempt(&self, policy: &str, label: &str, options: &Options) -> Result<Answer, Error> {
        let daemon = status::of_daemon(&self.control_socket)?;
        self.show_changes(policy, options, &daemon)?;

        // Signals are caught before there is anything to take back.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let end = runtime.block_on(async {
            let mut signals = Vec::new();
            for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
                signals.push(signal(kind).map_err(failed)?);
            }
            let [interrupt, terminate, hangup] = &mut signals[..] else {
                return Err(failed(io::ErrorKind::Other.into()));
            };
            let since = self.begin(policy, label)?;
            let mut poll = interval(POLL);
            let mut last_heard = Instant::now();
            loop {
                tokio::select! {
                    _ = interrupt.recv() => return self.take_back(),
                    _ = terminate.recv() => return self.take_back(),
                    _ = hangup.recv() => return self.take_back(),
                    _ = poll.tick() => match self.look(since) {
                        Ok(None) => last_heard = Instant::now(),
                        Ok(Some(end)) => return Ok(end),
                        // It may be restarting, which ends the trial.
                        Err(_) if last_heard.elapsed() < PATIENCE => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        })?;
        let code = if end.confirmed { Code::Fine } else { Code::No };
        if self.json {
            return Answer::json(&json!({ "confirmed": end.confirmed, "reason": end.reason }), code);
        }
        let text =
            if end.confirmed { "confirmed: the policy stays" } else { "taken back: what was enforced before is back" };
        Ok(Answer { text: format!("{text} ({})\n", end.reason), code })
    }

    /// What the policy would change, unless JSON is asked for.
    fn show_changes(&self, policy: &str, options: &Options, daemon: &Status) -> Result<(), Error> {
        let sources = Sources { policy: self.file.clone(), catalogue: options.catalogue.clone() };
        let site = Site::parse(&Texts::with_policy(policy.to_owned(), &sources)?, &sources)?;
        // The daemon may have been told which host this is.
        let known = daemon.enforced.as_ref().map(|enforced| enforced.host.clone());
        let known = known.filter(|name| site.policy.hosts.contains_key(name));
        let choice = options.host.clone().or(known).map_or(HostChoice::Local, HostChoice::Named);
        let (host, _) = site.find(&choice, &identity()?)?;
        if !self.json {
            let mut ruleset = site.plan(host).ruleset();
            plan::open(&mut ruleset, &daemon.dynamic.open_ports());
            let changes = diff::of_ruleset(&format!("host {}", host.name), &ruleset)?;
            // Where nobody reads it, the policy is tried all the same.
            let _ = print(&changes);
        }
        Ok(())
    }

    /// Has the daemon apply the policy; says when that was.
    fn begin(&self, policy: &str, label: &str) -> Result<u64, Error> {
        let request = Request::Try {
            length: policy.len() as u64,
            timeout: self.timeout,
            label: label.to_owned(),
            force: self.force,
            session: session_hint(),
        };
        let (changes, timeout) = match ask_with(&self.control_socket, &request, policy)? {
            Reply::Trying { changes, timeout, warnings } => {
                warnings.iter().for_each(warn);
                (changes, timeout)
            }
            Reply::Error(message) => return Err(Error::Refused(message)),
            _ => return Err(other_answer()),
        };
        if !self.json {
            let _ = print(&format!(
                "on trial for {timeout} s; changed in the kernel: {changes}\n\
                 now log in from another terminal and give `portward confirm` there; Ctrl-C goes back at once\n"
            ));
        }
        // A trial may be over before anybody looks.
        let status = status::of_daemon(&self.control_socket)?;
        let since = status.trial.map(|trial| trial.since).or(status.last_trial.map(|last| last.since));
        since.ok_or_else(other_answer)
    }

    /// How the trial that began then has ended, if it has.
    fn look(&self, since: u64) -> Result<Option<End>, Error> {
        let status = status::of_daemon(&self.control_socket)?;
        if status.trial.is_some_and(|trial| trial.since == since) {
            return Ok(None);
        }
        let last = status.last_trial.filter(|last| last.since == since);
        let unknown = || End { confirmed: false, reason: "the daemon knows nothing of it any more".to_owned() };
        Ok(Some(last.map_or_else(unknown, End::from)))
    }

    fn take_back(&self) -> Result<End, Error> {
        match ask(&self.control_socket, &Request::Revert) {
            Ok(Reply::Reverted { .. }) => Ok(End { confirmed: false, reason: "on request".to_owned() }),
            // It has ended meanwhile.
            Ok(Reply::Error(_)) => Ok(status::of_daemon(&self.control_socket)?
                .last_trial
                .map_or_else(|| End { confirmed: false, reason: "it was over".to_owned() }, End::from)),
            Ok(_) => Err(other_answer()),
            Err(ClientError::NoDaemon(_)) => {
                Ok(End { confirmed: false, reason: "the daemon has ended, and goes back when it starts".to_owned() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn failed(source: io::Error) -> Error {
    crate::daemon::Error::System { action: "signals cannot be handled", source }.into()
}
