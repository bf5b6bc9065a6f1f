//! Runs inside a virtual machine and tells what its network lets through: listens and writes down who came, or sends
//! probes and writes down what became of them.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use portward_integration_tests::listen::Responder;
use portward_integration_tests::probe::{exchange, send_datagrams};
use portward_integration_tests::{Host, Kind, Outcome, Probe};
use std::io::{Write, stdout};
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

const USAGE: &str =
    "usage: portward-witness PORT/PROTOCOL...              listens, and prints PORT/PROTOCOL ADDRESS [NUMBER]
       portward-witness FROM TO PORT/PROTOCOL...      probes, and prints PORT/PROTOCOL passed|denied|NUMBER";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = |index: usize| arguments.get(index).and_then(|text| text.parse::<IpAddr>().ok());
    match (address(0), address(1)) {
        (Some(from), Some(to)) => probe(from, to, &ports(&arguments[2..])?),
        (None, None) => listen(&ports(&arguments)?),
        _ => bail!(USAGE),
    }
}

fn ports(words: &[String]) -> Result<Vec<Kind>> {
    ensure!(!words.is_empty(), USAGE);
    words.iter().map(|word| port(word).with_context(|| format!("{word}: {USAGE}"))).collect()
}

fn port(word: &str) -> Option<Kind> {
    let (number, protocol) = word.split_once('/')?;
    let number = number.parse().ok()?;
    match protocol {
        "tcp" => Some(Kind::Tcp(number)),
        "udp" => Some(Kind::Udp(number)),
        _ => None,
    }
}

/// Prints what arrives as it arrives, until it is ended.
fn listen(ports: &[Kind]) -> Result<()> {
    let tcp = ports.iter().filter_map(|kind| if let Kind::Tcp(port) = kind { Some(*port) } else { None });
    let udp = ports.iter().filter_map(|kind| if let Kind::Udp(port) = kind { Some(*port) } else { None });
    let responder = Responder::start(&Host::here()?, tcp, udp)?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    loop {
        let seen = responder.take();
        let mut lines = String::new();
        for (port, addresses) in seen.connections {
            addresses.iter().for_each(|address| lines.push_str(&format!("{port}/tcp {address}\n")));
        }
        for (port, sender, datagram) in seen.datagrams {
            let number = datagram.try_into().map(u64::from_be_bytes).unwrap_or_default();
            lines.push_str(&format!("{port}/udp {} {number}\n", sender.ip()));
        }
        stdout().write_all(lines.as_bytes())?;
        sleep(Duration::from_millis(50));
    }
}

/// Sends one probe to each port, all at once. Whether a datagram arrives only its receiver can tell: its number is printed.
fn probe(from: IpAddr, to: IpAddr, ports: &[Kind]) -> Result<()> {
    let here = Host::here()?;
    let probes = ports.iter().map(|&kind| Probe { from, to, kind });
    let (datagrams, connections): (Vec<Probe>, Vec<Probe>) =
        probes.partition(|probe| matches!(probe.kind, Kind::Udp(_)));
    for (probe, number) in datagrams.iter().zip(send_datagrams(&here, &datagrams)) {
        if let Kind::Udp(port) = probe.kind {
            println!("{port}/udp {number}");
        }
    }
    // An emulated machine answers late, so all are waited for long.
    for (probe, outcome) in connections.iter().zip(exchange(&here, &connections, |_| true)) {
        if let Kind::Tcp(port) = probe.kind {
            println!("{port}/tcp {}", if outcome == Outcome::Passed { "passed" } else { "denied" });
        }
    }
    Ok(())
}
