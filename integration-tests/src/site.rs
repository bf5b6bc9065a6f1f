//! A host with a daemon, the console and a stranger beside it, for tests of one service with dynamic ports.

use crate::lab::{Host, HostSpec, Lab};
use crate::portward::{Daemon, portward, table, text};
use crate::probe::{Kind, Outcome, Probe, one, one_denied};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long something may take that takes milliseconds, on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A deployment in a laboratory: `console` (192.0.2.1, 2001:db8::1), `ep` (192.0.2.2, 192.0.2.22, 2001:db8::2) and
/// `stranger` (192.0.2.66, 2001:db8::66). A daemon runs on one of them.
#[derive(Debug)]
pub struct Site {
    /// The daemon.
    pub daemon: Daemon,
    host: String,
    service: String,
    folder: TempDir,
    lab: Lab,
}

/// The appliances of the laboratory as a policy has them, with these roles of `ep`.
pub fn hosts(roles: &str) -> String {
    format!(
        "[[host]]
name = \"console\"
addresses = [\"192.0.2.1\", \"2001:db8::1\"]
roles = [\"console\"]
[[host]]
name = \"ep\"
addresses = [\"192.0.2.2\", \"192.0.2.22\", \"2001:db8::2\"]
roles = [{roles}]
"
    )
}

impl Site {
    /// Makes the laboratory and starts the daemon on a host with this policy and these options. `service` is the one with
    /// dynamic ports that the test is about.
    ///
    /// # Errors
    /// When the laboratory cannot be made or the daemon does not start.
    pub fn start(policy: &str, host: &str, service: &str, options: &[&str]) -> Result<Self> {
        let lab = Lab::new(&[
            HostSpec::new("console", &["192.0.2.1", "2001:db8::1"]),
            HostSpec::new("ep", &["192.0.2.2", "192.0.2.22", "2001:db8::2"]),
            HostSpec::new("stranger", &["192.0.2.66", "2001:db8::66"]),
        ])?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("policy.toml");
        fs::write(&path, policy)?;
        let daemon = Daemon::start_with(lab.host(host), &path, host, folder.path(), options)?;
        Ok(Self { daemon, host: host.to_owned(), service: service.to_owned(), folder, lab })
    }

    /// Starts another daemon after the one before has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = Daemon::start(self.host(), &self.policy(), &self.host, self.folder.path())?;
        Ok(())
    }

    /// The laboratory.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The host on which the daemon runs.
    pub fn host(&self) -> &Host {
        self.lab.host(&self.host)
    }

    /// The policy file.
    pub fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    /// The daemon's control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Whether a host can connect, now or at the first retransmission.
    pub fn passes(&self, from: &str, to: &str, port: u16) -> bool {
        one(self.lab.host(from), self.probe(from, to, port)) == Outcome::Passed
    }

    /// Whether a host gets no answer.
    pub fn denied(&self, from: &str, to: &str, port: u16) -> bool {
        one_denied(self.lab.host(from), self.probe(from, to, port)) == Outcome::Silent
    }

    fn probe(&self, from: &str, to: &str, port: u16) -> Probe {
        let to: IpAddr = to.parse().expect("an address");
        let from = self.lab.host(from);
        Probe { from: if to.is_ipv4() { from.ipv4() } else { from.ipv6() }, to, kind: Kind::Tcp(port) }
    }

    /// What the daemon says of itself.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn status(&self) -> Value {
        let read = || -> Result<Value> {
            let answer = portward(self.host(), &["status", "--json", "--control-socket", text(&self.socket())?])?;
            serde_json::from_str(&answer.stdout).with_context(|| format!("{}{}", answer.stdout, answer.stderr))
        };
        read().unwrap_or_else(|error| panic!("{error:#}\n{}", self.daemon.log()))
    }

    /// What the daemon says of the service; null when it does not know it.
    pub fn service(&self) -> Value {
        let status = self.status();
        let services = status["dynamic"]["services"].as_array().into_iter().flatten();
        services.into_iter().find(|service| service["name"] == *self.service).cloned().unwrap_or(Value::Null)
    }

    /// Waits until the daemon says so of the service.
    ///
    /// # Panics
    /// When it does not for a long time.
    pub fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let service = self.service();
            if condition(&service) {
                return service;
            }
            assert!(Instant::now() < deadline, "not {what}: {service:#}\n{}", self.daemon.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the service's condition is this one, such as `absent`.
    ///
    /// # Panics
    /// When it is not for a long time.
    pub fn wait_condition(&self, condition: &str) -> Value {
        self.wait(condition, |service| service["condition"] == condition)
    }

    /// Waits until a TCP port is refused, and says why.
    ///
    /// # Panics
    /// When it is not for a long time.
    pub fn wait_refused(&self, port: u16) -> String {
        let name = format!("{port}/tcp");
        let why = |service: &Value| {
            let refused = service["refused"].as_array()?.iter().find(|refused| refused["port"] == *name)?.clone();
            Some(refused["why"].as_str()?.to_owned())
        };
        let service = self.wait(&format!("{name} refused"), |service| why(service).is_some());
        why(&service).expect("the condition holds")
    }

    /// The ports in the kernel's map of dynamic ports of a protocol, sorted.
    ///
    /// # Panics
    /// When there is no table.
    pub fn open(&self, protocol: &str) -> Vec<u16> {
        let table = table(self.host()).expect("the table can be read").expect("there is a table");
        let map = table.maps.get(format!("dynamic_{protocol}").as_str());
        map.into_iter().flat_map(|map| &map.elements).map(|(range, _)| range.first).collect()
    }

    /// Waits until these and no other TCP ports are open in the kernel.
    ///
    /// # Panics
    /// When they are not for a long time.
    pub fn wait_open(&self, ports: &[u16]) {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let open = self.open("tcp");
            if open == ports {
                return;
            }
            let told = || format!("{:#}\n{}", self.service(), self.daemon.log());
            assert!(Instant::now() < deadline, "open: {open:?}, not {ports:?}: {}", told());
            sleep(Duration::from_millis(5));
        }
    }
}
