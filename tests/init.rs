//! `portward init` as a user meets it: the real binary, in network namespaces of its own with addresses, listeners and a
//! connection. Needs root and iproute2.

#![allow(clippy::unwrap_used)] // A test that cannot go on has failed.

mod program;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Two namespaces with a link between them: the appliance, and whoever administers it.
struct Site {
    names: [String; 2],
}

const APPLIANCE: usize = 0;
const ADMIN: usize = 1;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Site {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |which: &str| format!("portward-init-{}-{number}-{which}", std::process::id());
        let site = Self { names: [name("appliance"), name("admin")] };
        let [appliance, admin] = &site.names;
        ip(&["netns", "add", appliance]);
        ip(&["netns", "add", admin]);
        let ends = ["link", "add", "eth0", "netns", appliance, "type", "veth", "peer", "name", "eth0", "netns", admin];
        ip(&ends);
        ip(&["-n", appliance, "link", "add", "docker0", "type", "veth", "peer", "name", "veth0"]);
        let addresses = [
            (appliance, "203.0.113.10/24", "eth0"),
            (appliance, "2001:db8::10/64", "eth0"),
            (appliance, "172.17.0.1/16", "docker0"),
            (admin, "203.0.113.7/24", "eth0"),
        ];
        for (namespace, address, interface) in addresses {
            ip(&["-n", namespace, "address", "add", address, "dev", interface]);
        }
        for (namespace, interface) in [(appliance, "lo"), (appliance, "eth0"), (admin, "eth0")] {
            ip(&["-n", namespace, "link", "set", interface, "up"]);
        }
        site
    }

    /// Does something in one of the namespaces.
    fn inside<T: Send>(&self, which: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.names[which])).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn portward(&self, arguments: &[&str]) -> Output {
        let program = ["netns", "exec", &self.names[APPLIANCE], env!("CARGO_BIN_EXE_portward")];
        Command::new("ip").args(program).args(arguments).output().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

#[track_caller]
fn stdout(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn what_a_machine_shows_becomes_a_policy_that_loads_there() {
    let site = Site::new();
    let listen = |port: u16| move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let ssh = site.inside(APPLIANCE, listen(22));
    let _services: Vec<_> = [443, 5432, 10_050].map(|port| site.inside(APPLIANCE, listen(port))).into();
    let _local = site.inside(APPLIANCE, || TcpListener::bind((Ipv4Addr::LOCALHOST, 9000)).unwrap());
    let _admin = site.inside(ADMIN, || TcpStream::connect(SocketAddr::from((ADDRESS, 22))).unwrap());
    let _session = ssh.accept().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portward/policy.toml");
    let path = path.to_str().unwrap();
    let said = stdout(&site.portward(&["init", "--output", path, "--host", "jsa"]));
    assert!(said.contains("written"), "{said}");
    let text = fs::read_to_string(path).unwrap();
    let has = |what: &str| assert!(text.contains(what), "{what}:\n{text}");
    has("admin = [\n    \"203.0.113.7\",\n]");
    has("    \"203.0.113.10\", # eth0\n    \"2001:db8::10\", # eth0\n]");
    has("#   172.17.0.1 (docker0)");
    has("#   console: https 443/tcp, postgres 5432/tcp\n");
    has("roles = [\"console\"]");
    has("not in it: 10050/tcp.");
    assert!(!text.contains("9000/tcp"), "nobody else reaches what listens on loopback:\n{text}");

    let checked: Value = serde_json::from_str(&stdout(&site.portward(&["check", "--json", "--policy", path]))).unwrap();
    assert_eq!((&checked["host"], &checked["found"]), (&"jsa".into(), &"by address 203.0.113.10".into()));
    assert_eq!(checked["warnings"], Value::Array(Vec::new()));
    let ssh = ["explain", "--from", "203.0.113.7", "--port", "22/tcp", "--policy", path];
    assert!(stdout(&site.portward(&ssh)).starts_with("allowed"));

    // Printed, it is the same; and the file stays.
    assert_eq!(stdout(&site.portward(&["init", "--output", "-", "--host", "jsa"])), text);
    let refused = site.portward(&["init", "--policy", path]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert_eq!(fs::read_to_string(path).unwrap(), text);

    let said = stdout(&site.portward(&["init", "--output", path, "--force"]));
    assert!(said.contains("policy.toml.bak"), "{said}");
    assert_eq!(fs::read_to_string(format!("{path}.bak")).unwrap(), text);
}

#[test]
fn the_vendor_s_file_tells_of_the_other_host_of_the_pair() {
    let site = Site::new();
    // A folder of its own over /opt, which only this mount namespace sees.
    let printed = |ha_conf: &str| {
        let script = format!(
            "mount -t tmpfs none /opt && mkdir -p /opt/qradar/ha && printf '{ha_conf}' > /opt/qradar/ha/ha.conf && \
             exec {} init --output - --host jsa",
            env!("CARGO_BIN_EXE_portward")
        );
        let shell = ["unshare", "--mount", "sh", "-c", &script];
        Command::new("ip").args(["netns", "exec", &site.names[APPLIANCE]]).args(shell).output().unwrap()
    };
    let text = stdout(&printed("PRIMARY_IP=203.0.113.10\\nSECONDARY_IP=203.0.113.11\\n"));
    assert!(text.contains("ha-peer = \"jsa-secondary\""), "{text}");
    assert!(text.contains("name = \"jsa-secondary\"\naddresses = [\"203.0.113.11\"]\n"), "{text}");

    let output = printed("PRIMARY_IP=here\\n");
    let (text, said) = (stdout(&output), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("ha-peer = ") && text.contains("#   the high-availability pair: "), "{text}");
    assert!(said.contains("ha.conf: line 1: the value of PRIMARY_IP is no IP address"), "{said}");
}

#[test]
fn an_unprivileged_user_sees_as_much() {
    let site = Site::new();
    let _listener = site.inside(APPLIANCE, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2055)).unwrap());
    // The binary lies where only its owner may look.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("portward");
    program::copy(env!("CARGO_BIN_EXE_portward"), &program);
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let output = Command::new("ip")
        .args(["netns", "exec", &site.names[APPLIANCE]])
        .args(nobody)
        .arg(&program)
        .args(["init", "--output", "-"])
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(text.contains("203.0.113.10") && text.contains("2055/tcp"), "{text}");
    assert!(text.contains("admin = [\n    \"203.0.113.0/24\",\n    \"2001:db8::/64\",\n]"), "{text}");
}
