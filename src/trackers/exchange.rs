//! One question to a local service, and its answer: bounded in size and in time, whatever the service does.

use super::text::shown;
use nix::errno::Errno;
use std::io;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Why a local service gave no answer that could be read. The text in it is where the service was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// Nobody listens there, or the system refuses the connection.
    #[error("cannot connect to {place}: {}", source.desc())]
    Connect {
        /// Where.
        place: String,
        /// The system's answer.
        #[source]
        source: Errno,
    },
    /// The connection broke before the answer began.
    #[error("{place} broke the connection off: {}", source.desc())]
    Lost {
        /// Where.
        place: String,
        /// The system's answer.
        #[source]
        source: Errno,
    },
    /// The connection was closed before the answer began.
    #[error("{place} closed the connection without an answer")]
    Closed {
        /// Where.
        place: String,
    },
    /// Not a byte in time.
    #[error("{place} did not answer within {} s", patience.as_secs())]
    Silent {
        /// Where.
        place: String,
        /// How long was waited.
        patience: Duration,
    },
    /// Something in time, but not the end.
    #[error("{place} began to answer and did not end within {} s", patience.as_secs())]
    Unfinished {
        /// Where.
        place: String,
        /// How long was waited.
        patience: Duration,
    },
    /// More than any answer could be.
    #[error("{place} answered with more than {limit} bytes, which is no answer to the question")]
    TooLong {
        /// Where.
        place: String,
        /// How many bytes are read at most.
        limit: usize,
    },
    /// A TLS alert, where the plain protocol was spoken.
    #[error("{place} speaks TLS, so it cannot be asked")]
    Tls {
        /// Where.
        place: String,
    },
}

/// A question, and what its answer may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'q> {
    /// Who is asked, for messages.
    pub(super) place: &'q str,
    /// What is sent.
    pub(super) request: &'q [u8],
    /// Whether the writing side is shut down after it.
    pub(super) shut_down: bool,
    /// The longest answer, in bytes.
    pub(super) limit: usize,
    /// How long the service may take, which is what messages say.
    pub(super) patience: Duration,
    /// When that time is over; several questions may share it.
    pub(super) deadline: Instant,
}

impl<'q> Question<'q> {
    /// A question whose time begins now.
    pub(super) fn new(place: &'q str, request: &'q [u8], limit: usize, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        Self { place, request, shut_down: false, limit, patience, deadline }
    }

    /// Connects, asks and reads until `ended` says of what has come that the answer is whole, or until the service
    /// closes the connection. Whether the answer makes sense is for others to judge.
    pub(super) async fn ask<S>(
        self,
        connect: impl Future<Output = io::Result<S>>,
        ended: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u8>, NoAnswer>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut answer = Vec::new();
        let conversation = self.converse(connect, ended, &mut answer);
        let place = self.place.to_owned();
        match timeout_at(self.deadline, conversation).await {
            Ok(result) => result?,
            Err(_) if is_alert(&answer) => {}
            Err(_) if answer.is_empty() => return Err(NoAnswer::Silent { place, patience: self.patience }),
            Err(_) => return Err(NoAnswer::Unfinished { place, patience: self.patience }),
        }
        if is_alert(&answer) {
            return Err(NoAnswer::Tls { place });
        }
        Ok(answer)
    }

    async fn converse<S>(
        &self,
        connect: impl Future<Output = io::Result<S>>,
        mut ended: impl FnMut(&[u8]) -> bool,
        answer: &mut Vec<u8>,
    ) -> Result<(), NoAnswer>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let place = || self.place.to_owned();
        let mut stream = connect.await.map_err(|error| NoAnswer::Connect { place: place(), source: errno(&error) })?;
        // A service may answer and close before it has read the question; then writing fails and reading does not.
        if stream.write_all(self.request).await.is_ok() && self.shut_down {
            let _ = stream.shutdown().await;
        }
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) if answer.is_empty() => return Err(NoAnswer::Closed { place: place() }),
                Ok(0) => return Ok(()),
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
                Err(error) if answer.is_empty() => {
                    return Err(NoAnswer::Lost { place: place(), source: errno(&error) });
                }
                // A reset takes the place of the end where the service closes without having read everything.
                Err(_) => return Ok(()),
            }
            if answer.len() > self.limit {
                return Err(NoAnswer::TooLong { place: place(), limit: self.limit });
            }
            if ended(answer) {
                return Ok(());
            }
        }
    }
}

/// Whether an answer is a TLS alert: content type 21, a version 3.x, two bytes (RFC 8446, 5.1 and 6).
fn is_alert(answer: &[u8]) -> bool {
    matches!(answer, [21, 3, _, 0, 2, ..])
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// What an answer began with, for a message that says it was not understood.
pub(super) fn beginning(answer: &[u8]) -> String {
    let line = answer.split(|&byte| byte == b'\n').next().unwrap_or_default();
    shown(&String::from_utf8_lossy(line.get(..40).unwrap_or(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const PLACE: &str = "127.0.0.1:7676";
    const PATIENCE: Duration = Duration::from_secs(3);

    /// Asks a service that answers by this code. Time passes by itself while nothing else happens.
    async fn ask<F: Future<Output = ()>>(serve: impl FnOnce(DuplexStream) -> F) -> Result<Vec<u8>, NoAnswer> {
        let (ours, theirs) = duplex(1024);
        let mut question = Question::new(PLACE, b"101\n", 10_000, PATIENCE);
        question.shut_down = true;
        let asked = question.ask(async { Ok(ours) }, |answer| answer.ends_with(b"."));
        let (answer, ()) = tokio::join!(asked, serve(theirs));
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_by_itself_or_with_the_connection() {
        let whole = ask(|mut service| async move {
            let mut request = String::new();
            service.read_to_string(&mut request).await.unwrap();
            assert_eq!(request, "101\n");
            service.write_all(b"x.").await.unwrap();
            tokio::time::sleep(PATIENCE * 2).await;
        });
        assert_eq!(whole.await.unwrap(), b"x.");
        let cut = ask(|mut service| async move { service.write_all(b"x").await.unwrap() });
        assert_eq!(cut.await.unwrap(), b"x");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_slowness_and_endlessness_come_to_an_end() {
        let silent = ask(|service| async move {
            tokio::time::sleep(PATIENCE * 2).await;
            drop(service);
        });
        assert_eq!(silent.await, Err(NoAnswer::Silent { place: PLACE.to_owned(), patience: PATIENCE }));
        let slow = ask(|mut service| async move {
            while service.write_all(b"x").await.is_ok() {
                tokio::time::sleep(PATIENCE / 10).await;
            }
        });
        assert_eq!(slow.await, Err(NoAnswer::Unfinished { place: PLACE.to_owned(), patience: PATIENCE }));
        let endless = ask(|mut service| async move { while service.write_all(&[b'x'; 1000]).await.is_ok() {} });
        assert_eq!(endless.await, Err(NoAnswer::TooLong { place: PLACE.to_owned(), limit: 10_000 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_connection_and_a_tls_alert_are_told_apart() {
        let closed = ask(|service| async move { drop(service) });
        assert_eq!(closed.await, Err(NoAnswer::Closed { place: PLACE.to_owned() }));
        // What a JVM sends whose registry expects TLS (JDK 17).
        let tls = ask(|mut service| async move { service.write_all(b"\x15\x03\x03\0\x02\x02\x28").await.unwrap() });
        assert_eq!(tls.await, Err(NoAnswer::Tls { place: PLACE.to_owned() }));
        let kept_open = ask(|mut service| async move {
            service.write_all(b"\x15\x03\x03\0\x02\x02\x28").await.unwrap();
            tokio::time::sleep(PATIENCE * 2).await;
        });
        assert_eq!(kept_open.await, Err(NoAnswer::Tls { place: PLACE.to_owned() }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_names_the_place() {
        let refused = io::Error::from_raw_os_error(Errno::ECONNREFUSED as i32);
        let question = Question::new(PLACE, b"", 1, PATIENCE);
        let answer = question.ask(async { Err::<DuplexStream, _>(refused) }, |_| false).await;
        assert_eq!(answer.unwrap_err().to_string(), "cannot connect to 127.0.0.1:7676: Connection refused");
    }

    #[test]
    fn a_beginning_is_short_and_one_line() {
        assert_eq!(beginning(b"HTTP/1.1 400 Bad Request\r\nDate: x"), "HTTP/1.1 400 Bad Request\\r");
        assert_eq!(beginning(&[0; 100]), "\\0".repeat(40));
    }
}
