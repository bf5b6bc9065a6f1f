//! What a packet costs: connections and one-way UDP from one namespace into another that holds the ruleset.
//!
//! One thread on one processor does everything: it sends a packet, which the kernel carries through the receiving
//! namespace's ruleset to the socket before the call returns, and then takes it from there. So every packet is received,
//! the whole way is on one processor, and the thread's processor time, which other work on the machine hardly touches,
//! divided by the packets is what one costs, the calls that send and receive it included. Contestants take turns every
//! few milliseconds.

use crate::deployment::{self, SENDER};
use crate::namespace::{Namespace, on_thread};
use crate::report::{Samples, print_table, ratio, target};
use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use portward::kernel::{Kernel, Netlink};
use portward::ruleset::diff::diff;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const PEERS: u32 = 10_000;
const RECEIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Syslog, the port of the row that concerns log sources.
const PORT: u16 = 514;

/// The bytes of a short syslog message.
const PAYLOAD: usize = 200;

/// Datagrams that are sent before they are received: few enough for the receive buffer.
const BURST: u32 = 32;

/// Fresh namespaces and rulesets a round, since where the kernel puts them in memory matters a little.
const ROUNDS: usize = 15;

/// Turns of each contestant in a round.
const TURNS: usize = 30;

/// Datagrams and connections a turn: some milliseconds.
const DATAGRAMS: u32 = 50 * BURST;
const CONNECTIONS: u32 = 150;

/// Nothing else makes the kernel track connections.
const CONNECTION_TRACKING: &str = "table inet tracking {
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
  }
}
";

#[derive(Clone, Copy)]
enum Contestant {
    Nothing,
    Tracking,
    Portward,
}

const CONTESTANTS: [Contestant; 3] = [Contestant::Nothing, Contestant::Tracking, Contestant::Portward];

/// Measures and prints.
pub(crate) fn measure() -> Result<()> {
    let policy = deployment::parse(&deployment::policy_text(&deployment::peers(PEERS)))?;
    let changes = diff(None, Some(&deployment::ruleset(&policy)?));
    let mut udp: [Samples; 3] = Default::default();
    let mut tcp: [Samples; 3] = Default::default();
    for _ in 0..ROUNDS {
        let mut wires = Vec::new();
        for contestant in CONTESTANTS {
            let wire = Wire::new()?;
            match contestant {
                Contestant::Nothing => {}
                Contestant::Tracking => wire.receiver.nft(CONNECTION_TRACKING)?,
                Contestant::Portward => wire.receiver.run(|| {
                    let mut kernel = Netlink::open()?;
                    let generation = kernel.generation()?;
                    kernel.commit(&changes, generation)?;
                    Ok(())
                })?,
            }
            wires.push(wire);
        }
        for (samples, exchange) in
            [(&mut udp, Wire::datagrams as fn(&Wire) -> Result<Duration>), (&mut tcp, Wire::connections)]
        {
            let mut turns: [Samples; 3] = Default::default();
            for turn in 0..TURNS {
                for index in (0..CONTESTANTS.len()).map(|index| (index + turn) % CONTESTANTS.len()) {
                    turns[index].push(exchange(&wires[index])?);
                }
            }
            // The faster quarter of the turns is the one that nothing disturbed.
            for (samples, turns) in samples.iter_mut().zip(&turns) {
                samples.push(Duration::from_secs_f64(turns.quantile(0.25) / 1000.0));
            }
        }
    }

    let heading = ["", "no ruleset", "conntrack alone", "portward", "portward to conntrack alone", "target"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (what, samples, goal) in [("connections/s", &tcp, 0.97), ("one-way UDP packets/s", &udp, 0.93)] {
        let rates = samples.each_ref().map(|samples| format!("{:.0}", 1000.0 / samples.median()));
        let [_, tracking, portward] = samples;
        let ratios = tracking.over(portward);
        let goal = target(&format!(">= {goal}"), ratios.median() >= goal);
        rows.push([what.to_owned()].into_iter().chain(rates).chain([ratio(&ratios, 3), goal]).collect());
    }
    print_table(&format!("Packets through the ruleset with {PEERS} peers, per second of one processor's time"), &rows);
    Ok(())
}

/// Two hosts on a wire.
struct Wire {
    sender: Namespace,
    receiver: Namespace,
}

impl Wire {
    fn new() -> Result<Self> {
        let wire = Self { sender: Namespace::new()?, receiver: Namespace::new()? };
        wire.sender.connect(&format!("{SENDER}/15"), &wire.receiver, &format!("{RECEIVER}/15"))?;
        // Connections that ended are forgotten soon, so that their number stays the same from turn to turn.
        for state in ["close", "time_wait"] {
            wire.receiver.set_parameter(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), "1")?;
        }
        Ok(wire)
    }

    /// The processor time of one datagram of a single flow.
    fn datagrams(&self) -> Result<Duration> {
        let to = SocketAddrV4::new(RECEIVER, PORT);
        let receiver = self.receiver.run(|| Ok(UdpSocket::bind(to)?))?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let sender = self.sender.run(|| Ok(UdpSocket::bind((SENDER, 0))?))?;
        sender.connect(to)?;
        on_one_processor(DATAGRAMS, || {
            for _ in 0..DATAGRAMS / BURST {
                for _ in 0..BURST {
                    sender.send(&[b'x'; PAYLOAD])?;
                }
                for _ in 0..BURST {
                    receiver.recv(&mut [0; PAYLOAD]).context("a datagram did not arrive")?;
                }
            }
            Ok(())
        })
    }

    /// The processor time of opening and closing one connection.
    fn connections(&self) -> Result<Duration> {
        let to = SocketAddrV4::new(RECEIVER, PORT);
        let listener = self.receiver.run(|| Ok(TcpListener::bind(to)?))?;
        self.sender.run(|| {
            on_one_processor(CONNECTIONS, || {
                for _ in 0..CONNECTIONS {
                    let client = TcpStream::connect(to).context("a connection is refused")?;
                    let (server, _) = listener.accept()?;
                    // A reset leaves no TIME_WAIT, of which there would soon be more than there are ports.
                    setsockopt(&client, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
                    drop(client);
                    drop(server);
                }
                Ok(())
            })
        })
    }
}

/// Does some work on a thread that stays on one processor. Its processor time, divided.
fn on_one_processor(parts: u32, work: impl FnOnce() -> Result<()> + Send) -> Result<Duration> {
    let last = std::thread::available_parallelism()?.get() - 1;
    on_thread(|| {
        let mut processors = CpuSet::new();
        processors.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &processors)?;
        let before = processor_time()?;
        work()?;
        Ok((processor_time()? - before) / parts)
    })
}

fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}
