//! The real binary: how soon an edit of the file is enforced, and how much memory it takes.

use crate::deployment::{self, HOST, NEWCOMER, SENDER, SET};
use crate::floor::Floor;
use crate::namespace::Namespace;
use crate::report::{Samples, milliseconds, print_table, target};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portward::ruleset::{TABLE, nft};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PEERS: u32 = 100_000;
const ROUNDS: usize = 11;

/// How long the daemon waits for the file to stay as it is (`QUIET` in src/daemon/watch.rs).
const DEBOUNCE: f64 = 100.0;

/// The highest peak of memory, in megabytes.
const MEMORY_LIMIT: f64 = 80.0;

/// How long to wait for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The first argument of a benchmark that is started to measure the peak memory of one command.
pub(crate) const PEAK_MEMORY: &str = "--peak-memory";

/// Measures and prints.
pub(crate) fn measure(folder: &Path) -> Result<()> {
    let binary = binary()?;
    let peers = deployment::peers(PEERS);
    let more: Vec<_> = peers.iter().copied().chain([NEWCOMER]).collect();
    let texts = [deployment::policy_text(&more), deployment::policy_text(&peers)];
    let policy = folder.join("policy.toml");
    fs::write(&policy, &texts[1])?;
    let script = folder.join("memory.nft");
    fs::write(&script, nft::render(&deployment::ruleset(&deployment::parse(&texts[1])?)?))?;

    let daemon = Daemon::start(&policy, folder)?;
    let mut times = Samples::default();
    for _ in 0..ROUNDS {
        for (text, present) in texts.iter().zip([true, false]) {
            times.push(daemon.edit(text, NEWCOMER, present)?);
            thread::sleep(Duration::from_millis(300));
        }
    }
    let daemon_memory = daemon.peak_memory()?;
    daemon.stop()?;

    let beyond = times.median() - DEBOUNCE;
    let spread = format!("{}-{}", milliseconds(times.quantile(0.25)), milliseconds(times.quantile(0.75)));
    print_table(
        &format!(
            "A running daemon at {PEERS} peers, in milliseconds: from rename of the edited file to the element in the kernel"
        ),
        &[
            ["", "median", "half of them", "of it debounce", "beyond debounce", "target"].map(str::to_owned).to_vec(),
            vec![
                "file edit to enforced".to_owned(),
                milliseconds(times.median()),
                spread,
                milliseconds(DEBOUNCE),
                milliseconds(beyond),
                target("<= 50 ms plus debounce", beyond <= 50.0),
            ],
        ],
    );

    let apply = [path_text(&binary)?, "apply", "--policy", path_text(&policy)?, "--host", HOST];
    let mut rows = vec![["", "MB", "target"].map(str::to_owned).to_vec()];
    let mut add = |what: &str, kilobytes: u64, limited: bool| {
        let megabytes = kilobytes as f64 / 1000.0;
        let goal = if limited { target("< 80 MB", megabytes < MEMORY_LIMIT) } else { String::new() };
        rows.push(vec![what.to_owned(), format!("{megabytes:.1}"), goal]);
    };
    add("portward apply", peak_memory(&apply)?, true);
    add("portward run, after some edits", daemon_memory, true);
    add("nft -f", peak_memory(&["nft", "-f", path_text(&script)?])?, false);
    print_table(&format!("Peak resident memory at {PEERS} peers"), &rows);
    Ok(())
}

/// The binary that was built along with the benchmark.
fn binary() -> Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name("portward");
    ensure!(binary.exists(), "there is no {}: `cargo build --release --workspace` makes it", binary.display());
    Ok(binary)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// A daemon in a namespace of its own.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) namespace: Namespace,
    policy: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and does not wait.
    pub(crate) fn spawn(policy: &Path, host: &str, folder: &Path, options: &[&str]) -> Result<Self> {
        let binary = binary()?;
        let namespace = Namespace::new()?;
        let log = folder.join("daemon.log");
        let output = fs::File::create(&log)?;
        let mut command = Command::new(binary);
        command.args(["run", "--host", host, "--policy"]).arg(policy).arg("--control-socket");
        command.arg(folder.join("control.sock")).args(options);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = namespace.run(|| command.spawn().context("cannot start portward"))?;
        Ok(Self { child, namespace, policy: policy.to_owned(), log })
    }

    /// Starts it and waits until the policy is enforced.
    fn start(policy: &Path, folder: &Path) -> Result<Self> {
        let daemon = Self::spawn(policy, HOST, folder, &[])?;
        daemon.wait(SENDER, true)?;
        // The first events of the watch belong to the start.
        thread::sleep(Duration::from_millis(500));
        Ok(daemon)
    }

    /// Puts another text in place of the policy, as editors do, and waits until an address is or is not a peer.
    fn edit(&self, text: &str, address: Ipv4Addr, present: bool) -> Result<Duration> {
        let edited = self.policy.with_extension("new");
        fs::write(&edited, text)?;
        let start = Instant::now();
        fs::rename(&edited, &self.policy)?;
        self.wait(address, present)?;
        Ok(start.elapsed())
    }

    fn wait(&self, address: Ipv4Addr, present: bool) -> Result<()> {
        self.namespace.run(|| {
            let kernel = Floor::open(TABLE, SET)?;
            let deadline = Instant::now() + PATIENCE;
            while kernel.contains(address)? != present {
                if Instant::now() > deadline {
                    bail!("the daemon does not enforce the policy; its log:\n{}", fs::read_to_string(&self.log)?);
                }
                thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        })
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The processor time that all its threads have used (the first number of /proc/PID/task/TID/schedstat, in
    /// nanoseconds; Documentation/scheduler/sched-stats.rst).
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let used = text.split_whitespace().next().context("no time in schedstat")?;
            time += Duration::from_nanos(used.parse()?);
        }
        Ok(time)
    }

    /// In kilobytes (`VmHWM`, proc_pid_status(5)).
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse()?)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After `stop` there is nothing to kill any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peak memory, in kilobytes, of a command that runs in a fresh namespace. A fresh process starts it, since the
/// kernel counts for a child what its parent had before it became another program.
fn peak_memory(command: &[&str]) -> Result<u64> {
    Namespace::new()?.run(|| {
        let output = Command::new(std::env::current_exe()?).arg(PEAK_MEMORY).args(command).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        text.lines().last().and_then(|line| line.parse().ok()).context("no peak memory")
    })
}

/// Runs a command and prints its peak memory in kilobytes.
pub(crate) fn print_peak_memory(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("which command?")?;
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{program}: {status}");
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}
