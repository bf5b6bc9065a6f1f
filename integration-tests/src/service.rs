//! Services as processes of their own, which listen where a test tells them to: with their own program, user and pid.

use crate::lab::Host;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running stand-in. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    child: Child,
    answers: BufReader<ChildStdout>,
}

/// The program of the stand-in, which cargo builds along with the tests.
///
/// # Errors
/// When it was not built.
pub fn program() -> Result<PathBuf> {
    beside_tests("stand-in")
}

/// A program of this package, in the folder where cargo puts programs.
///
/// # Errors
/// When it is not there.
pub fn beside_tests(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let deps = test.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "deps"));
    let folder = deps.and_then(Path::parent).or_else(|| test.parent()).context("the tests run from a folder")?;
    let program = folder.join(name);
    ensure!(program.exists(), "{} was not built: run cargo build --workspace first", program.display());
    Ok(program)
}

impl Service {
    /// Starts the stand-in inside a host as root.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_command(host, &mut Command::new(program()?))
    }

    /// Starts the stand-in as another user.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(host: &Host, user: u32) -> Result<Self> {
        Self::start_command(host, Command::new(program()?).uid(user).gid(user))
    }

    /// Starts a command that ends up as the stand-in: with other arguments, or from a copy of the program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(host: &Host, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = host.run(|| command.spawn()).with_context(|| format!("{command:?} cannot be started"))?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, answers })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a command, and returns its answer behind `ok`.
    ///
    /// # Errors
    /// What it answers behind `error`, or that it has ended.
    pub fn tell(&mut self, command: &str) -> Result<String> {
        self.tell_later(command)?;
        self.answer().with_context(|| format!("the command {command:?}"))
    }

    /// Gives it a command without waiting for the answer, which [`Service::answer`] has to fetch.
    ///
    /// # Errors
    /// That it has ended.
    pub fn tell_later(&mut self, command: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is a pipe")?;
        writeln!(input, "{command}").context("it has ended")
    }

    /// Waits for the answer to a command.
    ///
    /// # Errors
    /// What it answers behind `error`, or that it has ended.
    pub fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            bail!("it has ended");
        }
        match answer.trim().split_once(' ').unwrap_or((answer.trim(), "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, why) => Err(anyhow!("{why}")),
        }
    }

    /// Has it listen, such as on `tcp [::]:0`; returns the port.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(&mut self, what: &str) -> Result<u16> {
        Ok(self.tell(what)?.parse()?)
    }

    /// Ends it at once and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
