//! The real firewalld inside a host, with a message bus and a configuration of its own.

use crate::lab::Host;
use crate::portward::text;
use crate::program::Program;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What D-Bus needs to know; nobody else talks on this bus.
const BUS: &str = r#"<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"#;

/// Runs in mount and process namespaces of its own, so that nothing of the machine is touched and all ends with the first
/// process. Executes the lines of its input; `$1` is the folder with the configuration.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run
mkdir /run/dbus
mount --bind "$1/firewalld" /etc/firewalld
dbus-daemon --config-file="$1/bus.conf" --nopidfile --fork
start() {
    firewalld --nofork --nopid --log-target=console </dev/null >>"$1/log" 2>&1 &
    for second in $(seq 60); do
        firewall-cmd --state >/dev/null 2>&1 && return
        sleep 1
    done
    cat "$1/log" >&2
    exit 1
}
start "$1"
echo ready
while read -r command; do
    if [ "$command" = restart ]; then
        kill "$!"
        wait "$!" || true
        start "$1"
        answer=
    else
        answer=$(sh -euc "$command" 2>&1) || { echo "failed: $answer"; continue; }
    fi
    echo "done $answer"
done
"#;

/// A running firewalld. It ends, and leaves its table, when this is dropped.
#[derive(Debug)]
pub struct Firewalld(Program);

impl Firewalld {
    /// Starts it with a default zone that opens these ports of TCP, and waits until it answers. `folder` is for its
    /// configuration and its log.
    ///
    /// # Errors
    /// With its log, when it does not run.
    pub fn start(host: &Host, folder: &Path, ports: &[u16]) -> Result<Self> {
        fs::create_dir_all(folder.join("firewalld/zones"))?;
        fs::write(folder.join("bus.conf"), BUS)?;
        let settings = "DefaultZone=public\nFirewallBackend=nftables\n";
        fs::write(folder.join("firewalld/firewalld.conf"), settings)?;
        let ports: String = ports.iter().map(|port| format!("<port protocol=\"tcp\" port=\"{port}\"/>")).collect();
        let zone = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone><short>Public</short>{ports}</zone>\n");
        fs::write(folder.join("firewalld/zones/public.xml"), zone)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-euc", SCRIPT, "sh", text(folder)?]);
        let program = Program::start(host, &mut command)?;
        program.wait_for("ready")?;
        Ok(Self(program))
    }

    /// `firewall-cmd --reload`: reads its configuration again and replaces its rules.
    ///
    /// # Errors
    /// When it fails.
    pub fn reload(&mut self) -> Result<()> {
        self.0.tell("firewall-cmd --reload").map(drop)
    }

    /// Ends it, which removes its rules, and starts it again.
    ///
    /// # Errors
    /// When it does not run again.
    pub fn restart(&mut self) -> Result<()> {
        self.0.tell("restart").map(drop)
    }
}
