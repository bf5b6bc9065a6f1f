//! The listeners as the kernel of Debian 12 tells of them, with the rights that the unit gives.

use crate::{ADMIN, commission, policy, reaches, site, wait_until_reached};
use anyhow::Result;
use portward_integration_tests::machine::Machine;

/// A service whose process is the witness. It listens on its anchor and on ports that the policy does not name.
fn service() -> String {
    format!(
        "[dynamic.witness]\nanchor = \"9100/tcp\"\nports = \"30000-60999/tcp\"\nfrom = {ADMIN:?}\n\
         process = {{ user = \"root\", exe = [\"/payload/portward-witness\"] }}\n"
    )
}

/// Has the witness listen on these ports, and on no others.
fn listen(machine: &mut Machine, ports: &str) -> Result<()> {
    machine.write("/etc/portward-witness", &format!("PORTS=\"{ports}\"\n"))?;
    machine.run("systemctl restart portward-witness").map(drop)
}

#[test]
fn bpf_tells_of_listeners_with_the_rights_of_the_unit() -> Result<()> {
    let site = site()?;
    let admin = site.host("admin");
    let mut machine = site.console()?;
    commission(&mut machine, &policy(&service()), "22/tcp 9100/tcp 40001/tcp")?;
    wait_until_reached(admin, &machine, 40001)?;
    let status = machine.run("portward status")?;
    println!("{}", status.lines().find(|line| line.starts_with("listeners")).unwrap_or_default());
    assert!(status.contains("the kernel tells of new ones (BPF)"), "{status}");

    // Ready, a new port and a closed one.
    listen(&mut machine, "22/tcp 9100/tcp 40002/tcp 40003/tcp")?;
    wait_until_reached(admin, &machine, 40002)?;
    wait_until_reached(admin, &machine, 40003)?;
    let open = |machine: &mut Machine| machine.run("nft list map inet portward dynamic_tcp");
    let map = open(&mut machine)?;
    assert!(map.contains("40002") && map.contains("40003") && !map.contains("40001"), "{map}");
    assert!(!reaches(site.host("stranger"), &machine, 40002)?);
    machine.run("systemctl stop portward-witness")?;
    machine.run_until("nft list map inet portward dynamic_tcp", |map| !map.contains("40002"))?;

    // A daemon that is started by hand has more rights, and needs no more.
    let by_hand = "systemctl stop portward; systemctl start portward-witness; \
        (timeout 5 portward run --host console 2>&1 || true) | grep -E 'BPF|looked at'";
    let told = machine.run(by_hand)?;
    assert!(told.contains("by BPF") && !told.contains("looked at every"), "{told}");
    Ok(())
}
