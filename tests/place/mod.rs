//! A place where the real binary can run without touching anything else: a network namespace and a folder.

#![allow(dead_code)] // Each test program uses a part of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A policy of one console, whose administrators are these.
pub(crate) fn policy(admin: &str) -> String {
    format!(
        "format = 1\n[groups]\nadmin = [\"{admin}\"]\n\
         [[host]]\nname = \"console\"\naddresses = [\"198.51.100.10\"]\nroles = [\"console\"]\n"
    )
}

/// A network namespace and a folder.
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(geteuid().is_root(), "this test makes network namespaces and needs root: run it by `sudo make test`");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("portward-daemon-{}-{number}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &namespace]).output().expect("iproute2 is installed");
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        Self { namespace, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        // Not `ip netns exec`, which puts a fresh /sys above the control groups.
        let mut command = Command::new("nsenter");
        command
            .args([&format!("--net=/run/netns/{}", self.namespace), program])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("PORTWARD_LOG");
        command
    }

    pub(crate) fn portward(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_portward")).args(arguments).output().unwrap()
    }

    pub(crate) fn nft(&self, arguments: &[&str]) -> Output {
        self.command("nft").args(arguments).output().expect("nftables is installed")
    }

    /// The table as nft lists it, if there is one.
    pub(crate) fn table(&self) -> Option<String> {
        let output = self.nft(&["list", "table", "inet", "portward"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn table_has(&self, text: &str) -> bool {
        self.table().is_some_and(|table| table.contains(text))
    }

    /// The generation of the namespace's ruleset, and whether the table is what the policy says.
    pub(crate) fn compare(&self, policy: &Path) -> (u64, bool) {
        let policy = policy.to_str().unwrap();
        let output = self.portward(&["diff", "--json", "--host", "console", "--policy", policy]);
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (value["generation"].as_u64().unwrap(), output.status.code() == Some(0))
    }

    pub(crate) fn status(&self) -> Value {
        let socket = self.socket();
        let output = self.portward(&["status", "--json", "--control-socket", socket.to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub(crate) fn spawn(&self, policy: &Path) -> Daemon {
        let mut command = self.command(env!("CARGO_BIN_EXE_portward"));
        command.args(["run", "--host", "console", "--policy"]).arg(policy).arg("--control-socket").arg(self.socket());
        command.arg("--state-dir").arg(self.state());
        self.spawn_command(command)
    }

    pub(crate) fn spawn_command(&self, mut command: Command) -> Daemon {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let log = self.path(&format!("log.{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("the daemon starts");
        Daemon { child, log }
    }

    /// A daemon that has applied the policy.
    pub(crate) fn start(&self, policy: &Path) -> Daemon {
        let daemon = self.spawn(policy);
        self.wait(&daemon, "the daemon answers", || self.status()["pid"] == daemon.child.id());
        daemon
    }

    #[track_caller]
    pub(crate) fn wait(&self, daemon: &Daemon, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < end,
                "never: {what}\nstatus: {:#}\ntable: {}\nlog:\n{}",
                self.status(),
                self.table().unwrap_or_default(),
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub(crate) fn wait_for_admin(&self, daemon: &Daemon, address: &str) {
        self.wait(daemon, &format!("{address} is in the table"), || self.table_has(address));
    }

    pub(crate) fn ask(&self, request: &[u8]) -> Value {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // The daemon may answer and close before it has read everything.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        serde_json::from_slice(&reply).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&reply)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Daemon {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < end, "the daemon does not end:\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.end();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
