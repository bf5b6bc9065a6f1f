//! A service as a process of its own, which listens where a test tells it to: see `src/bin/stand-in`.

use crate::lab::Host;
use crate::program::{self, Program};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// A running stand-in. Dropping it kills it.
#[derive(Debug)]
pub struct Service(Program);

/// The program of the stand-in, to be copied to wherever its path is to be.
///
/// # Errors
/// When cargo has not built it.
pub fn path() -> Result<PathBuf> {
    program::path("stand-in")
}

impl Service {
    /// Starts the stand-in inside a host as root.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_command(host, &mut Command::new(path()?))
    }

    /// Starts the stand-in as another user.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(host: &Host, user: u32) -> Result<Self> {
        Self::start_command(host, Command::new(path()?).uid(user).gid(user))
    }

    /// Starts a command that ends up as the stand-in: with other arguments, or from a copy of the program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(host: &Host, command: &mut Command) -> Result<Self> {
        Program::start(host, command).map(Self)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Gives it a command of those that its program documents, and returns its answer.
    ///
    /// # Errors
    /// When it refuses the command, or has ended.
    pub fn tell(&mut self, command: &str) -> Result<String> {
        self.0.tell(command)
    }

    /// Has it listen, such as on `tcp [::]:0`; returns the port.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(&mut self, what: &str) -> Result<u16> {
        self.tell(what)?.parse().context("a port")
    }

    /// Ends it at once and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.0.end(Signal::SIGKILL).map(drop)
    }
}
