//! The service, from the start to the stop and through what may befall it.

use crate::scene::{HOST, Questions, assert_kept, policy, root};
use anyhow::Result;
use portward_integration_tests::container::Container;

fn install(container: &Container<'_>) -> Result<()> {
    container.must("dpkg --install /root/portward.deb").map(drop)
}

#[test]
fn edits_are_followed_and_bad_ones_refused_with_the_reason() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    install(&container)?;
    container.start("192.0.2.1")?;
    let daemon = container.daemon()?;

    container.write_policy(&policy(HOST, "192.0.2.2"))?;
    container.must("systemctl reload portward.service")?;
    let table = container.table()?;
    assert!(table.contains("192.0.2.2") && !table.contains("192.0.2.1"), "{table}");
    // Nobody need reload, either.
    container.write_policy(&policy(HOST, "192.0.2.3"))?;
    container.wait("nft list table inet portward | grep -q 192.0.2.3")?;

    let table = container.table()?;
    container.write_policy(&policy(HOST, "192.0.2.4").replace("console\"]", "consul\"]"))?;
    let reload = container.run("systemctl reload portward.service")?;
    assert!(!reload.success, "a reload of a bad policy must fail: {}", reload.text);
    let journal = container.journal();
    assert!(journal.contains("unknown role `consul`") && journal.contains("did you mean `console`?"), "{journal}");
    assert!(container.property("StatusText")?.contains("is not applied"), "{}", container.property("StatusText")?);
    assert_eq!(container.table()?, table, "a policy that does not load changes nothing");
    assert_eq!(container.property("ActiveState")?, "active");

    container.write_policy(&policy(HOST, "192.0.2.5"))?;
    container.must("systemctl reload portward.service")?;
    assert!(container.table()?.contains("192.0.2.5"));
    assert_eq!(container.daemon()?, daemon, "it was the same daemon all the time");
    Ok(())
}

#[test]
fn the_table_outlives_the_daemon_however_it_ends() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    install(&container)?;
    let table = container.start("192.0.2.1")?;
    container.record()?;

    // Killed, crashed, and ended cleanly by somebody who should not have.
    for signal in ["KILL", "ABRT", "TERM"] {
        let daemon = container.daemon()?;
        container.must(&format!("kill -{signal} {daemon}"))?;
        container.wait_for_another(&daemon)?;
        assert_eq!(container.table()?, table, "after SIG{signal}");
    }
    container.must("systemctl restart portward.service")?;
    assert_eq!(container.table()?, table);
    container.must("systemctl stop portward.service")?;
    assert_eq!(container.property("ActiveState")?, "inactive");
    assert_eq!(container.table()?, table, "a stop is not a down");
    assert_kept(&container.recorded()?);

    container.must("systemctl start portward.service")?;
    assert_eq!(container.table()?, table, "it is adopted");
    container.must("systemctl stop portward.service && portward down")?;
    assert_eq!(container.table()?, "", "a down is one");
    Ok(())
}

#[test]
fn a_daemon_that_hangs_is_restarted() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    install(&container)?;
    assert!(container.property("WatchdogUSec")? != "0", "the unit has a watchdog");
    container.write("/etc/systemd/system/portward.service.d/test.conf", b"[Service]\nWatchdogSec=3s\n")?;
    container.must("systemctl daemon-reload")?;
    let table = container.start("192.0.2.1")?;
    let daemon = container.daemon()?;
    // Much longer than the watchdog waits: a daemon that works is left alone.
    container.must("sleep 10")?;
    assert_eq!(container.daemon()?, daemon, "{}", container.journal());

    container.record()?;
    container.must(&format!("kill -STOP {daemon}"))?;
    container.wait_for_another(&daemon)?;
    let journal = container.journal();
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    assert_eq!(container.table()?, table);
    assert_kept(&container.recorded()?);
    Ok(())
}

#[test]
fn the_ruleset_is_in_force_before_any_interface_is_up() -> Result<()> {
    let root = root()?;
    let (installed, _) =
        root.chroot("dpkg --install /root/portward.deb && systemctl enable systemd-networkd.service")?;
    assert!(installed.success, "{}", installed.text);
    root.write("/etc/portward/policy.toml", policy(HOST, "192.0.2.1").as_bytes())?;

    let container = root.boot()?;
    assert!(container.table()?.contains("192.0.2.1"), "{}", container.journal());
    let moment = |unit: &str, property: &str| -> Result<u64> {
        let text = container.must(&format!("systemctl show --property={property} --value {unit}"))?;
        Ok(text.trim().parse()?)
    };
    let ready = moment("portward.service", "ActiveEnterTimestampMonotonic")?;
    let before_the_network = moment("network-pre.target", "ActiveEnterTimestampMonotonic")?;
    let network = moment("systemd-networkd.service", "ExecMainStartTimestampMonotonic")?;
    assert!(ready > 0 && network > 0, "both run");
    assert!(ready <= before_the_network, "ready at {ready}, network-pre.target at {before_the_network} us");
    assert!(before_the_network <= network, "network-pre.target at {before_the_network}, the network at {network} us");
    // The rescue mode starts it, too: it is wanted by what comes before.
    let wanted = container.must("systemctl show --property=Wants --value sysinit.target")?;
    assert!(wanted.contains("portward.service"), "{wanted}");
    Ok(())
}

#[test]
fn the_service_may_do_what_it_must_and_little_else() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    install(&container)?;
    // A process of somebody else, which the daemon must be able to look at, and a try at what it must not do. Both run in
    // the service's own surroundings.
    container.must("systemd-run --quiet --unit=other --uid=nobody sleep infinity")?;
    let other = container.must("systemctl show --property=MainPID --value other.service")?;
    let other = other.trim();
    let probe = format!(
        "[Service]\nExecStartPost=/bin/sh -c 'ls -l /proc/{other}/fd /proc/{other}/exe && ! touch /etc/portward/x && \
         ! touch /usr/x && touch /var/lib/portward/x /run/portward/x && ! mount -t tmpfs x /mnt && ! unshare --net true && \
         ! test -e /root/portward.deb && ! chown nobody /var/lib/portward/x && echo all as it should be'\n"
    );
    container.write("/etc/systemd/system/portward.service.d/probe.conf", probe.as_bytes())?;
    container.must("systemctl daemon-reload")?;
    container.start("192.0.2.1")?;
    let journal = container.journal();
    assert!(journal.contains("all as it should be") && journal.contains("/bin/sleep"), "{journal}");
    // The daemon itself, not only its surroundings.
    let status = container.must(&format!("cat /proc/{}/status", container.daemon()?))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(['\t', ' ']).next().unwrap_or_default().to_owned()
    };
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"), "{status}");
    let capabilities = u64::from_str_radix(&field("CapBnd:"), 16)?;
    // CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_BPF by their numbers in linux/capability.h; a container
    // need not have them all.
    let wanted = [2, 12, 19, 39].iter().fold(0, |set, number| set | 1_u64 << number);
    assert_eq!(capabilities & !wanted, 0, "{status}");
    assert_ne!(capabilities & 1 << 12, 0, "{status}");
    // CAP_BPF is the observer's, and the first thread has left it to that one.
    let permitted = u64::from_str_radix(&field("CapPrm:"), 16)?;
    assert_eq!(permitted, capabilities & !(1 << 39), "{status}");
    assert!(!container.journal().contains("may do more than it needs"), "{}", container.journal());
    Ok(())
}
