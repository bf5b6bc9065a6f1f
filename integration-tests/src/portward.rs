//! The real binary, run inside a host.

use crate::lab::Host;
use ::portward::kernel::{Kernel, Netlink, Snapshot};
use ::portward::plan::Plan;
use ::portward::policy::{Catalogue, Policy};
use ::portward::ruleset::Ruleset;
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How long the daemon may take for what it does in milliseconds, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// The path of the `portward` binary: `PORTWARD_BIN` where it is set, else the one beside the running tests, which
/// cargo brings up to date first.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PORTWARD_BIN") {
            return path.into();
        }
        build().unwrap_or_else(|error| panic!("the portward binary cannot be built: {error:#}"))
    })
}

fn build() -> Result<PathBuf> {
    // Tests run from TARGET/PROFILE/deps, or from a folder below where cargo keeps its intermediate files.
    let test = std::env::current_exe()?;
    let deps = test.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "deps"));
    let profile = deps.and_then(Path::parent).context("the tests do not run from a target folder of cargo")?;
    let target = profile.parent().context("the profile's folder has no parent")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "portward", "--bin", "portward", "--target-dir"]).arg(target);
    if cfg!(feature = "bpf") {
        cargo.args(["--features", "bpf"]);
    }
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(name) => {
            cargo.args(["--profile", name]);
        }
    }
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let binary = profile.join("portward");
    ensure!(binary.exists(), "cargo built no {}", binary.display());
    Ok(binary)
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The exit code: 0 fine, 1 the answer is no, 2 an error.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs `portward` with these arguments inside a host, to its end.
///
/// # Errors
/// When it cannot be started or is ended by a signal.
pub fn portward(host: &Host, arguments: &[&str]) -> Result<Answer> {
    let output = host.output(Command::new(binary()).args(arguments))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let Some(code) = output.status.code() else {
        bail!("portward {arguments:?} on {}: {}\n{stderr}", host.name(), output.status);
    };
    Ok(Answer { code, stdout: String::from_utf8_lossy(&output.stdout).into_owned(), stderr })
}

/// `portward apply` of a policy as the host that has this name in it.
///
/// # Errors
/// With the command's words, unless it ends well.
pub fn apply(host: &Host, policy: &Path, name: &str) -> Result<()> {
    let answer = portward(host, &["apply", "--policy", text(policy)?, "--host", name])?;
    ensure!(answer.code == 0, "portward apply on {name} ended with {}:\n{}", answer.code, answer.stderr);
    Ok(())
}

/// The table that a host's kernel holds, as portward reads it; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or holds what portward cannot express.
pub fn table(host: &Host) -> Result<Option<Ruleset>> {
    let snapshot = host.run(|| -> Result<Snapshot> { Ok(Netlink::open()?.dump()?) })?;
    ensure!(snapshot.foreign.is_empty(), "the table on {} holds {:?}", host.name(), snapshot.foreign);
    Ok(snapshot.table)
}

/// The ruleset that a policy means for one of its hosts.
///
/// # Errors
/// When the policy does not load or has no such host.
pub fn ruleset(policy: &str, host: &str) -> Result<Ruleset> {
    let catalogue = Catalogue::embedded();
    let loaded = Policy::parse(policy, "policy.toml", catalogue).map_err(|error| anyhow!("{error}"))?;
    let host = loaded.policy.hosts.get(host).with_context(|| format!("the policy has no host {host}"))?;
    Ok(Plan::new(&loaded.policy, catalogue, host).ruleset())
}

/// A path as an argument.
///
/// # Errors
/// When it is not UTF-8.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A running `portward run`. Dropping it kills it; the table stays.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// What it tells the service manager, line by line.
    notifications: Receiver<String>,
    folder: PathBuf,
    host: Host,
}

impl Daemon {
    /// Starts the daemon inside a host and waits until it says that it is ready. `folder` is for its control socket
    /// and its log; it must not be shared with another daemon that runs.
    ///
    /// # Errors
    /// With the log, when it ends or is not ready after a long time.
    pub fn start(host: &Host, policy: &Path, name: &str, folder: &Path) -> Result<Self> {
        Self::start_with(host, policy, name, folder, &[])
    }

    /// The same with more options.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_with(host: &Host, policy: &Path, name: &str, folder: &Path, options: &[&str]) -> Result<Self> {
        Self::launch(host, policy, name, folder, Command::new(binary()), options)
    }

    /// The same as the last argument of another command, which has to become the daemon in the end.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    ///
    /// # Panics
    /// Without any command.
    pub fn start_wrapped(host: &Host, policy: &Path, name: &str, folder: &Path, wrapper: &[&str]) -> Result<Self> {
        let (program, arguments) = wrapper.split_first().expect("a command");
        let mut command = Command::new(program);
        command.args(arguments).arg(binary());
        Self::launch(host, policy, name, folder, command, &[])
    }

    fn launch(
        host: &Host,
        policy: &Path,
        name: &str,
        folder: &Path,
        mut command: Command,
        options: &[&str],
    ) -> Result<Self> {
        let socket = folder.join("notify.sock");
        remove_if_there(&socket)?;
        let notifications = notifications(&socket)?;
        let log = File::options().create(true).append(true).open(folder.join("daemon.log"))?;
        command.args(["run", "--policy", text(policy)?, "--host", name, "--control-socket"]);
        command.arg(folder.join("control.sock")).args(options).env("NOTIFY_SOCKET", &socket);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = host.run(|| command.spawn()).context("portward run cannot be started")?;
        let mut daemon = Self { child, notifications, folder: folder.to_owned(), host: host.clone() };
        daemon.wait_for("READY=1")?;
        Ok(daemon)
    }

    /// Waits until the daemon tells the service manager a line such as `READY=1`.
    ///
    /// # Errors
    /// With the log, when it ends or does not say it for a long time.
    pub fn wait_for(&mut self, line: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.notifications.recv_timeout(Duration::from_millis(50)) {
                Ok(said) if said == line => return Ok(()),
                result => {
                    if result.is_ok_and(|said| !said.is_empty()) {
                        continue;
                    }
                    if let Some(status) = self.child.try_wait()? {
                        bail!("the daemon ended with {status} before it said {line}:\n{}", self.log());
                    }
                    ensure!(Instant::now() < deadline, "the daemon did not say {line}:\n{}", self.log());
                }
            }
        }
    }

    /// Asks the daemon to read its policy again, waits, and returns the command's answer.
    ///
    /// # Errors
    /// When the command does not end well.
    pub fn reload(&self) -> Result<String> {
        let answer = self.control("reload")?;
        ensure!(answer.code == 0, "portward reload ended with {}:\n{}{}", answer.code, answer.stderr, self.log());
        Ok(answer.stdout)
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Runs a command that talks to the daemon: `status` or `reload`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn control(&self, command: &str) -> Result<Answer> {
        portward(&self.host, &[command, "--control-socket", text(&self.folder.join("control.sock"))?])
    }

    /// Ends the daemon by this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end for a long time.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the daemon does not end on {signal}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what arrives at the service manager's socket as long as somebody wants it: a daemon waits while its messages
/// are not read.
fn notifications(path: &Path) -> Result<Receiver<String>> {
    let socket = UnixDatagram::bind(path)?;
    let (sender, receiver) = mpsc::channel();
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    for line in String::from_utf8_lossy(&buffer[..length]).lines() {
                        if sender.send(line.to_owned()).is_err() {
                            return;
                        }
                    }
                }
                // An empty line asks whether the receiver is still there.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if sender.send(String::new()).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    Ok(receiver)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
