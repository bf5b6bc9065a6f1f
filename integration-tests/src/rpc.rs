//! The real rpcbind, rpc.mountd and rpc.rquotad inside a host, with a /run and a /var/lib/nfs of their own.

use crate::lab::Host;
use crate::program::{self, Program, with_mounts};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long rpcbind may take to start, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// rpcbind and the services that were started beside it. All of them end when this is dropped.
#[derive(Debug)]
pub struct RpcServices {
    host: Host,
    folder: PathBuf,
    /// By name, `rpcbind` included.
    programs: BTreeMap<String, Program>,
}

/// A service of the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcService {
    /// rpc.mountd, of NFS.
    Mountd,
    /// rpc.rquotad.
    Rquotad,
}

impl RpcService {
    fn program(self) -> &'static str {
        match self {
            Self::Mountd => "rpc.mountd",
            Self::Rquotad => "rpc.rquotad",
        }
    }

    /// The program's number, and a version that it answers to (RFC 1813, appendix I; rpcsvc/rquota.x).
    fn number_and_version(self) -> (u32, u32) {
        match self {
            Self::Mountd => (100_005, 3),
            Self::Rquotad => (100_011, 1),
        }
    }
}

/// By whom and how something is registered.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// A user, over rpcbind's local socket.
    User(u32),
    /// Anybody, over the loopback interface.
    Loopback,
}

/// What is registered without any service behind it.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'r> {
    /// The program's number.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// The transport, such as `tcp`.
    pub netid: &'r str,
    /// The address, such as `0.0.0.0.0.22`.
    pub address: &'r str,
}

impl RpcServices {
    /// Starts rpcbind inside a host. What it and the other services write goes to this folder, whose path must be short
    /// enough for a local socket.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start(host: &Host, folder: &Path) -> Result<Self> {
        for name in ["run/rpcbind", "nfs/sm", "nfs/rpc_pipefs"] {
            fs::create_dir_all(folder.join(name))?;
        }
        for name in ["etab", "rmtab", "state"] {
            fs::write(folder.join("nfs").join(name), "")?;
        }
        let mut services = Self { host: host.clone(), folder: folder.to_owned(), programs: BTreeMap::new() };
        services.start_rpcbind()?;
        Ok(services)
    }

    /// Starts rpcbind again after it was ended.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start_rpcbind(&mut self) -> Result<()> {
        let mut program = self.spawn("rpcbind", &["-f", "-w"])?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            ensure!(program.runs()?, "rpcbind ended:\n{}", program.complaints());
            ensure!(Instant::now() < deadline, "rpcbind does not serve its socket:\n{}", program.complaints());
            thread::sleep(Duration::from_millis(10));
        }
        self.programs.insert("rpcbind".to_owned(), program);
        Ok(())
    }

    /// Starts a service and waits until it answers. By then it has registered all of its ports.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start_service(&mut self, service: RpcService) -> Result<()> {
        let name = service.program();
        let mut program = self.spawn(name, &["-F"])?;
        let (number, version) = service.number_and_version();
        let deadline = Instant::now() + PATIENCE;
        while self.rpcinfo(&["-T", "tcp", "127.0.0.1", &number.to_string(), &version.to_string()]).is_err() {
            ensure!(program.runs()?, "{name} ended:\n{}", program.complaints());
            ensure!(Instant::now() < deadline, "{name} does not answer:\n{}", program.complaints());
            thread::sleep(Duration::from_millis(10));
        }
        self.programs.insert(name.to_owned(), program);
        Ok(())
    }

    /// The protocols and ports that root has registered for a service.
    ///
    /// # Errors
    /// When rpcbind does not tell, or not as rpcinfo(8) prints it.
    pub fn registered(&self, service: RpcService) -> Result<BTreeSet<(&'static str, u16)>> {
        let (number, _) = service.number_and_version();
        let text = self.rpcinfo(&[])?;
        let mut ports = BTreeSet::new();
        for line in text.lines() {
            // program, version, netid, address, service, owner
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [program, _, netid, address, .., "superuser"] = fields[..] else { continue };
            if program != number.to_string() {
                continue;
            }
            let protocol = match netid {
                "tcp" | "tcp6" => "tcp",
                "udp" | "udp6" => "udp",
                _ => continue,
            };
            // The port is the last two numbers of the address.
            let mut numbers = address.rsplit('.').map(str::parse::<u16>);
            let (Some(Ok(low)), Some(Ok(high))) = (numbers.next(), numbers.next()) else {
                bail!("rpcinfo prints the address {address}");
            };
            ports.insert((protocol, high * 256 + low));
        }
        Ok(ports)
    }

    fn rpcinfo(&self, arguments: &[&str]) -> Result<String> {
        let output = self.host.output(self.command("rpcinfo").args(arguments))?;
        ensure!(output.status.success(), "rpcinfo: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The socket of rpcbind, as it is seen from here; for the services it is /run/rpcbind.sock.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/rpcbind.sock")
    }

    /// The process id of rpcbind or of a service.
    ///
    /// # Errors
    /// When it was not started.
    pub fn pid(&self, name: &str) -> Result<u32> {
        self.programs.get(name).map(Program::pid).with_context(|| format!("{name} was not started"))
    }

    /// Ends rpcbind or a service by this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end for a long time.
    pub fn end(&mut self, name: &str, signal: Signal) -> Result<()> {
        let program = self.programs.remove(name).with_context(|| format!("{name} was not started"))?;
        { program }.end(signal).map(drop)
    }

    /// Registers a service that is not there.
    ///
    /// # Errors
    /// When rpcbind does not accept it.
    pub fn register(&self, by: By, registration: Registration<'_>) -> Result<()> {
        let Registration { program, version, netid, address } = registration;
        let by = match by {
            By::User(number) => number.to_string(),
            By::Loopback => "loopback".to_owned(),
        };
        let path = program::path("rpc-register")?;
        let mut command = self.command(path.to_str().context("the target folder's path is no text")?);
        command.args([&by, &program.to_string(), &version.to_string(), netid, address]);
        let output = self.host.output(&mut command)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn spawn(&self, name: &str, arguments: &[&str]) -> Result<Program> {
        let program = Program::start(&self.host, self.command(name).args(arguments));
        program.with_context(|| format!("{name}; `make test-dependencies` installs what is missing"))
    }

    fn command(&self, program: &str) -> std::process::Command {
        with_mounts(&self.folder, "mount --bind run /run; mount --bind nfs /var/lib/nfs", program)
    }
}
