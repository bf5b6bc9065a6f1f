//! The daemon: keeps the kernel in step with the policy file, and tells how it fares.
//!
//! One task, `Daemon`, owns the netlink socket and does one thing after the other. The others only send it events:
//! `watch` that the file may have changed, `control` that somebody asks for a reload, the kernel that the ruleset
//! was changed. What the daemon does is published as a [`status::Status`], which anybody may look at without waiting
//! for the loop. Deciding is left to [`reconcile`] and [`load`], which know nothing of tasks.
//!
//! What fails keeps what runs: a policy that does not load changes nothing in the kernel.
#![forbid(unsafe_code)]

mod asker;
mod boot;
mod capabilities;
mod control;
mod dynamic;
pub mod flows;
mod foreign;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod identity;
pub mod load;
pub mod logging;
mod meddling;
mod pace;
pub mod protocol;
pub mod reconcile;
pub mod sandbox;
mod service;
pub mod session;
pub mod status;
mod tighten;
mod trial;
mod watch;

pub use control::{ClientError, Error as ControlError, ask, ask_with};

use crate::describe;
use crate::kernel::{Kernel, Monitor, Netlink};
use crate::news;
use crate::plan::{self, Plan};
use crate::ruleset::{Ruleset, Statement};
use crate::state::Store;
use crate::trackers;
use asker::{Asker, cut_by, cut_warnings};
use boot::Keepsake;
use control::{Order, Server};
use dynamic::{Changes, Dynamic};
use foreign::Touched;
use identity::Identity;
use load::{HostChoice, Site, Sources, Texts};
use meddling::Meddling;
use reconcile::{Outcome, Reconciler};
use status::{Condition, Enforced, Failure, LastChange, Source, Status, TableSize, now};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tighten::{Counts, Tightening};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use tracing::{error, info, warn};
use trial::Trial;
use watch::Watcher;

/// Where the policy is when the command line does not say.
pub const DEFAULT_POLICY_PATH: &str = "/etc/portward/policy.toml";
/// Where the control socket is when the command line does not say.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/portward/control.sock";

/// How often the kernel's generation is compared without any notification.
const VERIFY_EVERY: Duration = Duration::from_secs(30);
/// What leads to a change in the kernel that undoes others' changes.
const REPAIR: &str = "the table was repaired";

/// What the daemon is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The files to enforce.
    pub sources: Sources,
    /// Which host of the policy this is.
    pub host: HostChoice,
    /// Where to listen for `portward status`, `portward reload` and others.
    pub control_socket: PathBuf,
    /// How listeners are noticed.
    pub trackers: trackers::Options,
    /// Where to keep what the next boot needs.
    pub state_dir: PathBuf,
}

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum Error {
    /// The policy does not load, and there is no table yet that could be kept.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The control socket cannot be had.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The kernel does not take the ruleset.
    #[error("the kernel does not take the ruleset")]
    Apply(#[from] reconcile::Error),
    /// The kernel's nftables cannot be reached.
    #[error("the kernel's nftables cannot be reached")]
    Kernel(#[from] crate::kernel::Error),
    /// The system lacks something.
    #[error("{action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { action, source }
}

/// Runs until SIGTERM or SIGINT. The table stays.
///
/// # Errors
///
/// Only what keeps the daemon from starting; once it runs, it deals with errors itself.
pub fn run(config: Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("the runtime cannot be started"))?;
    runtime.block_on(async {
        let server = Server::bind(&config.control_socket)?;
        warn_of(capabilities::keep_needed(config.trackers.events));
        let dynamic =
            Dynamic::start(config.trackers.clone()).map_err(failed("the observer of listeners cannot be started"))?;
        warn_of(capabilities::leave_to_observer());
        let mut signals = Signals::new().map_err(failed("signals cannot be handled"))?;
        let mut files = vec![config.sources.policy.clone()];
        files.extend(config.sources.catalogue.clone());
        // Watching begins before the first read, so that no change falls between the two.
        let watcher = Watcher::new(&files).map_err(failed("the policy cannot be watched"))?;
        let mut daemon = Daemon::new(config, Netlink::open()?, dynamic);
        daemon.start().await?;

        let (sender, orders) = mpsc::channel(1);
        let server = tokio::spawn(server.run(daemon.status.subscribe(), sender));
        let (changes, changed) = mpsc::channel(1);
        tokio::spawn(watcher.run(changes));
        daemon.serve(&mut signals, changed, orders).await;
        // The socket file goes with the server.
        server.abort();
        let _ = server.await;
        Ok(())
    })
}

/// A daemon that may do more than it needs is better than none.
fn warn_of(result: Result<(), capabilities::Error>) {
    if let Err(error) = result {
        warn!("the daemon may do more than it needs: {}", describe(&error));
    }
}

/// The signals that the daemon heeds.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Why the policy is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Start,
    FileChanged,
    Hangup,
    Request,
    /// The machine could not be found in the policy, and may have got its addresses since.
    HostUnknown,
}

impl Cause {
    fn words(self) -> &'static str {
        match self {
            Self::Start => "the daemon started",
            Self::FileChanged => "the policy changed",
            Self::Hangup => "SIGHUP",
            Self::Request => "a reload was asked for",
            Self::HostUnknown => "this host was found",
        }
    }

    /// Whether somebody waits for an answer, even to the same content.
    fn is_explicit(self) -> bool {
        matches!(self, Self::Start | Self::Hangup | Self::Request)
    }
}

/// What the kernel shall hold, and how that is told.
struct Desired {
    /// With the dynamic ports that are open.
    ruleset: Ruleset,
    /// The services with dynamic ports that the host exposes.
    services: Vec<trackers::Watched>,
    /// Where it comes from; `None`: from the table that an earlier daemon left.
    site: Option<Arc<Site>>,
    /// `None`: the table that an earlier daemon left.
    enforced: Option<Enforced>,
    source: Source,
    /// For the next boot; `None`: it is not to be kept.
    keepsake: Option<Keepsake>,
}

impl Desired {
    /// What the policy means for this host; `None`: it is the table that an earlier daemon left.
    fn plan(&self) -> Option<Plan<'_>> {
        let (site, enforced) = (self.site.as_ref()?, self.enforced.as_ref()?);
        Some(site.plan(site.policy.hosts.get(&enforced.host)?))
    }
}

/// What a reload has led to.
struct Reloaded {
    /// What changed in the kernel, in a few words.
    changes: String,
    /// The established flows that are denied now, where there may be any.
    counts: Option<Counts>,
}

impl Reloaded {
    fn nothing() -> Self {
        Self { changes: "nothing".to_owned(), counts: None }
    }
}

struct Daemon<K> {
    config: Config,
    store: Store,
    reconciler: Reconciler<K>,
    dynamic: Dynamic,
    tightening: Tightening,
    desired: Option<Desired>,
    /// What is on trial, and how to go back.
    trial: Option<Trial>,
    /// The content that was looked at last, whether or not it was good.
    seen: Option<Arc<Texts>>,
    /// Whether the host was what was wrong with it.
    host_unknown: bool,
    monitor: Option<AsyncFd<Monitor>>,
    /// What a foreign transaction has changed so far; its generation message ends it.
    touched: Touched,
    /// What others have done to the table, and when it is undone.
    meddling: Meddling,
    status: channel::Sender<Status>,
}

impl<K: Kernel> Daemon<K> {
    fn new(config: Config, kernel: K, dynamic: Dynamic) -> Self {
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: now(),
            condition: Condition::Keeping,
            policy: config.sources.policy.clone(),
            state_dir: config.state_dir.clone(),
            enforced: None,
            source: Source::File,
            trial: None,
            last_trial: None,
            table: None,
            generation: None,
            last_change: None,
            policy_error: None,
            kernel_error: None,
            state_error: None,
            repairs: 0,
            last_repair: None,
            meddling: None,
            dynamic: trackers::Report::default(),
        };
        Self {
            store: Store::new(&config.state_dir),
            config,
            reconciler: Reconciler::new(kernel),
            dynamic,
            tightening: Tightening::default(),
            desired: None,
            trial: None,
            seen: None,
            host_unknown: false,
            monitor: None,
            touched: Touched::default(),
            meddling: Meddling::new(Instant::now().into()),
            status: channel::Sender::new(status),
        }
    }

    /// Loads and applies for the first time.
    ///
    /// Without a good policy the table of an earlier daemon is kept and guarded, or what the state on disk says is
    /// enforced, and the service counts as ready: a policy is enforced, and a service manager that never hears of
    /// readiness would kill the daemon that guards it. The error is in the service's status text. Without all of these
    /// there is nothing to guard, and the start fails.
    async fn start(&mut self) -> Result<(), Error> {
        self.inspect_state();
        let was_trial = self.note_interrupted_trial();
        match self.load(Cause::Start, &Asker::daemon()) {
            Ok(Some(desired)) => {
                self.want(desired);
                self.adopt().await?;
                let outcome = self.bring_into_step(Cause::Start.words())?;
                match outcome.is_nothing() {
                    true => info!(generation = outcome.generation, "the table in the kernel is adopted as it is"),
                    false => info!(generation = outcome.generation, "enforced: {}", outcome.changes),
                }
            }
            Ok(None) => {}
            Err(error) => self.start_without_policy(error, was_trial).await?,
        }
        // Only what was applied is remembered, and only after that a trial is forgotten.
        self.remember(Cause::Start.words(), &Asker::daemon().user);
        if let Err(error) = self.store.clear_trial() {
            self.note_state_error(&error);
        }
        service::ready(&self.summary());
        Ok(())
    }

    /// From now on the kernel shall hold this.
    fn want(&mut self, desired: Desired) {
        self.dynamic.watch(desired.services.clone());
        self.desired = Some(desired);
        self.open_dynamic_ports();
    }

    /// Takes over the dynamic ports that an earlier daemon has opened, as far as they are verified again: connections to
    /// them shall not fail because this daemon has just been started.
    async fn adopt(&mut self) -> Result<(), Error> {
        let open = self.reconciler.snapshot()?.table.as_ref().map(plan::opened).unwrap_or_default();
        if !open.is_empty() {
            let number = |port: plan::OpenPort| (port.protocol, port.port);
            let ports = open.into_iter().map(|(service, ports)| (service, ports.into_iter().map(number).collect()));
            self.dynamic.verify_anew(ports.collect());
            self.dynamic.verified().await;
            self.open_dynamic_ports();
        }
        Ok(())
    }

    /// Puts the dynamic ports that are open into what is desired.
    fn open_dynamic_ports(&mut self) {
        if let Some(desired) = &mut self.desired {
            plan::open(&mut desired.ruleset, self.dynamic.open());
        }
    }

    /// Opens and closes dynamic ports as the observer has found.
    fn follow_listeners(&mut self) {
        let news = self.dynamic.take();
        if !news.changes.is_empty() {
            self.open_dynamic_ports();
            // A look at the flows that knows nothing of a new port must not end what uses it.
            self.tightening.stop();
            if let Some(desired) = &self.desired {
                // First the kernel, then whoever wants to know.
                let result = self.reconciler.apply_part(&desired.ruleset);
                self.hear();
                self.conclude("listeners have changed", &result);
                self.cut(&news.changes);
            }
            self.look_at_flows(false);
        }
        self.dynamic.log(&news);
        self.status.send_modify(|status| status.dynamic = self.dynamic.report().clone());
    }

    /// What is desired is in force, and may deny more than what was before: looks which established flows are denied now.
    /// What is only on trial ends none.
    fn look_at_flows(&mut self, may_tighten: bool) -> Option<Counts> {
        let desired = self.desired.as_ref().filter(|_| self.trial.is_none())?;
        self.tightening.applied(desired, self.dynamic.open(), may_tighten)
    }

    /// Ends the connections of ports that have closed, where the policy wants that.
    fn cut(&self, changes: &Changes) {
        let to_cut = changes.closed.iter().filter(|(service, _)| self.dynamic.cuts(service));
        let closed: Vec<plan::OpenPort> = to_cut.map(|(_, port)| *port).collect();
        let Some(plan) = self.desired.as_ref().and_then(Desired::plan).filter(|_| !closed.is_empty()) else { return };
        let local = Identity::of_this_host().map(|identity| identity.addresses).unwrap_or_default();
        let judge = plan.flow_judge(plan::DynamicPorts::Open(self.dynamic.open()), &local);
        match flows::cut_closed(&judge, &closed) {
            Ok(flows) if flows.denied > 0 => info!("connections of closed ports: {flows}"),
            Ok(_) => {}
            Err(error) => warn!("connections of closed ports go on: {}", describe(&error)),
        }
    }

    async fn serve(
        &mut self,
        signals: &mut Signals,
        mut changed: mpsc::Receiver<()>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut verify = interval_at(Instant::now() + VERIFY_EVERY, VERIFY_EVERY);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = service::watchdog_period().map(interval);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => {
                    // The outcome is in the log.
                    let _ = self.reload(Cause::Hangup, &Asker::signal());
                }
                Some(()) = changed.recv() => {
                    let _ = self.reload(Cause::FileChanged, &Asker::file());
                }
                Some(order) = orders.recv() => self.carry_out(order),
                () = until(self.trial_end()) => {
                    let _ = self.end_trial("it was not confirmed in time");
                }
                notifications = news::next(&mut self.monitor, Monitor::read) => self.heed(notifications),
                () = self.dynamic.news() => self.follow_listeners(),
                () = until(self.meddling.due().map(Instant::from)) => self.repair(),
                _ = verify.tick() => {
                    if self.host_unknown {
                        let _ = self.reload(Cause::HostUnknown, &Asker::daemon());
                    }
                    // While the table is disputed, repairs keep their distance.
                    if !self.meddling.is_open() {
                        self.repair();
                    }
                    self.end_dispute_if_calm();
                }
                () = next(&mut watchdog) => service::alive(),
            }
        }
        if self.trial.is_some() {
            let _ = self.end_trial("the daemon was stopped");
        }
        info!("stopping; the table stays");
        service::stopping();
    }

    /// Reads the policy and applies it; says what changed in the kernel, or what is wrong.
    fn reload(&mut self, cause: Cause, asker: &Asker) -> Result<Reloaded, String> {
        if self.trial.is_some() {
            return self.wait_for_trial(cause);
        }
        let result = match self.load(cause, asker) {
            Ok(None) => return Ok(Reloaded::nothing()),
            Ok(Some(desired)) => {
                service::reloading();
                self.tightening.stop();
                self.want(desired);
                self.bring_into_step(cause.words()).map_err(|error| describe(&error))
            }
            Err(error) => {
                if cause.is_explicit() {
                    service::reloading();
                }
                let message = self.note_policy_error(&error, cause.is_explicit());
                self.publish();
                Err(message)
            }
        };
        if result.is_ok() {
            self.remember(asker.cause.as_deref().unwrap_or(cause.words()), &asker.user);
        }
        service::ready(&self.summary());
        result.map(|outcome| {
            info!(generation = outcome.generation, "{}: {}", cause.words(), outcome.changes);
            let counts = self.look_at_flows(outcome.may_tighten);
            Reloaded { changes: outcome.changes, counts }
        })
    }

    /// Reads the policy and plans; `None` when the content is what was looked at last and nobody asks for more.
    fn load(&mut self, cause: Cause, asker: &Asker) -> Result<Option<Desired>, load::Error> {
        let texts = match Texts::read(&self.config.sources) {
            Ok(texts) => Arc::new(texts),
            Err(error) => {
                self.seen = None;
                return Err(error.into());
            }
        };
        if self.seen.as_ref() == Some(&texts) && cause == Cause::FileChanged {
            return Ok(None);
        }
        self.seen = Some(texts.clone());
        let sources = self.config.sources.clone();
        let desired = self.plan(texts, &sources, asker)?;
        self.status.send_modify(|status| status.policy_error = None);
        let is_news = cause != Cause::HostUnknown || !self.host_unknown;
        Ok(Some(desired).filter(|_| is_news))
    }

    /// What a policy means for this machine, if it may be applied.
    fn plan(&mut self, texts: Arc<Texts>, sources: &Sources, asker: &Asker) -> Result<Desired, load::Error> {
        self.host_unknown = false;
        let site = Site::parse(&texts, sources)?;
        let identity = Identity::of_this_host().map_err(load::Error::Identity)?;
        let (host, found) = self.find(&site, &identity)?;
        let plan = site.plan(host);
        let services = site.watched(host);
        let mut ruleset = plan.ruleset();
        plan::open(&mut ruleset, self.dynamic.open());
        // What is enforced already cuts nobody off.
        let is_news = self.desired.as_ref().is_none_or(|desired| desired.ruleset != ruleset);
        let cut = if is_news { cut_by(&plan) } else { Vec::new() };
        asker.admits(&plan, self.desired.as_ref(), &sources.policy, is_news, &cut)?;
        let mut warnings = cut_warnings(&cut);
        warnings.extend(site.warnings.iter().map(ToString::to_string));
        for warning in &warnings {
            warn!("{warning}");
        }
        let enforced = Enforced::new(&site, host, found, warnings);
        let keepsake = Keepsake::new(texts, &site.policy, host);
        Ok(Desired {
            ruleset,
            services,
            site: Some(Arc::new(site)),
            enforced: Some(enforced),
            source: Source::File,
            keepsake: Some(keepsake),
        })
    }

    /// Applies what is desired. Whatever the kernel says is in the status afterwards.
    fn bring_into_step(&mut self, cause: &str) -> Result<Outcome, reconcile::Error> {
        let Some(desired) = &self.desired else {
            let generation = self.reconciler.snapshot()?.generation;
            return Ok(Outcome::nothing(generation));
        };
        let ruleset = &desired.ruleset;
        // Nobody listens while the daemon itself changes the table: the kernel need not tell it what it knows.
        if let Some(monitor) = &self.monitor {
            // Without a pause the daemon hears of its own change, and recognizes it by the generation.
            let _ = monitor.get_ref().pause();
        }
        let first = self.reconciler.verify(ruleset);
        self.hear();
        if cause == REPAIR && self.status.borrow().kernel_error.is_none() && first.as_ref().is_ok_and(is_something) {
            self.suspect();
        }
        if first.as_ref().is_ok_and(Outcome::is_nothing) {
            // They have undone it themselves, or an earlier transaction has.
            self.meddling.settled();
        }
        self.conclude(cause, &first);
        self.listen();
        let outcome = first?;
        if self.reconciler.generation().is_none() {
            // Others do not rest, and the table was replaced: a second look would find the same.
            return Ok(outcome);
        }
        // What others did during the pause went unheard. Most of the time this only reads the generation.
        let Some(second) = self.desired.as_ref().map(|desired| self.reconciler.verify(&desired.ruleset)) else {
            return Ok(outcome);
        };
        if second.as_ref().is_ok_and(is_something) {
            self.suspect();
        }
        if !second.as_ref().is_ok_and(Outcome::is_nothing) {
            self.conclude(REPAIR, &second);
        }
        second.map(|second| Outcome { may_tighten: outcome.may_tighten || second.may_tighten, ..outcome })
    }

    /// Puts what the kernel said into the status, and into the log what it means for others' changes.
    fn conclude(&mut self, cause: &str, result: &Result<Outcome, reconcile::Error>) {
        let at = now();
        match result {
            Ok(outcome) => {
                self.status.send_modify(|status| {
                    status.kernel_error = None;
                    if !outcome.is_nothing() {
                        let changes = outcome.changes.clone();
                        status.last_change = Some(LastChange { at, cause: cause.to_owned(), changes });
                    }
                    if let Some(desired) = &self.desired {
                        status.enforced = desired.enforced.clone();
                        status.source = desired.source;
                    }
                });
                self.settle(outcome);
            }
            Err(error) => {
                let message = describe(error);
                error!("the kernel does not hold what it should, and is tried again: {message}");
                self.status.send_modify(|status| {
                    let since = status.kernel_error.as_ref().map_or(at, |failure| failure.since);
                    status.kernel_error = Some(Failure { since, message });
                });
                // What others do passes; for the rest there is the regular look.
                if self.meddling.is_open() {
                    self.meddling.try_again(Instant::now().into());
                }
            }
        }
        self.publish();
    }

    /// Keeps the error for the status, and logs it unless it was logged before.
    fn note_policy_error(&mut self, error: &load::Error, log_again: bool) -> String {
        let message = describe(error);
        let known = self.status.borrow().policy_error.as_ref().is_some_and(|failure| failure.message == message);
        if !known || log_again {
            error!("the policy is not applied; what is enforced stays\n{message}");
        }
        if !known {
            let failure = Failure { since: now(), message: message.clone() };
            self.status.send_modify(|status| status.policy_error = Some(failure));
        }
        message
    }

    /// Completes the status by what follows from the rest.
    fn publish(&mut self) {
        let generation = self.reconciler.generation();
        // Beside others who do not rest, reading takes seconds; the status then tells what was known last.
        let known = generation.and_then(|_| self.reconciler.snapshot().ok());
        let table = known.map(|snapshot| snapshot.table.as_ref().map(TableSize::of));
        self.status.send_modify(|status| {
            status.generation = generation;
            status.table = table.unwrap_or(status.table);
            status.condition = match (&status.kernel_error, &status.trial, &status.policy_error) {
                (Some(_), ..) => Condition::Failing,
                _ if status.meddling.is_some() => Condition::Disputed,
                (None, Some(_), _) => Condition::Trying,
                (None, None, Some(_)) => Condition::Keeping,
                (None, None, None) => Condition::InStep,
            };
        });
    }

    /// One line for the service manager.
    fn summary(&self) -> String {
        let status = self.status.borrow();
        let enforced = match &status.enforced {
            Some(enforced) => format!("host {}, {}", enforced.host, enforced.mode),
            None => "the table of an earlier daemon".to_owned(),
        };
        let enforced = match status.source {
            Source::Trial => format!("{enforced}; a policy is on trial"),
            Source::LastGood => format!("{enforced}; the last good policy"),
            Source::FailSafe => format!("{enforced}; the fail-safe"),
            Source::File | Source::EarlierDaemon => enforced,
        };
        let first_line = |failure: &Failure| failure.message.lines().next().unwrap_or_default().to_owned();
        match (&status.kernel_error, &status.policy_error) {
            (Some(failure), _) => format!("{enforced}; the kernel refuses: {}", first_line(failure)),
            (None, Some(failure)) => format!("{enforced}; the policy file is not applied: {}", first_line(failure)),
            (None, None) => enforced,
        }
    }
}

/// Waits until then; for ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next tick; for ever without an interval.
async fn next(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether portward could write this table as it is.
fn can_be_restored(table: &Ruleset) -> bool {
    let mut statements = table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    !statements.any(|statement| matches!(statement, Statement::Unknown(_)))
}

/// The opposite of [`Outcome::is_nothing`].
fn is_something(outcome: &Outcome) -> bool {
    !outcome.is_nothing()
}
