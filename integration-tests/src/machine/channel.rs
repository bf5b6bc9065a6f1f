//! Lines of JSON over a Unix socket, as QEMU's monitor and its guest agent speak them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long one read waits before the deadline is looked at again.
const STEP: Duration = Duration::from_millis(200);

/// A longer line than that is no answer: the agent itself keeps at most 16 MiB of a command's output, in base64.
const LONGEST_LINE: usize = 64 << 20;

/// A connection to one of QEMU's services.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    /// What has been read beyond the last line.
    buffer: Vec<u8>,
    /// What was told without being asked for, oldest first.
    events: VecDeque<Value>,
}

impl Channel {
    /// Connects as soon as QEMU has made the socket.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).with_context(|| format!("QEMU does not listen on {}", path.display()));
                }
                Err(_) => sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(STEP))?;
        Ok(Self { stream, buffer: Vec::new(), events: VecDeque::new() })
    }

    /// Executes a command and waits for what it returns.
    ///
    /// # Errors
    /// When the command fails, or the answer does not come in time.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value, patience: Duration) -> Result<Value> {
        self.send(&json!({ "execute": command, "arguments": arguments }))?;
        let deadline = Instant::now() + patience;
        loop {
            let mut answer = self.receive(deadline).with_context(|| format!("no answer to {command}"))?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            self.events.push_back(answer);
        }
    }

    /// Waits for an event of this name, and forgets those before it.
    ///
    /// # Errors
    /// When it does not come in time.
    pub(super) fn wait_for(&mut self, event: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let next = match self.events.pop_front() {
                Some(told) => told,
                None => self.receive(deadline).with_context(|| format!("no event {event}"))?,
            };
            if next["event"] == event {
                return Ok(());
            }
        }
    }

    /// Finds the beginning of the answers to what is sent from now on. The other side may have been restarted, and may
    /// not run yet; it answers, once it does, with the number of the request (`guest-sync-delimited` in QEMU's
    /// qga/qapi-schema.json).
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) fn synchronize(&mut self, number: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        // The byte makes the agent's parser drop what it has of an unfinished request.
        self.stream.write_all(b"\xff")?;
        self.send(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": number } }))?;
        loop {
            // Halves of earlier answers are not JSON.
            let line = self.line(deadline).context("the agent in the machine does not answer")?;
            let line = line.rsplit(|&byte| byte == 0xff).next().unwrap_or_default();
            if serde_json::from_slice::<Value>(line).is_ok_and(|answer| answer["return"] == number) {
                return Ok(());
            }
        }
    }

    fn send(&mut self, request: &Value) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.write_all(&line).context("QEMU does not take the request")
    }

    /// The next message.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Value> {
        let line = self.line(deadline)?;
        serde_json::from_slice(&line).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&line)))
    }

    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        let mut chunk = [0; 65_536];
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.drain(..=end).collect();
                return Ok(line);
            }
            ensure!(self.buffer.len() < LONGEST_LINE, "a line without an end");
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU has closed the connection"),
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    ensure!(Instant::now() < deadline, "nothing came in time");
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("QEMU's connection fails"),
            }
        }
    }
}
