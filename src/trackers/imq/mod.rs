//! The portmapper of an OpenMQ broker (IMQ), tcp 7676: the table of the broker's services and their ports.
//!
//! The protocol as of eclipse-ee4j/openmq, `PortMapper.java`, `PortMapperTable.java` and `PortMapperEntry.java`: the
//! client sends `101` and a line feed; the broker answers with lines of text, the last of which is a single dot, and closes
//! the connection. A broker that starts or stops answers with a table that lacks services or their ports, so a table is
//! worth looking at again until it does not change any more.

mod table;

pub use table::{Malformed, PortTable, Service, claims, parse};

use super::exchange::{NoAnswer, Question};
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;

/// The request: the version of the protocol (`PortMapperTable.PORTMAPPER_VERSION`).
const REQUEST: &[u8] = b"101\n";
/// The last line of a table, with the end of the line before it.
const END: &[u8] = b"\n.\n";
/// The longest table that is read, in bytes. A broker's is about one KiB.
const LONGEST: usize = 64 << 10;
/// How long the broker may take. It answers in a millisecond, or after its own time limit of half a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why there is no table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// There is no answer that could be read.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The answer is no table.
    #[error("{place} did not answer as the portmapper of a message broker does")]
    Malformed {
        /// Who answered.
        place: String,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
}

/// Asks the portmapper at an address of this host. Takes at most three seconds and 64 KiB.
///
/// # Errors
/// When nobody listens there, and when what is answered is no table; a table that ends too early is one, with
/// [`PortTable::complete`] false.
pub async fn ask(address: SocketAddr) -> Result<PortTable, Error> {
    let place = address.to_string();
    let mut question = Question::new(&place, REQUEST, LONGEST, PATIENCE);
    // The broker waits half a second for more if it does not learn that this is all.
    question.shut_down = true;
    let answer = question.ask(TcpStream::connect(address), |answer| answer.ends_with(END)).await?;
    parse(&answer).map_err(|source| Error::Malformed { place, source })
}
