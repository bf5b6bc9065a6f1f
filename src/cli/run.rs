//! `portward run`.

use super::output::{BOLD, print, styled};
use super::{Answer, Error, Options};
use crate::daemon::load::{HostChoice, Site, Sources};
use crate::daemon::logging::{LogFormat, Logging, VARIABLE};
use crate::daemon::sandbox::{self, Scratch};
use crate::daemon::{Config, DEFAULT_CONTROL_SOCKET, run};
use crate::trackers;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Run the daemon: enforce the policy, and follow the file
///
/// Reads the policy, brings table `inet portward` to what it says, and then follows the file: every change that loads is
/// applied as a difference inside the living table, and a file that does not load changes nothing. When others change the
/// table, it is repaired. SIGHUP reads the policy at once; SIGTERM and SIGINT end the daemon and leave the table, so that
/// the host is never open in between.
///
/// With --sandbox the daemon does all that in a network namespace of its own, where it can do no harm.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  portward run --sandbox                          try it with the built-in policy; edit the file it names
  portward run --sandbox --policy policy.toml     try a policy of your own
  portward run --log-format json                  what the service does, with a log for programs")]
pub(super) struct Run {
    /// Run in a network namespace of its own, by default with the built-in policy
    ///
    /// The policy is written to a scratch file, whose path is printed, for you to edit. Unless --host says otherwise, the
    /// sandbox plays the first console of the policy.
    #[arg(long)]
    sandbox: bool,

    /// Where to listen for `portward status` and `portward reload` [default: /run/portward/control.sock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,

    /// How new listeners are noticed, for dynamic ports
    #[arg(long, value_name = "HOW", default_value = "auto")]
    listener_events: ListenerEvents,

    /// How often listeners are looked at when the kernel does not tell of new ones, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    listener_poll: u64,

    /// The form of the log, which goes to standard error
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    log_format: LogFormat,

    /// How much is logged: error, warn, info, debug or trace [default: $PORTWARD_LOG, else info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListenerEvents {
    /// The kernel tells of them (BPF); where it cannot, they are looked at every now and then
    Auto,
    /// They are looked at every now and then
    Poll,
}

impl Run {
    fn trackers(&self) -> trackers::Options {
        trackers::Options {
            events: self.listener_events == ListenerEvents::Auto,
            poll: Duration::from_millis(self.listener_poll),
            ..trackers::Options::default()
        }
    }

    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let logging = Logging { format: self.log_format, level: self.log_level.clone() };
        logging.install().map_err(|source| {
            let level = self.log_level.clone().or_else(|| std::env::var(VARIABLE).ok()).unwrap_or_default();
            Error::LogLevel { level, source }
        })?;
        if self.sandbox {
            return self.run_sandbox(options);
        }
        let control_socket = self.control_socket.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONTROL_SOCKET));
        run(Config { sources: options.sources(), host: options.choice(), control_socket, trackers: self.trackers() })?;
        Ok(Answer::fine(""))
    }

    fn run_sandbox(&self, options: &Options) -> Result<Answer, Error> {
        sandbox::enter()?;
        let scratch = Scratch::new()?;
        let policy = match &options.policy {
            Some(policy) => policy.clone(),
            None => scratch.write_default_policy()?,
        };
        let sources = Sources { policy, catalogue: options.catalogue.clone() };
        let host = options.host.clone().map_or(HostChoice::FirstConsole, HostChoice::Named);
        let control_socket = self.control_socket.clone().unwrap_or_else(|| scratch.control_socket());
        let introduction = introduction(&sources, &host, &control_socket)?;
        // Where nobody reads it, the daemon runs all the same.
        let _ = print(&introduction);
        run(Config { sources, host, control_socket, trackers: self.trackers() })?;
        Ok(Answer::fine(""))
    }
}

fn introduction(sources: &Sources, host: &HostChoice, control_socket: &std::path::Path) -> Result<String, Error> {
    let site = Site::load(sources)?;
    let (host, found) = site.find(host, &super::input::identity()?)?;
    let table = super::show::table_of(&site.plan(host), &found, false);
    let socket = control_socket.display();
    // As it was called, so that the line can be copied where the program is not in the search path.
    let program = std::env::args().next().unwrap_or_else(|| "portward".to_owned());
    Ok(format!(
        "{table}\n{}\n  policy   {}   edit this file and save: the sandbox follows\n  \
         status   {program} status --control-socket {socket}\n  \
         look in  nsenter --target {} --net nft list table inet portward\n  \
         end      Ctrl-C\n\n",
        styled(BOLD, "sandbox: a network namespace of its own"),
        sources.policy.display(),
        std::process::id(),
    ))
}
