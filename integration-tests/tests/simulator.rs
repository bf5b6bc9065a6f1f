//! `explain` against the kernel: random policies, random packets, the same verdict.
//!
//! One namespace is the host of the plan; the other has the addresses of everybody else and sends and receives for all of
//! them. The policies come from a seed. Without `PORTWARD_SEED` a fixed row of seeds is tried, so that a run is the same
//! everywhere; `PORTWARD_SEED=N` tries that one alone, and `PORTWARD_POLICIES=N` so many.
#![forbid(unsafe_code)]

use ::portward::plan::{Direction, OpenPorts, Plan, Query, Verdict};
use ::portward::policy::{Catalogue, Policy, Ports, Scope};
use ::portward::ruleset::{PortRange, Protocol};
use anyhow::{Context, Result, anyhow};
use portward_integration_tests::listen::Responder;
use portward_integration_tests::portward;
use portward_integration_tests::probe::{PATIENCE, QUIET, exchange, send_datagrams};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Instant;

/// Policies that a run tries.
const POLICIES: u64 = 16;

/// Packets a policy and direction.
const PACKETS: usize = 500;

/// The generator SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }

    fn some<T: Clone>(&mut self, values: &[T], at_least: usize, at_most: usize) -> Vec<T> {
        let count = at_least + self.below(at_most - at_least + 1);
        (0..count).map(|_| self.pick(values).clone()).collect()
    }
}

const SUBJECT: [&str; 4] = ["10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2"];

/// The addresses of everybody else: some in networks that policies name, some not.
fn others() -> Vec<IpAddr> {
    let ipv4 = (1..=24_u8).map(|n| IpAddr::from([10, 1 + n % 3, n % 2, 10 + n]));
    let ipv6 = (1..=24_u16).map(|n| IpAddr::from([0xfd01 + n % 3, 0, n % 2, 0, 0, 0, 0, 0x10 + n]));
    ipv4.chain(ipv6).collect()
}

const NETWORKS: [&str; 12] = [
    "10.1.0.0/24",
    "10.1.0.0/16",
    "10.2.0.0/15",
    "10.2.1.0/27",
    "10.3.0.16/28",
    "0.0.0.0/0",
    "fd01::/64",
    "fd01::/32",
    "fd02::/31",
    "fd02:0:1::/112",
    "fd00::/8",
    "::/0",
];

/// Ports that a policy's own rows take: beside, across and in the middle of the catalogue's.
const OWN_PORTS: [&str; 10] = [
    "22/tcp",
    "514/udp",
    "500-520/udp",
    "443/tcp",
    "32006/tcp",
    "31990-32010/tcp",
    "7000-7100/tcp",
    "10050/tcp",
    "20000-30000/tcp",
    "echo/icmp",
];

fn quoted<T: ToString>(values: &[T]) -> String {
    let values: BTreeSet<String> = values.iter().map(|value| format!("\"{}\"", value.to_string())).collect();
    values.into_iter().collect::<Vec<_>>().join(", ")
}

/// A random policy. The subject is always one of its hosts.
fn random_policy(random: &mut Random, catalogue: &Catalogue) -> Result<String> {
    let mut free = others();
    let take = |random: &mut Random, free: &mut Vec<IpAddr>| free.swap_remove(random.below(free.len()));
    let mut text = "format = 1\nmode = \"enforce\"\nallow-lockout = true\n".to_owned();
    writeln!(text, "egress = \"{}\"", if random.one_in(4) { "off" } else { "enforce" })?;
    writeln!(text, "version = \"{}\"", random.pick(&catalogue.versions).as_str())?;
    writeln!(text, "features = [{}]", quoted(&random.some(&catalogue.features, 0, 5)))?;

    let mut names = vec!["subject".to_owned()];
    let mut hosts = String::new();
    let count = 2 + random.below(6);
    let console = random.below(count);
    for number in 0..count {
        let name = if number == 0 { "subject".to_owned() } else { format!("host{number}") };
        let addresses: Vec<String> = if number == 0 {
            SUBJECT.iter().map(|address| (*address).to_owned()).collect()
        } else {
            (0..=random.below(2)).map(|_| take(random, &mut free).to_string()).collect()
        };
        let mut roles = random.some(&catalogue.roles, 1, 3);
        roles.retain(|role| role != "console");
        if number == console || roles.is_empty() {
            roles.push(if number == console { "console" } else { "data-node" }.to_owned());
        }
        writeln!(
            hosts,
            "[[host]]\nname = \"{name}\"\naddresses = [{}]\nroles = [{}]",
            quoted(&addresses),
            quoted(&roles)
        )?;
        if number != console && random.one_in(3) {
            writeln!(hosts, "encrypted = true")?;
        }
        // Every second host is the peer of the one before it, now and then.
        if number % 2 == 1 && random.one_in(2) {
            writeln!(hosts, "ha-peer = \"{}\"", names[number - 1])?;
        }
        if number > 0 {
            names.push(name);
        }
    }

    writeln!(text, "[groups]")?;
    for group in &catalogue.external {
        if random.one_in(2) {
            let mut members: Vec<String> = random.some(&free, 0, 4).iter().map(ToString::to_string).collect();
            members.extend(random.some(&NETWORKS, 0, 1).into_iter().filter(|_| random.one_in(2)).map(str::to_owned));
            writeln!(text, "{group} = [{}]", quoted(&members))?;
        }
    }
    text.push_str(&hosts);

    let groups: Vec<String> = catalogue.group_names().map(str::to_owned).collect();
    for number in 0..random.below(5) {
        let party = |random: &mut Random| -> String {
            match random.below(4) {
                0 => random.pick(&groups).clone(),
                1 => random.pick(&names).clone(),
                2 => (*random.pick(&NETWORKS)).to_owned(),
                _ => random.pick(&free).to_string(),
            }
        };
        let from: Vec<String> = (0..=random.below(3)).map(|_| party(random)).collect();
        let mut to: Vec<String> = (0..=random.below(3)).map(|_| party(random)).collect();
        if random.one_in(2) {
            to.push("subject".to_owned());
        }
        let ports = quoted(&random.some(&OWN_PORTS, 1, 3));
        writeln!(
            text,
            "[[allow]]\nname = \"own-{number}\"\nports = [{ports}]\nfrom = [{}]\nto = [{}]",
            quoted(&from),
            quoted(&to)
        )?;
    }
    let flowing: Vec<&str> =
        catalogue.rows.iter().filter(|row| row.scope == Scope::Network).map(|row| row.id.as_str()).collect();
    let rows: BTreeSet<&str> = random.some(&flowing, 0, 16).into_iter().collect();
    for row in rows {
        writeln!(text, "[row.{row}]")?;
        if random.one_in(3) {
            writeln!(text, "enabled = false")?;
        } else {
            let mut limits: Vec<String> = random.some(&others(), 1, 3).iter().map(ToString::to_string).collect();
            limits.extend(random.some(&NETWORKS, 0, 2).into_iter().map(str::to_owned));
            writeln!(text, "only-from = [{}]", quoted(&limits))?;
        }
    }
    Ok(text)
}

/// The ports worth a packet: the first and last of each range of the catalogue and of the policies' own rows, and their
/// neighbours.
fn interesting_ports(catalogue: &Catalogue) -> Vec<Kind> {
    let own = OWN_PORTS.iter().filter_map(|ports| {
        let (range, protocol) = ports.split_once('/')?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let protocol = if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp };
        Some((protocol, PortRange { first: first.parse().ok()?, last: last.parse().ok()? }))
    });
    let rows = catalogue.rows.iter().flat_map(|row| &row.ports).filter_map(|ports| match ports {
        Ports::Range(protocol, range) => Some((*protocol, *range)),
        Ports::Echo => None,
    });
    let mut kinds = BTreeSet::new();
    for (protocol, range) in own.chain(rows) {
        let kind = |port| if protocol == Protocol::Tcp { Kind::Tcp(port) } else { Kind::Udp(port) };
        let middle = range.first + (range.last - range.first) / 2;
        // 67 and 546 belong to DHCP, which is base traffic and not explained.
        let ports = [range.first - 1, range.first, middle, range.last, range.last + 1];
        kinds.extend(ports.into_iter().filter(|port| ![67, 68, 546, 547].contains(port)).map(kind));
    }
    let mut kinds: Vec<Kind> = kinds.into_iter().collect();
    // Echo requests should not be rare among the ports.
    kinds.extend([Kind::Echo; 8]);
    kinds
}

fn query(direction: Direction, probe: &Probe) -> Query {
    let port = match probe.kind {
        Kind::Tcp(port) => Ports::Range(Protocol::Tcp, PortRange::single(port)),
        Kind::Udp(port) => Ports::Range(Protocol::Udp, PortRange::single(port)),
        Kind::Echo => Ports::Echo,
    };
    let peer = if direction == Direction::Ingress { probe.from } else { probe.to };
    Query { direction, peer, port }
}

/// Random packets of one direction, without repetition: from members, strangers and now and then the subject itself.
/// Half of them go to ports that something opens, or would open if it were not narrowed or switched off.
fn random_probes(random: &mut Random, direction: Direction, plan: &Plan<'_>, kinds: &[Kind]) -> Vec<Probe> {
    let own = plan.host;
    let others = others();
    let allowed = plan.allowances.iter().filter(|allowance| allowance.direction == direction);
    let adjusted = plan.policy.rows.keys().filter_map(|id| plan.catalogue.row(id));
    let open: Vec<Kind> = allowed
        .flat_map(|allowance| &allowance.ports)
        .chain(adjusted.flat_map(|row| &row.ports))
        .map(|ports| match ports {
            Ports::Range(Protocol::Tcp, range) => Kind::Tcp(range.first),
            Ports::Range(Protocol::Udp, range) => Kind::Udp(range.first),
            Ports::Echo => Kind::Echo,
        })
        .filter(|kind| kinds.contains(kind))
        .collect();
    let mut probes = BTreeSet::new();
    while probes.len() < PACKETS {
        let subject = *random.pick(&own.addresses);
        let peers = if random.one_in(20) { &own.addresses } else { &others };
        let peer = *random.pick(peers);
        if peer.is_ipv4() == subject.is_ipv4() {
            let (from, to) = if direction == Direction::Ingress { (peer, subject) } else { (subject, peer) };
            let kinds = if open.is_empty() || random.one_in(2) { kinds } else { &open };
            probes.insert(Probe { from, to, kind: *random.pick(kinds) });
        }
    }
    probes.into_iter().collect()
}

struct Stage<'l> {
    subject: &'l Host,
    world: &'l Host,
    of_subject: Responder,
    of_world: Responder,
}

impl Stage<'_> {
    /// Sends packets from one of the two hosts and says which passed.
    fn send(&self, from: &Host, probes: &[Probe], allowed: &[bool]) -> Vec<bool> {
        let expected: BTreeSet<Probe> =
            probes.iter().zip(allowed).filter(|(_, allowed)| **allowed).map(|(probe, _)| *probe).collect();
        let (datagrams, others): (Vec<usize>, Vec<usize>) =
            (0..probes.len()).partition(|&index| matches!(probes[index].kind, Kind::Udp(_)));
        let of = |indices: &[usize]| -> Vec<Probe> { indices.iter().map(|&index| probes[index]).collect() };
        let mut passed = vec![false; probes.len()];

        let datagram_probes = of(&datagrams);
        let numbers = send_datagrams(from, &datagram_probes);
        let outcomes = exchange(from, &of(&others), |probe| expected.contains(probe));
        for (index, outcome) in others.into_iter().zip(outcomes) {
            passed[index] = outcome == Outcome::Passed;
        }
        let arrived = |number| self.of_subject.has(number) || self.of_world.has(number);
        let deadline = Instant::now() + PATIENCE;
        let all_arrived = || datagrams.iter().zip(&numbers).all(|(&index, &number)| !allowed[index] || arrived(number));
        while !all_arrived() && Instant::now() < deadline {
            thread::sleep(QUIET / 10);
        }
        for (index, number) in datagrams.into_iter().zip(numbers) {
            passed[index] = arrived(number);
        }
        passed
    }
}

#[test]
fn explain_and_the_kernel_agree() -> Result<()> {
    let catalogue = Catalogue::embedded();
    let kinds = interesting_ports(catalogue);
    let others: Vec<String> = others().iter().map(ToString::to_string).collect();
    let lab = Lab::new(&[
        HostSpec::new("subject", &SUBJECT),
        HostSpec::new("world", &others.iter().map(String::as_str).collect::<Vec<_>>()),
    ])?;
    let tcp = || kinds.iter().filter_map(|kind| if let Kind::Tcp(port) = kind { Some(*port) } else { None });
    let udp = || kinds.iter().filter_map(|kind| if let Kind::Udp(port) = kind { Some(*port) } else { None });
    let (subject, world) = (lab.host("subject"), lab.host("world"));
    let stage = Stage {
        subject,
        world,
        of_subject: Responder::start(subject, tcp(), udp())?,
        of_world: Responder::start(world, tcp(), udp())?,
    };
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("PORTWARD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("PORTWARD_POLICIES").unwrap_or(POLICIES),
    };
    let mut verdicts = [0; 2];
    for seed in seeds {
        let [allowed, denied] =
            compare(&stage, seed, catalogue, &kinds).with_context(|| format!("PORTWARD_SEED={seed}"))?;
        verdicts = [verdicts[0] + allowed, verdicts[1] + denied];
    }
    println!("{} packets allowed and {} denied, as explained", verdicts[0], verdicts[1]);
    assert!(verdicts.iter().all(|count| *count > 0), "{verdicts:?}: both verdicts must occur");
    Ok(())
}

/// Compares one policy, and returns how many packets were allowed and denied.
fn compare(stage: &Stage<'_>, seed: u64, catalogue: &Catalogue, kinds: &[Kind]) -> Result<[usize; 2]> {
    let mut random = Random(seed);
    let text = random_policy(&mut random, catalogue)?;
    let loaded = Policy::parse(&text, "policy.toml", catalogue).map_err(|error| anyhow!("{error}\n{text}"))?;
    let own = loaded.policy.hosts.get("subject").context("the subject")?;
    let plan = Plan::new(&loaded.policy, catalogue, own);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.toml");
    fs::write(&path, &text)?;
    portward::apply(stage.subject, &path, "subject")?;
    stage.of_subject.take();
    stage.of_world.take();

    let mut verdicts = [0; 2];
    for direction in [Direction::Ingress, Direction::Egress] {
        let probes = random_probes(&mut random, direction, &plan, kinds);
        let explanations: Vec<_> =
            probes.iter().map(|probe| plan.explain(&query(direction, probe), &OpenPorts::new())).collect();
        let allowed: Vec<bool> =
            explanations.iter().map(|explanation| explanation.verdict == Verdict::Allowed).collect();
        // What comes from the subject's own addresses never leaves it.
        let inside = |probe: &Probe| own.addresses.contains(&probe.from) && own.addresses.contains(&probe.to);
        let mut passed = vec![false; probes.len()];
        for local in [true, false] {
            let from = if local || direction == Direction::Egress { stage.subject } else { stage.world };
            let indices: Vec<usize> = (0..probes.len()).filter(|&index| inside(&probes[index]) == local).collect();
            let part: Vec<Probe> = indices.iter().map(|&index| probes[index]).collect();
            let part_allowed: Vec<bool> = indices.iter().map(|&index| allowed[index]).collect();
            for (index, outcome) in indices.into_iter().zip(stage.send(from, &part, &part_allowed)) {
                passed[index] = outcome;
            }
        }
        for ((probe, explanation), (&passed, &allowed)) in
            probes.iter().zip(&explanations).zip(passed.iter().zip(&allowed))
        {
            assert_eq!(
                passed, allowed,
                "seed {seed}, {direction:?} {probe:?}: passed is {passed}, and explain says {explanation:#?}\n{text}"
            );
            verdicts[usize::from(!allowed)] += 1;
        }
    }
    Ok(verdicts)
}
