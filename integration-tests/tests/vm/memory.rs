//! The memory that the service may take, as the kernel of a real machine counts it: the daemon's own and the kernel's for
//! the table.

use crate::{POLICY, commission, policy, reaches, site, wait_until_reached};
use anyhow::Result;
use std::fmt::Write as _;

/// The documented limit (docs/how-it-works.md) for a deployment of [`PEERS`].
const LIMIT: &str = "32M";

const PEERS: u32 = 10_000;

const DROP_IN: &str = "/etc/systemd/system/portward.service.d/memory.conf";

#[test]
fn ten_thousand_peers_load_under_the_documented_limit() -> Result<()> {
    let site = site()?;
    let admin = site.host("admin");
    let mut machine = site.console()?;
    commission(&mut machine, &policy(""), "22/tcp 9102/tcp")?;
    machine.write(DROP_IN, &format!("[Service]\nMemoryMax={LIMIT}\nMemorySwapMax=0\n"))?;

    let mut peers = String::new();
    for number in 0..PEERS / 2 {
        let [_, _, high, low] = number.to_be_bytes();
        write!(peers, "\"172.20.{high}.{low}\", \"2001:db8::{number:x}\", ")?;
    }
    let large = policy("").replace("[groups]\n", &format!("[groups]\nuser = [{peers}]\n"));
    machine.write(POLICY, &large)?;
    machine.run("systemctl daemon-reload && systemctl restart portward && portward diff")?;
    // A reload holds the old ruleset and the new one.
    machine.write(POLICY, &large.replace("172.20.", "172.21."))?;
    machine.run("systemctl reload portward && portward diff")?;
    wait_until_reached(admin, &machine, 22)?;
    assert!(!reaches(admin, &machine, 9102)?);

    let group = "/sys/fs/cgroup/system.slice/portward.service";
    let file = |name: &str| format!("cat {group}/{name}");
    println!("memory.max {}", machine.run(&file("memory.max"))?.trim());
    println!("memory.peak {}", machine.run(&file("memory.peak"))?.trim());
    println!("{}", machine.run(&format!("grep -E '^(anon|file|kernel|slab) ' {group}/memory.stat; grep VmHWM /proc/$(systemctl show -P MainPID portward)/status"))?);
    assert_eq!(machine.run(&file("memory.max"))?.trim(), (32 << 20).to_string());
    assert!(machine.run(&file("memory.events"))?.contains("oom_kill 0"));
    assert_eq!(machine.run("systemctl show -P NRestarts portward")?.trim(), "0");

    // The limit is one: with too little, the kernel ends the daemon, and the table stays.
    machine.write(DROP_IN, "[Service]\nMemoryMax=2M\nMemorySwapMax=0\nRestart=no\n")?;
    machine.run("systemctl daemon-reload; ! systemctl restart portward; [ \"$(systemctl show -P Result portward)\" = oom-kill ]")?;
    assert!(reaches(admin, &machine, 22)? && !reaches(admin, &machine, 9102)?);
    Ok(())
}
