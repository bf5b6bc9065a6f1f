//! Power that goes while policies are reloaded.

use crate::{POLICY, commission, policy, reaches, site, wait_until_reached};
use anyhow::{Context, Result};
use portward_integration_tests::machine::Machine;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the power is cut, each time a little later after a reload.
const CUTS: u32 = 4;

/// Replaces the policy by the next one of /root/policies and reloads, without end; the console tells how far it is.
const RELOADS: &str = r#"
number=$(cat /root/number)
while :; do
    number=$((number + 1))
    sed "s/NUMBER/$((number % 250))/" /root/policy.toml >/etc/portward/policy.new
    sync /etc/portward/policy.new
    echo "writes $number" >/dev/console
    mv /etc/portward/policy.new /etc/portward/policy.toml
    sync /etc/portward
    portward reload >/dev/null
    echo "reloaded $number" >/dev/console
done
"#;

#[test]
fn after_a_power_cut_in_a_reload_one_of_the_last_two_policies_is_in_force() -> Result<()> {
    let site = site()?;
    let (admin, stranger) = (site.host("admin"), site.host("stranger"));
    let mut machine = site.console()?;
    // The policy carries its number as a peer of a row.
    let template = policy(
        "[[allow]]\nname = \"numbered\"\nports = [\"9102/tcp\"]\nfrom = [\"10.7.7.NUMBER\"]\nto = [\"console\"]\n",
    );
    commission(&mut machine, &template.replace("NUMBER", "0"), "22/tcp 9102/tcp")?;
    machine.write("/root/policy.toml", &template)?;
    machine.write("/root/reloads", RELOADS)?;
    wait_until_reached(admin, &machine, 22)?;

    let mut number = 0;
    for cut in 0..CUTS {
        machine.write("/root/number", &format!("{number}\n"))?;
        machine.run("systemd-run --quiet --collect sh /root/reloads")?;
        wait_for_reload(&machine, number + 5)?;
        sleep(Duration::from_millis(u64::from(137 * cut)));
        machine.cut_power()?;
        let console = machine.printed();
        let last = |word: &str| last_number(&console, word).with_context(|| format!("no {word} on the console"));
        let (written, reloaded) = (last("writes")?, last("reloaded")?);
        machine.wait_until_up()?;
        wait_until_reached(admin, &machine, 22)?;

        let in_force = in_force(&mut machine)?;
        println!("cut {cut}: reloaded {reloaded}, written {written}, in force {in_force}");
        assert!((reloaded..=written).any(|candidate| candidate % 250 == in_force), "{in_force} is in force");
        assert!(!reaches(stranger, &machine, 9102)? && !reaches(stranger, &machine, 22)?);
        // What the kernel holds is what the file says, and the state can be read.
        machine.run("systemctl is-active portward && portward diff && portward history")?;
        let policy = machine.run(&format!("cat {POLICY}"))?;
        assert!(policy.contains(&format!("10.7.7.{in_force}\"")), "{policy}");
        number = written;
    }
    Ok(())
}

fn wait_for_reload(machine: &Machine, number: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    while last_number(&machine.printed(), "reloaded").is_none_or(|last| last < number) {
        anyhow::ensure!(Instant::now() < deadline, "no reload {number}:\n{}", machine.printed());
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The number behind the last occurrence of a word on the console; a line may be cut off where the power went.
fn last_number(console: &str, word: &str) -> Option<u32> {
    let mut numbers = console.lines().filter_map(|line| line.trim().strip_prefix(word)?.trim().parse().ok());
    numbers.next_back()
}

/// The number of the policy that the kernel enforces.
fn in_force(machine: &mut Machine) -> Result<u32> {
    let table = machine.run("nft list table inet portward")?;
    let (_, rest) = table.split_once("10.7.7.").with_context(|| format!("no number in force:\n{table}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}
