//! A machine that boots while somebody hammers it.

use crate::{CONSOLE, POLICY, backup, commission, denied, policy, seen, site, wait_until_reached};
use anyhow::{Context, Result, ensure};
use portward_integration_tests::probe::next_number;
use portward_integration_tests::{Host, Kind};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// What is open to the admin alone; the stranger tries these too.
const OPEN: [Kind; 2] = [Kind::Tcp(22), Kind::Udp(514)];

/// What is open to nobody.
const CLOSED: [Kind; 2] = [Kind::Tcp(9102), Kind::Udp(9999)];

#[test]
fn nothing_denied_passes_from_the_first_packet_of_a_boot() -> Result<()> {
    let site = site()?;
    let mut machine = site.console()?;
    commission(&mut machine, &policy(""), "22/tcp 9102/tcp 514/udp 9999/udp")?;

    let (admin, stranger) = (site.host("admin"), site.host("stranger"));
    let hammer = Traffic::start(stranger, &[OPEN, CLOSED].concat(), Duration::from_millis(300));
    let denied_traffic = Traffic::start(admin, &CLOSED, Duration::from_millis(300));
    let allowed = Traffic::start(admin, &OPEN, Duration::from_secs(10));
    machine.reboot()?;
    let booted = Instant::now();
    machine.wait_until_up()?;
    wait_until_reached(admin, &machine, 22)?;
    let ready = Instant::now();
    println!("from the power-on to an answer on 22/tcp: {:.1} s", ready.duration_since(booted).as_secs_f32());
    // The traffic goes on after the boot, through two reloads.
    for port in [9103, 9104] {
        sleep(Duration::from_secs(5));
        machine.write(POLICY, &policy(&backup().replace("9102", &port.to_string())))?;
        machine.run("systemctl reload portward")?;
    }
    sleep(Duration::from_secs(5));
    let (hammer, denied_traffic, allowed) = (hammer.stop(), denied_traffic.stop(), allowed.stop());

    // The witness listened, and portward's table was there, before the network was.
    let order = machine.run(
        "systemctl show --property=ActiveEnterTimestampMonotonic --value \
         portward.service portward-witness.service network-pre.target systemd-networkd.service",
    )?;
    let order: Vec<u64> = order.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    println!(
        "microseconds after the start of the kernel: portward {}, the witness {}, network-pre {}, networkd {}",
        order[0], order[1], order[2], order[3]
    );
    assert!(order[0] > 0 && order[1] > 0 && order[0].max(order[1]) < order[2], "{order:?}");
    assert!(order[2] < order[3], "{order:?}");

    let seen = seen(&mut machine)?;
    let count = |address: &str| seen.lines().filter(|line| line.split_whitespace().nth(1) == Some(address)).count();
    let refused = denied(&mut machine)?;
    println!(
        "the stranger tried {} connections and {} datagrams, the admin {} connections and {} datagrams; \
         {refused} packets denied, {} arrivals",
        hammer.attempts.len(),
        hammer.datagrams.len(),
        allowed.attempts.len(),
        allowed.datagrams.len(),
        seen.lines().count()
    );
    for stranger in stranger.addresses() {
        assert_eq!(count(&stranger.to_string()), 0, "{stranger} got through:\n{seen}");
    }
    assert!(!seen.lines().any(|line| line.starts_with("9102/tcp") || line.starts_with("9999/udp")), "{seen}");
    let connected = |traffic: &Record| traffic.attempts.iter().filter(|attempt| attempt.error.is_none()).count();
    assert_eq!(connected(&hammer) + connected(&denied_traffic), 0);
    assert!(refused > 0, "the hammer did not reach the machine");

    // Of what is allowed, everything after the first success succeeds. While it shut down, the machine still answered.
    for target in CONSOLE {
        let target: IpAddr = target.parse()?;
        let booting = |attempt: &&Attempt| attempt.target == target && attempt.started > booted;
        let attempts: Vec<&Attempt> = allowed.attempts.iter().filter(booting).collect();
        let first = attempts.iter().position(|attempt| attempt.error.is_none()).context("no connection was made")?;
        let failed: Vec<&&Attempt> = attempts[first..].iter().filter(|attempt| attempt.error.is_some()).collect();
        println!("{target}: {} allowed connections from the first success on", attempts.len() - first);
        let after = |attempt: &&&Attempt| (attempt.started - booted, attempt.took, attempt.error);
        let failed: Vec<_> = failed.iter().map(after).collect();
        assert!(failed.is_empty(), "allowed connections failed (time since the power-on, how long, why): {failed:?}");
    }
    let arrived: BTreeSet<u64> = seen.lines().filter(|line| line.starts_with("514/udp")).filter_map(number).collect();
    let lost = allowed.datagrams.iter().filter(|(when, number)| *when > ready && !arrived.contains(number)).count();
    assert_eq!(lost, 0, "allowed datagrams were lost after the service was ready");

    // The witness does see what passes: without a table the stranger comes through.
    machine.run("systemctl stop portward && portward down")?;
    wait_until_reached(stranger, &machine, 9102)?;
    let seen = machine.run_until("cat /run/portward-witness", |seen| seen.contains("9102/tcp"))?;
    ensure!(stranger.addresses().iter().any(|address| seen.contains(&format!("9102/tcp {address}"))), "{seen}");
    Ok(())
}

/// The number at the end of a line of the witness about a datagram.
fn number(line: &str) -> Option<u64> {
    line.split_whitespace().nth(2)?.parse().ok()
}

/// One try to connect.
#[derive(Debug)]
struct Attempt {
    target: IpAddr,
    started: Instant,
    took: Duration,
    /// Why it failed.
    error: Option<ErrorKind>,
}

/// What was tried.
#[derive(Debug, Default)]
struct Record {
    attempts: Vec<Attempt>,
    /// When it was sent, and its number.
    datagrams: Vec<(Instant, u64)>,
}

/// Connections and datagrams of a host to the console, over both families, without a pause.
struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Record>>,
}

impl Traffic {
    /// `patience` is how long a try to connect is given.
    fn start(host: &Host, ports: &[Kind], patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for target in CONSOLE.map(|address| address.parse::<IpAddr>().expect("an address")) {
            for &port in ports {
                let stop = Arc::clone(&stop);
                threads.push(host.spawn(move || match port {
                    Kind::Tcp(port) => connect(SocketAddr::new(target, port), patience, &stop),
                    Kind::Udp(port) => send(SocketAddr::new(target, port), &stop),
                    Kind::Echo => Record::default(),
                }));
            }
        }
        Self { stop, threads }
    }

    fn stop(mut self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Record::default();
        for thread in self.threads.drain(..) {
            let record = thread.join().expect("the traffic ends well");
            all.attempts.extend(record.attempts);
            all.datagrams.extend(record.datagrams);
        }
        all
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn connect(target: SocketAddr, patience: Duration, stop: &AtomicBool) -> Record {
    let mut record = Record::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let error = TcpStream::connect_timeout(&target, patience).err().map(|error| error.kind());
        record.attempts.push(Attempt { target: target.ip(), started, took: started.elapsed(), error });
        // The connection tracking of so small a machine holds some 3,000 connections, each for two minutes.
        sleep(Duration::from_millis(100));
    }
    record
}

fn send(target: SocketAddr, stop: &AtomicBool) -> Record {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    let mut record = Record::default();
    while !stop.load(Ordering::Relaxed) {
        let number = next_number();
        // While the machine is down its address is unknown, and the call fails.
        if socket.send_to(&number.to_be_bytes(), target).is_ok() {
            record.datagrams.push((Instant::now(), number));
        }
        sleep(Duration::from_millis(10));
    }
    record
}
