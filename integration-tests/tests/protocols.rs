//! The protocols of services with dynamic ports, spoken with the real ones inside a host: JVMs, rpcbind, and a broker
//! that answers as a real one does, or in each of the ways in which that goes wrong.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use portward::ruleset::Protocol;
use portward::trackers::{Claim, Claims, NoAnswer, Refusal, imq, rmi, rpc};
use portward_integration_tests::broker::{self, Broker};
use portward_integration_tests::jvm::Java;
use portward_integration_tests::rpc::{By, Registration, RpcService, RpcServices};
use portward_integration_tests::{Host, HostSpec, Lab};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for what a service does in less than a second.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where a JVM has its registry, as on an appliance.
const RMI: u16 = 9913;
const MOUNTD: u32 = 100_005;
const RQUOTAD: u32 = 100_011;

fn lab() -> Result<Lab> {
    Lab::new(&[HostSpec::new("console", &["10.0.0.10", "fd00::10"])])
}

/// Runs a question inside the host, on a runtime like the daemon's.
fn inside<T: Send, F: Future<Output = T>>(host: &Host, question: impl FnOnce() -> F + Send) -> T {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtime.expect("a runtime needs a few descriptors").block_on(question())
    })
}

fn ask_broker(host: &Host) -> Result<imq::PortTable, imq::Error> {
    inside(host, || imq::ask(SocketAddr::new(LOOPBACK, broker::PORT)))
}

fn ask_registry(host: &Host) -> Result<rmi::Registry, rmi::Error> {
    inside(host, || rmi::ask(SocketAddr::new(LOOPBACK, RMI)))
}

fn ask_rpcbind(host: &Host, socket: &Path) -> Result<Vec<rpc::Registration>, rpc::Error> {
    inside(host, || rpc::ask(socket))
}

/// What is claimed, as port and name.
fn claimed(claims: &Claims) -> BTreeMap<String, u16> {
    claims.claims.iter().map(|claim| (claim.what.clone(), claim.port)).collect()
}

/// The ports on which somebody listens inside the host, from the kernel's own tables.
fn listening(host: &Host, protocol: Protocol) -> Result<BTreeSet<u16>> {
    let (names, state) = match protocol {
        Protocol::Tcp => (["tcp", "tcp6"], "0A"),
        Protocol::Udp => (["udp", "udp6"], "07"),
    };
    let mut ports = BTreeSet::new();
    for name in names {
        let table = host.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))?;
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (address, found) = (fields.get(1).context("an address")?, fields.get(3).context("a state")?);
            if *found == state {
                let (_, port) = address.rsplit_once(':').context("a port")?;
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

fn all_listen(host: &Host, claims: &[Claim]) -> Result<bool> {
    let open = [listening(host, Protocol::Tcp)?, listening(host, Protocol::Udp)?];
    Ok(claims.iter().all(|claim| open[usize::from(claim.protocol == Protocol::Udp)].contains(&claim.port)))
}

/// Asks until the answer is as it should be.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not after a long time");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_broker_names_the_ports_on_which_it_listens() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let mut broker = Broker::start(host, &["version=4.4 Update 1", "host=console.example"])?;
    let mut expected = broker.ports()?;
    assert_eq!(expected.remove("portmapper"), Some(broker::PORT));
    assert_eq!(expected.len(), 5, "{expected:?}");
    for address in [LOOPBACK, Ipv6Addr::LOCALHOST.into(), host.ipv4(), host.ipv6()] {
        let table = inside(host, || imq::ask(SocketAddr::new(address, broker::PORT)))?;
        assert!(table.complete, "{address}");
        assert_eq!((table.instance.as_str(), table.version.as_str()), ("imqbroker", "4.4 Update 1"));
        let claims = imq::claims(&table);
        assert_eq!(claimed(&claims), expected, "{address}");
        assert_eq!(claims.refused, []);
        assert!(all_listen(host, &claims.claims)?);
    }
    Ok(())
}

#[test]
fn a_broker_that_closes_and_opens_a_port_says_so() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let mut broker = Broker::start(host, &[])?;
    broker.tell("close jms")?;
    broker.tell("close jmxrmi")?;
    let claims = imq::claims(&ask_broker(host)?);
    assert_eq!(claimed(&claims).keys().collect::<Vec<_>>(), ["admin", "cluster", "cluster_discovery"]);
    let refused: Vec<_> = claims.refused.iter().map(|refused| (refused.what.as_str(), &refused.why)).collect();
    assert_eq!(refused, [("jms", &Refusal::NoPort)]);

    broker.tell("open jms 33333")?;
    broker.tell("open jmxrmi")?;
    let claims = claimed(&imq::claims(&ask_broker(host)?));
    assert_eq!((claims["jms"], claims["jmxrmi"]), (33333, broker.ports()?["jmxrmi"]));

    broker.tell("close portmapper")?;
    assert!(matches!(ask_broker(host), Err(imq::Error::NoAnswer(NoAnswer::Connect { .. }))));
    broker.tell("open portmapper")?;
    assert_eq!(claimed(&imq::claims(&ask_broker(host)?)), claims);

    // What a broker says need not be so.
    broker.tell("abandon admin")?;
    broker.tell("claim ssh 22")?;
    let claims = imq::claims(&ask_broker(host)?).claims;
    let open = listening(host, Protocol::Tcp)?;
    let false_claims: Vec<_> = claims.iter().filter(|claim| !open.contains(&claim.port)).collect();
    assert_eq!(false_claims.iter().map(|claim| claim.what.as_str()).collect::<Vec<_>>(), ["admin", "ssh"]);
    Ok(())
}

#[test]
fn a_broker_that_starts_slowly_has_its_ports_one_after_the_other() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let mut broker = Broker::start(host, &["slow"])?;
    let mut seen = Vec::new();
    until("the whole table", || {
        match ask_broker(host) {
            Err(imq::Error::NoAnswer(NoAnswer::Connect { source: Errno::ECONNREFUSED, .. })) if seen.is_empty() => {}
            Err(error) => bail!("{error:?}"),
            Ok(table) => {
                ensure!(table.complete, "{table:?}");
                seen.push(claimed(&imq::claims(&table)));
            }
        }
        Ok(seen.last().is_some_and(|claims| claims.len() == 5).then_some(()))
    })?;
    for pair in seen.windows(2) {
        assert!(pair[0].iter().all(|(what, port)| pair[1].get(what) == Some(port)), "{pair:?}");
    }
    let mut expected = broker.ports()?;
    expected.remove("portmapper");
    assert_eq!(seen.last(), Some(&expected));
    Ok(())
}

#[test]
fn whatever_a_broker_answers_has_a_name() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let mut broker = Broker::start(host, &[])?;
    let whole = claimed(&imq::claims(&ask_broker(host)?));
    for how in ["open", "unified"] {
        broker.tell(&format!("answer {how}"))?;
        let table = ask_broker(host)?;
        assert!(table.complete, "{how}");
        assert_eq!(claimed(&imq::claims(&table)), whole, "{how}");
    }

    broker.tell("answer torn")?;
    let table = ask_broker(host)?;
    let mut expected = whole.clone();
    expected.remove("cluster");
    assert!(!table.complete);
    assert_eq!(claimed(&imq::claims(&table)), expected, "the port that was cut is not another port");

    broker.tell("answer stopping")?;
    let claims = imq::claims(&ask_broker(host)?);
    let mut expected = whole;
    expected.remove("admin");
    assert_eq!(claimed(&claims), expected);
    assert_eq!(claims.refused.len(), 1);

    let place = "127.0.0.1:7676";
    for (how, message) in [
        ("silent", "did not answer within 3 s"),
        ("stuck", "began to answer and did not end within 3 s"),
        ("trickle", "began to answer and did not end within 3 s"),
        ("endless", "answered with more than 65536 bytes, which is no answer to the question"),
        ("rubbish", "did not answer as the portmapper of a message broker does"),
        ("tls", "speaks TLS, so it cannot be asked"),
    ] {
        broker.tell(&format!("answer {how}"))?;
        let error = ask_broker(host).expect_err(how);
        assert_eq!(error.to_string(), format!("{place} {message}"), "{how}");
    }
    broker.end(Signal::SIGKILL)?;
    let error = ask_broker(host).expect_err("nobody is there");
    assert_eq!(error.to_string(), format!("cannot connect to {place}: Connection refused"));
    Ok(())
}

#[test]
fn a_registry_made_by_hand_names_the_ports_of_its_objects() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let folder = tempfile::tempdir()?;
    let mut jvm = Java::compile(folder.path())?.start_registry(host, RMI)?;
    let claims = || -> Result<Claims> { Ok(rmi::claims(&ask_registry(host)?)) };

    let first = claims()?;
    assert_eq!(claimed(&first).keys().collect::<Vec<_>>(), ["rmi service"]);
    assert!(all_listen(host, &first.claims)?);
    assert_eq!(listening(host, Protocol::Tcp)?, BTreeSet::from([RMI, first.claims[0].port]));

    jvm.tell("unexport service")?;
    assert_eq!(claims()?, Claims::default());
    jvm.tell("export service 33333")?;
    jvm.tell("export-with-factory other 33334")?;
    let both = [("rmi service".to_owned(), 33333), ("rmi other".to_owned(), 33334)];
    assert_eq!(claimed(&claims()?), both.into());
    assert!(all_listen(host, &claims()?.claims)?);

    // The registry goes on to name an object whose port is closed.
    jvm.tell("forget other")?;
    assert_eq!(claimed(&claims()?).get("rmi other"), Some(&33334));
    until("the port is closed", || Ok((!listening(host, Protocol::Tcp)?.contains(&33334)).then_some(())))?;

    jvm.tell("bind-many 100")?;
    let many = claims()?;
    assert_eq!(many.claims.len(), 64);
    let refused: Vec<_> = many.refused.iter().map(|refused| (refused.what.as_str(), &refused.why)).collect();
    assert_eq!(refused, [("rmi, 38 names more", &Refusal::Beyond(64))]);
    jvm.end(Signal::SIGKILL)?;
    let error = ask_registry(host).expect_err("nobody is there");
    assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:9913: Connection refused");
    Ok(())
}

#[test]
fn of_the_three_ports_of_jmx_the_registry_names_one() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let folder = tempfile::tempdir()?;
    let java = Java::compile(folder.path())?;
    let mut jvm = java.start_jmx(host, RMI)?;
    let claims = rmi::claims(&ask_registry(host)?);
    assert_eq!(claimed(&claims).keys().collect::<Vec<_>>(), ["rmi jmxrmi"]);
    assert_eq!(claims.refused, []);
    assert!(all_listen(host, &claims.claims)?);
    assert_ne!(claims.claims[0].port, RMI);
    let open = listening(host, Protocol::Tcp)?;
    assert_eq!(open.len(), 3, "the registry, the object, and one that only local connections may use: {open:?}");
    jvm.end(Signal::SIGTERM)?;

    let _jvm = java.start_jmx_with_tls(host, RMI)?;
    let error = ask_registry(host).expect_err("a registry that expects TLS");
    assert_eq!(error.to_string(), "127.0.0.1:9913 speaks TLS, so it cannot be asked");
    let error = inside(host, || imq::ask(SocketAddr::new(LOOPBACK, RMI))).expect_err("no broker");
    assert_eq!(error.to_string(), "127.0.0.1:9913 speaks TLS, so it cannot be asked");
    Ok(())
}

#[test]
fn whatever_is_no_registry_has_a_name() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let mut broker = Broker::start(host, &["port=9913"])?;
    for (how, message) in [
        ("table", "did not answer as an RMI registry does"),
        ("rubbish", "did not answer as an RMI registry does"),
        ("silent", "did not answer within 3 s"),
        ("stuck", "began to answer and did not end within 3 s"),
        ("endless", "answered with more than 262144 bytes, which is no answer to the question"),
    ] {
        broker.tell(&format!("answer {how}"))?;
        let error = ask_registry(host).expect_err(how);
        assert_eq!(error.to_string(), format!("127.0.0.1:9913 {message}"), "{how}");
    }
    Ok(())
}

#[test]
fn rpcbind_names_the_ports_of_mountd_and_rquotad_and_who_registered_them() -> Result<()> {
    let lab = lab()?;
    let host = lab.host("console");
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("run/rpcbind.sock");
    assert_eq!(ask_rpcbind(host, &socket), Err(rpc::Error::NotRunning));

    let mut services = RpcServices::start(host, folder.path())?;
    assert_eq!(services.socket(), socket);
    services.start_service(RpcService::Mountd)?;
    services.start_service(RpcService::Rquotad)?;
    let claims = |programs: &[u32]| -> Result<Claims> { Ok(rpc::claims(&ask_rpcbind(host, &socket)?, programs)) };
    let so_many = |programs: &[u32], count: usize| {
        until("the registrations", || Ok(Some(claims(programs)?).filter(|claims| claims.claims.len() == count)))
    };
    // Three versions of mountd and two of rquotad, on two transports of two families.
    let mountd = so_many(&[MOUNTD], 12)?;
    let rquotad = so_many(&[RQUOTAD], 8)?;
    assert_eq!(claimed(&mountd).len(), 12);
    assert!(mountd.refused.is_empty() && rquotad.refused.is_empty());
    assert!(all_listen(host, &mountd.claims)? && all_listen(host, &rquotad.claims)?);

    // What others register is shown and not believed.
    let made_up = |version, netid, address| Registration { program: MOUNTD, version, netid, address };
    services.register(By::User(1000), made_up(77, "tcp", "0.0.0.0.0.22"))?;
    services.register(By::Loopback, made_up(78, "udp6", "::.4.1"))?;
    services.register(By::User(0), made_up(79, "tcp", "rubbish"))?;
    let found = claims(&[MOUNTD])?;
    assert_eq!(found.claims, mountd.claims);
    let refused: BTreeMap<_, _> =
        found.refused.iter().map(|refused| (refused.what.as_str(), (refused.port, refused.why.clone()))).collect();
    let expected = BTreeMap::from([
        ("mountd v77 tcp", (Some((Protocol::Tcp, 22)), Refusal::Owner("1000".to_owned()))),
        ("mountd v78 udp6", (Some((Protocol::Udp, 1025)), Refusal::Owner("unknown".to_owned()))),
        ("mountd v79 tcp", (None, Refusal::Address("rubbish".to_owned()))),
    ]);
    assert_eq!(refused, expected);

    // A service that ends in order is gone from the list; what a killed one registered stays with nothing behind it.
    services.end("rpc.mountd", Signal::SIGTERM)?;
    so_many(&[MOUNTD], 0)?;
    services.end("rpc.rquotad", Signal::SIGKILL)?;
    assert_eq!(claims(&[RQUOTAD])?, rquotad);
    assert!(!all_listen(host, &rquotad.claims)?);

    services.end("rpcbind", Signal::SIGKILL)?;
    assert_eq!(ask_rpcbind(host, &socket), Err(rpc::Error::NotRunning));
    services.start_rpcbind()?;
    claims(&[MOUNTD])?;
    Ok(())
}
