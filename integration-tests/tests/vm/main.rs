//! portward in virtual machines: what only a machine that boots, loses its power and has a kernel of its own can show.
//! `make vm-test` runs these tests.
#![forbid(unsafe_code)]

mod boot;
mod deployment;
mod listeners;
mod memory;
mod power;
mod safe_change;

use anyhow::{Result, ensure};
use portward_integration_tests::machine::{Machine, Site};
use portward_integration_tests::probe::one;
use portward_integration_tests::{Host, HostSpec, Kind, Outcome, Probe, counters};
use std::net::IpAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Who may reach the machines by SSH, and send them syslog.
const ADMIN: [&str; 2] = ["10.0.1.1", "fd00::1:1"];

/// Whom no policy names.
const STRANGER: [&str; 2] = ["10.0.9.9", "fd00::9:9"];

/// The addresses of [`Site::console`].
const CONSOLE: [&str; 2] = ["10.0.0.10", "fd00::10"];

const POLICY: &str = "/etc/portward/policy.toml";

fn site() -> Result<Site> {
    let hosts = [HostSpec::new("admin", &ADMIN), HostSpec::new("stranger", &STRANGER)];
    Site::new(&hosts, Path::new(env!("CARGO_BIN_EXE_portward-witness")))
}

/// A policy of a lone console, with more tables at its end.
fn policy(more: &str) -> String {
    format!(
        "format = 1\nmode = \"enforce\"\n\
         [groups]\nadmin = {ADMIN:?}\nlog-source = {ADMIN:?}\n\
         [[host]]\nname = \"console\"\naddresses = {CONSOLE:?}\nroles = [\"console\"]\n{more}"
    )
}

/// The site's own row that opens 9102/tcp to the admin.
fn backup() -> String {
    format!("[[allow]]\nname = \"backup\"\nports = [\"9102/tcp\"]\nfrom = {ADMIN:?}\nto = [\"console\"]\n")
}

/// Starts the service under a policy, and a witness that listens on these ports; both start with the machine from now on.
fn commission(machine: &mut Machine, policy: &str, ports: &str) -> Result<()> {
    machine.write(POLICY, policy)?;
    machine.write("/etc/portward-witness", &format!("PORTS=\"{ports}\"\n"))?;
    machine
        .run("systemctl start portward-witness && systemctl enable portward && systemctl restart portward && sync")?;
    Ok(())
}

/// What the witness has written down in this boot.
fn seen(machine: &mut Machine) -> Result<String> {
    // A connection is written down within its next twentieth of a second.
    machine.run("sleep 1; cat /run/portward-witness")
}

/// The two addresses of a host and a machine, by family.
fn families(host: &Host, machine: &Machine) -> Vec<(IpAddr, IpAddr)> {
    let same = |from: IpAddr| machine.addresses().iter().find(|to| to.is_ipv4() == from.is_ipv4());
    host.addresses().iter().filter_map(|&from| same(from).map(|&to| (from, to))).collect()
}

/// Whether a TCP port of the machine can be reached, over both families alike.
fn reaches(host: &Host, machine: &Machine, port: u16) -> Result<bool> {
    let kind = Kind::Tcp(port);
    let outcomes: Vec<Outcome> =
        families(host, machine).into_iter().map(|(from, to)| one(host, Probe { from, to, kind })).collect();
    let passed = outcomes.iter().filter(|outcome| **outcome == Outcome::Passed).count();
    ensure!(passed == 0 || passed == outcomes.len(), "port {port} of {}: {outcomes:?}", machine.name());
    Ok(passed > 0)
}

/// Waits until a TCP port of the machine can be reached over both families: after a boot, the network comes last.
fn wait_until_reached(host: &Host, machine: &Machine, port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        match reaches(host, machine, port) {
            Ok(true) => return Ok(()),
            outcome => ensure!(Instant::now() < deadline, "port {port} of {}: {outcome:?}", machine.name()),
        }
        sleep(Duration::from_millis(500));
    }
}

/// How many packets the machine's kernel has denied on their way in.
fn denied(machine: &mut Machine) -> Result<u64> {
    let listing = machine.run("nft -j list table inet portward")?;
    Ok(counters::packets_in(&listing)?.get("denied_input").map_or(0, |packets| packets.iter().sum()))
}
