//! Dynamic ports: how soon a port opens after `listen()` and closes after `close()`, what watching costs, and how that
//! compares with `ss -ltnup`.
//!
//! The benchmark itself is the service: its own listeners are the ones that the daemon verifies and opens.

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::report::{Samples, milliseconds, print_table, target};
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use portward::kernel::{Monitor, Notification};
use portward::listeners::SockDiag;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// So many listeners are opened and closed, one after the other, where the kernel tells of them;
const LISTENERS: usize = 1000;
/// and so many where they are only looked at.
const LISTENERS_POLLED: usize = 40;
/// The port whose owner is the service.
const ANCHOR: u16 = 9000;
const HOST: &str = "ep";
/// How long to wait for what takes a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long processor use is measured.
const WATCHED: Duration = Duration::from_secs(10);

/// Measures and prints.
pub(crate) fn measure(folder: &Path) -> Result<()> {
    let policy = folder.join("dynamic.toml");
    fs::write(&policy, policy_text()?)?;
    let mut rows = vec![
        ["others", "processors", "noticed by", "open p50", "p95", "p99", "closed p50", "p99", "target"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for others in [10, 1000, 10_000] {
        for busy in [false, true] {
            let round = Round { policy: &policy, folder, others, busy };
            let [opened, closed] = round.latencies(&[], LISTENERS)?;
            let goal = if busy {
                String::new()
            } else {
                let met = opened.quantile(0.5) <= 0.5 && opened.quantile(0.99) <= 5.0;
                target("p50 <= 0.5, p99 <= 5", met)
            };
            rows.push(round.row("BPF", &opened, &closed, goal));
        }
    }
    for (name, every) in [("250 ms poll", "250"), ("100 ms poll", "100")] {
        let round = Round { policy: &policy, folder, others: 1000, busy: false };
        let options = ["--listener-events", "poll", "--listener-poll", every];
        let [opened, closed] = round.latencies(&options, LISTENERS_POLLED)?;
        rows.push(round.row(name, &opened, &closed, String::new()));
    }
    print_table(
        &format!("Dynamic ports, in milliseconds: from listen() or close() to the kernel's map; {LISTENERS} listeners"),
        &rows,
    );
    looks()?;
    processor_use(&policy, folder)
}

fn policy_text() -> Result<String> {
    let program = std::env::current_exe()?.canonicalize()?;
    let program = program.to_str().context("the path is not UTF-8")?;
    Ok(format!(
        "format = 1
[groups]
admin = [\"192.0.2.200\"]
[[host]]
name = \"console\"
addresses = [\"192.0.2.1\"]
roles = [\"console\"]
[[host]]
name = \"{HOST}\"
addresses = [\"192.0.2.2\"]
roles = [\"event-processor\"]
[dynamic.bench]
anchor = \"{ANCHOR}/tcp\"
process = {{ user = \"root\", exe = [\"{program}\"] }}
ports = \"10000-65535/tcp\"
limit = 1024
from = [\"console\"]
"
    ))
}

/// One deployment, measured.
struct Round<'a> {
    policy: &'a Path,
    folder: &'a Path,
    /// Listeners of another program.
    others: u32,
    /// Whether all processors are busy with something else.
    busy: bool,
}

impl Round<'_> {
    /// From listening to open, and from closing to closed.
    fn latencies(&self, options: &[&str], count: usize) -> Result<[Samples; 2]> {
        let daemon = Daemon::spawn(self.policy, HOST, self.folder, options)?;
        let _crowd = Crowd::start(&daemon.namespace, self.others)?;
        let _load = if self.busy { Load::start()? } else { Load(Vec::new()) };
        let result = daemon.namespace.run(|| {
            let mut watch = Watch::open()?;
            let _anchor = TcpListener::bind(("::", ANCHOR))?;
            // The first port is opened when the daemon has found itself and the service.
            let first = TcpListener::bind("[::]:0")?;
            watch.wait("added")?;
            drop(first);
            watch.wait("deleted")?;
            let (mut opened, mut closed) = (Samples::default(), Samples::default());
            for _ in 0..count {
                let listener = TcpListener::bind("[::]:0")?;
                opened.push(watch.wait("added")?);
                thread::sleep(Duration::from_millis(2));
                drop(listener);
                closed.push(watch.wait("deleted")?);
                thread::sleep(Duration::from_millis(4));
            }
            Ok([opened, closed])
        });
        let result = result.with_context(|| format!("the daemon's log:\n{}", daemon.log()));
        daemon.stop()?;
        result
    }

    fn row(&self, name: &str, opened: &Samples, closed: &Samples, goal: String) -> Vec<String> {
        let processors = if self.busy { "busy" } else { "idle" };
        let mut row = vec![self.others.to_string(), processors.to_owned(), name.to_owned()];
        row.extend([0.5, 0.95, 0.99].map(|part| milliseconds(opened.quantile(part))));
        row.extend([0.5, 0.99].map(|part| milliseconds(closed.quantile(part))));
        row.push(goal);
        row
    }
}

/// Waits for changes of the kernel's map of dynamic ports.
struct Watch(Monitor);

impl Watch {
    fn open() -> Result<Self> {
        Ok(Self(Monitor::open()?))
    }

    /// The time from now until elements of the map are added or deleted; zero when that has happened already.
    fn wait(&mut self, verb: &str) -> Result<Duration> {
        let start = Instant::now();
        let wanted = format!("elements of set dynamic_tcp {verb}");
        while start.elapsed() < PATIENCE {
            let heard = self.0.read()?;
            if heard.iter().any(|said| matches!(said, Notification::Table { what } if *what == wanted)) {
                return Ok(start.elapsed());
            }
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000_u16))?;
        }
        anyhow::bail!("not within {PATIENCE:?}: {wanted}")
    }
}

/// A process of another program with many listeners.
struct Crowd(Child);

impl Crowd {
    fn start(namespace: &Namespace, listeners: u32) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("stand-in");
        ensure!(program.exists(), "there is no {}: `cargo build --release --workspace` makes it", program.display());
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = namespace.run(|| command.spawn().context("cannot start the stand-in"))?;
        writeln!(child.stdin.as_mut().context("no input")?, "many {listeners}")?;
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut answer)?;
        let crowd = Self(child);
        ensure!(answer.trim() == "done", "the stand-in: {answer}");
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As many busy processes as there are processors.
struct Load(Vec<Child>);

impl Load {
    fn start() -> Result<Self> {
        let processors = thread::available_parallelism()?.get();
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        (0..processors).map(|_| Ok(spin()?)).collect::<Result<_>>().map(Self)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What one look at all listeners costs, beside `ss -ltnup`.
fn looks() -> Result<()> {
    const LOOKS: u32 = 50;
    const RUNS: u32 = 5;
    let mut rows = vec![["listeners", "one look", "ss -ltnup", "times cheaper", "target"].map(str::to_owned).to_vec()];
    for listeners in [10, 1000, 10_000] {
        let namespace = Namespace::new()?;
        let _crowd = Crowd::start(&namespace, listeners)?;
        let (look, ss) = namespace.run(|| {
            let mut diag = SockDiag::open()?;
            let before = processor_time(UsageWho::RUSAGE_THREAD)?;
            for _ in 0..LOOKS {
                ensure!(diag.dump()?.len() >= listeners as usize, "listeners are missing");
            }
            let look = (processor_time(UsageWho::RUSAGE_THREAD)? - before) / LOOKS;
            let before = processor_time(UsageWho::RUSAGE_CHILDREN)?;
            for _ in 0..RUNS {
                let output = Command::new("ss").arg("-ltnup").stdin(Stdio::null()).output().context("cannot run ss")?;
                ensure!(output.status.success(), "ss -ltnup: {}", output.status);
            }
            Ok((look, (processor_time(UsageWho::RUSAGE_CHILDREN)? - before) / RUNS))
        })?;
        let times = ss.as_secs_f64() / look.as_secs_f64();
        let goal = if listeners == 1000 { target(">= 20 times", times >= 20.0) } else { String::new() };
        let cell = |time: Duration| milliseconds(time.as_secs_f64() * 1000.0);
        rows.push(vec![listeners.to_string(), cell(look), cell(ss), format!("{times:.0}"), goal]);
    }
    print_table("One look at all listeners, in milliseconds of processor time", &rows);
    Ok(())
}

fn processor_time(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec() as u64) + Duration::from_micros(value.tv_usec() as u64)
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

/// What the daemon takes of a processor, and of memory.
fn processor_use(policy: &Path, folder: &Path) -> Result<()> {
    let mut rows = vec![["", "BPF", "250 ms poll", "target"].map(str::to_owned).to_vec()];
    let mut cells: Vec<Vec<f64>> = vec![Vec::new(); 3];
    let mut memory = 0;
    for options in [&[][..], &["--listener-events", "poll"]] {
        let daemon = Daemon::spawn(policy, HOST, folder, options)?;
        let _crowd = Crowd::start(&daemon.namespace, 1000)?;
        daemon.namespace.run(|| {
            let mut watch = Watch::open()?;
            let _anchor = TcpListener::bind(("::", ANCHOR))?;
            let _first = TcpListener::bind("[::]:0")?;
            watch.wait("added").with_context(|| daemon.log())?;
            // Asking and verifying anew after a change goes on for some seconds.
            thread::sleep(Duration::from_secs(3));
            cells[0].push(share(&daemon, || thread::sleep(WATCHED))?);
            // Of the service itself, and of a program that does not matter.
            cells[1].push(share(&daemon, churn)?);
            cells[2].push(share(&daemon, || foreign_churn(&daemon.namespace))?);
            Ok(())
        })?;
        memory = memory.max(daemon.peak_memory()?);
        daemon.stop()?;
    }
    let names =
        ["nothing changes, 1,000 listeners", "1,000 a second of the service", "1,000 a second of another program"];
    for (name, values) in names.iter().zip(&cells) {
        let mut row = vec![(*name).to_owned()];
        row.extend(values.iter().map(|value| format!("{value:.2}")));
        row.push(match (values.first(), *name == names[0]) {
            (Some(value), true) => target("< 0.1 by BPF", *value < 0.1),
            _ => String::new(),
        });
        rows.push(row);
    }
    print_table("The daemon, in percent of one processor", &rows);
    let megabytes = memory as f64 / 1000.0;
    println!("\nPeak memory of these daemons: {megabytes:.1} MB; {}", target("< 30 MB", megabytes < 30.0));
    Ok(())
}

/// The share of one processor that the daemon uses meanwhile, in percent.
fn share(daemon: &Daemon, meanwhile: impl FnOnce()) -> Result<f64> {
    let (time, start) = (daemon.processor_time()?, Instant::now());
    meanwhile();
    Ok(100.0 * (daemon.processor_time()? - time).as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Opens and closes a thousand listeners a second.
fn churn() {
    let end = Instant::now() + WATCHED;
    let mut next = Instant::now();
    while next < end {
        // A port that is taken by chance is left out.
        drop(TcpListener::bind("[::]:0"));
        next += Duration::from_millis(1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// The same by another program.
fn foreign_churn(namespace: &Namespace) {
    if let Ok(mut crowd) = Crowd::start(namespace, 1) {
        let told = crowd.0.stdin.as_mut().map(|input| writeln!(input, "churn 1000 {}", WATCHED.as_secs()));
        if matches!(told, Some(Ok(()))) {
            thread::sleep(WATCHED);
        }
    }
}
