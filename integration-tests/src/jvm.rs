//! Java virtual machines inside a host: a registry of remote objects made by hand, and what the JMX options of a JVM give.

use crate::lab::Host;
use crate::program::{Program, with_mounts};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The source of the registry, which documents its arguments and commands.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/java/RegistryServer.java");

/// A running JVM.
#[derive(Debug)]
pub struct Jvm {
    program: Program,
}

/// Compiled classes, and the folder in which JVMs run with a name of their own for the host.
#[derive(Debug, Clone)]
pub struct Java {
    folder: PathBuf,
}

impl Java {
    /// Compiles the registry into a folder.
    ///
    /// # Errors
    /// Without a JDK, and when the source does not compile.
    pub fn compile(folder: &Path) -> Result<Self> {
        run(Command::new("javac").arg("-d").arg(folder).arg(SOURCE))?;
        // A JVM looks its own host up, and nothing answers such a question inside a host of the laboratory.
        fs::write(folder.join("hosts"), "127.0.0.1 localhost jvm\n::1 localhost\n")?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Starts a JVM with these options, and the registry with these arguments; none: a process that only waits.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start(&self, host: &Host, options: &[String], arguments: &[&str]) -> Result<Jvm> {
        let mut command = with_mounts(&self.folder, "hostname jvm; mount --bind hosts /etc/hosts", "java");
        command.args(["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Xmx64m", "-cp", "."]);
        let program = Program::start(host, command.args(options).arg("RegistryServer").args(arguments))?;
        program.wait_for("ready")?;
        Ok(Jvm { program })
    }

    /// Starts the registry made by hand on a port, with one object of the name `service` on a random port.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start_registry(&self, host: &Host, port: u16) -> Result<Jvm> {
        self.start(host, &[], &[&port.to_string(), "0"])
    }

    /// Starts a JVM that has nothing but JMX on a port.
    ///
    /// # Errors
    /// With its complaints, when it does not start.
    pub fn start_jmx(&self, host: &Host, port: u16) -> Result<Jvm> {
        self.start(host, &jmx_options(port, "-Dcom.sun.management.jmxremote.ssl=false"), &[])
    }

    /// The same with a registry and an object that expect TLS.
    ///
    /// # Errors
    /// With its complaints, when it does not start or there is no key for it.
    pub fn start_jmx_with_tls(&self, host: &Host, port: u16) -> Result<Jvm> {
        let store = self.folder.join("keys");
        let mut keytool = Command::new("keytool");
        keytool.args(["-genkeypair", "-alias", "jvm", "-dname", "CN=jvm", "-keyalg", "EC", "-storepass", "secret"]);
        run(keytool.arg("-keystore").arg(&store))?;
        let mut options = jmx_options(port, "-Dcom.sun.management.jmxremote.registry.ssl=true");
        options.extend(["-Djavax.net.ssl.keyStore=keys", "-Djavax.net.ssl.keyStorePassword=secret"].map(String::from));
        self.start(host, &options, &[])
    }
}

/// The options that give a JVM JMX on a port, as administrators set them.
fn jmx_options(port: u16, encryption: &str) -> Vec<String> {
    vec![
        format!("-Dcom.sun.management.jmxremote.port={port}"),
        "-Dcom.sun.management.jmxremote.authenticate=false".to_owned(),
        encryption.to_owned(),
    ]
}

impl Jvm {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Gives the registry a command of those that its source documents.
    ///
    /// # Errors
    /// When the command fails.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.program.tell(command).map(drop)
    }

    /// Ends it by this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end for a long time.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.program.end(signal)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.with_context(|| format!("{name} cannot be started; `make test-dependencies` installs a JDK"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
