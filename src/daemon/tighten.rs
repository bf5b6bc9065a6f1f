//! Established flows under a policy that has become tighter: counted, and ended where the policy wants that.
//!
//! Reading a hundred thousand flows takes most of a second, so it is done beside the loop: one look at a time, on a
//! thread of its own. A policy that is applied meanwhile makes the look stop, and is followed by one of its own.

use super::Desired;
use super::flows::{DeniedFlows, count_denied, cut_denied};
use super::identity::Identity;
use super::load::Site;
use crate::describe;
use crate::plan::{DynamicPorts, OpenPorts};
use crate::policy::{EgressMode, Mode, OnTighten};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

/// How long whoever asked for a policy waits for the counts; half of what a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The looks at established flows.
#[derive(Debug, Default)]
pub(super) struct Tightening {
    /// The number of what was applied last.
    newest: Arc<AtomicU64>,
    /// Whose turn it is to look.
    turn: Arc<Mutex<()>>,
    last: Option<JoinHandle<()>>,
    /// Whether a look was stopped before its end.
    is_owed: bool,
}

/// The counts that are still to come.
#[derive(Debug)]
pub(super) struct Counts(oneshot::Receiver<DeniedFlows>);

impl Counts {
    /// Waits for them; `None`: they take too long, or a newer policy has made them idle.
    pub(super) async fn wait(self) -> Option<DeniedFlows> {
        timeout(PATIENCE, self.0).await.ok()?.ok()
    }
}

impl Tightening {
    /// Heeds that a policy was applied for good. When it may deny more than what was there before, and enforces that,
    /// the flows are looked at.
    pub(super) fn applied(&mut self, desired: &Desired, open: &OpenPorts, may_tighten: bool) -> Option<Counts> {
        let number = self.stop();
        // What an unfinished look was to find is still to be found.
        if !std::mem::take(&mut self.is_owed) && !may_tighten {
            return None;
        }
        let (site, enforced) = (desired.site.clone()?, desired.enforced.as_ref()?);
        if site.policy.mode != Mode::Enforce && site.policy.egress != EgressMode::Enforce {
            return None;
        }
        let newest = self.newest.clone();
        let look = Look { site, host: enforced.host.clone(), open: open.clone(), number, newest };
        let (sender, receiver) = oneshot::channel();
        let turn = self.turn.clone();
        self.last = Some(tokio::spawn(async move {
            let _turn = turn.lock().await;
            if let Ok(Some(flows)) = spawn_blocking(move || look.take()).await {
                // Nobody may wait for it.
                let _ = sender.send(flows);
            }
        }));
        Some(Counts(receiver))
    }

    /// Nothing is ended any more on behalf of what was applied before: something else is going to be in force. Gives
    /// the number of that.
    pub(super) fn stop(&mut self) -> u64 {
        self.is_owed |= self.last.take().is_some_and(|last| !last.is_finished());
        self.newest.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// One look at the flows.
struct Look {
    site: Arc<Site>,
    host: String,
    open: OpenPorts,
    number: u64,
    newest: Arc<AtomicU64>,
}

impl Look {
    /// Counts the flows that the policy denies, and ends them if it says so; `None` when a newer one has been applied.
    fn take(self) -> Option<DeniedFlows> {
        let is_newest = || self.newest.load(Ordering::SeqCst) == self.number;
        let host = self.site.policy.hosts.get(&self.host).filter(|_| is_newest())?;
        let plan = self.site.plan(host);
        let local = Identity::of_this_host().map(|identity| identity.addresses).unwrap_or_default();
        let judge = plan.flow_judge(DynamicPorts::Open(&self.open), &local);
        let result = match self.site.policy.on_tighten {
            OnTighten::Keep => count_denied(&judge, is_newest),
            OnTighten::Cut => cut_denied(&judge, is_newest),
        };
        match result {
            Ok(flows) => {
                if flows.denied > 0 {
                    info!("under the new policy: {flows}");
                }
                is_newest().then_some(flows)
            }
            Err(error) => {
                warn!("which established flows the new policy denies cannot be found out: {}", describe(&error));
                None
            }
        }
    }
}
