//! Tracked flows beside the plan: which of them it denies, and their end.
//!
//! A flow that an earlier policy allowed goes on under a tighter one, because its packets belong to a known connection.
//! Nothing here keeps the flows: they are told one after the other, judged, and counted.

use crate::kernel::conntrack::{Flow, FlowKey};
use crate::kernel::{Conntrack, Destroyed, Error, Sockets};
use crate::plan::{FlowJudge, FlowKind, FlowStart, Judgement, LocalScope, OpenPort, Way};
use crate::policy::Ports;
use crate::ruleset::Protocol;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

/// So many different pairs of peer and port are told apart; a scan of all ports must not fill the memory.
const MOST_GROUPS: usize = 1000;
/// For so many of the host's ports it is kept whether a socket listens there; the others are asked for each time.
const MOST_PORTS_KNOWN: usize = 65_536;
/// So many of them are named in a line of text.
const GROUPS_NAMED: usize = 3;

/// Protocol numbers of ICMP and ICMPv6, and their types for echo requests (IANA; RFC 792, RFC 4443).
const ICMP: (u8, u8) = (1, 8);
const ICMPV6: (u8, u8) = (58, 128);

/// Flows that the plan denies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlows {
    /// How many there are.
    pub denied: u64,
    /// How many of them the policy only observes: they are never ended.
    pub observed: u64,
    /// How many of them were ended.
    pub cut: u64,
    /// How many of the ended ones may come back, because the kernel cannot end the host's own socket
    /// (CONFIG_INET_DIAG_DESTROY): as soon as the host sends the next packet, the flow is known again.
    pub revivable: u64,
    /// By peer and port, those of most flows first.
    pub groups: Vec<DeniedGroup>,
    /// Flows that are in none of the groups, because there are too many.
    pub ungrouped: u64,
}

/// Denied flows of one peer and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedGroup {
    /// Which way they began.
    pub direction: Way,
    /// The address at the other end.
    pub peer: IpAddr,
    /// The port, such as `514/udp`; `protocol 50` where there is none.
    pub port: String,
    /// How many flows.
    pub flows: u64,
}

impl Display for DeniedFlows {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flows = |count| if count == 1 { "flow" } else { "flows" };
        write!(f, "{} established {} denied", self.denied, flows(self.denied))?;
        if self.cut > 0 {
            write!(f, ", {} cut", self.cut)?;
        }
        for (index, DeniedGroup { direction, peer, port, flows: count }) in
            self.groups.iter().take(GROUPS_NAMED).enumerate()
        {
            let separator = if index == 0 { ": " } else { ", " };
            let verb = if *direction == Way::Out { "to" } else { "from" };
            write!(f, "{separator}{count} {verb} {peer} on {port}")?;
        }
        let named: u64 = self.groups.iter().take(GROUPS_NAMED).map(|group| group.flows).sum();
        if named < self.denied {
            write!(f, " and {} more", self.denied - named)?;
        }
        Ok(())
    }
}

/// Counts what the judge's plan denies, in the network namespace of the calling thread, as long as `goes_on` says so.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn count_denied(judge: &FlowJudge<'_>, goes_on: impl Fn() -> bool) -> Result<DeniedFlows, Error> {
    let mut tally = Tally::default();
    let mut reader = FlowReader::open(judge)?;
    Conntrack::open()?.flows(|flow| {
        if !goes_on() {
            return Ok(());
        }
        let seen = reader.judge(flow)?;
        if seen.judgement.pass.is_none() {
            tally.add(flow, &seen.judgement);
        }
        Ok(())
    })?;
    Ok(tally.finish())
}

/// Ends what the judge's plan denies, in the network namespace of the calling thread: with the policy's `on-tighten =
/// "cut"`. Where the policy only observes, flows are counted and go on. Nothing is ended once `goes_on` says no.
///
/// # Errors
/// When the kernel cannot be asked. Some flows may be ended by then.
pub fn cut_denied(judge: &FlowJudge<'_>, goes_on: impl Fn() -> bool) -> Result<DeniedFlows, Error> {
    cut_where(judge, |_| goes_on())
}

/// Ends flows to dynamic ports that have closed, unless the judge's plan still allows them by something else: with
/// `on-close = "cut"`. The judge must know the ports that are open now.
///
/// # Errors
/// When the kernel cannot be asked. Some flows may be ended by then.
pub fn cut_closed(judge: &FlowJudge<'_>, closed: &[OpenPort]) -> Result<DeniedFlows, Error> {
    if closed.is_empty() {
        return Ok(DeniedFlows::default());
    }
    cut_where(judge, |SeenFlow { start, judgement, .. }| {
        let FlowKind::Ports(protocol, _, port) = start.kind else { return false };
        judgement.way == Way::In
            && closed.iter().any(|closed| {
                (closed.protocol, closed.port) == (protocol, port)
                    && closed.scope.overlaps(LocalScope::Address(start.destination))
            })
    })
}

fn cut_where(judge: &FlowJudge<'_>, concerns: impl Fn(&SeenFlow<'_>) -> bool) -> Result<DeniedFlows, Error> {
    let mut tally = Tally::default();
    let mut reader = FlowReader::open(judge)?;
    let mut cutter = Cutter::open()?;
    Conntrack::open()?.flows(|flow| {
        let seen = reader.judge(flow)?;
        if seen.judgement.pass.is_none() && concerns(&seen) {
            tally.add(flow, &seen.judgement);
            if seen.judgement.enforced {
                tally.count_cut(Some(cutter.cut(flow, &seen)?));
            }
        }
        Ok(())
    })?;
    Ok(tally.finish())
}

/// Judges tracked flows.
pub struct FlowReader<'j> {
    judge: &'j FlowJudge<'j>,
    sockets: Sockets,
    /// Whether a socket listens to TCP connections to these addresses of the host.
    listening: BTreeMap<SocketAddr, bool>,
}

/// A flow that was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenFlow<'j> {
    /// The flow as the plan sees it.
    pub start: FlowStart,
    /// Whether it began the other way round than the kernel took it.
    pub reversed: bool,
    /// What the plan says.
    pub judgement: Judgement<'j>,
}

impl<'j> FlowReader<'j> {
    /// Prepares to judge the flows of the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink, or no memory for the queues.
    pub fn open(judge: &'j FlowJudge<'j>) -> Result<Self, Error> {
        Ok(Self { judge, sockets: Sockets::open()?, listening: BTreeMap::new() })
    }

    /// Judges a flow as if it began now.
    ///
    /// Connection tracking begins with the first rule that asks for it, in the middle of connections that are there
    /// already; when this host is the first to send, the kernel takes a peer's connection for the host's own. So a TCP
    /// connection from a port on which a socket listens counts as one to that port.
    ///
    /// # Errors
    /// When the kernel cannot be asked for sockets.
    pub fn judge(&mut self, flow: &Flow) -> Result<SeenFlow<'j>, Error> {
        let start = start_of(flow);
        let judgement = self.judge.judge(&start);
        if judgement.way == Way::Out
            && let FlowKind::Ports(Protocol::Tcp, port, _) = start.kind
            && self.is_listening(SocketAddr::new(start.source, port))?
        {
            let start = start.reversed();
            return Ok(SeenFlow { start, reversed: true, judgement: self.judge.judge(&start) });
        }
        Ok(SeenFlow { start, reversed: false, judgement })
    }

    fn is_listening(&mut self, local: SocketAddr) -> Result<bool, Error> {
        if let Some(known) = self.listening.get(&local) {
            return Ok(*known);
        }
        let is_listening = self.sockets.is_listening(local)?;
        if self.listening.len() < MOST_PORTS_KNOWN {
            self.listening.insert(local, is_listening);
        }
        Ok(is_listening)
    }
}

/// Ends flows, one at a time.
pub struct Cutter {
    conntrack: Conntrack,
    sockets: Sockets,
}

/// What became of a flow that was to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It has ended.
    Yes,
    /// The kernel has forgotten it, but not the host's own end of it: see [`DeniedFlows::revivable`].
    Revivable,
    /// It had ended by itself.
    Gone,
}

impl Cutter {
    /// Opens sockets to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink, or no memory for the queues.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { conntrack: Conntrack::open()?, sockets: Sockets::open()? })
    }

    /// Ends a flow.
    ///
    /// To forget it is not enough when a peer opened a TCP connection to this host: the next packet that the host sends
    /// on it, be it an acknowledgement, would make it known again (`nf_conntrack_tcp_loose`), as one of the host's own, to
    /// which the peer's packets are replies. So the host's socket is destroyed first, and the reset still reaches the
    /// peer.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or refuses.
    pub fn cut(&mut self, flow: &Flow, seen: &SeenFlow<'_>) -> Result<Cut, Error> {
        let mut stays = false;
        // The socket's addresses are those of the packets that the host sends.
        let sent = if seen.reversed { flow.original } else { flow.reply };
        if seen.judgement.way == Way::In
            && flow.protocol == Protocol::Tcp.number()
            && let FlowKey::Ports { source, destination } = sent.key
        {
            let (local, peer) = (SocketAddr::new(sent.source, source), SocketAddr::new(sent.destination, destination));
            stays = self.sockets.destroy(local, peer)? == Destroyed::Unsupported;
        }
        Ok(match (self.conntrack.delete(flow)?, stays) {
            (false, _) => Cut::Gone,
            (true, true) => Cut::Revivable,
            (true, false) => Cut::Yes,
        })
    }
}

/// The flow as the plan judges it.
pub fn start_of(flow: &Flow) -> FlowStart {
    let is_echo = |(protocol, kind)| match flow.original.key {
        FlowKey::Icmp { kind: of, .. } => (flow.protocol, of) == (protocol, kind),
        _ => false,
    };
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == flow.protocol);
    let kind = match (protocol, flow.original.key, flow.reply.key) {
        // Replies come from where the packets go.
        (Some(protocol), FlowKey::Ports { source, .. }, FlowKey::Ports { source: destination, .. }) => {
            FlowKind::Ports(protocol, source, destination)
        }
        _ if is_echo(ICMP) || is_echo(ICMPV6) => FlowKind::Echo,
        _ => FlowKind::Other,
    };
    let original_port = match flow.original.key {
        FlowKey::Ports { destination, .. } => destination,
        FlowKey::Icmp { .. } | FlowKey::None => 0,
    };
    FlowStart {
        kind,
        source: flow.original.source,
        destination: flow.reply.source,
        rewritten_from: flow.status.is_destination_rewritten().then_some(original_port),
        expected: flow.status.is_expected(),
    }
}

/// The port as people write it; the protocol's number where there is none.
pub fn port_name(port: Option<Ports>, protocol: u8) -> String {
    port.map_or_else(|| format!("protocol {protocol}"), |port| port.to_string())
}

/// The word for a way in JSON.
pub fn way_name(way: Way) -> &'static str {
    match way {
        Way::In => "in",
        Way::Out => "out",
        Way::Through => "through",
        Way::Loopback => "loopback",
    }
}

/// Counts denied flows as they are told.
#[derive(Debug, Default)]
pub struct Tally {
    denied: DeniedFlows,
    groups: BTreeMap<(Way, IpAddr, u8, Option<Ports>), u64>,
}

impl Tally {
    /// Counts a flow that this judgement denies.
    pub fn add(&mut self, flow: &Flow, judgement: &Judgement<'_>) {
        self.denied.denied += 1;
        self.denied.observed += u64::from(!judgement.enforced);
        let key = (judgement.way, judgement.peer, flow.protocol, judgement.port);
        let is_full = self.groups.len() >= MOST_GROUPS;
        match self.groups.get_mut(&key) {
            Some(count) => *count += 1,
            None if is_full => self.denied.ungrouped += 1,
            None => drop(self.groups.insert(key, 1)),
        }
    }

    /// Counts what became of a flow that was to be ended; `None`: it was not.
    pub fn count_cut(&mut self, cut: Option<Cut>) {
        self.denied.cut += u64::from(matches!(cut, Some(Cut::Yes | Cut::Revivable)));
        self.denied.revivable += u64::from(cut == Some(Cut::Revivable));
    }

    /// The counts.
    pub fn finish(mut self) -> DeniedFlows {
        let groups = self.groups.into_iter().map(|((way, peer, protocol, port), flows)| DeniedGroup {
            direction: way,
            peer,
            port: port_name(port, protocol),
            flows,
        });
        self.denied.groups = groups.collect();
        self.denied.groups.sort_by_key(|group| Reverse(group.flows));
        self.denied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::conntrack::{FlowStatus, Tuple};

    fn flow(protocol: u8, original: (&str, &str, FlowKey), reply: (&str, &str, FlowKey), status: u32) -> Flow {
        let tuple = |(source, destination, key): (&str, &str, FlowKey)| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            key,
        };
        Flow {
            protocol,
            original: tuple(original),
            reply: tuple(reply),
            status: FlowStatus(status),
            tcp: None,
            id: 1,
            timeout: None,
            zone: 0,
        }
    }

    fn ports(source: u16, destination: u16) -> FlowKey {
        FlowKey::Ports { source, destination }
    }

    #[test]
    fn a_rewritten_flow_goes_where_its_replies_come_from() {
        let original = ("203.0.113.9", "10.0.0.10", ports(40_000, 514));
        let reply = ("10.0.0.11", "203.0.113.9", ports(517, 40_000));
        let start = start_of(&flow(6, original, reply, 1 << 5));
        assert_eq!(start.kind, FlowKind::Ports(Protocol::Tcp, 40_000, 517));
        assert_eq!(start.destination.to_string(), "10.0.0.11");
        assert_eq!((start.rewritten_from, start.expected), (Some(514), false));
        assert_eq!(start_of(&flow(6, original, reply, 1)).rewritten_from, None);
        assert!(start_of(&flow(6, original, reply, 1)).expected);
    }

    #[test]
    fn only_echo_requests_are_echo() {
        let kind = |protocol, kind| {
            let key = FlowKey::Icmp { kind, code: 0, id: 7 };
            start_of(&flow(protocol, ("10.0.0.1", "10.0.0.2", key), ("10.0.0.2", "10.0.0.1", key), 0)).kind
        };
        assert_eq!([kind(1, 8), kind(58, 128)], [FlowKind::Echo; 2]);
        assert_eq!([kind(1, 13), kind(1, 128), kind(58, 8), kind(6, 8)], [FlowKind::Other; 4]);
        let none = FlowKey::None;
        assert_eq!(
            start_of(&flow(50, ("10.0.0.1", "10.0.0.2", none), ("10.0.0.2", "10.0.0.1", none), 0)).kind,
            FlowKind::Other
        );
    }

    #[test]
    fn a_scan_is_counted_but_not_kept() {
        let mut tally = Tally::default();
        for port in 1..=3000_u16 {
            let judgement = Judgement {
                way: Way::In,
                peer: "203.0.113.9".parse().unwrap(),
                port: Some(format!("{}/tcp", if port <= 2 { 1 } else { port }).parse().unwrap()),
                pass: None,
                enforced: true,
            };
            let (original, reply) =
                (("203.0.113.9", "10.0.0.10", ports(9, port)), ("10.0.0.10", "203.0.113.9", ports(port, 9)));
            tally.add(&flow(6, original, reply, 0), &judgement);
        }
        let denied = tally.finish();
        assert_eq!((denied.denied, denied.groups.len(), denied.ungrouped), (3000, MOST_GROUPS, 1999));
        assert_eq!(
            denied.to_string(),
            "3000 established flows denied: 2 from 203.0.113.9 on 1/tcp, 1 from 203.0.113.9 on 3/tcp, \
             1 from 203.0.113.9 on 4/tcp and 2996 more"
        );
    }
}
