//! Who asks the daemon for something, and what that means for the answer.

use super::session::{Session, is_of_service_manager};
use super::{Desired, load};
use crate::plan::Plan;
use std::fs;
use std::path::Path;
use tracing::{debug, warn};

/// What /proc/PID/loginuid holds for a process that no login has led to (`AUDIT_UID_UNSET`, linux/audit.h).
const NO_LOGIN: u32 = u32::MAX;

/// A client of the control socket, as the kernel (SO_PEERCRED, unix(7)) and it itself tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Client {
    pub(super) user: u32,
    pub(super) pid: Option<u32>,
    /// The client's `SSH_CONNECTION`.
    pub(super) session: Option<String>,
    /// Whether it wants to have it done although it is dangerous.
    pub(super) force: bool,
}

/// Who wants a policy to be applied.
#[derive(Debug, Clone, Default)]
pub(super) struct Asker {
    /// As it is kept in the history.
    pub(super) user: String,
    /// What led to it, if there is more to say than that somebody asked.
    pub(super) cause: Option<String>,
    /// Whether it shall be done although it is dangerous.
    pub(super) force: bool,
    /// Whose session must not be cut.
    caller: Caller,
}

/// Who is behind it that a policy shall be applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Caller {
    /// Nobody who sits at the other end of an SSH session.
    #[default]
    NoSession,
    /// Who sits at the other end of this one.
    Session(Session),
    /// Somebody who is not known: who has changed the file, or had it asked for by another process, such as systemctl by
    /// the service manager. It may be any of those who are logged in.
    Anybody,
}

impl Asker {
    /// Whoever has changed the file.
    pub(super) fn file() -> Self {
        Self { user: "file changed".to_owned(), caller: Caller::Anybody, ..Self::default() }
    }

    /// Nobody: the daemon itself, when it starts and when the machine has got its addresses.
    pub(super) fn daemon() -> Self {
        Self { user: "the daemon".to_owned(), ..Self::default() }
    }

    /// Whoever sent SIGHUP.
    pub(super) fn signal() -> Self {
        Self { user: "SIGHUP".to_owned(), caller: Caller::Anybody, ..Self::default() }
    }

    /// Whoever is at the other end of the control socket.
    pub(super) fn client(client: &Client) -> Self {
        let session = client.pid.and_then(|pid| {
            let found = Session::of_process(pid);
            found
                .inspect_err(|error| warn!(pid, %error, "over which session a client asks cannot be found out"))
                .ok()?
        });
        let hinted = || {
            let hint = client.session.as_deref()?;
            Session::of_hint(hint).inspect_err(|error| debug!(%error, "the kernel's sockets cannot be read")).ok()?
        };
        let caller = match session.or_else(hinted) {
            Some(session) => Caller::Session(session),
            None if client.pid.is_some_and(is_of_service_manager) => Caller::Anybody,
            None => Caller::NoSession,
        };
        Self { user: user_of(client), cause: None, force: client.force, caller }
    }

    /// Whether a policy may be applied for this one, in the place of what is desired at present. What is no news cannot
    /// cut a session; of the sessions on port 22, it cuts these.
    ///
    /// # Errors
    ///
    /// It locks the administrators out, or cuts the session over which it was asked for, or may have been; unless that is
    /// forced.
    pub(super) fn admits(
        &self,
        plan: &Plan<'_>,
        present: Option<&Desired>,
        policy: &Path,
        is_news: bool,
        cut: &[Session],
    ) -> Result<(), load::Error> {
        if self.force {
            return Ok(());
        }
        load::admits_admin(plan, policy)?;
        let (policy, host) = (policy.to_owned(), plan.host.name.clone());
        match self.caller {
            Caller::Session(session) if is_news && session.is_cut_by(plan) => {
                Err(load::Error::OwnSession { policy, host, session })
            }
            Caller::Anybody if !cut.is_empty() => {
                // Who could not log in anew as it is, loses nothing.
                let present = present.and_then(Desired::plan);
                let is_let_in = |session: &&Session| present.as_ref().is_none_or(|plan| !session.is_cut_by(plan));
                match cut.iter().find(is_let_in) {
                    Some(&session) => Err(load::Error::OpenSession { policy, host, session }),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// The sessions of this machine that a plan would not let in again.
pub(super) fn cut_by(plan: &Plan<'_>) -> Vec<Session> {
    let sessions = Session::all().unwrap_or_else(|error| {
        debug!(%error, "the kernel's sockets cannot be read");
        Vec::new()
    });
    sessions.into_iter().filter(|session| session.is_cut_by(plan)).collect()
}

/// What is worth knowing of the sessions that a plan would not let in again.
pub(super) fn cut_warnings(cut: &[Session]) -> Vec<String> {
    let mut peers: Vec<_> = cut.iter().map(|session| session.peer).collect();
    peers.dedup();
    let warning =
        |peer| format!("an SSH session from {peer} is open now, and could not be opened again under this policy");
    peers.into_iter().map(warning).collect()
}

/// `root`, or `root (logged in as alice)` where the audit system knows who that was before sudo.
fn user_of(client: &Client) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = name_of(&passwd, client.user);
    let login = client.pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/loginuid")).ok());
    match login.and_then(|login| login.trim().parse().ok()).filter(|login| ![NO_LOGIN, client.user].contains(login)) {
        Some(login) => format!("{user} (logged in as {})", name_of(&passwd, login)),
        None => user,
    }
}

/// The name of a user in passwd(5), else the number. The file alone is asked: a directory service may be behind the
/// network that this is about.
pub(super) fn name_of(passwd: &str, user: u32) -> String {
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(user)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user {user}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_the_names_of_the_file() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n:x\n";
        assert_eq!(name_of(passwd, 0), "root");
        assert_eq!(name_of(passwd, 1000), "alice");
        assert_eq!(name_of(passwd, 1001), "user 1001");
        assert_eq!(name_of("", 0), "user 0");
    }
}
