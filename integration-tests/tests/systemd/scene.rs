//! What the tests share: the packages in containers, a policy, and questions about the table.

use anyhow::{Context, Result, ensure};
use portward_integration_tests::container::{Answer, Container, Root};
use portward_integration_tests::packages::packages;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the service looks for it.
pub(crate) const POLICY: &str = "/etc/portward/policy.toml";

/// A policy of one console of this name, whose administrators are these.
pub(crate) fn policy(host: &str, admin: &str) -> String {
    format!(
        "format = 1\n[groups]\nadmin = [\"{admin}\"]\n\
         [[host]]\nname = \"{host}\"\naddresses = [\"198.51.100.10\"]\nroles = [\"console\"]\n"
    )
}

/// The host name of every container: the policy finds it by that.
pub(crate) const HOST: &str = "console";

/// A root file system with a host name and the packages in /root, not yet installed.
pub(crate) fn root() -> Result<Root> {
    let root = Root::new()?;
    root.write("/etc/hostname", format!("{HOST}\n").as_bytes())?;
    let packages = packages();
    root.write("/root/portward.deb", &fs::read(&packages.deb)?)?;
    root.write("/root/portward.rpm", &fs::read(&packages.rpm)?)?;
    Ok(root)
}

/// The .deb of the same content with another version.
pub(crate) fn older_deb(version: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(&packages().deb).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let fields = fs::read_to_string(&control)?;
    let old = fields.lines().find(|line| line.starts_with("Version: ")).context("a package has a version")?;
    fs::write(&control, fields.replace(old, &format!("Version: {version}")))?;
    let package = folder.path().join("older.deb");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&package))?;
    Ok(fs::read(package)?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What the tests ask a container.
pub(crate) trait Questions {
    /// Writes the policy, as an administrator's editor does.
    fn write_policy(&self, text: &str) -> Result<()>;
    /// The table as nft lists it, without counters; empty when there is none.
    fn table(&self) -> Result<String>;
    /// Starts the service with a policy that admits one administrator, and returns the table.
    fn start(&self, admin: &str) -> Result<String>;
    /// The process id of the daemon.
    fn daemon(&self) -> Result<String>;
    /// Waits until another process than this is the daemon, and is ready.
    fn wait_for_another(&self, daemon: &str) -> Result<()>;
    /// Writes down from now on what happens to the kernel's tables.
    fn record(&self) -> Result<()>;
    /// What has happened to the kernel's tables since then.
    fn recorded(&self) -> Result<String>;
    /// What the policy tells of itself: the answer of `portward status`.
    fn status(&self) -> Result<Answer>;
}

impl Questions for Container<'_> {
    fn write_policy(&self, text: &str) -> Result<()> {
        self.write("/etc/portward/policy.toml.new", text.as_bytes())?;
        self.must("mv /etc/portward/policy.toml.new /etc/portward/policy.toml").map(drop)
    }

    fn table(&self) -> Result<String> {
        let answer = self.run("nft --stateless list table inet portward")?;
        ensure!(answer.success || answer.text.contains("No such file"), "nft: {}", answer.text);
        Ok(if answer.success { answer.text } else { String::new() })
    }

    fn start(&self, admin: &str) -> Result<String> {
        self.write_policy(&policy(HOST, admin))?;
        self.must("systemctl start portward.service")?;
        let table = self.table()?;
        ensure!(table.contains(admin), "ready means enforced:\n{table}\n{}", self.journal());
        Ok(table)
    }

    fn daemon(&self) -> Result<String> {
        let pid = self.property("MainPID")?;
        ensure!(pid != "0", "the daemon does not run:\n{}", self.journal());
        Ok(pid)
    }

    fn wait_for_another(&self, daemon: &str) -> Result<()> {
        self.wait(&format!(
            "pid=$(systemctl show --property=MainPID --value portward.service)
            [ \"$pid\" != 0 ] && [ \"$pid\" != {daemon} ] && systemctl is-active --quiet portward.service && portward status"
        ))
        .map(drop)
    }

    fn record(&self) -> Result<()> {
        self.must("systemd-run --quiet --unit=recorder --property=StandardOutput=file:/root/record nft monitor")?;
        // It listens once it has written down a table that comes and goes.
        self.wait(
            "nft add table inet recording_begins && nft delete table inet recording_begins && sleep 0.1 && \
             grep -q 'delete table inet recording_begins' /root/record",
        )
        .map(drop)
    }

    fn recorded(&self) -> Result<String> {
        self.must("nft add table inet recording_ends")?;
        self.wait("grep -q 'add table inet recording_ends' /root/record")?;
        self.must("nft delete table inet recording_ends; systemctl stop recorder; cat /root/record")
    }

    fn status(&self) -> Result<Answer> {
        self.run("portward status")
    }
}

/// That no recorded change took the table away, or any chain of it.
pub(crate) fn assert_kept(record: &str) {
    let deleted = |line: &&str| line.starts_with("delete ") && line.contains("inet portward");
    assert_eq!(record.lines().filter(deleted).collect::<Vec<_>>(), Vec::<&str>::new(), "{record}");
}

/// Whether a path is the file of a package, by its name alone.
pub(crate) fn has(container: &Container<'_>, path: &str) -> Result<bool> {
    Ok(container.run(&format!("test -e {}", Path::new(path).display()))?.success)
}
