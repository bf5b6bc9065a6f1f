//! A program that runs inside a host and is spoken to by lines: a command to its input, an answer from its output.

use crate::lab::Host;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take for an answer, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    complaints: Arc<Mutex<String>>,
}

impl Program {
    /// Starts it inside a host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Host, command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.run(|| command.spawn()).with_context(|| format!("{name} cannot be started"))?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            bail!("{name} was started without pipes");
        };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let complaints = Arc::new(Mutex::new(String::new()));
        thread::spawn({
            let complaints = Arc::clone(&complaints);
            move || collect(errors, &complaints)
        });
        Ok(Self { name, child, input, lines, complaints })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the output, whatever comes before it.
    ///
    /// # Errors
    /// With what the program complained about, when it ends or does not say it for a long time.
    pub fn wait_for(&self, line: &str) -> Result<()> {
        while self.next_line()? != line {}
        Ok(())
    }

    /// Gives the program a command, waits for `done`, and returns what follows on that line.
    ///
    /// # Errors
    /// When the program answers otherwise, ends, or does not answer for a long time.
    pub fn tell(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}").with_context(|| format!("{} does not take `{command}`", self.name))?;
        let answer = self.next_line()?;
        let rest = answer.strip_prefix("done").with_context(|| format!("{}, to `{command}`: {answer}", self.name))?;
        Ok(rest.trim_start().to_owned())
    }

    fn next_line(&self) -> Result<String> {
        self.lines.recv_timeout(PATIENCE).map_err(|error| {
            let complaints = self.complaints();
            match error {
                RecvTimeoutError::Timeout => anyhow::anyhow!("{} does not answer:\n{complaints}", self.name),
                RecvTimeoutError::Disconnected => anyhow::anyhow!("{} ended:\n{complaints}", self.name),
            }
        })
    }

    /// What it has written to its error output so far.
    pub fn complaints(&self) -> String {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system does not say it.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it by this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end for a long time.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end on {signal}:\n{}", self.name, self.complaints());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut errors: impl Read, complaints: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = errors.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        complaints.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

/// The path of a program of this package, which cargo builds before its tests.
///
/// # Errors
/// When it is not there.
pub fn path(name: &str) -> Result<PathBuf> {
    // Tests run from TARGET/PROFILE/deps or a folder below, programs from TARGET/PROFILE.
    let this = std::env::current_exe()?;
    let found = this.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no {name} beside {}: `cargo build --workspace` makes it", this.display()))
}

/// A command that runs a program in a mount namespace of its own, after a line of shell that arranges the mounts. The
/// program takes the place of the shell, so that its process id is that of the child.
pub fn with_mounts(folder: &Path, mounts: &str, program: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("set -e; PATH=$PATH:/usr/sbin:/sbin; {mounts}; exec \"$0\" \"$@\"");
    command.args(["--mount", "--uts", "sh", "-c", &script, program]).current_dir(folder);
    command
}
