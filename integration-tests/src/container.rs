//! Containers with a real systemd as process 1, in which packages are installed and services run.
//!
//! The root file system is made once by mmdebstrap and kept in the target folder; each container writes to a layer of
//! its own above it, in memory. The mounts are in a mount namespace that goes with the container, its network has no
//! interface but loopback, and systemd-nspawn ends when this process does: nothing is left behind, however a test ends.

use crate::packages::target_folder;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long systemd may take for what it does in a second or two, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The distribution in the containers: one that the .deb is for.
const SUITE: &str = "bookworm";

/// What is in the root file system besides the essential packages: systemd, what the packages under test depend on, nft to
/// look at the kernel's tables, rpm for the other package, and sshd with its client.
const PACKAGES: &str =
    "systemd,systemd-sysv,libnftnl11,libmnl0,nftables,iproute2,procps,rpm,openssh-server,openssh-client";

/// The units of these packages that are masked, so that they run only where a test wants them.
const MASKED: &str = "ssh.service ssh.socket";

/// Where APT finds the packages, in the order in which it is looked for.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];

/// The control-group hierarchies that systemd uses: with the unified one alone its root, else these two below.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// What commands find in a container.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A root file system of a test's own. Dropping it forgets all that was written to it.
#[derive(Debug)]
pub struct Root {
    /// Lives as long as the mounts are needed; they are in its mount namespace.
    keeper: Child,
    /// The root, as seen in that namespace.
    path: PathBuf,
    name: String,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it printed and what it complained about.
    pub text: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
        Self { success: output.status.success(), text }
    }
}

impl Root {
    /// A fresh one.
    ///
    /// # Errors
    /// Without root or the programs that are needed, which the message names, and when the base cannot be made.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static PREPARED: Once = Once::new();
        let base = base()?;
        PREPARED.call_once(remove_leftovers);
        let name = format!("portward-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // The folder is only the place where the namespace mounts; it stays empty outside.
        let path = std::env::temp_dir().join(&name);
        fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let mut keeper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-euc"])
            .arg(
                "mount -t tmpfs -o mode=0755 scratch \"$2\"
                mkdir \"$2/upper\" \"$2/work\" \"$2/root\"
                mount -t overlay -o \"lowerdir=$1,upperdir=$2/upper,workdir=$2/work\" root \"$2/root\"
                echo mounted
                exec cat >/dev/null",
            )
            .arg("sh")
            .args([base, &path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("setpriv and unshare (util-linux) are needed")?;
        let mut said = String::new();
        let output = keeper.stdout.take().context("the output was asked for")?;
        BufReader::new(output).read_line(&mut said)?;
        let root = Self { keeper, path, name };
        ensure!(said == "mounted\n", "no root file system for {}: see the messages above", root.name);
        Ok(root)
    }

    fn path(&self) -> PathBuf {
        self.path.join("root")
    }

    /// A command in the mount namespace of the root file system.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.keeper.id().to_string(), "--mount", program]);
        command.env_clear().env("PATH", SEARCH_PATH).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Puts a file into it, with the folders that it needs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let target = format!("{}{path}", self.path().display());
        let mut command = self.command("sh");
        command.args(["-euc", "mkdir -p \"${1%/*}\"; cat >\"$1\"", "sh", &target]);
        with_input(&mut command, content).with_context(|| format!("{path} cannot be written"))
    }

    /// Runs a shell script in a chroot: nothing but its files is another than this machine's, and no service manager runs.
    /// The network is one of its own, with the table `inet portward` in it, which stands for that of the machine.
    /// Returns what the script printed, and whether the table is there after it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn chroot(&self, script: &str) -> Result<(Answer, bool)> {
        let mut command = self.command("unshare");
        command.args(["--net", "--mount", "sh", "-uc"]).arg(
            "nft add table inet portward
            mount -t proc proc \"$1/proc\"
            chroot \"$1\" sh -euc \"$2\" 2>&1; code=$?
            nft list tables | grep -q '^table inet portward$' && echo 'there is a table'
            exit $code",
        );
        let output = command.arg("sh").arg(self.path()).arg(script).output()?;
        let mut answer = Answer::of(&output);
        let table = answer.text.contains("there is a table");
        answer.text = answer.text.replace("there is a table\n", "");
        Ok((answer, table))
    }

    /// Boots it and waits until all services that belong to it run.
    ///
    /// # Errors
    /// With the console's text, when that does not happen for a long time.
    pub fn boot(&self) -> Result<Container<'_>> {
        let cgroups = Cgroups::new(&self.name)?;
        let console = self.path.join("console");
        let mut command = self.command("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-euc"]);
        // systemd-nspawn uses the control group that it is started in: two containers in one would fight over it. Killed, it
        // leaves the container running; as process 1 of a namespace it takes all with it.
        command.arg(
            "for group in $3; do echo $$ >\"$group/cgroup.procs\"; done
            exec unshare --pid --fork --kill-child=KILL --mount-proc \
                systemd-nspawn --quiet --machine=\"$1\" --directory=\"$2/root\" --boot --register=no --keep-unit \
                --private-network --link-journal=no --console=pipe </dev/null >\"$2/console\" 2>&1",
        );
        command.arg("sh").arg(&self.name).arg(&self.path).arg(cgroups.words());
        let nspawn = command.spawn().context("systemd-nspawn (systemd-container) is needed")?;
        let mut container = Container { _root: self, nspawn, leader: 0, _cgroups: cgroups };
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A first child only prepares the container.
            container.leader = child_of(container.nspawn.id()).and_then(child_of).unwrap_or(0);
            let state = match container.leader {
                0 => String::new(),
                _ => container.run("systemctl is-system-running --wait").map(|answer| answer.text).unwrap_or_default(),
            };
            match state.trim() {
                "running" => return Ok(container),
                "degraded" => bail!("some services failed: {}", container.run("systemctl --failed --no-legend")?.text),
                _ => {}
            }
            let ended = container.nspawn.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let console = self.command("cat").arg(&console).output()?;
                let console = String::from_utf8_lossy(&console.stdout);
                bail!("the container does not run ({ended:?}, {state}): {console}");
            }
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The mounts go with the last process in the namespace.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let _ = fs::remove_dir(&self.path);
    }
}

/// A running container. Dropping it ends it, and keeps what it wrote.
#[derive(Debug)]
pub struct Container<'r> {
    _root: &'r Root,
    /// unshare, which has systemd-nspawn for a child.
    nspawn: Child,
    /// Its process 1, by the number that it has outside.
    leader: u32,
    _cgroups: Cgroups,
}

impl Container<'_> {
    /// Runs a shell script in it, to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, script: &str) -> Result<Answer> {
        let output = self.enter(&["sh", "-c", script]).stdin(Stdio::null()).output().context("nsenter is needed")?;
        Ok(Answer::of(&output))
    }

    /// The same for a script that must end well; returns what it printed.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn must(&self, script: &str) -> Result<String> {
        let answer = self.run(script)?;
        ensure!(answer.success, "`{script}` failed:\n{}\n{}", answer.text, self.journal());
        Ok(answer.text)
    }

    /// Puts a file into it, with the folders that it needs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let mut command = self.enter(&["sh", "-euc", "mkdir -p \"${1%/*}\"; cat >\"$1\"", "sh", path]);
        with_input(&mut command, content).with_context(|| format!("{path} cannot be written"))
    }

    /// Waits until a shell script ends well, for a long time; returns what it printed then.
    ///
    /// # Errors
    /// With its last words and the service's journal, when that does not happen.
    pub fn wait(&self, script: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.run(script)?;
            if answer.success {
                return Ok(answer.text);
            }
            ensure!(Instant::now() < deadline, "never: `{script}`\n{}\n{}", answer.text, self.journal());
            sleep(Duration::from_millis(100));
        }
    }

    /// Starts a shell script in it, whose input and output are the caller's to write and to read.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, script: &str) -> Result<Child> {
        let mut command = self.enter(&["sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("nsenter is needed")
    }

    /// One property of the service, as `systemctl show` prints it.
    ///
    /// # Errors
    /// When systemctl fails.
    pub fn property(&self, name: &str) -> Result<String> {
        Ok(self.must(&format!("systemctl show --property={name} --value portward.service"))?.trim().to_owned())
    }

    /// What the service and systemd said about it.
    pub fn journal(&self) -> String {
        self.run("journalctl --no-pager --unit=portward.service").map(|answer| answer.text).unwrap_or_default()
    }

    fn enter(&self, command: &[&str]) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.leader.to_string(), "--all", "--"]).args(command);
        enter.env_clear().env("PATH", SEARCH_PATH).env("LC_ALL", "C");
        enter
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // SIGTERM does not stop systemd-nspawn in every state; a container that does not power off in a while is killed.
        if self.leader != 0 {
            let _ = self.run("systemctl --no-block poweroff");
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && matches!(self.nspawn.try_wait(), Ok(None)) {
                sleep(Duration::from_millis(20));
            }
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

/// A control group in each hierarchy.
#[derive(Debug)]
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new(name: &str) -> Result<Self> {
        let holds_processes = |path: &&&str| Path::new(path).join("cgroup.procs").exists();
        let mut groups = Self(Vec::new());
        for hierarchy in HIERARCHIES.iter().filter(holds_processes) {
            let group = Path::new(hierarchy).join(name);
            fs::create_dir(&group).with_context(|| format!("{} cannot be made", group.display()))?;
            groups.0.push(group);
        }
        ensure!(!groups.0.is_empty(), "there are no control groups below /sys/fs/cgroup: systemd needs them");
        Ok(groups)
    }

    fn words(&self) -> String {
        self.0.iter().map(|group| group.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // systemd leaves its own groups in it. The kernel takes a moment to forget the last process.
        let deadline = Instant::now() + Duration::from_secs(10);
        for group in &self.0 {
            while remove_group(group).is_err() && Instant::now() < deadline {
                sleep(Duration::from_millis(20));
            }
        }
    }
}

fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_group(&path)?;
        }
    }
    fs::remove_dir(group)
}

/// A child of a process.
fn child_of(process: u32) -> Option<u32> {
    let is_child = |pid: &u32| {
        // proc_pid_stat(5): `PID (NAME) STATE PARENT ...`, and the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(process)
    };
    let entries = fs::read_dir("/proc").ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(is_child)
}

/// Removes what runs that were killed have left: empty folders and control groups. Mounts and processes ended with them.
fn remove_leftovers() {
    let mut folders = vec![std::env::temp_dir()];
    folders.extend(HIERARCHIES.map(PathBuf::from));
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix("portward-")?.split_once('-')?.0.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            let _ = remove_group(&entry.path());
        }
    }
}

fn with_input(command: &mut Command, input: &[u8]) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("the input was asked for")?.write_all(input)?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// The root file system that all containers share, made where it is missing.
fn base() -> Result<&'static Path> {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(base) = BASE.get() {
        return Ok(base);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "these tests make containers and need root: run them by `sudo make test`"
    );
    let base = target_folder()?.join("containers").join(SUITE);
    let contents = base.with_extension("contents");
    let wanted = format!("{PACKAGES}\nmasked: {MASKED}\n");
    if fs::read_to_string(&contents).ok().as_ref() != Some(&wanted) {
        make_base(&base)?;
        fs::write(&contents, wanted)?;
    }
    Ok(BASE.get_or_init(|| base))
}

fn make_base(base: &Path) -> Result<()> {
    match fs::remove_dir_all(base) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::create_dir_all(base.parent().context("the base is in a folder")?)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--include", PACKAGES]);
    command.arg(format!("--customize-hook=systemctl --root=\"$1\" mask {MASKED}"));
    command.args(["--aptopt", "Apt::Install-Recommends \"false\"", SUITE]).arg(base);
    // The mirror that this machine uses, where it uses one of the same release; else Debian's own.
    let sources = SOURCES.iter().filter_map(|path| fs::read_to_string(path).ok()).find(|text| text.contains(SUITE));
    let output = match sources {
        Some(sources) => {
            let mut child = command
                .arg("-")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("mmdebstrap is needed: run `make test-dependencies`")?;
            child.stdin.take().context("the input was asked for")?.write_all(sources.as_bytes())?;
            child.wait_with_output()?
        }
        None => command.stdin(Stdio::null()).output().context("mmdebstrap is needed: run `make test-dependencies`")?,
    };
    ensure!(output.status.success(), "mmdebstrap failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
