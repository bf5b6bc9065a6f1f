//! The services that the vendor's page names, with real counterparts: a broker that answers as a real one does, JVMs,
//! rpcbind with mountd and rquotad. The daemon opens exactly what each of them has, and closes it again.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

use nix::sys::signal::Signal;
use portward_integration_tests::broker::{self, Broker};
use portward_integration_tests::jvm::Java;
use portward_integration_tests::portward::{Daemon, portward, table, text};
use portward_integration_tests::rpc::{By, Registration, RpcService, RpcServices};
use portward_integration_tests::service::Service;
use portward_integration_tests::site::{self, PATIENCE, Site};
use portward_integration_tests::{HostSpec, Lab};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Protocols and ports.
type OpenPorts = BTreeSet<(&'static str, u16)>;

/// A deployment of a console and a processor, with more at the end.
fn policy(features: &str, more: &str) -> String {
    format!(
        "format = 1
features = [{features}]
[groups]
admin = [\"192.0.2.200\"]
windows-host = [\"192.0.2.1\"]
{}{more}",
        site::hosts("\"event-processor\", \"event-collector\"")
    )
}

fn imq() -> Site {
    let program = broker::path().unwrap().canonicalize().unwrap();
    let process = format!(
        "[dynamic.imq]\nprocess = {{ user = \"root\", exe = [\"{}\"], args = [\"imqbroker\"] }}\n",
        program.display()
    );
    Site::start(&policy("", &process), "ep", "imq", &[]).unwrap()
}

/// The ports of a broker above those that the row opens itself.
fn random_ports(broker: &mut Broker) -> Vec<u16> {
    broker.ports().unwrap().into_values().filter(|port| *port >= 32000).collect()
}

#[test]
fn the_ports_of_a_broker_are_those_of_its_table() {
    let site = imq();
    let mut broker = Broker::start(site.host(), &["imqbroker"]).unwrap();
    let ports = random_ports(&mut broker);
    // The vendor counts four random ports: three in the table, and the one in the stub.
    assert!(ports.len() >= 4, "{ports:?}");
    site.wait_open(&ports);
    assert!(ports.iter().all(|port| site.passes("console", "192.0.2.2", *port)), "{}", site.daemon.log());
    assert!(ports.iter().all(|port| site.denied("stranger", "192.0.2.2", *port)));
    assert!(site.passes("console", "2001:db8::2", ports[0]));

    // What it claims and does not have stays closed, whatever it is.
    broker.tell("claim ssh 22").unwrap();
    broker.tell("claim nothing 45999").unwrap();
    assert_eq!(site.wait_refused(22), "outside of 32000-65535/tcp");
    assert_eq!(site.wait_refused(45999), "nobody listens on it");
    site.wait_open(&random_ports(&mut broker));

    // A listener that is closed and opened again elsewhere is followed.
    broker.tell("close admin").unwrap();
    site.wait_open(&random_ports(&mut broker));
    broker.tell("open admin").unwrap();
    site.wait_open(&random_ports(&mut broker));

    broker.end(Signal::SIGKILL).unwrap();
    site.wait_open(&[]);
    let mut broker = Broker::start(site.host(), &["imqbroker", "version=4.4 Update 1"]).unwrap();
    site.wait_open(&random_ports(&mut broker));
}

#[test]
fn a_broker_that_starts_slowly_is_followed_to_its_end() {
    let site = imq();
    let mut broker = Broker::start(site.host(), &["imqbroker", "slow"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while broker.ports().unwrap().len() < 6 {
        assert!(Instant::now() < deadline, "{:?}", broker.ports());
        sleep(Duration::from_millis(50));
    }
    let ports = random_ports(&mut broker);
    assert!(ports.len() >= 4, "{ports:?}");
    site.wait_open(&ports);
}

#[test]
fn a_broker_that_does_not_answer_keeps_what_it_listens_on_and_gets_nothing_new() {
    let site = imq();
    let mut broker = Broker::start(site.host(), &["imqbroker"]).unwrap();
    let ports = random_ports(&mut broker);
    site.wait_open(&ports);
    for how in ["torn", "stuck", "endless", "rubbish", "trickle", "silent"] {
        let before = broker.ports().unwrap();
        broker.tell(&format!("answer {how}")).unwrap();
        // A change of its listeners has the broker asked again.
        broker.tell("close cluster").unwrap();
        broker.tell("open cluster").unwrap();
        site.wait_condition("silent");
        let kept: Vec<u16> =
            before.iter().filter(|(name, port)| *name != "cluster" && **port >= 32000).map(|(_, port)| *port).collect();
        site.wait_open(&kept);
        broker.tell("answer table").unwrap();
        site.wait_open(&random_ports(&mut broker));
    }
    broker.tell("answer silent").unwrap();
    broker.tell("close admin").unwrap();
    // What is closed is closed at once, whatever the table said last.
    site.wait_open(&random_ports(&mut broker));
    assert_eq!(site.open("tcp").len(), ports.len() - 1);
}

#[test]
fn a_broker_behind_tls_has_its_listeners_counted() {
    let site = imq();
    let mut broker = Broker::start(site.host(), &["imqbroker", "answer=tls"]).unwrap();
    let service = site.wait_condition("fallback");
    assert!(service["detail"].as_str().unwrap().contains("all its listeners count"), "{service}");
    site.wait_open(&random_ports(&mut broker));
}

#[test]
fn somebody_elses_broker_opens_nothing() {
    let site = imq();
    let mut broker = Broker::start(site.host(), &["imqbroker", "user=65534"]).unwrap();
    site.wait_condition("unverified");
    assert!(site.open("tcp").is_empty());
    broker.end(Signal::SIGKILL).unwrap();
    // The right program of the right user, without the argument that is asked for.
    let _broker = Broker::start(site.host(), &["instance=other"]).unwrap();
    let service = site.wait_condition("unverified");
    assert!(service["detail"].as_str().unwrap().contains("has no argument imqbroker"), "{service}");
    assert!(site.open("tcp").is_empty());
}

#[test]
fn portward_imq_shows_the_table_and_what_is_verified() {
    let site = imq();
    let arguments = ["imq", "--policy", text(&site.policy()).unwrap(), "--host", "ep"].map(str::to_owned);
    let run = |more: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        portward(site.host(), &arguments).unwrap()
    };
    let nobody = run(&[]);
    assert_eq!((nobody.code, nobody.stdout.as_str()), (1, "nobody listens on 7676/tcp: no message broker runs here\n"));
    let mut broker = Broker::start(site.host(), &["imqbroker"]).unwrap();
    broker.tell("claim ssh 22").unwrap();
    let answer = run(&["--json"]);
    let json: Value = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    assert_eq!(answer.code, 0);
    let find = |name: &str| {
        let services = json["services"].as_array().unwrap();
        services.iter().find(|service| service["service"] == name).cloned().unwrap_or_else(|| panic!("{json:#}"))
    };
    let ports = broker.ports().unwrap();
    assert_eq!(
        (find("admin")["port"].as_u64(), find("admin")["verified"].as_bool()),
        (Some(ports["admin"].into()), Some(true))
    );
    assert_eq!(find("jmxrmi")["stub_port"], ports["jmxrmi"]);
    assert_eq!(find("jmxrmi")["verified"], true);
    assert_eq!(find("ssh")["verified"], false);
    let shown = run(&[]).stdout;
    assert!(shown.contains("SERVICE") && shown.contains("verified") && shown.contains("from its stub"), "{shown}");
}

#[test]
fn a_jvm_opens_its_exported_port_and_not_the_local_one() {
    // The catalogue's own description of the process: root, and a JVM where distributions have it.
    let site = Site::start(&policy("", ""), "ep", "rmi", &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let java = Java::compile(folder.path()).unwrap();
    let mut jvm = java.start_jmx(site.host(), 9913).unwrap();
    let service = site.wait("one open port", |service| service["open"].as_array().is_some_and(|open| open.len() == 1));
    assert_eq!(service["condition"], "tracked", "{service:#}");
    let port = site.open("tcp");
    assert_eq!(port.len(), 1);
    // From outside all three listeners would be reachable: 9913 and the exported one are, the third is not.
    assert!(site.passes("console", "192.0.2.2", 9913) && site.passes("console", "192.0.2.2", port[0]));
    let others: Vec<u16> = listening(&site).into_iter().filter(|other| *other != 9913 && *other != port[0]).collect();
    assert_eq!(others.len(), 1, "JMX has three listeners");
    assert!(site.denied("console", "192.0.2.2", others[0]));

    jvm.end(Signal::SIGKILL).unwrap();
    site.wait_open(&[]);
    site.wait_condition("absent");
    let _jvm = java.start_jmx(site.host(), 9913).unwrap();
    site.wait("one open port again", |service| service["open"].as_array().is_some_and(|open| open.len() == 1));
}

#[test]
fn a_registry_made_by_hand_exports_and_unexports() {
    let site = Site::start(&policy("", ""), "ep", "rmi", &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let java = Java::compile(folder.path()).unwrap();
    let mut jvm = java.start_registry(site.host(), 9913).unwrap();
    let open = |count: usize| {
        site.wait("open", |service| service["open"].as_array().is_some_and(|open| open.len() == count));
    };
    open(1);
    jvm.tell("unexport service").unwrap();
    open(0);
    jvm.tell("export service 0").unwrap();
    open(1);
    let port = site.open("tcp");
    assert!(site.passes("console", "192.0.2.2", port[0]) && site.denied("stranger", "192.0.2.2", port[0]));
}

#[test]
fn a_registry_behind_tls_has_its_listeners_counted_and_says_so() {
    let site = Site::start(&policy("", ""), "ep", "rmi", &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let java = Java::compile(folder.path()).unwrap();
    let _jvm = java.start_jmx_with_tls(site.host(), 9913).unwrap();
    let service = site.wait_condition("fallback");
    assert!(service["detail"].as_str().unwrap().contains("TLS"), "{service}");
    let mut expected = listening(&site);
    expected.remove(&9913);
    site.wait_open(&expected.into_iter().collect::<Vec<_>>());
}

/// The TCP ports on which somebody listens on the site's host.
fn listening(site: &Site) -> BTreeSet<u16> {
    let listeners = site.host().run(|| portward::listeners::SockDiag::open()?.dump()).unwrap();
    let tcp = listeners.into_iter().filter(|listener| listener.protocol == portward::ruleset::Protocol::Tcp);
    tcp.map(|listener| listener.port).collect()
}

#[test]
fn rpc_services_open_while_they_run_and_not_by_what_is_registered() {
    let lab = Lab::new(&[
        HostSpec::new("console", &["192.0.2.1", "2001:db8::1"]),
        HostSpec::new("ep", &["192.0.2.2"]),
        HostSpec::new("stranger", &["192.0.2.66"]),
    ])
    .unwrap();
    let console = lab.host("console");
    let folder = tempfile::Builder::new().prefix("rpc").tempdir().unwrap();
    let mut rpc = RpcServices::start(console, folder.path()).unwrap();
    let path = folder.path().join("policy.toml");
    fs::write(&path, policy("\"nfs\"", "")).unwrap();
    // The daemon sees the /run in which this rpcbind has its socket.
    let mount = format!("mount --bind {}/run /run && exec \"$0\" \"$@\"", folder.path().display());
    let daemon =
        Daemon::start_wrapped(console, &path, "console", folder.path(), &["unshare", "--mount", "sh", "-c", &mount])
            .unwrap();
    let open = || -> OpenPorts {
        let table = table(console).unwrap().unwrap();
        let of_map = |protocol: &'static str| {
            let map = table.maps.get(format!("dynamic_{protocol}").as_str()).cloned().unwrap_or_default();
            map.elements.into_iter().map(move |(range, _)| (protocol, range.first))
        };
        of_map("tcp").chain(of_map("udp")).collect()
    };
    let wait = |what: &str, condition: &dyn Fn(&OpenPorts) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let open = open();
            if condition(&open) {
                return open;
            }
            let status = || daemon.control("status").map(|answer| answer.stdout).unwrap_or_default();
            assert!(Instant::now() < deadline, "not {what}: {open:?}\n{}{}", status(), daemon.log());
            sleep(Duration::from_millis(20));
        }
    };
    assert!(open().is_empty());
    rpc.start_service(RpcService::Mountd).unwrap();
    // mountd takes a port for every version, transport and family: each is open for its own family.
    let mountd = rpc.registered(RpcService::Mountd).unwrap();
    assert!(mountd.len() >= 6, "{mountd:?}");
    wait("mountd open", &|open| *open == mountd);
    rpc.start_service(RpcService::Rquotad).unwrap();
    let rquotad = rpc.registered(RpcService::Rquotad).unwrap();
    assert!(!rquotad.is_empty());
    wait("rquotad open", &|open| *open == &mountd | &rquotad);

    let passes = |from: &str, port: u16| {
        let probe = portward_integration_tests::Probe {
            from: lab.host(from).ipv4(),
            to: console.ipv4(),
            kind: portward_integration_tests::Kind::Tcp(port),
        };
        let outcome = match from {
            "ep" => portward_integration_tests::probe::one(lab.host(from), probe),
            _ => portward_integration_tests::probe::one_denied(lab.host(from), probe),
        };
        outcome == portward_integration_tests::Outcome::Passed
    };
    let ipv4 = listening_ipv4(console);
    let reachable: Vec<u16> = mountd
        .iter()
        .filter(|(protocol, port)| *protocol == "tcp" && ipv4.contains(port))
        .map(|(_, port)| *port)
        .collect();
    assert!(!reachable.is_empty(), "{mountd:?} {ipv4:?}");
    assert!(passes("ep", reachable[0]), "{}", daemon.log());
    assert!(!passes("stranger", reachable[0]));

    // Killed: the registrations stay, the ports close.
    rpc.end("rpc.mountd", Signal::SIGKILL).unwrap();
    wait("mountd closed", &|open| *open == rquotad);
    // Somebody else takes a port that is still registered.
    let mut thief = Service::start_as(console, 65534).unwrap();
    let stale = reachable.iter().copied().find(|port| *port >= 1024);
    if let Some(stale) = stale {
        thief.listen(&format!("tcp 0.0.0.0:{stale}")).unwrap();
    }
    // And anybody may register anything.
    let port = thief.listen("tcp 0.0.0.0:45001").unwrap();
    let address = format!("0.0.0.0.{}.{}", port / 256, port % 256);
    let registration = Registration { program: 100_005, version: 7, netid: "tcp", address: &address };
    rpc.register(By::User(65534), registration).unwrap();
    rpc.register(By::Loopback, Registration { version: 8, ..registration }).unwrap();
    rpc.register(By::User(65534), Registration { version: 9, address: "0.0.0.0.0.22", ..registration }).unwrap();
    rpc.start_service(RpcService::Mountd).unwrap();
    let mountd = rpc.registered(RpcService::Mountd).unwrap();
    let again = &mountd | &rquotad;
    assert!(mountd.len() >= 6 && !again.contains(&("tcp", port)) && !again.contains(&("tcp", 22)), "{again:?}");
    assert!(stale.is_none_or(|stale| !again.contains(&("tcp", stale))));
    wait("mountd open again", &|open| *open == again);
    let status = daemon.control("status").unwrap().stdout;
    assert!(status.contains("only what root registers is believed"), "{status}");

    rpc.end("rpc.mountd", Signal::SIGTERM).unwrap();
    rpc.end("rpc.rquotad", Signal::SIGTERM).unwrap();
    wait("all closed", &|open| open.is_empty());
}

fn listening_ipv4(host: &portward_integration_tests::Host) -> BTreeSet<u16> {
    use portward::plan::LocalScope;
    let listeners = host.run(|| portward::listeners::SockDiag::open()?.dump()).unwrap();
    let reachable =
        listeners.into_iter().filter(|listener| matches!(listener.scope, LocalScope::Any | LocalScope::Ipv4));
    reachable.map(|listener| listener.port).collect()
}

#[test]
fn dcom_opens_the_listeners_of_the_process_on_port_135() {
    let site = Site::start(&policy("\"windows-collection\"", ""), "ep", "dcom", &[]).unwrap();
    let mut endpoint_mapper = Service::start(site.host()).unwrap();
    endpoint_mapper.listen("tcp [::]:135").unwrap();
    let port = endpoint_mapper.listen("tcp [::]:0").unwrap();
    site.wait_open(&[port]);
    assert!(site.passes("console", "192.0.2.2", port) && site.denied("stranger", "192.0.2.2", port));
}
