//! The observer: one thread that watches the listeners of this network namespace, asks the services for their ports, and
//! publishes what may be opened.
//!
//! It has a thread of its own because looking for the owner of a socket may read all of /proc, and the daemon's loop must
//! not wait for that. Deciding is left to [`Tracked`] and [`verify`], when to ask to [`schedule`](super::schedule).

use super::holder::ProcessHolder;
use super::question::{Question, address};
use super::rpc;
use super::sockets::{Holder, Sockets};
use super::state::{Observation, Report, ServiceReport, Source};
use super::tracked::{Reply, Tracked, may_matter};
use super::verify::{self, Anchor};
use crate::describe;
use crate::listeners::{
    Closing, Closings, Event, Events, Holders, Listener, Owners, Process, SockDiag, Unavailable, Visibility,
};
use crate::news;
use crate::plan::{LocalScope, OpenPorts};
use crate::policy::{DynamicService, Ports, Tracker};
use crate::ruleset::{PortRange, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

/// How often the sockets are listed although the kernel tells of new ones: for what it may not have told.
const LOOK_WITH_EVENTS: Duration = Duration::from_secs(10);
/// A listener of which the kernel told and that is not found at once has most probably been closed already. To make sure
/// all are listed, but not more often than this,
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// and after so many times as long as the last listing took: 5 % of a processor at most.
const LOOK_REST: u32 = 20;
/// After reading all of /proc, so many times as long as that took nothing reads it again: at most 5 % of a processor.
const SCAN_REST: u32 = 20;
/// How often the processes of open ports are looked at again: one may have become another program.
const DOUBT: Duration = Duration::from_secs(10);
/// Every so many times anchors are looked at, too, whose owner is not the process that is wanted: a socket may be handed
/// from one process to another, as systemd does.
const ALL_DOUBTED: u32 = 3;
/// Processes that are remembered; each costs a descriptor.
const MOST_KNOWN: usize = 512;

/// How the observer works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether the kernel is asked to tell of new listeners; else they are only listed at intervals.
    pub events: bool,
    /// How often the sockets are listed when the kernel does not tell of new ones.
    pub poll: Duration,
    /// Where rpcbind listens.
    pub rpcbind: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: true, poll: Duration::from_millis(250), rpcbind: PathBuf::from(rpc::SOCKET) }
    }
}

/// What to watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Counts up with every change, so that an observation can be told from an older one.
    pub revision: u64,
    /// The services that this host exposes.
    pub services: Vec<Watched>,
    /// Ports that an earlier daemon has opened. They count as claims until the service itself has answered.
    pub adopted: BTreeMap<String, BTreeSet<(Protocol, u16)>>,
}

/// A service to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The service.
    pub service: DynamicService,
    /// The ports that are open for the same peers anyway.
    pub own_ports: Vec<Ports>,
}

/// The observer's thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Observer {
    wanted: Option<watch::Sender<Wanted>>,
    observations: watch::Receiver<Observation>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts the thread, in the network namespace of the caller. It rests until it is told what to watch.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start(options: Options) -> io::Result<Self> {
        let (wanted, to_watch) = watch::channel(Wanted::default());
        let (publish, observations) = watch::channel(Observation::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(move || {
            runtime.block_on(Loop::new(options, to_watch, publish).run());
        })?;
        Ok(Self { wanted: Some(wanted), observations, thread: Some(thread) })
    }

    /// Says what to watch from now on.
    pub fn watch(&self, wanted: Wanted) {
        if let Some(sender) = &self.wanted {
            sender.send_replace(wanted);
        }
    }

    /// What was found out last, and news of it.
    pub fn observations(&self) -> watch::Receiver<Observation> {
        self.observations.clone()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Loop {
    options: Options,
    to_watch: watch::Receiver<Wanted>,
    publish: watch::Sender<Observation>,
    revision: u64,
    services: Vec<Tracked>,
    /// `None`: nothing is watched, or the kernel gives no socket; then it is tried again at the next look.
    diag: Option<SockDiag>,
    source: Source,
    events: Option<AsyncFd<Events>>,
    closings: Option<AsyncFd<Closings>>,
    sockets: Sockets<ProcessHolder>,
    owners: Owners,
    /// The processes that were looked at, by their numbers.
    known: BTreeMap<u32, Arc<ProcessHolder>>,
    /// Whether the kernel's numbers of processes are those of this process's /proc.
    pids_are_ours: bool,
    trouble: Option<String>,
    next_look: Instant,
    /// Not before this are all sockets listed only because one was not found.
    look_again: Instant,
    next_scan: Instant,
    next_doubt: Instant,
    doubts: u32,
    replies: mpsc::UnboundedSender<Reply>,
    replied: mpsc::UnboundedReceiver<Reply>,
}

impl Loop {
    fn new(options: Options, to_watch: watch::Receiver<Wanted>, publish: watch::Sender<Observation>) -> Self {
        let now = Instant::now();
        let (replies, replied) = mpsc::unbounded_channel();
        Self {
            options,
            to_watch,
            publish,
            revision: 0,
            services: Vec::new(),
            diag: None,
            source: Source::None,
            events: None,
            closings: None,
            sockets: Sockets::new(),
            owners: Owners::new(),
            known: BTreeMap::new(),
            pids_are_ours: is_first_pid_namespace(),
            trouble: None,
            next_look: now,
            look_again: now,
            next_scan: now,
            next_doubt: now,
            doubts: 0,
            replies,
            replied,
        }
    }

    /// Until the daemon has nothing to say any more.
    async fn run(mut self) {
        loop {
            let wake = self.next_wake();
            tokio::select! {
                changed = self.to_watch.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_wanted();
                }
                events = news::next(&mut self.events, Events::read) => self.heed_events(events),
                closings = news::next(&mut self.closings, Closings::read) => self.heed_closings(closings),
                Some(reply) = self.replied.recv() => {
                    let now = Instant::now();
                    let of_service = |tracked: &&mut Tracked| tracked.watched.service.name == reply.service;
                    if let Some(tracked) = self.services.iter_mut().find(of_service) {
                        tracked.heard(reply, now);
                    }
                }
                () = sleep_until(wake.into()), if !self.services.is_empty() => {}
            }
            if self.services.is_empty() {
                self.publish(Vec::new());
                continue;
            }
            let now = Instant::now();
            if now >= self.next_look {
                self.look();
            }
            self.find_owners();
            self.judge();
            self.ask();
        }
    }

    fn next_wake(&self) -> Instant {
        let asks = self.services.iter().filter_map(|tracked| tracked.schedule.due());
        let scan = (!self.unowned().is_empty()).then_some(self.next_scan);
        asks.chain(scan).chain([self.next_look]).min().unwrap_or(self.next_look)
    }

    fn take_wanted(&mut self) {
        let wanted = self.to_watch.borrow_and_update().clone();
        self.revision = wanted.revision;
        let mut before: BTreeMap<String, Tracked> =
            self.services.drain(..).map(|tracked| (tracked.watched.service.name.clone(), tracked)).collect();
        self.services = wanted
            .services
            .into_iter()
            .map(|watched| match before.remove(&watched.service.name) {
                Some(known) => known.watch(watched),
                None => Tracked::new(watched),
            })
            .map(|mut tracked| {
                if let Some(ports) = wanted.adopted.get(&tracked.watched.service.name) {
                    tracked.adopt(ports);
                }
                tracked
            })
            .collect();
        if self.services.is_empty() {
            self.rest();
        } else {
            let services = &self.services;
            self.sockets.reconsider(|listener| may_matter(services, listener));
            self.watch_kernel();
            self.next_look = Instant::now();
        }
    }

    fn rest(&mut self) {
        (self.diag, self.events, self.closings) = (None, None, None);
        self.source = Source::None;
        self.trouble = None;
        self.sockets = Sockets::new();
        self.owners = Owners::new();
        self.known.clear();
    }

    /// Opens what the kernel tells by, as far as it is not open.
    fn watch_kernel(&mut self) {
        if self.closings.is_none() {
            let closings = Closings::open().map_err(io::Error::other).and_then(news::register);
            self.closings = closings
                .inspect_err(|error| warn!(%error, "closed listeners are noticed late: the kernel does not tell"))
                .ok();
        }
        if self.events.is_some() {
            self.set_ports_of_interest();
            return;
        }
        let opened = if self.options.events {
            Events::open()
                .map_err(|unavailable| describe(&unavailable))
                .and_then(|events| news::register(events).map_err(|error| error.to_string()))
        } else {
            Err("switched off by --listener-events poll".to_owned())
        };
        let source = match opened {
            Ok(events) => {
                self.events = Some(events);
                self.set_ports_of_interest();
                Source::Bpf
            }
            Err(reason) => self.polling(reason),
        };
        if source != self.source {
            match &source {
                Source::Bpf => info!("the kernel tells of new listeners, by BPF"),
                Source::Polling { every, reason } => info!("listeners are looked at every {every} ms: {reason}"),
                Source::None => {}
            }
            self.source = source;
        }
    }

    fn polling(&self, reason: String) -> Source {
        let every = u64::try_from(self.options.poll.as_millis()).unwrap_or(u64::MAX);
        Source::Polling { every, reason }
    }

    fn set_ports_of_interest(&mut self) {
        let Some(events) = &mut self.events else { return };
        let anchors = self.services.iter().filter_map(|tracked| tracked.watched.service.anchor);
        let anchors = anchors.map(|port| (Protocol::Tcp, PortRange::single(port)));
        let ranges = self.services.iter().flat_map(|tracked| &tracked.watched.service.ports);
        let ranges = ranges.filter_map(|ports| match ports {
            Ports::Range(protocol, range) => Some((*protocol, *range)),
            Ports::Echo => None,
        });
        let ports: Vec<(Protocol, PortRange)> = anchors.chain(ranges).collect();
        if let Err(error) = events.get_mut().set_ports(&ports) {
            let reason = format!("the BPF programs cannot be told which ports matter: {}", describe(&error));
            self.lose_events(reason);
        }
    }

    fn lose_events(&mut self, reason: String) {
        warn!("listeners are looked at every {:?} from now on: {reason}", self.options.poll);
        self.events = None;
        self.source = self.polling(reason);
        self.next_look = Instant::now();
    }

    fn is_relevant(&self, protocol: Protocol, port: u16) -> bool {
        self.services.iter().any(|Tracked { watched: Watched { service, .. }, .. }| {
            protocol == Protocol::Tcp && service.anchor == Some(port)
                || service
                    .ports
                    .iter()
                    .any(|ports| matches!(ports, Ports::Range(of, range) if *of == protocol && range.contains(port)))
        })
    }

    fn heed_events(&mut self, events: Result<Vec<Event>, Unavailable>) {
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.lose_events(describe(&error)),
        };
        for event in events {
            match event {
                Event::Opened(opened) => {
                    if !self.is_relevant(opened.protocol, opened.port) || self.sockets.get(opened.cookie).is_some() {
                        continue;
                    }
                    let scope = opened.scope.unwrap_or(LocalScope::Any);
                    let found = self.diag.as_mut().map(|diag| diag.find(opened.protocol, scope, opened.port, None));
                    match found {
                        Some(Ok(Some(listener))) if listener.cookie == opened.cookie => {
                            self.add(listener, opened.pid.filter(|_| self.pids_are_ours));
                        }
                        // Already gone, bound to an interface, or one of several on the port.
                        _ => self.look_soon(),
                    }
                }
                Event::Closed(closed) => drop(self.sockets.remove(closed.cookie)),
                Event::Lost { count } => {
                    warn!("{count} events of listeners were lost; all of them are looked at");
                    self.look_soon();
                }
            }
        }
    }

    fn heed_closings(&mut self, closings: Result<Vec<Closing>, crate::listeners::Error>) {
        match closings {
            Ok(closings) => {
                for closing in closings {
                    match closing {
                        Closing::Socket { cookie, .. } => drop(self.sockets.remove(cookie)),
                        Closing::Lost => self.look_soon(),
                    }
                }
            }
            Err(error) => {
                warn!("closed listeners are noticed late: {}", describe(&error));
                self.closings = None;
                self.next_look = Instant::now();
            }
        }
    }

    /// Adds a listener. `pid` is the process that the kernel saw making it.
    fn add(&mut self, listener: Listener, pid: Option<u32>) {
        let wanted = may_matter(&self.services, &listener);
        if !self.sockets.insert(listener, wanted) || !wanted {
            return;
        }
        let known = pid.and_then(|pid| self.known.get(&pid)).filter(|known| known.process.exists()).cloned();
        let holder = known.or_else(|| self.meet(&Arc::new(Process::open(pid?).ok()?)));
        let Some(holder) = holder else { return };
        // A process that nobody wants need not be searched for the socket, and one that has been wanted for longer than the
        // socket exists holds it, since it made the system call. Of one that is new, the number may have been another's.
        let is_owner = self.services.iter().any(|tracked| tracked.owners.contains(&holder.as_ref().identity()));
        if is_owner || !self.settles(std::slice::from_ref(&holder)) {
            self.sockets.set_holders(listener.cookie, vec![holder]);
        } else {
            let found = self.owners.look(&BTreeSet::from([listener.inode]), pid);
            self.take_owners(&BTreeMap::from([(listener.inode, listener.cookie)]), &found, false);
        }
    }

    /// Who a process is, as it was when it was looked at first.
    fn meet(&mut self, process: &Arc<Process>) -> Option<Arc<ProcessHolder>> {
        let known = self.known.get(&process.pid());
        if let Some(known) = known.filter(|known| known.process.start_time() == process.start_time()) {
            return Some(known.clone());
        }
        // What cannot be looked at cannot be verified.
        let holder = Arc::new(ProcessHolder::look(process).ok()?);
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert(process.pid(), holder.clone());
        Some(holder)
    }

    /// Whether one of these holders is a process that some service wants, so that nobody needs to look for others.
    fn settles(&self, holders: &[Arc<ProcessHolder>]) -> bool {
        self.services.iter().any(|tracked| {
            let wanted = &tracked.watched.service.process;
            let is_wanted = |holder: &Arc<ProcessHolder>| {
                tracked.owners.contains(&Holder::identity(holder.as_ref())) || holder.check(wanted).is_ok()
            };
            holders.iter().any(is_wanted)
        })
    }

    fn look_soon(&mut self) {
        self.next_look = self.next_look.min(self.look_again);
    }

    /// Lists all sockets, and makes what is known agree with it.
    fn look(&mut self) {
        let began = Instant::now();
        let every = if self.events.is_some() { LOOK_WITH_EVENTS } else { self.options.poll };
        self.next_look = Instant::now() + every;
        if self.diag.is_none() {
            self.diag = SockDiag::open().inspect_err(|error| warn!(%error, "no listeners are seen")).ok();
        }
        let Some(diag) = &mut self.diag else { return };
        let listeners = match diag.dump() {
            Ok(listeners) => listeners,
            Err(error) => {
                warn!(%error, "the listeners cannot be listed; what is known of them stays until they can");
                self.diag = None;
                return;
            }
        };
        let took = began.elapsed();
        self.look_again = began + took + LOOK_AGAIN.max(took * LOOK_REST);
        let mut here = BTreeSet::new();
        for listener in listeners {
            if self.is_relevant(listener.protocol, listener.port) {
                here.insert(listener.cookie);
                let wanted = may_matter(&self.services, &listener);
                self.sockets.insert(listener, wanted);
            }
        }
        let known = self.sockets.iter().map(|socket| socket.listener.cookie);
        let gone: Vec<u64> = known.filter(|cookie| !here.contains(cookie)).collect();
        for cookie in gone {
            self.sockets.remove(cookie);
        }
        self.doubt();
    }

    /// Looks again, every now and then, at the processes that were looked at: has a wanted one become another program, or let
    /// go of a socket? And does whoever keeps an anchor from being verified still hold it?
    fn doubt(&mut self) {
        let now = Instant::now();
        if now < self.next_doubt {
            return;
        }
        self.next_doubt = now + DOUBT;
        self.doubts += 1;
        let all = self.doubts.is_multiple_of(ALL_DOUBTED);
        let mut doubtful: BTreeSet<u64> =
            self.services.iter().flat_map(|tracked| &tracked.listening).copied().collect();
        for tracked in self.services.iter().filter(|tracked| all || !tracked.owners.is_empty()) {
            let anchor = tracked.watched.service.anchor.into_iter();
            let sockets = anchor.flat_map(|anchor| self.sockets.on_port(Protocol::Tcp, anchor));
            doubtful.extend(
                sockets
                    .filter(|socket| may_matter(&self.services, &socket.listener))
                    .map(|socket| socket.listener.cookie),
            );
        }
        let holders =
            doubtful.iter().filter_map(|cookie| self.sockets.get(*cookie)).flat_map(|socket| socket.holders());
        let pids: BTreeSet<u32> = holders.map(|holder| holder.identity.pid).collect();
        self.known.retain(|pid, known| match pids.contains(pid) {
            true => known.process.identity().is_ok_and(|identity| identity == known.identity),
            false => !all || known.process.exists(),
        });
        let by_inode = |cookie: &u64| Some((self.sockets.get(*cookie)?.listener.inode, *cookie));
        let doubtful: BTreeMap<u32, u64> = doubtful.iter().filter_map(by_inode).collect();
        if !doubtful.is_empty() {
            self.find_owners_of(&doubtful);
        }
    }

    /// The listeners whose processes are to be looked up, by inode.
    fn unowned(&self) -> BTreeMap<u32, u64> {
        self.sockets.unowned().map(|listener| (listener.inode, listener.cookie)).collect()
    }

    /// Looks up who holds the listeners that nobody was looked up for.
    fn find_owners(&mut self) {
        let wanted = self.unowned();
        if !wanted.is_empty() {
            self.find_owners_of(&wanted);
        }
    }

    /// Looks up who holds these listeners, given by inode and cookie: first among the processes that are known, and then,
    /// if that is not too often, among all.
    fn find_owners_of(&mut self, wanted: &BTreeMap<u32, u64>) {
        let found = self.owners.look(&wanted.keys().copied().collect(), None);
        let left = self.take_owners(wanted, &found, false);
        if left.is_empty() || Instant::now() < self.next_scan {
            return;
        }
        let scan = self.owners.scan(&left.keys().copied().collect());
        debug!(took = ?scan.took, processes = scan.processes, sockets = left.len(), "looked at all processes");
        self.next_scan = Instant::now() + scan.took * SCAN_REST;
        self.trouble = match &scan.visibility {
            Visibility::Full => None,
            limited => Some(format!("portward sees {limited}")),
        };
        self.take_owners(&left, &scan.holders, true);
    }

    /// Notes the holders that were found, and returns the listeners whose holders remain to be found.
    fn take_owners(&mut self, wanted: &BTreeMap<u32, u64>, found: &Holders, all: bool) -> BTreeMap<u32, u64> {
        let mut left = BTreeMap::new();
        for (&inode, &cookie) in wanted {
            let holders = found.get(&inode).into_iter().flatten();
            let holders: Vec<_> = holders.filter_map(|process| self.meet(process)).collect();
            if all || self.settles(&holders) {
                self.sockets.set_holders(cookie, holders);
            } else {
                left.insert(inode, cookie);
            }
        }
        left
    }

    fn judge(&mut self) {
        let now = Instant::now();
        let reports = self.services.iter_mut().map(|tracked| tracked.judge(&self.sockets, now)).collect();
        self.publish(reports);
    }

    fn publish(&mut self, services: Vec<ServiceReport>) {
        let open: OpenPorts = self
            .services
            .iter()
            .filter(|tracked| !tracked.open.is_empty())
            .map(|tracked| (tracked.watched.service.name.clone(), tracked.open.clone()))
            .collect();
        let report = Report { source: self.source.clone(), trouble: self.trouble.clone(), services };
        let observation = Observation { revision: self.revision, open, report };
        self.publish.send_if_modified(|current| {
            let changed = *current != observation;
            if changed {
                *current = observation;
            }
            changed
        });
    }

    /// Asks the services whose time has come.
    fn ask(&mut self) {
        let now = Instant::now();
        for tracked in &mut self.services {
            let service = &tracked.watched.service;
            if tracked.schedule.due().is_none_or(|due| due > now) {
                continue;
            }
            let question = match (service.tracker, verify::anchor(service, tracked.user, &self.sockets)) {
                (Tracker::Process, _) => {
                    tracked.schedule.stop();
                    continue;
                }
                (Tracker::Rpc, _) => Question::Rpc(self.options.rpcbind.clone(), service.programs.clone()),
                (Tracker::Imq, Anchor::Verified(_, listener)) => Question::Imq(address(&listener)),
                (Tracker::Rmi, Anchor::Verified(_, listener)) => Question::Rmi(address(&listener)),
                (Tracker::Imq | Tracker::Rmi, _) => {
                    tracked.schedule.stop();
                    continue;
                }
            };
            tracked.schedule.asked();
            let (service, owners, replies) = (service.name.clone(), tracked.owners.clone(), self.replies.clone());
            tokio::spawn(async move {
                let result = question.ask().await;
                // The loop may have ended meanwhile.
                let _ = replies.send(Reply { service, owners, result });
            });
        }
    }
}

/// Whether this process is in the first process namespace, whose numbers the kernel's programs tell. Its inode is fixed
/// (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
fn is_first_pid_namespace() -> bool {
    const FIRST: u64 = 0xEFFF_FFFC;
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST)
}
