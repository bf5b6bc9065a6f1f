//! A stand-in for an OpenMQ broker: the services that one has, with real listeners, and its portmapper.
//!
//! The protocol is that of eclipse-ee4j/openmq (`PortMapper.java`, `PortMapperTable.java`, `PortMapperEntry.java`); the
//! stub is a real one. It says `ready` on its output, then carries out the commands of its input, one a line, and answers
//! each with `done` or `failed REASON`. It ends with its input.
//!
//! Arguments, each a word or `word=value`; others are left alone, so that its command line can look like a broker's:
//!
//! - `port=N`: the port of the portmapper, else 7676.
//! - `instance=NAME`, `version=TEXT`: the first line of the table, else `imqbroker` and `301`.
//! - `host=NAME`: how it calls its host, else 127.0.0.1.
//! - `user=N`: the user to become before it listens.
//! - `slow`: it starts as slowly as a real one: the portmapper and two lines after 0.53 s, `jmxrmi` after 1.38 s, `admin`
//!   after 1.44 s, `jms` and `cluster` after 1.48 s. `ready` comes at once.
//! - `answer=HOW`: as the command.
//!
//! Commands:
//!
//! - `answer HOW`: how the portmapper answers, see [`Answer`].
//! - `close NAME`: a service has no port any more; the table gives it port 0, and leaves `jmxrmi` out. Without its
//!   listener the portmapper answers nobody.
//! - `open NAME [PORT]`: it listens again, on this or a random port.
//! - `abandon NAME`: it does not listen any more, and the table goes on to say so.
//! - `claim NAME PORT`: the table has one line more, with a port on which the broker does not listen.
//! - `ports`: answers with `NAME=PORT` for each service that listens, `portmapper` included.
#![forbid(unsafe_code)]

mod portmapper;
mod services;
mod stub;

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use portmapper::Answer;
use services::Services;
use std::io::BufRead;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// When the services of a real broker come, in milliseconds after its start.
const SLOW_START: [(u64, &[&str]); 4] =
    [(530, &["portmapper", "cluster_discovery"]), (1380, &["jmxrmi"]), (1440, &["admin"]), (1480, &["jms", "cluster"])];

type Shared = Arc<Mutex<Services>>;

fn lock(shared: &Mutex<Services>) -> MutexGuard<'_, Services> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<()> {
    let mut services = Services::default();
    let mut slow = false;
    let mut user = None;
    for argument in std::env::args().skip(1) {
        match argument.split_once('=').unwrap_or((&argument, "")) {
            ("port", number) => services.portmapper_port = number.parse()?,
            ("instance", name) => services.instance = name.to_owned(),
            ("version", text) => services.version = text.to_owned(),
            ("host", name) => services.host = name.to_owned(),
            ("user", number) => user = Some(number.parse()?),
            ("answer", how) => services.answer = Answer::parse(how)?,
            ("slow", "") => slow = true,
            _ => {}
        }
    }
    if let Some(user) = user {
        become_user(user)?;
    }
    let shared = Arc::new(Mutex::new(services));
    if slow {
        let shared = Arc::clone(&shared);
        let start = Instant::now();
        thread::spawn(move || start_slowly(&shared, start));
    } else {
        for (_, names) in SLOW_START {
            names.iter().try_for_each(|name| open(&shared, name, 0))?;
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match execute(&shared, &line?) {
            Ok(answer) => println!("done {answer}"),
            Err(error) => println!("failed {error:#}"),
        }
    }
    Ok(())
}

fn become_user(number: u32) -> Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(number))?;
    setuid(Uid::from_raw(number)).with_context(|| format!("cannot become user {number}"))
}

fn start_slowly(shared: &Shared, start: Instant) {
    for (milliseconds, names) in SLOW_START {
        thread::sleep((start + Duration::from_millis(milliseconds)).saturating_duration_since(Instant::now()));
        for name in names {
            if let Err(error) = open(shared, name, 0) {
                eprintln!("{name}: {error:#}");
            }
        }
    }
}

/// Lets a service listen. The portmapper has its own port and is served.
fn open(shared: &Shared, name: &str, port: u16) -> Result<()> {
    let listener = lock(shared).open(name, port)?;
    if name == services::PORTMAPPER {
        let shared = Arc::clone(shared);
        thread::spawn(move || portmapper::serve(&listener, &shared));
    }
    Ok(())
}

/// Waits until nobody else has the listener, so that the port is free when it is dropped.
fn wait_for_last(listener: &Arc<TcpListener>) {
    while Arc::strong_count(listener) > 1 {
        thread::sleep(Duration::from_millis(1));
    }
}

fn execute(shared: &Shared, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["answer", how] => lock(shared).answer = Answer::parse(how)?,
        ["close", name] => {
            let listener = lock(shared).close(name)?;
            wait_for_last(&listener);
        }
        ["abandon", name] => {
            let listener = lock(shared).abandon(name)?;
            wait_for_last(&listener);
        }
        ["open", name] => open(shared, name, 0)?,
        ["open", name, port] => open(shared, name, port.parse()?)?,
        ["claim", name, port] => lock(shared).claims.push(((*name).to_owned(), port.parse()?)),
        ["ports"] => return Ok(lock(shared).listening()),
        _ => bail!("there is no command `{line}`"),
    }
    Ok(String::new())
}
