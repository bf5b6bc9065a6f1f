//! Three appliances of one deployment, over both families: what the vendor's matrix opens between them passes, and nothing
//! else.

use crate::{STRANGER, commission, seen, site};
use anyhow::{Context, Result};
use portward_integration_tests::Kind;
use portward_integration_tests::machine::Machine;
use portward_integration_tests::probe::{exchange, send_datagrams};
use std::collections::BTreeSet;
use std::net::IpAddr;

const APPLIANCES: [(&str, [&str; 2], &str); 3] = [
    ("console", ["10.0.0.10", "fd00::10"], "\"console\""),
    ("ep1", ["10.0.0.21", "fd00::21"], "\"event-processor\", \"event-collector\""),
    ("apps", ["10.0.0.50", "fd00::50"], "\"app-host\""),
];

/// Where every appliance listens.
const PORTS: &str = "22/tcp 443/tcp 514/tcp 514/udp 5000/tcp 5432/tcp 7676/tcp 7800/tcp 9000/tcp 9381/tcp 14433/tcp 32004/tcp 8005/tcp 9999/tcp 9999/udp";

/// What the vendor's page opens: from, to, and the ports of [`PORTS`].
const OPEN: [(&str, &str, &str); 6] = [
    ("console", "ep1", "22/tcp 443/tcp 7676/tcp 9381/tcp 32004/tcp"),
    ("console", "apps", "22/tcp 443/tcp 5000/tcp 7676/tcp 9000/tcp 9381/tcp 14433/tcp 32004/tcp"),
    ("ep1", "console", "22/tcp 443/tcp 514/tcp 514/udp 5000/tcp 5432/tcp 7800/tcp 9381/tcp 32004/tcp"),
    ("ep1", "apps", "9381/tcp 32004/tcp"),
    ("apps", "console", "22/tcp 443/tcp 514/tcp 514/udp 5000/tcp 5432/tcp 9381/tcp 32004/tcp"),
    ("apps", "ep1", "9381/tcp 32004/tcp"),
];

#[test]
fn three_appliances_talk_over_their_rows_and_nothing_else() -> Result<()> {
    let site = site()?;
    // One after the other: the first finds out what to boot from.
    let mut machines: Vec<Machine> =
        APPLIANCES.iter().map(|(name, addresses, _)| site.boot(name, addresses)).collect::<Result<_>>()?;
    let policy = policy();
    for machine in &mut machines {
        machine.wait_until_up()?;
        commission(machine, &policy, PORTS)?;
    }

    // Whom an arrival is from, where it arrived, and the line without the address.
    let mut expected = BTreeSet::new();
    for (from, to, ports) in OPEN {
        for port in ports.split(' ') {
            for family in 0..2 {
                expected.insert((addresses(from)?[family].to_owned(), to.to_owned(), port.to_owned()));
            }
        }
    }

    let mut passed = 0;
    for sender in 0..machines.len() {
        for receiver in (0..machines.len()).filter(|&receiver| receiver != sender) {
            let (from, to) = (APPLIANCES[sender], APPLIANCES[receiver]);
            for family in 0..2 {
                let (source, target) = (from.1[family], to.1[family]);
                let answers = machines[sender].run(&format!("/payload/portward-witness {source} {target} {PORTS}"))?;
                for line in answers.lines() {
                    let (port, answer) = line.split_once(' ').context("an answer")?;
                    if port.ends_with("/tcp") {
                        let open = expected.contains(&(source.to_owned(), to.0.to_owned(), port.to_owned()));
                        assert_eq!(answer, if open { "passed" } else { "denied" }, "{port} from {source} to {target}");
                        passed += usize::from(open);
                    }
                }
            }
        }
    }

    // A host that the policy does not name gets nothing through to any of them.
    let stranger = site.host("stranger");
    for (_, addresses, _) in APPLIANCES {
        let probes: Vec<_> = STRANGER
            .iter()
            .zip(addresses)
            .flat_map(|(from, to)| kinds().map(move |kind| (from, to, kind)))
            .map(|(from, to, kind)| {
                Ok(portward_integration_tests::Probe { from: from.parse::<IpAddr>()?, to: to.parse()?, kind })
            })
            .collect::<Result<_>>()?;
        let (datagrams, connections): (Vec<_>, Vec<_>) =
            probes.into_iter().partition(|probe| matches!(probe.kind, Kind::Udp(_)));
        send_datagrams(stranger, &datagrams);
        exchange(stranger, &connections, |_| true);
    }

    // What the receivers say decides, also about datagrams.
    let mut arrived = BTreeSet::new();
    for machine in &mut machines {
        for line in seen(machine)?.lines() {
            let mut words = line.split(' ');
            let (port, from) = (words.next().context("a port")?, words.next().context("an address")?);
            arrived.insert((from.to_owned(), machine.name().to_owned(), port.to_owned()));
        }
    }
    println!("{passed} connections passed, {} kinds of arrivals", arrived.len());
    assert_eq!(arrived, expected);
    Ok(())
}

fn policy() -> String {
    let mut text = "format = 1\nmode = \"enforce\"\n[groups]\nadmin = [\"10.0.1.1\"]\n".to_owned();
    for (name, addresses, roles) in APPLIANCES {
        text.push_str(&format!("[[host]]\nname = \"{name}\"\naddresses = {addresses:?}\nroles = [{roles}]\n"));
    }
    text
}

fn addresses(name: &str) -> Result<[&'static str; 2]> {
    let found = APPLIANCES.iter().find(|appliance| appliance.0 == name);
    found.map(|appliance| appliance.1).with_context(|| format!("no appliance {name}"))
}

/// The ports of [`PORTS`] as probes send to them.
fn kinds() -> impl Iterator<Item = Kind> {
    PORTS.split(' ').map(|port| {
        let (number, protocol) = port.split_once('/').expect("a port and a protocol");
        let number = number.parse().expect("a port");
        if protocol == "tcp" { Kind::Tcp(number) } else { Kind::Udp(number) }
    })
}
