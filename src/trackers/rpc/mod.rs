//! The RPC services of this host, as rpcbind knows them: ports of mountd, rquotad and others that are registered by
//! program number.
//!
//! rpcbind is asked over its local socket and by version 4 of its protocol (RFC 1833): only there does it say who
//! registered what. Anybody may register anything, and what a killed daemon registered stays.

mod wire;

#[cfg(feature = "fuzzing")]
pub(super) use wire::Record;
pub use wire::{Malformed, Registration, claims, parse};

use super::exchange::{NoAnswer, Question};
use nix::errno::Errno;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;

/// The socket of rpcbind (`_PATH_RPCBINDSOCK`, libtirpc's rpc/rpcb_prot.h).
pub const SOCKET: &str = "/run/rpcbind.sock";

/// The longest list that is read, in bytes: [`wire::MOST_REGISTRATIONS`] of ordinary length.
const LONGEST: usize = 1 << 20;
/// How long rpcbind may take; it answers in a millisecond.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why there is no list of registrations.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// There is no rpcbind, so no RPC service can be reached either. Not a fault: most hosts have none.
    #[error("rpcbind does not run")]
    NotRunning,
    /// There is no answer that could be read.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The answer is no list.
    #[error("{place} did not answer as rpcbind does")]
    Malformed {
        /// The socket.
        place: String,
        /// What is wrong with the answer.
        #[source]
        source: Malformed,
    },
}

/// Asks the rpcbind that has this socket, usually [`SOCKET`], for all registrations. Takes at most three seconds, 1 MiB
/// and 10,000 registrations.
///
/// Where systemd holds the socket (`rpcbind.socket`), asking starts rpcbind.
///
/// # Errors
/// [`Error::NotRunning`] when there is no such socket or nobody serves it; else, when the answer cannot be read.
pub async fn ask(socket: &Path) -> Result<Vec<Registration>, Error> {
    let place = socket.display().to_string();
    let request = wire::dump_call();
    let question = Question::new(&place, &request, LONGEST, PATIENCE);
    let mut record = wire::Record::default();
    let answer = match question.ask(UnixStream::connect(socket), |answer| record.is_whole(answer)).await {
        Err(NoAnswer::Connect { source: Errno::ENOENT | Errno::ECONNREFUSED, .. }) => return Err(Error::NotRunning),
        answer => answer?,
    };
    parse(&answer).map_err(|source| Error::Malformed { place, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener as StdListener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn without_a_socket_or_behind_a_stale_one_nothing_runs() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("rpcbind.sock");
        assert_eq!(ask(&socket).await, Err(Error::NotRunning));
        drop(StdListener::bind(&socket).unwrap());
        assert!(socket.exists());
        assert_eq!(ask(&socket).await, Err(Error::NotRunning));
    }

    #[tokio::test]
    async fn an_answer_in_pieces_ends_with_its_last_fragment() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("rpcbind.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = async {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 44];
            client.read_exact(&mut request).await.unwrap();
            assert_eq!(request.as_slice(), wire::dump_call());
            for piece in include_bytes!("captures/dump.bin").chunks(100) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            // rpcbind keeps the connection open for further calls.
            client
        };
        let (registrations, _client) = tokio::join!(ask(&socket), serve);
        assert_eq!(registrations.unwrap().len(), 35);
    }
}
