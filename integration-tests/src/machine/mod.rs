//! Virtual machines with Debian 12 and its kernel, on the bridge of a laboratory.
//!
//! What runs in a machine is started by QEMU's guest agent over a virtual serial port, so that no test depends on the
//! network that the firewall under test guards. Where the processor's own virtualization cannot be used, the machines are
//! emulated, some ten to thirty times slower; no limit here is shorter than that needs.

mod channel;
mod disk;

use crate::lab::{Host, HostSpec, Lab};
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use channel::Channel;
use serde_json::json;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// How long a machine may take to boot: 25 s when it is emulated and a processor is free.
const BOOT: Duration = Duration::from_secs(400);

/// How long a command in a machine may take.
const COMMAND: Duration = Duration::from_secs(300);

/// How long QEMU may take for a command of its own; writing a snapshot takes some seconds.
const MONITOR: Duration = Duration::from_secs(120);

/// The state in which the package has just been installed.
const INSTALLED: &str = "installed";

/// The name and the addresses of the machine of which there is a snapshot.
const FIRST: (&str, &[&str]) = ("console", &["10.0.0.10", "fd00::10"]);

/// The networks that all machines, and all hosts of a laboratory beside them, lie in.
const PREFIXES: (&str, u8) = ("255.0.0.0", 64);

/// A laboratory for virtual machines, with hosts (network namespaces) on the same bridge. One exists at a time, however
/// many tests run.
#[derive(Debug)]
pub struct Site {
    lab: Lab,
    folder: TempDir,
    witness: PathBuf,
    acceleration: &'static str,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// Makes the laboratory. The addresses of the hosts must be of 10.0.0.0/8 and fd00::/64; `witness` is the program
    /// that listens in the machines, `portward-witness`.
    ///
    /// # Errors
    /// When the laboratory cannot be made, or the image or the package under test is missing.
    pub fn new(hosts: &[HostSpec], witness: &Path) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new(hosts)?;
        let folder = tempfile::Builder::new().prefix("run.").tempdir_in(disk::folder()?)?;
        let acceleration = acceleration()?;
        Ok(Self { lab, folder, witness: witness.to_owned(), acceleration, _turn: turn })
    }

    /// A host beside the machines.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn host(&self, name: &str) -> &Host {
        self.lab.host(name)
    }

    /// The machine `console` (10.0.0.10, fd00::10), running, with the package installed and no policy.
    ///
    /// # Errors
    /// When the machine cannot be made.
    pub fn console(&self) -> Result<Machine<'_>> {
        let disk = self.folder.path().join("console.qcow2");
        fs::copy(self.installed()?, &disk)?;
        let mut machine = Machine::start(self, FIRST.0, FIRST.1, &disk, &["-loadvm", INSTALLED])?;
        machine.wait_for_agent()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        machine.run(&format!("date --set=@{now}"))?;
        Ok(machine)
    }

    /// Boots a machine with the package installed and no policy, and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn boot(&self, name: &str, addresses: &[&str]) -> Result<Machine<'_>> {
        let disk = self.folder.path().join(format!("{name}.qcow2"));
        disk::overlay(self.installed()?, &disk)?;
        Machine::start(self, name, addresses, &disk, &[])
    }

    /// The disk on which the package under test is installed, with a snapshot of the running machine. It is made once
    /// by each run of the tests.
    fn installed(&self) -> Result<&'static Path> {
        static MADE: OnceLock<PathBuf> = OnceLock::new();
        if let Some(path) = MADE.get() {
            return Ok(path);
        }
        let folder = disk::folder()?;
        disk::payload(
            &folder.join("payload.raw"),
            &[(&disk::package()?, "portward.deb"), (&self.witness, "portward-witness")],
        )?;
        let path = folder.join("installed.qcow2");
        disk::overlay(&folder.join("base.qcow2"), &path)?;
        let mut machine = Machine::start(self, FIRST.0, FIRST.1, &path, &[])?;
        machine.wait_for_agent()?;
        machine.run("dpkg --install /payload/portward.deb && sync")?;
        machine.human(&format!("savevm {INSTALLED}"))?;
        drop(machine);
        Ok(MADE.get_or_init(|| path))
    }
}

/// How a command in a machine ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; -1 when a signal ended it.
    pub code: i64,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// A running machine. Dropping it is pulling its plug.
#[derive(Debug)]
pub struct Machine<'a> {
    name: String,
    addresses: Vec<IpAddr>,
    monitor: Channel,
    agent: Channel,
    requests: u64,
    process: Process,
    /// What the machine has printed on its serial console.
    console: PathBuf,
    /// The machine cannot outlive the bridge that it is connected to.
    _site: &'a Site,
}

impl<'a> Machine<'a> {
    fn start(site: &'a Site, name: &str, addresses: &[&str], disk: &Path, more: &[&str]) -> Result<Self> {
        let images = disk::folder()?;
        let file = |suffix: &str| site.folder.path().join(format!("{name}.{suffix}"));
        let (monitor, agent, console) = (file("monitor"), file("agent"), file("console"));
        for stale in [&monitor, &agent] {
            let _ = fs::remove_file(stale);
        }
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let tap = format!("tap-{name}");
        let switch = site.lab.switch();
        // It stays from a machine of the same name before.
        let _ = switch.ip(&format!("link delete {tap}"));
        switch.ip(&format!("tuntap add dev {tap} mode tap\nlink set {tap} master br0 up"))?;

        let mut command = Command::new("setpriv");
        // The kernel ends QEMU when the tests end, however they do.
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none"]);
        command.args(["-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "384", "-accel", site.acceleration]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        command.args(["-device", "virtio-serial", "-device"]);
        command.arg("virtserialport,chardev=agent,name=org.qemu.guest_agent.0");
        command.args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", agent.display())]);
        // The plug is pulled from the machine, never from the computer that it runs on: no write waits for a real disk.
        command.args(["-drive", &format!("file={},if=virtio,format=qcow2,cache=unsafe", disk.display())]);
        let payload = images.join("payload.raw");
        command.args(["-drive", &format!("file={},if=virtio,format=raw,readonly=on", payload.display())]);
        command.args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={}", hardware_address(&addresses))]);
        command.arg("-kernel").arg(images.join("vmlinuz")).arg("-initrd").arg(images.join("initrd.img"));
        command.args(["-append", &kernel_command_line(name, &addresses)]).args(more);
        let log = File::create(file("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);

        let process = Process::start(switch, command)?;
        let said = || fs::read_to_string(file("log")).unwrap_or_default();
        let mut monitor = Channel::connect(&monitor).with_context(|| format!("{name}: {}", said()))?;
        monitor.receive(Instant::now() + MONITOR).context("QEMU's monitor does not greet")?;
        monitor.execute("qmp_capabilities", &json!({}), MONITOR)?;
        let agent = Channel::connect(&agent).with_context(|| format!("{name}: {}", said()))?;
        Ok(Self { name: name.to_owned(), addresses, monitor, agent, requests: 0, process, console, _site: site })
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Waits until commands can be run in the machine.
    ///
    /// # Errors
    /// With the last words on its console, when that takes too long.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        self.requests += 1;
        self.agent.synchronize(self.requests, BOOT).with_context(|| {
            let running = if self.process.is_running() { "runs" } else { "has ended" };
            format!("QEMU {running}; the console of {}:\n{}", self.name, self.last_words())
        })
    }

    /// Waits until the machine has booted, whether or not a unit failed.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        loop {
            self.wait_for_agent()?;
            // It fails when a unit has failed, which is a test's business. The agent itself is started anew, and has
            // forgotten the command, when its device is announced a second time during the boot.
            match self.execute("systemctl is-system-running --wait", "") {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_secs(1)),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Runs a shell script in the machine, to its end, with this text as its input.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn execute(&mut self, script: &str, input: &str) -> Result<Ended> {
        self.try_execute(script, input).with_context(|| {
            format!("on {}: {script}\nthe last words on the machine's console:\n{}", self.name, self.last_words())
        })
    }

    fn try_execute(&mut self, script: &str, input: &str) -> Result<Ended> {
        let started = self.agent.execute(
            "guest-exec",
            &json!({
                "path": "/bin/sh", "arg": ["-euc", script], "capture-output": true,
                "input-data": BASE64.encode(input),
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            }),
            COMMAND,
        )?;
        let process = json!({ "pid": started["pid"] });
        let deadline = Instant::now() + COMMAND;
        loop {
            let status = self.agent.execute("guest-exec-status", &process, COMMAND)?;
            if status["exited"] == true {
                let text = |name: &str| -> Result<String> {
                    let bytes = BASE64.decode(status[name].as_str().unwrap_or_default())?;
                    Ok(String::from_utf8_lossy(&bytes).into_owned())
                };
                let code = status["exitcode"].as_i64().unwrap_or(-1);
                return Ok(Ended { code, stdout: text("out-data")?, stderr: text("err-data")? });
            }
            ensure!(Instant::now() < deadline, "it does not end");
            sleep(Duration::from_millis(100));
        }
    }

    /// Runs a shell script in the machine and returns what it prints.
    ///
    /// # Errors
    /// With what it printed, unless it ends well.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let ended = self.execute(script, "")?;
        ensure!(
            ended.code == 0,
            "on {}: {script}\nended with {}:\n{}{}",
            self.name,
            ended.code,
            ended.stdout,
            ended.stderr
        );
        Ok(ended.stdout)
    }

    /// Runs a shell script in the machine until it prints something that satisfies the condition, and returns that.
    ///
    /// # Errors
    /// With what it printed last, when it does not for a long time.
    pub fn run_until(&mut self, script: &str, condition: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + COMMAND;
        loop {
            let ended = self.execute(script, "")?;
            if ended.code == 0 && condition(&ended.stdout) {
                return Ok(ended.stdout);
            }
            ensure!(Instant::now() < deadline, "on {}: {script}\nstill {ended:?}", self.name);
            sleep(Duration::from_millis(500));
        }
    }

    /// Writes a file in the machine, at once and for good: whole in place of the one before, and through to the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let script = format!(
            "mkdir -p \"$(dirname {path})\"; cat >{path}.new; sync {path}.new; mv {path}.new {path}; sync \"$(dirname {path})\""
        );
        let ended = self.execute(&script, text)?;
        ensure!(ended.code == 0, "{path} on {}: {}", self.name, ended.stderr);
        Ok(())
    }

    /// Cuts the power, and gives it back at once: what the machine had not written is lost.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn cut_power(&mut self) -> Result<()> {
        self.monitor.execute("system_reset", &json!({}), MONITOR)?;
        self.monitor.wait_for("RESET", MONITOR)
    }

    /// Shuts the machine down in good order and starts it again; returns when it starts.
    ///
    /// # Errors
    /// When it does not shut down.
    pub fn reboot(&mut self) -> Result<()> {
        self.run("systemctl --no-block reboot")?;
        self.monitor.wait_for("RESET", BOOT)
    }

    /// What the machine has printed on its console since it was started.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn last_words(&self) -> String {
        let console = self.printed();
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// A command of QEMU's monitor for people, which answers nothing when all is well.
    fn human(&mut self, command: &str) -> Result<()> {
        let answer = self.monitor.execute("human-monitor-command", &json!({ "command-line": command }), MONITOR)?;
        ensure!(answer == "", "{command}: {answer}");
        Ok(())
    }
}

/// A process that is ended with this value, and by the kernel when this process ends without dropping it.
#[derive(Debug)]
struct Process {
    child: Child,
    /// The thread that started it, and what keeps it waiting: the kernel takes the end of that thread for the parent's.
    parent: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Process {
    fn start(host: &Host, mut command: Command) -> Result<Self> {
        let (send, receive) = mpsc::channel();
        let (keep, wait) = mpsc::channel::<()>();
        let thread = host.spawn(move || {
            let _ = send.send(command.spawn());
            let _ = wait.recv();
        });
        let child = receive.recv().context("the thread has ended")?.context("setpriv cannot be started")?;
        Ok(Self { child, parent: Some((keep, thread)) })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some((keep, thread)) = self.parent.take() {
            drop(keep);
            let _ = thread.join();
        }
    }
}

/// How QEMU runs the machines here. The device of KVM may be there and of no use, so it is tried.
fn acceleration() -> Result<&'static str> {
    static FOUND: OnceLock<&'static str> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let machine = ["-machine", "q35", "-cpu", "max", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"];
    let mut trial = Command::new("qemu-system-x86_64")
        .args(machine)
        .args(["-accel", "kvm"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("qemu-system-x86_64 cannot be started: scripts/dependencies.sh vm installs it")?;
    if let Some(mut input) = trial.stdin.take() {
        use std::io::Write as _;
        // It may have ended already.
        let _ = input.write_all(b"quit\n");
    }
    let works = trial.wait()?.success();
    // The memory for translated code is 1 GiB when it is not limited.
    Ok(FOUND.get_or_init(|| if works { "kvm" } else { "tcg,thread=multi,tb-size=128" }))
}

/// A locally administered hardware address out of the last bytes of the first address.
fn hardware_address(addresses: &[IpAddr]) -> String {
    let number = match addresses.first() {
        Some(IpAddr::V4(address)) => address.to_bits(),
        Some(IpAddr::V6(address)) => u32::try_from(address.to_bits() & 0xffff_ffff).unwrap_or(0),
        None => 0,
    };
    let [a, b, c, d] = number.to_be_bytes();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The name and the addresses as systemd reads them (systemd(1), systemd-network-generator.service(8)).
fn kernel_command_line(name: &str, addresses: &[IpAddr]) -> String {
    let mut line =
        format!("root=LABEL=root rw console=ttyS0 net.ifnames=0 panic=-1 mitigations=off systemd.hostname={name}");
    for address in addresses {
        line.push_str(&match address {
            IpAddr::V4(address) => format!(" ip={address}:::{}::eth0:off", PREFIXES.0),
            IpAddr::V6(address) => format!(" ip=[{address}]:::{}::eth0:off", PREFIXES.1),
        });
    }
    line
}
