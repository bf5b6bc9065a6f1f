//! Network namespaces of the benchmark's own: nothing here touches the machine's network.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::Write;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

/// The interface of a namespace that is connected to another.
const INTERFACE: &str = "wire";

/// A network namespace without a name. It lives as long as this value, or a socket or process in it.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes a namespace with nothing but its loopback interface, which is up.
    pub(crate) fn new() -> Result<Self> {
        let namespace = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: this needs root")?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        })?;
        namespace.run(|| command("ip", &["link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// Does some work on a thread inside the namespace. Sockets and processes that it makes belong to the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Loads an nft script.
    pub(crate) fn nft(&self, script: &str) -> Result<()> {
        self.run(|| {
            let mut nft =
                Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot run nft")?;
            nft.stdin.take().context("nft has no input")?.write_all(script.as_bytes())?;
            ensure!(nft.wait()?.success(), "nft does not take the script");
            Ok(())
        })
    }

    /// Writes a kernel parameter, such as `net/ipv4/ip_forward`.
    pub(crate) fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("cannot set {name}")))
    }

    /// Connects two namespaces by a pair of virtual interfaces with these addresses (`198.18.0.1/15`).
    pub(crate) fn connect(&self, address: &str, other: &Self, other_address: &str) -> Result<()> {
        // `ip` finds the other namespace by a thread in it, which must live until the pair is made.
        let (tell, thread_id) = mpsc::channel();
        let (done, wait) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                other.run(move || {
                    tell.send(nix::unistd::gettid().to_string())?;
                    // Ends when the other end is dropped.
                    let _ = wait.recv();
                    Ok(())
                })
            });
            let there = thread_id.recv().context("cannot enter the other namespace")?;
            let pair = ["link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", there.as_str()];
            let made = self.run(|| command("ip", &pair));
            drop(done);
            made
        })?;
        for (namespace, address) in [(self, address), (other, other_address)] {
            namespace.run(|| {
                command("ip", &["address", "add", address, "dev", INTERFACE])?;
                command("ip", &["link", "set", INTERFACE, "up"])
            })?;
        }
        Ok(())
    }
}

/// Does some work on a thread of its own and waits for it.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {}: {status}", arguments.join(" "));
    Ok(())
}
