//! The listeners that may matter, with the processes that hold them, indexed so that a change costs what it changes and
//! not what there is.

use crate::listeners::Listener;
use crate::policy::ProcessMatch;
use crate::ruleset::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What verification asks of a process.
pub(super) trait Holder {
    /// What tells it from every other process while the machine runs: its number and when it started.
    fn identity(&self) -> Identity;
    /// The systemd system unit that it belongs to, such as `imq.service`.
    fn unit(&self) -> Option<&str>;
    /// Whether it is the process that is wanted; else why not, such as `runs as user 1000, not root`.
    fn check(&self, wanted: &ProcessMatch) -> Result<(), String>;
    /// Whether it runs as the user that is wanted, if one is.
    fn check_user(&self, wanted: &ProcessMatch) -> Result<(), String>;
    /// Its name and number, for people.
    fn describe(&self) -> String;
}

/// The number of a process and when it started, in clock ticks since the machine did.
pub(super) type Identity = (u32, u64);

/// A listener with the processes that hold it.
#[derive(Debug)]
pub(super) struct Socket<P> {
    pub(super) listener: Listener,
    /// `None`: nobody has looked yet. Empty: nobody was found.
    pub(super) holders: Option<Vec<Arc<P>>>,
}

impl<P> Socket<P> {
    pub(super) fn holders(&self) -> impl Iterator<Item = &Arc<P>> {
        self.holders.iter().flatten()
    }
}

/// The listeners, by their cookies.
#[derive(Debug)]
pub(super) struct Sockets<P> {
    by_cookie: BTreeMap<u64, Socket<P>>,
    by_port: BTreeMap<(Protocol, u16), BTreeSet<u64>>,
    by_process: BTreeMap<Identity, BTreeSet<u64>>,
    by_unit: BTreeMap<String, BTreeSet<u64>>,
    unowned: BTreeSet<u64>,
}

impl<P: Holder> Sockets<P> {
    pub(super) fn new() -> Self {
        Self {
            by_cookie: BTreeMap::new(),
            by_port: BTreeMap::new(),
            by_process: BTreeMap::new(),
            by_unit: BTreeMap::new(),
            unowned: BTreeSet::new(),
        }
    }

    /// Adds a listener that nobody has looked at yet; says whether it was unknown. `wanted`: its holders are to be looked
    /// up.
    pub(super) fn insert(&mut self, listener: Listener, wanted: bool) -> bool {
        if self.by_cookie.contains_key(&listener.cookie) {
            return false;
        }
        self.by_port.entry((listener.protocol, listener.port)).or_default().insert(listener.cookie);
        if wanted {
            self.unowned.insert(listener.cookie);
        }
        self.by_cookie.insert(listener.cookie, Socket { listener, holders: None });
        true
    }

    /// Decides anew which of the listeners without known holders are to be looked up.
    pub(super) fn reconsider(&mut self, wanted: impl Fn(&Listener) -> bool) {
        let unknown = self.by_cookie.values().filter(|socket| socket.holders.is_none());
        self.unowned = unknown.map(|socket| socket.listener).filter(wanted).map(|listener| listener.cookie).collect();
    }

    pub(super) fn remove(&mut self, cookie: u64) -> Option<Socket<P>> {
        let socket = self.by_cookie.remove(&cookie)?;
        self.unowned.remove(&cookie);
        take(&mut self.by_port, &(socket.listener.protocol, socket.listener.port), cookie);
        self.forget_holders(cookie, socket.holders());
        Some(socket)
    }

    pub(super) fn set_holders(&mut self, cookie: u64, holders: Vec<Arc<P>>) {
        let Some(before) = self.by_cookie.get_mut(&cookie).map(|socket| socket.holders.take()) else { return };
        self.unowned.remove(&cookie);
        self.forget_holders(cookie, before.iter().flatten());
        for holder in &holders {
            self.by_process.entry(holder.identity()).or_default().insert(cookie);
            if let Some(unit) = holder.unit() {
                self.by_unit.entry(unit.to_owned()).or_default().insert(cookie);
            }
        }
        if let Some(socket) = self.by_cookie.get_mut(&cookie) {
            socket.holders = Some(holders);
        }
    }

    fn forget_holders<'h>(&mut self, cookie: u64, holders: impl Iterator<Item = &'h Arc<P>>)
    where
        P: 'h,
    {
        for holder in holders {
            take(&mut self.by_process, &holder.identity(), cookie);
            if let Some(unit) = holder.unit() {
                take(&mut self.by_unit, unit, cookie);
            }
        }
    }

    pub(super) fn get(&self, cookie: u64) -> Option<&Socket<P>> {
        self.by_cookie.get(&cookie)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Socket<P>> {
        self.by_cookie.values()
    }

    /// The listeners whose holders are still to be looked up.
    pub(super) fn unowned(&self) -> impl Iterator<Item = &Listener> {
        self.unowned.iter().filter_map(|cookie| self.by_cookie.get(cookie)).map(|socket| &socket.listener)
    }

    /// The listeners on a port, on whichever address.
    pub(super) fn on_port(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &Socket<P>> {
        self.of(self.by_port.get(&(protocol, port)))
    }

    /// The listeners that a process holds.
    pub(super) fn of_process(&self, identity: Identity) -> impl Iterator<Item = &Socket<P>> {
        self.of(self.by_process.get(&identity))
    }

    /// The listeners that processes of a unit hold.
    pub(super) fn of_unit(&self, unit: &str) -> impl Iterator<Item = &Socket<P>> {
        self.of(self.by_unit.get(unit))
    }

    /// The processes that hold any of the listeners, each once.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Arc<P>> {
        let first = |cookies: &BTreeSet<u64>| cookies.first().copied();
        self.by_process.iter().filter_map(move |(identity, cookies)| {
            self.get(first(cookies)?)?.holders().find(|holder| holder.identity() == *identity)
        })
    }

    fn of<'s>(&'s self, cookies: Option<&'s BTreeSet<u64>>) -> impl Iterator<Item = &'s Socket<P>> {
        cookies.into_iter().flatten().filter_map(|cookie| self.by_cookie.get(cookie))
    }
}

fn take<K, Q>(index: &mut BTreeMap<K, BTreeSet<u64>>, key: &Q, cookie: u64)
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    if let Some(cookies) = index.get_mut(key) {
        cookies.remove(&cookie);
        if cookies.is_empty() {
            index.remove(key);
        }
    }
}
