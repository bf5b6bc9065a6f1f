//! One look at a service, without a daemon: who owns its anchor, and which of its claims hold at this moment.

use super::Claim;
use super::holder::ProcessHolder;
use super::question::address;
use super::sockets::{Holder, Sockets};
use super::state::{Opened, RefusedPort};
use super::verify::{self, Anchor, Meant};
use crate::listeners::{self, Identity, Listener, Owners, SockDiag, Visibility};
use crate::policy::DynamicService;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

/// The sockets of this moment, with their owners.
#[derive(Debug)]
pub struct Look {
    sockets: Sockets<ProcessHolder>,
    /// What keeps processes from being seen, if anything does.
    pub trouble: Option<String>,
}

/// Who owns the anchor of a service.
#[derive(Debug)]
pub enum Owner {
    /// Nobody listens on it.
    Absent,
    /// Somebody who is not the process that the policy names; why not, and where he can be asked all the same.
    Unverified(String, SocketAddr),
    /// The process that the policy names, and where it can be asked.
    Verified(VerifiedOwner, SocketAddr),
}

/// The verified process, or several that share the socket.
#[derive(Debug)]
pub struct VerifiedOwner(Vec<Arc<ProcessHolder>>);

impl VerifiedOwner {
    /// Its name, number and unit, for people.
    pub fn describe(&self) -> String {
        let words = self.0.iter().map(|process| match Holder::unit(process.as_ref()) {
            Some(unit) => format!("{}, {unit}", process.describe()),
            None => process.describe(),
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

impl Look {
    /// Lists the sockets of this network namespace and looks up who holds them.
    ///
    /// # Errors
    ///
    /// The sockets cannot be listed.
    pub fn now() -> Result<Self, listeners::Error> {
        let found = SockDiag::open()?.dump()?;
        let inodes: BTreeSet<u32> = found.iter().map(|listener| listener.inode).filter(|inode| *inode != 0).collect();
        let scan = Owners::new().scan(&inodes);
        let mut sockets = Sockets::new();
        for listener in found {
            let Listener { cookie, inode, .. } = listener;
            let holders = scan.holders.get(&inode).into_iter().flatten();
            sockets.insert(listener, false);
            sockets.set_holders(
                cookie,
                // A process that has ended meanwhile holds nothing any more.
                holders.filter_map(|process| ProcessHolder::look(process).ok().map(Arc::new)).collect(),
            );
        }
        let trouble = match scan.visibility {
            Visibility::Full => None,
            limited => Some(format!("portward sees {limited}")),
        };
        Ok(Self { sockets, trouble })
    }

    /// The listeners, by port, each with its processes.
    pub fn listeners(&self) -> Vec<(Listener, Vec<&Identity>)> {
        let sockets = self.sockets.iter();
        let mut listeners: Vec<(Listener, Vec<&Identity>)> = sockets
            .map(|socket| (socket.listener, socket.holders().map(|holder| &holder.identity).collect()))
            .collect();
        listeners.sort_by_key(|(listener, _)| (listener.port, listener.protocol, listener.scope, listener.cookie));
        listeners
    }

    /// Who owns the anchor.
    pub fn owner(&self, service: &DynamicService) -> Owner {
        match verify::anchor(service, None, &self.sockets) {
            Anchor::Absent => Owner::Absent,
            Anchor::Verified(owners, listener) => Owner::Verified(VerifiedOwner(owners), address(&listener)),
            Anchor::Unverified(why) => {
                let port = service.anchor.unwrap_or_default();
                let listener = self.sockets.on_port(crate::ruleset::Protocol::Tcp, port).next();
                listener.map_or(Owner::Absent, |socket| Owner::Unverified(why, address(&socket.listener)))
            }
        }
    }

    /// Which of the claims hold, and why the others do not.
    pub fn judge(
        &self,
        service: &DynamicService,
        owner: &VerifiedOwner,
        claims: &[Claim],
    ) -> (Vec<Opened>, Vec<RefusedPort>) {
        let meant = Meant::Claims(claims);
        let verdict = verify::judge(service, &[], &self.sockets, &owner.0, meant, &BTreeSet::new());
        (verdict.open.into_values().collect(), verdict.refused)
    }
}
