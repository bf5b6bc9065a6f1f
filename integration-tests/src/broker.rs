//! A message broker's stand-in, run as a process of its own inside a host: see `src/bin/imq-broker`.

use crate::lab::Host;
use crate::program::{self, Program};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

/// The port of its portmapper, unless told otherwise.
pub const PORT: u16 = 7676;

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    program: Program,
}

/// The broker's program, to be copied to wherever its path is to be.
///
/// # Errors
/// When cargo has not built it.
pub fn path() -> Result<PathBuf> {
    program::path("imq-broker")
}

impl Broker {
    /// Starts a broker with these arguments inside a host and waits until its services listen; one that starts slowly
    /// is only waited for until its process is there.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        Self::start_as(host, Command::new(path()?).args(arguments))
    }

    /// The same for a command that is prepared: another path of the program, or further options.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_as(host: &Host, command: &mut Command) -> Result<Self> {
        let program = Program::start(host, command)?;
        program.wait_for("ready")?;
        Ok(Self { program })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Gives it a command of those that its program documents.
    ///
    /// # Errors
    /// When it refuses the command.
    pub fn tell(&mut self, command: &str) -> Result<String> {
        self.program.tell(command)
    }

    /// The ports on which it listens now, by the names of its services.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ports(&mut self) -> Result<BTreeMap<String, u16>> {
        let answer = self.tell("ports")?;
        let entry = |word: &str| {
            let (name, port) = word.split_once('=').with_context(|| format!("`{answer}` are no ports"))?;
            Ok((name.to_owned(), port.parse()?))
        };
        answer.split_whitespace().map(entry).collect()
    }

    /// Ends it by this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end for a long time.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.program.end(signal)
    }
}
