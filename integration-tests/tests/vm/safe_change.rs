//! `portward try` and a machine that restarts before anybody confirms.

use crate::{POLICY, backup, commission, policy, reaches, site, wait_until_reached};
use anyhow::Result;
use portward_integration_tests::machine::Machine;

const NEW: &str = "/etc/portward/new.toml";

#[test]
fn a_restart_in_the_middle_of_a_try_reverts_and_one_after_confirm_does_not() -> Result<()> {
    let site = site()?;
    let admin = site.host("admin");
    let mut machine = site.console()?;
    let old = policy("");
    let new = policy(&backup());
    commission(&mut machine, &old, "22/tcp 9102/tcp")?;
    machine.write(NEW, &new)?;
    wait_until_reached(admin, &machine, 22)?;
    assert!(!reaches(admin, &machine, 9102)?);

    // The time is longer than the test: what reverts is the restart. First the power goes, then the machine is rebooted
    // in good order, where the shutdown stops the service.
    for in_good_order in [false, true] {
        begin_try(&mut machine)?;
        wait_until_reached(admin, &machine, 9102)?;
        if in_good_order {
            machine.reboot()?;
        } else {
            machine.cut_power()?;
        }
        machine.wait_until_up()?;
        wait_until_reached(admin, &machine, 22)?;
        assert!(!reaches(admin, &machine, 9102)?, "the try is in force after the restart");
        assert_eq!(machine.run(&format!("cat {POLICY}"))?, old);
        machine.run("portward diff")?;
    }

    begin_try(&mut machine)?;
    wait_until_reached(admin, &machine, 9102)?;
    machine.run("portward confirm")?;
    machine.cut_power()?;
    machine.wait_until_up()?;
    wait_until_reached(admin, &machine, 9102)?;
    assert_eq!(machine.run(&format!("cat {POLICY}"))?, new);
    machine.run("portward diff")?;
    Ok(())
}

/// The command may wait for the confirmation, so it runs beside the test.
fn begin_try(machine: &mut Machine) -> Result<()> {
    machine.run(&format!("systemd-run --quiet --collect portward try {NEW} --timeout 3600")).map(drop)
}
