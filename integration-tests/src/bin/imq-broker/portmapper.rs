//! The portmapper: who connects is answered with the table, or in one of the ways in which that goes wrong.

use crate::{Shared, lock};
use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long a broker waits for what its client sends (`imq.portmapper.sotimeout`).
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a connection stays open that is never closed: longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(600);

/// How the portmapper answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `table`: with the table, and to a silent client after half a second too.
    Table,
    /// `unified`: with the table, but a client that sends nothing gets nothing (port unification).
    Unified,
    /// `stopping`: with a table that gives `admin` port 0.
    Stopping,
    /// `torn`: with half of the table; the cut is within the port of the last line but the dot.
    Torn,
    /// `open`: with the table, without closing the connection after it.
    Open,
    /// `silent`: not at all.
    Silent,
    /// `stuck`: with the first line, and then not at all.
    Stuck,
    /// `trickle`: with the table over and over, a byte at a time, and never its end.
    Trickle,
    /// `endless`: with lines that look right, for as long as somebody reads.
    Endless,
    /// `rubbish`: with bytes that are no text.
    Rubbish,
    /// `tls`: as a server that expects TLS.
    Tls,
}

impl Answer {
    pub(crate) fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "table" => Self::Table,
            "unified" => Self::Unified,
            "stopping" => Self::Stopping,
            "torn" => Self::Torn,
            "open" => Self::Open,
            "silent" => Self::Silent,
            "stuck" => Self::Stuck,
            "trickle" => Self::Trickle,
            "endless" => Self::Endless,
            "rubbish" => Self::Rubbish,
            "tls" => Self::Tls,
            _ => bail!("there is no answer `{word}`"),
        })
    }
}

/// Answers until the listener is closed.
pub(crate) fn serve(listener: &Arc<TcpListener>, shared: &Shared) {
    if let Err(error) = listener.set_nonblocking(true) {
        eprintln!("portmapper: {error}");
        return;
    }
    while lock(shared).is_portmapper(listener) {
        let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut polled, PollTimeout::from(10_u8));
        while let Ok((client, _)) = listener.accept() {
            let shared = Arc::clone(shared);
            // A client that goes away in the midst of an answer is no fault.
            thread::spawn(move || answer(&client, &shared));
        }
    }
}

fn answer(mut client: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(READ_TIMEOUT))?;
    let how = lock(shared).answer;
    let mut request = [0; 64];
    let sent = match client.read(&mut request) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
        result => result?,
    };
    let table = |admin| lock(shared).table(admin);
    match how {
        Answer::Unified if sent == 0 => {}
        Answer::Table | Answer::Unified => {
            client.write_all(table(None).as_bytes())?;
            drain(client);
        }
        Answer::Stopping => client.write_all(table(Some(0)).as_bytes())?,
        Answer::Torn => {
            let table = table(None);
            let lines = table.strip_suffix("\n.\n").unwrap_or(&table);
            // Without properties the line ends with its port, so a cut there leaves another port.
            let end = lines.rfind(" [").unwrap_or(lines.len());
            client.write_all(&lines.as_bytes()[..end.saturating_sub(1)])?;
        }
        Answer::Open => {
            client.write_all(table(None).as_bytes())?;
            thread::sleep(FOR_EVER);
        }
        Answer::Silent => thread::sleep(FOR_EVER),
        Answer::Stuck => {
            client.write_all(table(None).split_inclusive('\n').next().unwrap_or_default().as_bytes())?;
            thread::sleep(FOR_EVER);
        }
        Answer::Trickle => {
            for byte in table(None).trim_end_matches(".\n").bytes().cycle() {
                client.write_all(&[byte])?;
                thread::sleep(Duration::from_millis(20));
            }
        }
        Answer::Endless => {
            client.write_all(table(None).trim_end_matches(".\n").as_bytes())?;
            let lines = "jms tcp NORMAL 22\n".repeat(1000);
            loop {
                client.write_all(lines.as_bytes())?;
            }
        }
        Answer::Rubbish => client.write_all(&(0..=255).rev().cycle().take(3000).collect::<Vec<u8>>())?,
        Answer::Tls => client.write_all(b"\x15\x03\x03\0\x02\x02\x28")?,
    }
    Ok(())
}

/// Reads what the client still sends, so that closing does not reset the connection and lose the answer.
fn drain(mut client: &TcpStream) {
    let mut rest = [0; 64];
    while let Ok(1..) = client.read(&mut rest) {}
}
