//! The command line: what an administrator types, and what he reads in return.
//!
//! Each subcommand is one file with its options and a function that gives an answer. Answers go to standard output,
//! errors and warnings to standard error; the exit code is 0 when all is well, 1 when the answer is no, 2 after an error.
//! Help texts, completions and the manual come from the same definitions.
#![forbid(unsafe_code)]

mod apply;
mod check;
mod completions;
mod confirm;
mod diff;
mod doctor;
mod down;
mod enforce;
mod explain;
mod flows;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod history;
mod imq;
mod init;
mod input;
mod listeners;
mod man;
mod observe_report;
mod output;
mod reload;
mod revert;
mod rollback;
mod run;
mod show;
mod status;
mod try_policy;

use crate::daemon::{self, ClientError, load, reconcile, sandbox};
use crate::policy::LoadError;
use crate::{describe, kernel, state};
use clap::{Args, CommandFactory, Parser, Subcommand};
use nix::unistd::geteuid;
use output::{Answer, Code};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// Keeps a host of a Juniper Secure Analytics deployment behind exactly the firewall that it needs.
#[derive(Debug, Parser)]
#[command(
    name = "portward",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    long_about = "Keeps a host of a Juniper Secure Analytics (JSA) deployment behind exactly the firewall that it needs.

One policy file, the same on every appliance, says which appliances there are, which roles they have, and who the \
outsiders are. portward finds the host that it runs on in it, works out which ports whom may reach, and makes the kernel \
(nftables, table `inet portward`) enforce that. Nothing outside this table is ever touched.",
    after_help = "Exit codes: 0 all is well, 1 the answer is no, 2 an error.
Begin with `portward run --sandbox`, which is safe anywhere, or `portward check` and `portward show`.",
    after_long_help = "Examples:
  portward run --sandbox                              try it, in a network namespace of its own
  portward init                                       write a first policy
  portward check                                      is /etc/portward/policy.toml all right?
  portward show                                       who may reach what on this host?
  portward explain --from 192.0.2.7 --port 514/udp    may this address send syslog here, and why?
  portward diff                                       what would change in the kernel?
  systemctl start portward                            enforce it, and follow the file
  portward status                                     is it enforced?
  portward doctor                                     what could keep it from being enforced?
  portward flows --denied                             does anything go on that it denies?
  portward try new.toml --timeout 60                  try another policy for a minute
  portward confirm                                    keep it
  portward observe-report                             what would enforcement have denied?
  portward enforce                                    enforce what was observed, and go back unless it is confirmed
  portward rollback                                   go back to the policy from before

Exit codes:
  0  all is well
  1  the answer is no: the packet is denied, something would change, the policy does not load
  2  an error

Files:
  /etc/portward/policy.toml    the policy
  /run/portward/control.sock   the daemon's control socket
  /var/lib/portward            the policies that were applied

Environment:
  PORTWARD_LOG  the level of the daemon's log: error, warn, info, debug or trace
  NO_COLOR      when set, nothing is coloured"
)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// What nearly every subcommand takes.
#[derive(Debug, Clone, Args)]
struct Options {
    /// The policy file [default: /etc/portward/policy.toml]
    #[arg(long, global = true, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// A catalogue in place of the built-in one
    ///
    /// The catalogue says which role of a deployment talks to which on what port. The built-in one holds the vendor's
    /// table of ports.
    #[arg(long, global = true, value_name = "FILE")]
    catalogue: Option<PathBuf>,

    /// The host of the policy to work for [default: the one that this machine is]
    ///
    /// Without this option it is the host one of whose addresses is local here, else the one with this machine's host
    /// name.
    #[arg(long, global = true, value_name = "NAME")]
    host: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Check(check::Check),
    Show(show::Show),
    Explain(explain::Explain),
    Flows(flows::Flows),
    Diff(diff::Diff),
    Apply(apply::Apply),
    Down(down::Down),
    Run(run::Run),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Reload(reload::Reload),
    Listeners(listeners::Listeners),
    Imq(imq::Imq),
    Try(try_policy::Try),
    ObserveReport(observe_report::ObserveReport),
    Enforce(enforce::Enforce),
    Confirm(confirm::Confirm),
    Revert(revert::Revert),
    History(history::History),
    Rollback(rollback::Rollback),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Why a subcommand has no answer.
#[derive(Debug, Error)]
enum Error {
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Reconcile(#[from] reconcile::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Listeners(#[from] crate::listeners::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    /// What the daemon answered.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Usage(String),
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
    #[error(
        "the log level `{level}` cannot be read; expected error, warn, info, debug, trace, or directives such as info,portward::daemon=debug"
    )]
    LogLevel { level: String, source: tracing_subscriber::filter::ParseError },
    #[error("{} cannot be written", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the answer cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// An answer that does not belong to the question.
fn other_answer() -> Error {
    Error::Refused("the daemon answered another question; are its version and this one's the same?".to_owned())
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        Self::Load(error.into())
    }
}

/// An error with its causes, and what to do where somebody begins.
fn told(error: &Error) -> String {
    let Error::Load(load::Error::Load(missing @ LoadError::Missing { path, .. })) = error else {
        let mut text = describe(error);
        if is_refused(error) && !geteuid().is_root() && !text.contains("root") {
            text.push_str("; run as root");
        }
        return text;
    };
    // It says what the system said in its own words.
    match path.as_os_str() == daemon::DEFAULT_POLICY_PATH {
        true => format!("{missing}; `portward init` writes a first one"),
        false => missing.to_string(),
    }
}

/// Whether the system has refused something to this user.
fn is_refused(error: &Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, too; where nobody reads them, that is no error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Code::Error } else { Code::Fine });
        }
    };
    let answer = match &cli.command {
        Command::Init(command) => command.run(&cli.options),
        Command::Check(command) => command.run(&cli.options),
        Command::Show(command) => command.run(&cli.options),
        Command::Explain(command) => command.run(&cli.options),
        Command::Flows(command) => command.run(&cli.options),
        Command::Diff(command) => command.run(&cli.options),
        Command::Apply(command) => command.run(&cli.options),
        Command::Down(command) => command.run(),
        Command::Run(command) => command.run(&cli.options),
        Command::Status(command) => command.run(),
        Command::Doctor(command) => command.run(&cli.options),
        Command::Reload(command) => command.run(),
        Command::Listeners(command) => command.run(&cli.options),
        Command::Imq(command) => command.run(&cli.options),
        Command::Try(command) => command.run(&cli.options),
        Command::ObserveReport(command) => command.run(&cli.options),
        Command::Enforce(command) => command.run(&cli.options),
        Command::Confirm(command) => command.run(),
        Command::Revert(command) => command.run(),
        Command::History(command) => command.run(),
        Command::Rollback(command) => command.run(&cli.options),
        Command::Completions(command) => Ok(command.run(Cli::command())),
        Command::Man(command) => command.run(Cli::command()),
    };
    match answer.and_then(|answer| answer.print()) {
        Ok(code) => code.into(),
        Err(error) => {
            output::complain(&told(&error));
            Code::Error.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_and_subcommand_has_a_help_text() {
        fn look(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }
}
