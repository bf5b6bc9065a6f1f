//! Hosts as network namespaces on one bridge.

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};

/// Where `ip netns` keeps the names of namespaces.
const NAMESPACES: &str = "/run/netns";

/// The interface by which a host is connected to the others.
pub const INTERFACE: &str = "eth0";

/// The name that the namespace of the bridge has in place of a host's.
const SWITCH: &str = "switch";

/// What a host is to be.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Its name, unique in the laboratory.
    pub name: String,
    /// Its addresses, of any network: all hosts of a laboratory reach each other without a router.
    pub addresses: Vec<IpAddr>,
}

impl HostSpec {
    /// A host of this name and with these addresses.
    ///
    /// # Panics
    /// When an address is malformed.
    pub fn new(name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|text| text.parse().expect("an IPv4 or IPv6 address")).collect();
        Self { name: name.to_owned(), addresses }
    }
}

/// Hosts that reach each other over one bridge. Dropping it removes the namespaces and all that is in them.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    switch: Host,
    /// The namespaces to remove, those of the hosts and that of the bridge.
    namespaces: Vec<String>,
}

/// One host of a [`Lab`].
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    namespace: String,
    addresses: Vec<IpAddr>,
    file: Arc<File>,
}

impl Lab {
    /// Makes hosts and joins them.
    ///
    /// # Errors
    /// Without root, network namespaces or the commands `ip` and `nft`, which the message names; and when one of the
    /// commands that build the laboratory fails.
    pub fn new(specs: &[HostSpec]) -> Result<Self> {
        static PREPARED: Once = Once::new();
        check_prerequisites()?;
        PREPARED.call_once(|| {
            remove_leftovers();
            raise_descriptor_limit();
        });

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pw{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut namespaces = vec![format!("{prefix}{SWITCH}")];
        namespaces.extend(specs.iter().map(|spec| format!("{prefix}{}", spec.name)));
        let mut commands = String::new();
        for namespace in &namespaces {
            writeln!(commands, "netns add {namespace}")?;
        }
        let made = ip_batch(None, &commands).context("network namespaces cannot be made");
        let switch = made.and_then(|()| Host::open(SWITCH, &namespaces[0], &[]));
        let switch = switch.inspect_err(|_| remove_namespaces(&namespaces))?;
        let mut lab = Self { hosts: Vec::new(), switch, namespaces };

        for spec in specs {
            let host = Host::open(&spec.name, &format!("{prefix}{}", spec.name), &spec.addresses)?;
            host.run(set_kernel_parameters)?;
            lab.hosts.push(host);
        }

        let mut commands = "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n".to_owned();
        for (port, host) in lab.hosts.iter().enumerate() {
            let namespace = &host.namespace;
            writeln!(commands, "link add port{port} type veth peer name {INTERFACE} netns {namespace}")?;
            writeln!(commands, "link set port{port} master br0 up")?;
        }
        lab.switch.ip(&commands)?;
        // Every command waits for the kernel now and then, so the hosts are built side by side.
        thread::scope(|scope| {
            let builders: Vec<_> = lab.hosts.iter().map(|host| scope.spawn(|| host.connect())).collect();
            builders.into_iter().try_for_each(|builder| builder.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        Ok(lab)
    }

    /// The host of this name.
    ///
    /// # Panics
    /// When the laboratory has none.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("the laboratory has no host {name}"))
    }

    /// All hosts in the order in which they were asked for.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The namespace of the bridge `br0` that joins the hosts; whatever else is to be joined to them is connected there.
    pub fn switch(&self) -> &Host {
        &self.switch
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_namespaces(&self.namespaces);
    }
}

impl Host {
    /// The network namespace of this process itself, for programs that run inside a virtual machine.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn here() -> Result<Self> {
        let path = "/proc/self/ns/net";
        let file = File::open(path).with_context(|| format!("{path} cannot be opened"))?;
        Ok(Self { name: "here".to_owned(), namespace: String::new(), addresses: Vec::new(), file: Arc::new(file) })
    }

    fn open(name: &str, namespace: &str, addresses: &[IpAddr]) -> Result<Self> {
        let file = Arc::new(open_namespace(namespace)?);
        Ok(Self { name: name.to_owned(), namespace: namespace.to_owned(), addresses: addresses.to_vec(), file })
    }

    /// The name by which it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace, for `ip -n`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The addresses it was made with.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first IPv4 address.
    ///
    /// # Panics
    /// When it has none.
    pub fn ipv4(&self) -> IpAddr {
        self.first(IpAddr::is_ipv4)
    }

    /// Its first IPv6 address.
    ///
    /// # Panics
    /// When it has none.
    pub fn ipv6(&self) -> IpAddr {
        self.first(IpAddr::is_ipv6)
    }

    fn first(&self, wanted: impl Fn(&IpAddr) -> bool) -> IpAddr {
        let found = self.addresses.iter().copied().find(wanted);
        found.unwrap_or_else(|| panic!("{} has no address of the family", self.name))
    }

    /// Runs code inside the host, on a thread of its own, and waits for it. A panic of the code goes on here.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a thread inside the host.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let host = self.clone();
        thread::spawn(move || {
            host.enter();
            work()
        })
    }

    /// Moves the calling thread, and the processes that it starts from now on, into the host.
    fn enter(&self) {
        setns(self.file.as_ref(), CloneFlags::CLONE_NEWNET).expect("a network namespace can be entered by root");
    }

    /// Runs a program inside the host to its end.
    ///
    /// # Errors
    /// When the program cannot be started. Its exit status is in the output.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let program = format!("{command:?}");
        self.run(|| command.stdin(Stdio::null()).output()).with_context(|| format!("{program} cannot be started"))
    }

    /// Runs commands of `ip`, one a line, inside the host.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, commands: &str) -> Result<()> {
        ip_batch(Some(&self.namespace), commands)
    }

    /// Gives nft a ruleset inside the host.
    ///
    /// # Errors
    /// With nft's message, when it refuses the text.
    pub fn nft(&self, text: &str) -> Result<()> {
        self.run(|| with_input(Command::new("nft").args(["-f", "-"]), text)).map(drop)
    }

    /// What `nft` answers to a command such as `-j list table inet portward`.
    ///
    /// # Errors
    /// With nft's message, when the command fails.
    pub fn nft_output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(Command::new("nft").args(arguments))?;
        ensure!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Writes a kernel parameter of the host, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such parameter.
    pub fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| set_parameter(name, value))
    }

    /// Brings the loopback interface and the one to the bridge up, gives them the addresses, and makes every other
    /// host reachable without a router.
    fn connect(&self) -> Result<()> {
        let mut commands = format!("link set lo up\nlink set {INTERFACE} up\n");
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => writeln!(commands, "addr add {address}/32 dev {INTERFACE}")?,
                IpAddr::V6(address) => writeln!(commands, "addr add {address}/128 dev {INTERFACE} nodad")?,
            }
        }
        writeln!(commands, "route add default dev {INTERFACE}\nroute add ::/0 dev {INTERFACE}")?;
        self.ip(&commands)
    }
}

/// The kernel's defaults make a fresh interface wait and rate-limit the errors that tests look for.
fn set_kernel_parameters() -> Result<()> {
    for (name, value) in [
        // Duplicate address detection keeps an address unusable for its first second.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        // A probe must never take a port that something is to listen on.
        ("net/ipv4/ip_local_port_range", "40000 60999"),
    ] {
        set_parameter(name, value)?;
    }
    Ok(())
}

fn set_parameter(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("/proc/sys/{name} cannot be written"))
}

fn check_prerequisites() -> Result<()> {
    const NEEDS: &str = "these tests need root, network namespaces and the commands ip and nft";
    ensure!(nix::unistd::geteuid().is_root(), "{NEEDS}: this process is not root");
    for (program, argument) in [("ip", "-Version"), ("nft", "--version")] {
        let found = Command::new(program).arg(argument).stdin(Stdio::null()).output();
        ensure!(found.is_ok_and(|output| output.status.success()), "{NEEDS}: `{program} {argument}` fails");
    }
    Ok(())
}

/// Removes the namespaces of runs that were killed.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    let leftovers: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let process = name.strip_prefix("pw").and_then(|rest| rest.split_once('-')).map(|(process, _)| process);
            process.is_some_and(|process| process.parse::<u32>().is_ok() && !Path::new("/proc").join(process).exists())
        })
        .collect();
    remove_namespaces(&leftovers);
}

/// Many probes at once need many descriptors; what the hard limit allows must do.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn remove_namespaces(namespaces: &[String]) {
    let mut commands = String::new();
    for namespace in namespaces {
        commands.push_str(&format!("netns del {namespace}\n"));
    }
    // A laboratory that failed half-way has not made them all, so errors are expected and ip goes on.
    let _ = with_input(Command::new("ip").args(["-force", "-batch", "-"]), &commands);
}

fn open_namespace(name: &str) -> Result<File> {
    let path: PathBuf = Path::new(NAMESPACES).join(name);
    File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))
}

fn ip_batch(namespace: Option<&str>, commands: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    with_input(command.args(["-batch", "-"]), commands).map(drop)
}

/// Runs a program with this text as its standard input.
fn with_input(command: &mut Command, text: &str) -> Result<Output> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} cannot be started"))?;
    let written = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{name} failed: {}\n{text}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.transpose()?;
    Ok(output)
}
