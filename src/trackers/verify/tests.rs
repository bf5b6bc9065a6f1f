use super::*;
use crate::policy::{Exposure, OnClose, ProcessMatch};
use crate::ruleset::PortRange;
use std::net::{IpAddr, Ipv4Addr};

/// A process whose user is what counts.
#[derive(Debug)]
struct Fake {
    pid: u32,
    user: &'static str,
    unit: Option<&'static str>,
    program: &'static str,
}

impl Holder for Fake {
    fn identity(&self) -> Identity {
        (self.pid, 1)
    }

    fn unit(&self) -> Option<&str> {
        self.unit
    }

    fn check(&self, wanted: &ProcessMatch) -> Result<(), String> {
        self.check_user(wanted)?;
        if wanted.exe.is_empty() || wanted.exe.iter().any(|pattern| pattern.matches(self.program)) {
            return Ok(());
        }
        Err(format!("is {}", self.program))
    }

    fn check_user(&self, wanted: &ProcessMatch) -> Result<(), String> {
        match &wanted.user {
            Some(user) if user != self.user => Err(format!("runs as {}, not {user}", self.user)),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!("{} (process {})", self.program, self.pid)
    }
}

const BROKER: Fake = Fake { pid: 10, user: "root", unit: Some("imq.service"), program: "java" };
const CHILD: Fake = Fake { pid: 11, user: "root", unit: Some("imq.service"), program: "helper" };
const DEMOTED: Fake = Fake { pid: 12, user: "nobody", unit: Some("imq.service"), program: "helper" };
const STRANGER: Fake = Fake { pid: 66, user: "eve", unit: None, program: "java" };

fn service(tracker: Tracker) -> DynamicService {
    DynamicService {
        name: "imq".to_owned(),
        enabled: true,
        tracker,
        anchor: (tracker != Tracker::Rpc).then_some(7676),
        programs: Vec::new(),
        process: ProcessMatch {
            exe: vec![glob::Pattern::new("java").unwrap()],
            user: Some("root".to_owned()),
            ..ProcessMatch::default()
        },
        ports: vec![Ports::Range(Protocol::Tcp, PortRange { first: 32000, last: 65535 })],
        limit: 4,
        on_close: OnClose::Keep,
        exposure: Exposure::Row("imq".to_owned()),
        when: Vec::new(),
        line: None,
    }
}

/// Sockets on these ports, with who holds them.
fn sockets(list: &[(u16, LocalScope, &[Fake])]) -> Sockets<Fake> {
    let mut sockets = Sockets::new();
    for (index, (port, scope, holders)) in list.iter().enumerate() {
        let cookie = index as u64 + 1;
        let listener =
            Listener { protocol: Protocol::Tcp, port: *port, scope: *scope, interface: None, uid: 0, inode: 1, cookie };
        assert!(sockets.insert(listener, true));
        let copy = |fake: &Fake| Arc::new(Fake { ..*fake });
        sockets.set_holders(cookie, holders.iter().map(copy).collect());
    }
    sockets
}

fn claims(ports: &[u16]) -> Vec<Claim> {
    ports.iter().map(|port| Claim { protocol: Protocol::Tcp, port: *port, what: "jms".to_owned() }).collect()
}

fn open_ports(verdict: &Verdict) -> Vec<(u16, LocalScope)> {
    verdict.open.keys().map(|open| (open.port, open.scope)).collect()
}

/// Judges with the anchor's owner as verified.
fn judged(service: &DynamicService, sockets: &Sockets<Fake>, meant: Meant<'_>, before: &[OpenPort]) -> Verdict {
    let Anchor::Verified(verified, _) = anchor(service, None, sockets) else { panic!("the anchor is verified") };
    judge(service, &[], sockets, &verified, meant, &before.iter().copied().collect())
}

fn why(verdict: &Verdict, port: u16) -> &str {
    let port = format!("{port}/tcp");
    &verdict.refused.iter().find(|refused| refused.port == port).expect("it is refused").why
}

const ANY: LocalScope = LocalScope::Any;

#[test]
fn claims_open_what_the_process_listens_on_and_nothing_else() {
    let service = service(Tracker::Imq);
    let sockets = sockets(&[
        (7676, ANY, &[BROKER]),
        (40001, ANY, &[BROKER]),
        (40002, LocalScope::Ipv4, &[BROKER]),
        (40003, ANY, &[STRANGER]),
        (40004, LocalScope::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), &[BROKER]),
        (40005, ANY, &[BROKER]),
        (22, ANY, &[BROKER]),
    ]);
    let verdict = judged(&service, &sockets, Meant::Claims(&claims(&[40001, 40002, 40003, 40004, 40006, 22])), &[]);
    assert_eq!(open_ports(&verdict), [(40001, ANY), (40002, LocalScope::Ipv4)]);
    assert_eq!(why(&verdict, 40003), "java (process 66) is not the verified process, nor of its unit");
    assert_eq!(why(&verdict, 40004), "only the host itself can reach it");
    assert_eq!(why(&verdict, 40006), "nobody listens on it");
    assert_eq!(why(&verdict, 22), "outside of 32000-65535/tcp");
}

#[test]
fn an_anchor_that_somebody_else_has_taken_verifies_nobody() {
    let service = service(Tracker::Imq);
    let sockets = sockets(&[(7676, ANY, &[STRANGER]), (40001, ANY, &[BROKER])]);
    match anchor(&service, None, &sockets) {
        Anchor::Unverified(why) => assert_eq!(why, "java (process 66) runs as eve, not root"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(anchor(&service, None, &Sockets::<Fake>::new()), Anchor::Absent));
}

#[test]
fn a_listener_without_a_visible_process_verifies_nobody() {
    let service = service(Tracker::Imq);
    assert!(matches!(anchor(&service, None, &sockets(&[(7676, ANY, &[])])), Anchor::Unverified(_)));
    let mut unknown = sockets(&[]);
    unknown.insert(
        Listener { protocol: Protocol::Tcp, port: 7676, scope: ANY, interface: None, uid: 0, inode: 7, cookie: 1 },
        true,
    );
    assert!(matches!(anchor(&service, None, &unknown), Anchor::Unverified(_)));
    match anchor(&service, Some(7), &unknown) {
        Anchor::Unverified(why) => assert_eq!(why, "its socket was made by user 0, not by root"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_unit_counts_when_the_user_is_right() {
    let service = service(Tracker::Process);
    let sockets = sockets(&[(7676, ANY, &[BROKER]), (40001, ANY, &[CHILD]), (40002, ANY, &[DEMOTED])]);
    let verdict = judged(&service, &sockets, Meant::Listeners, &[]);
    assert_eq!(open_ports(&verdict), [(40001, ANY)]);
    let verdict = judged(&service, &sockets, Meant::Claims(&claims(&[40002])), &[]);
    assert_eq!(why(&verdict, 40002), "helper (process 12) runs as nobody, not root");
}

#[test]
fn a_port_that_is_shared_with_a_stranger_stays_closed() {
    let service = service(Tracker::Process);
    let address = LocalScope::Address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let shared = sockets(&[(7676, ANY, &[BROKER]), (40001, ANY, &[BROKER]), (40001, address, &[STRANGER])]);
    let verdict = judged(&service, &shared, Meant::Listeners, &[]);
    assert!(verdict.open.is_empty());
    assert!(why(&verdict, 40001).starts_with("shared with another process"), "{verdict:?}");
    let apart = sockets(&[(7676, ANY, &[BROKER]), (40001, address, &[BROKER]), (40001, LocalScope::Ipv6, &[STRANGER])]);
    assert_eq!(open_ports(&judged(&service, &apart, Meant::Listeners, &[])), [(40001, address)]);
}

#[test]
fn beyond_the_limit_what_is_open_stays_and_the_lowest_ports_follow() {
    let mut service = service(Tracker::Process);
    service.limit = 2;
    let list: Vec<(u16, LocalScope, &[Fake])> =
        [7676, 40001, 40002, 40003].iter().map(|port| (*port, ANY, &[BROKER] as &[Fake])).collect();
    let sockets = sockets(&list);
    let verdict = judged(&service, &sockets, Meant::Listeners, &[]);
    assert_eq!(open_ports(&verdict), [(40001, ANY), (40002, ANY)]);
    assert_eq!(why(&verdict, 40003), "beyond the limit of 2 ports");
    let before = [OpenPort { protocol: Protocol::Tcp, port: 40003, scope: ANY }];
    assert_eq!(open_ports(&judged(&service, &sockets, Meant::Listeners, &before)), [(40001, ANY), (40003, ANY)]);
}

#[test]
fn ports_that_the_row_opens_itself_are_passed_over_in_silence() {
    let service = service(Tracker::Imq);
    let sockets = sockets(&[(7676, ANY, &[BROKER]), (7677, ANY, &[BROKER])]);
    let Anchor::Verified(verified, listener) = anchor(&service, None, &sockets) else { panic!("verified") };
    assert_eq!(listener.port, 7676);
    let own = [Ports::Range(Protocol::Tcp, PortRange { first: 7676, last: 7677 })];
    let verdict = judge(&service, &own, &sockets, &verified, Meant::Claims(&claims(&[7677])), &BTreeSet::new());
    assert_eq!(verdict, Verdict::default());
}

#[test]
fn rpc_checks_the_process_of_each_listener() {
    let service = service(Tracker::Rpc);
    let sockets = sockets(&[(40001, ANY, &[BROKER]), (40002, ANY, &[CHILD])]);
    let verdict = judge(&service, &[], &sockets, &[], Meant::Claims(&claims(&[40001, 40002])), &BTreeSet::new());
    assert_eq!(open_ports(&verdict), [(40001, ANY)]);
    assert_eq!(why(&verdict, 40002), "helper (process 11) is helper");
}

#[test]
fn very_many_refusals_are_bounded() {
    let service = service(Tracker::Imq);
    let sockets = sockets(&[(7676, ANY, &[BROKER])]);
    let many: Vec<u16> = (32000..42000).collect();
    assert_eq!(judged(&service, &sockets, Meant::Claims(&claims(&many)), &[]).refused.len(), MOST_REFUSED);
}

#[test]
fn a_listener_that_goes_takes_its_place_in_the_index_along() {
    let mut sockets = sockets(&[(7676, ANY, &[BROKER]), (40001, ANY, &[BROKER, CHILD])]);
    assert_eq!(sockets.processes().count(), 2);
    assert_eq!(sockets.of_unit("imq.service").count(), 2);
    assert!(sockets.remove(2).is_some());
    assert_eq!(sockets.on_port(Protocol::Tcp, 40001).count(), 0);
    assert_eq!(sockets.of_process(CHILD.identity()).count(), 0);
    assert_eq!(sockets.of_unit("imq.service").count(), 1);
    sockets.set_holders(1, Vec::new());
    assert_eq!(sockets.processes().count(), 0);
    assert_eq!(sockets.iter().count(), 1);
}
