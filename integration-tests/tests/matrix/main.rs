//! Every row of the vendor's matrix with real packets: from each member of a flow's groups they pass, from everybody
//! else they are dropped; and the same for what a host sends.
//!
//! All hosts of a deployment run the policy at once, and everybody probes everything: each port of the matrix, over both
//! families, between all pairs of hosts and from outsiders and a stranger. What should pass is worked out by
//! [`model`] from the fixture.
#![forbid(unsafe_code)]

mod model;

use anyhow::{Context, Result};
use model::{Conditions, End, Flow, Ports, Row};
use portward_integration_tests::listen::Responder;
use portward_integration_tests::probe::{QUIET, exchange, send_datagrams};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe, counters, portward};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

/// The host of all outsiders, which has no firewall of its own.
const OUTSIDE: &str = "outside";

/// One deployment: what the policy file says, and which ends there are.
struct Deployment {
    ends: Vec<End>,
    conditions: Conditions,
}

fn appliance(number: u8, name: &str, roles: &[&str]) -> End {
    End {
        name: name.to_owned(),
        addresses: vec![
            IpAddr::from([10, 77, 0, number]),
            IpAddr::from([10, 77, 1, number]),
            IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            IpAddr::from([0xfd77, 0, 0, 1, 0, 0, 0, u16::from(number)]),
        ],
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        groups: BTreeSet::new(),
        ha_peer: None,
        encrypted: false,
    }
}

fn outsider(number: u8, name: &str, groups: &[&str]) -> End {
    End {
        name: name.to_owned(),
        addresses: vec![
            IpAddr::from([192, 0, number, 7]),
            IpAddr::from([0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, 7]),
        ],
        roles: BTreeSet::new(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ha_peer: None,
        encrypted: false,
    }
}

/// A host for each role, a second flow processor, a high-availability pair, a managed host of several roles whose link
/// may be encrypted; an outsider for each external group, one of two groups, a public server and a stranger.
fn deployment(encrypted: bool, version: &'static str, features: &[&str]) -> Deployment {
    let mut ends = Vec::new();
    let roles = [
        "console",
        "event-collector",
        "event-processor",
        "flow-processor",
        "data-node",
        "app-host",
        "risk-manager",
        "vulnerability-processor",
        "vulnerability-scanner",
    ];
    for (number, role) in (10..).zip(roles) {
        ends.push(appliance(number, role, &[role]));
    }
    ends.push(appliance(30, "flow-processor-2", &["flow-processor"]));
    ends.push(appliance(31, "event-processor-standby", &["event-processor"]));
    ends.push(appliance(32, "branch", &["app-host", "event-collector", "risk-manager"]));
    for (name, peer) in [("event-processor", "event-processor-standby"), ("event-processor-standby", "event-processor")]
    {
        let end = ends.iter_mut().find(|end| end.name == name).expect("one of the hosts above");
        end.ha_peer = Some(peer.to_owned());
    }
    ends.iter_mut().filter(|end| end.name == "branch").for_each(|end| end.encrypted = encrypted);

    let groups = [
        "admin",
        "user",
        "api-client",
        "log-source",
        "flow-source",
        "snmp-manager",
        "wincollect-agent",
        "windows-host",
        "smtp-gateway",
        "ntp-server",
        "nfs-server",
        "certificate-client",
        "dns-server",
    ];
    for (number, group) in (10..).zip(groups) {
        ends.push(outsider(number, group, &[group]));
    }
    ends.push(outsider(40, "admin-and-flow-source", &["admin", "flow-source"]));
    let mut server = outsider(41, "public-server", &[]);
    server.addresses = vec!["194.153.113.31".parse().expect("an address of the matrix")];
    ends.push(server);
    ends.push(outsider(42, "stranger", &[]));

    let features = features.iter().map(|feature| (*feature).to_owned()).collect();
    Deployment { ends, conditions: Conditions { features, version, encrypted_app_host: encrypted } }
}

impl Deployment {
    /// The policy file. Outsiders are named by address in one half of the groups, by network in the other.
    fn policy(&self, mode: &str, egress: &str) -> Result<String> {
        let features: Vec<&String> = self.conditions.features.iter().collect();
        let version = self.conditions.version;
        let mut text = format!(
            "format = 1\nmode = \"{mode}\"\negress = \"{egress}\"\nversion = \"{version}\"\nfeatures = {features:?}\n\n[groups]\n"
        );
        let groups: BTreeSet<&String> = self.ends.iter().flat_map(|end| &end.groups).collect();
        for (index, group) in groups.into_iter().enumerate() {
            let members = self.ends.iter().filter(|end| end.groups.contains(group)).flat_map(|end| &end.addresses);
            let by_network = index % 2 == 0;
            let members: Vec<String> = members
                .map(|address| match address {
                    IpAddr::V4(address) if by_network => {
                        let [a, b, c, _] = address.octets();
                        format!("\"{a}.{b}.{c}.0/24\"")
                    }
                    IpAddr::V6(address) if by_network => {
                        let [a, b, c, ..] = address.segments();
                        format!("\"{a:x}:{b:x}:{c:x}::/48\"")
                    }
                    address => format!("\"{address}\""),
                })
                .collect();
            writeln!(text, "{group} = [{}]", members.join(", "))?;
        }
        for end in self.ends.iter().filter(|end| end.is_appliance()) {
            let addresses: Vec<String> = end.addresses.iter().map(ToString::to_string).collect();
            let roles: Vec<&String> = end.roles.iter().collect();
            writeln!(text, "\n[[host]]\nname = \"{}\"\naddresses = {addresses:?}\nroles = {roles:?}", end.name)?;
            if end.encrypted {
                writeln!(text, "encrypted = true")?;
            }
            // Naming the peer on one of the two is enough.
            if let Some(peer) = end.ha_peer.as_ref().filter(|peer| **peer > end.name) {
                writeln!(text, "ha-peer = \"{peer}\"")?;
            }
        }
        Ok(text)
    }

    fn specs(&self) -> Vec<HostSpec> {
        let appliances = self.ends.iter().filter(|end| end.is_appliance());
        let mut specs: Vec<HostSpec> =
            appliances.map(|end| HostSpec { name: end.name.clone(), addresses: end.addresses.clone() }).collect();
        let outsiders = self.ends.iter().filter(|end| !end.is_appliance());
        let addresses = outsiders.flat_map(|end| end.addresses.clone()).collect();
        specs.push(HostSpec { name: OUTSIDE.to_owned(), addresses });
        specs
    }
}

/// The host of the laboratory on which an end lives.
fn host_of<'l>(lab: &'l Lab, end: &End) -> &'l Host {
    lab.host(if end.is_appliance() { &end.name } else { OUTSIDE })
}

/// Which direction a pass looks at; the other one is not enforced meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

/// What was seen of the rows: by which flow packets passed in which direction, and which rows had a packet denied.
#[derive(Debug, Default)]
struct Coverage {
    allowed: BTreeSet<(String, Flow, Direction)>,
    denied: BTreeSet<(String, Direction)>,
}

/// One probe with what is expected of it.
struct Question<'m> {
    probe: Probe,
    from: &'m End,
    to: &'m End,
    reasons: Vec<(&'m Row, &'m Flow)>,
    allowed: bool,
}

/// All probes of one direction: from and to every appliance.
fn questions<'m>(deployment: &'m Deployment, rows: &'m [Row], direction: Direction) -> Vec<Question<'m>> {
    let kinds: BTreeSet<Kind> = rows.iter().flat_map(|row| &row.ports).copied().flat_map(Ports::probed).collect();
    let mut questions = Vec::new();
    for from in &deployment.ends {
        for to in &deployment.ends {
            let filtered = if direction == Direction::Ingress { to } else { from };
            if from.name == to.name || !filtered.is_appliance() {
                continue;
            }
            for &kind in &kinds {
                let reasons: Vec<(&Row, &Flow)> = rows
                    .iter()
                    .flat_map(|row| {
                        let flows = row.flows_for(&deployment.conditions, from, to, kind);
                        flows.into_iter().map(move |flow| (row, flow))
                    })
                    .collect();
                let allowed = !reasons.is_empty()
                    || direction == Direction::Egress && is_random_port(deployment, rows, from, to, kind);
                for ipv4 in [true, false] {
                    let (Some(source), Some(target)) =
                        (address(from, ipv4, questions.len()), address(to, ipv4, questions.len() / 3))
                    else {
                        continue;
                    };
                    let probe = Probe { from: source, to: target, kind };
                    questions.push(Question { probe, from, to, reasons: reasons.clone(), allowed });
                }
            }
        }
    }
    questions
}

/// Rows whose services bind random ports on the far side, which the sender cannot know: with egress enforced the sender
/// may reach any port from which they choose. The row, the condition that must hold besides, the ports.
const RANDOM_PORTS: [(&str, Option<&str>, &[Ports]); 4] = [
    (
        "rpc-portmapper",
        Some("nfs"),
        &[Ports::Tcp(512, 1023), Ports::Udp(512, 1023), Ports::Tcp(32768, 60999), Ports::Udp(32768, 60999)],
    ),
    ("dcom", None, &[Ports::Tcp(1024, 65535)]),
    ("imq", None, &[Ports::Tcp(32000, 65535)]),
    ("rmi", None, &[Ports::Tcp(32768, 60999)]),
];

/// Whether a host may send to such a port: where the row's own port is open to it, and the condition holds.
fn is_random_port(deployment: &Deployment, rows: &[Row], from: &End, to: &End, kind: Kind) -> bool {
    RANDOM_PORTS.iter().any(|(id, condition, ports)| {
        let row = rows.iter().find(|row| row.id == *id).expect("a row of the matrix");
        let own_port = row.ports[0].probed()[0];
        condition.is_none_or(|feature| deployment.conditions.features.contains(feature))
            && ports.iter().any(|ports| ports.contain(kind))
            && !row.flows_for(&deployment.conditions, from, to, own_port).is_empty()
    })
}

/// One of the end's addresses of a family, in turn.
fn address(end: &End, ipv4: bool, turn: usize) -> Option<IpAddr> {
    let addresses: Vec<IpAddr> = end.addresses.iter().copied().filter(|address| address.is_ipv4() == ipv4).collect();
    addresses.get(turn % addresses.len().max(1)).copied()
}

struct Stage<'l> {
    lab: &'l Lab,
    responders: BTreeMap<String, Responder>,
}

impl<'l> Stage<'l> {
    fn new(lab: &'l Lab, rows: &[Row]) -> Result<Self> {
        let kinds: BTreeSet<Kind> = rows.iter().flat_map(|row| &row.ports).copied().flat_map(Ports::probed).collect();
        let tcp = |kind: &Kind| if let Kind::Tcp(port) = kind { Some(*port) } else { None };
        let udp = |kind: &Kind| if let Kind::Udp(port) = kind { Some(*port) } else { None };
        let mut responders = BTreeMap::new();
        for host in lab.hosts() {
            let responder = Responder::start(host, kinds.iter().filter_map(tcp), kinds.iter().filter_map(udp))?;
            responders.insert(host.name().to_owned(), responder);
        }
        Ok(Self { lab, responders })
    }

    fn apply(&self, deployment: &Deployment, policy: &Path) -> Result<()> {
        thread::scope(|scope| {
            let appliances = deployment.ends.iter().filter(|end| end.is_appliance());
            let threads: Vec<_> = appliances
                .map(|end| scope.spawn(|| portward::apply(self.lab.host(&end.name), policy, &end.name)))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    /// Sends all probes, each end from a thread of its own, and tells for each whether it passed.
    fn ask(&self, questions: &[Question<'_>]) -> Vec<bool> {
        let mut senders: BTreeMap<&str, (&Host, Vec<usize>)> = BTreeMap::new();
        for (index, question) in questions.iter().enumerate() {
            let sender = || (host_of(self.lab, question.from), Vec::new());
            senders.entry(&question.from.name).or_insert_with(sender).1.push(index);
        }
        let answers: Vec<(usize, bool)> = thread::scope(|scope| {
            let threads: Vec<_> = senders
                .values()
                .map(|(host, indices)| scope.spawn(|| self.ask_from(host, questions, indices)))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        let mut passed = vec![false; questions.len()];
        answers.into_iter().for_each(|(index, answer)| passed[index] = answer);
        passed
    }

    fn ask_from(&self, host: &Host, questions: &[Question<'_>], indices: &[usize]) -> Vec<(usize, bool)> {
        let is_datagram = |index: &usize| matches!(questions[*index].probe.kind, Kind::Udp(_));
        let (datagrams, others): (Vec<usize>, Vec<usize>) = indices.iter().copied().partition(is_datagram);
        let allowed: BTreeSet<Probe> = indices
            .iter()
            .map(|&index| &questions[index])
            .filter(|asked| asked.allowed)
            .map(|asked| asked.probe)
            .collect();

        let mut answers = self.send(host, questions, &datagrams);
        let probes: Vec<Probe> = others.iter().map(|&index| questions[index].probe).collect();
        let outcomes = exchange(host, &probes, |probe| allowed.contains(probe));
        answers.extend(others.into_iter().zip(outcomes.into_iter().map(|outcome| outcome == Outcome::Passed)));
        answers
    }

    /// Sends datagrams. One that should arrive and does not is sent again: UDP may lose a packet on a busy machine.
    fn send(&self, host: &Host, questions: &[Question<'_>], indices: &[usize]) -> Vec<(usize, bool)> {
        let mut passed: BTreeMap<usize, bool> = BTreeMap::new();
        let mut left = indices.to_vec();
        for _ in 0..3 {
            let probes: Vec<Probe> = left.iter().map(|&index| questions[index].probe).collect();
            let numbers = send_datagrams(host, &probes);
            thread::sleep(QUIET);
            let mut again = Vec::new();
            for (index, number) in left.into_iter().zip(numbers) {
                let question = &questions[index];
                let responder = &self.responders[host_of(self.lab, question.to).name()];
                let arrived = responder.has(number);
                passed.insert(index, arrived);
                if question.allowed && !arrived {
                    again.push(index);
                }
            }
            if again.is_empty() {
                break;
            }
            left = again;
        }
        passed.into_iter().collect()
    }
}

/// One pass: everything is probed, compared with the model, and with what the hosts counted as denied.
fn pass(
    stage: &Stage<'_>,
    deployment: &Deployment,
    rows: &[Row],
    direction: Direction,
    coverage: &mut Coverage,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.toml");
    let (mode, egress) = match direction {
        Direction::Ingress => ("enforce", "off"),
        Direction::Egress => ("observe", "enforce"),
    };
    std::fs::write(&policy, deployment.policy(mode, egress)?)?;
    stage.apply(deployment, &policy)?;
    let chain = if direction == Direction::Ingress { "denied_input" } else { "denied_output" };
    let counted = |end: &&End| -> Result<u64> { counters::packets_of(stage.lab.host(&end.name), chain) };
    let appliances: Vec<&End> = deployment.ends.iter().filter(|end| end.is_appliance()).collect();
    let before: Vec<u64> = appliances.iter().map(counted).collect::<Result<_>>()?;
    stage.responders.values().for_each(|responder| drop(responder.take()));

    let questions = questions(deployment, rows, direction);
    let passed = stage.ask(&questions);

    let mut wrong = Vec::new();
    for (question, &passed) in questions.iter().zip(&passed) {
        let Question { probe, from, to, reasons, allowed } = question;
        if passed != *allowed {
            let (is, should) = if passed { ("passed", "be denied") } else { ("was denied", "pass") };
            let rows: Vec<&str> = reasons.iter().map(|(row, _)| row.id.as_str()).collect();
            let Probe { from: source, to: target, kind } = probe;
            wrong.push(format!(
                "{direction:?}: {kind:?} from {} ({source}) to {} ({target}) {is} and should {should} (rows {rows:?})",
                from.name, to.name
            ));
        } else if passed {
            coverage.allowed.extend(reasons.iter().map(|(row, flow)| (row.id.clone(), (*flow).clone(), direction)));
        } else {
            let of_row = |row: &&Row| row.ports.iter().any(|ports| ports.probed().contains(&probe.kind));
            coverage.denied.extend(rows.iter().filter(of_row).map(|row| (row.id.clone(), direction)));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} probes went wrong, such as\n{}",
        wrong.len(),
        questions.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );

    for ((end, before), questions) in appliances.iter().zip(before).map(|(end, before)| {
        let filtered = |question: &&Question<'_>| {
            let end_of = if direction == Direction::Ingress { question.to } else { question.from };
            end_of.name == end.name && !question.allowed
        };
        ((end, before), questions.iter().filter(filtered).count())
    }) {
        let counted = counted(end)? - before;
        assert!(
            counted >= u64::try_from(questions)?,
            "{}: {chain} counted {counted} packets, and {questions} probes were denied",
            end.name
        );
    }
    Ok(())
}

#[test]
fn every_row_passes_exactly_its_flows() -> Result<()> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/port-matrix.toml");
    let text = std::fs::read_to_string(&fixture).with_context(|| fixture.display().to_string())?;
    let rows = model::rows(&text)?;
    assert_eq!(rows.len(), 67 + 3 + 1, "the rows of the matrix, its public servers, and DNS");

    let everything = ["snmp-agent", "windows-collection", "nfs", "rdp", "fibre-channel", "vulnerability-manager"];
    let deployments = [
        deployment(true, "2014.5", &everything),
        deployment(false, "7.5.0-up7", &[]),
        deployment(true, "7.5.0-up6", &["fips", "vulnerability-manager"]),
    ];
    let lab = Lab::new(&deployments[0].specs())?;
    let stage = Stage::new(&lab, &rows)?;
    let mut coverage = Coverage::default();
    for (number, deployment) in deployments.iter().enumerate() {
        pass(&stage, deployment, &rows, Direction::Ingress, &mut coverage)?;
        if number < 2 {
            pass(&stage, deployment, &rows, Direction::Egress, &mut coverage)?;
        }
    }
    assert_covered(&rows, &deployments[0], &coverage);
    Ok(())
}

/// Every flow of every row passed in each direction that concerns an appliance, and every row denied somebody.
fn assert_covered(rows: &[Row], deployment: &Deployment, coverage: &Coverage) {
    let external: BTreeSet<&str> = deployment.ends.iter().flat_map(|end| &end.groups).map(String::as_str).collect();
    let is_appliance = |group: &str| group != "public-server" && !external.contains(group);
    let mut missing = Vec::new();
    for row in rows {
        for flow in &row.flows {
            // A public server that is named by DNS name has no address here.
            let ends = [&flow.from, &flow.to];
            if ends.into_iter().any(|group| group == "public-server") && row.servers.is_empty() {
                continue;
            }
            let directions = [(Direction::Ingress, &flow.to), (Direction::Egress, &flow.from)];
            for (direction, _) in directions.into_iter().filter(|(_, group)| is_appliance(group)) {
                if !coverage.allowed.contains(&(row.id.clone(), flow.clone(), direction)) {
                    missing
                        .push(format!("{}: no packet passed by {} -> {} ({direction:?})", row.id, flow.from, flow.to));
                }
            }
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            if !coverage.denied.contains(&(row.id.clone(), direction)) {
                missing.push(format!("{}: no packet was denied ({direction:?})", row.id));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    println!("{} flows passed in one direction or the other, {} denied", coverage.allowed.len(), coverage.denied.len());
}
