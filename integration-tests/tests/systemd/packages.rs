//! The packages: installed, upgraded, removed, with and without a service manager.

use crate::scene::{HOST, POLICY, Questions, assert_kept, has, older_deb, policy, root};
use anyhow::{Result, ensure};
use portward_integration_tests::container::Container;

/// What both packages install, by the same paths.
const FILES: [&str; 11] = [
    "/usr/bin/portward",
    "/usr/lib/systemd/system/portward.service",
    "/usr/share/bash-completion/completions/portward",
    "/usr/share/doc/portward/examples/distributed.toml",
    "/usr/share/doc/portward/installation.md",
    "/usr/share/fish/vendor_completions.d/portward.fish",
    "/usr/share/man/man5/portward-policy.5.gz",
    "/usr/share/man/man8/portward-explain.8.gz",
    "/usr/share/man/man8/portward-run.8.gz",
    "/usr/share/man/man8/portward.8.gz",
    "/usr/share/portward/jsa.toml",
];

/// The container has no repository of an RPM distribution, so the libraries that the package names are unknown to rpm.
const RPM_INSTALL: &str = "rpm --install --nodeps /root/portward.rpm";

/// What holds after an installation of either package.
fn assert_installed_and_quiet(container: &Container<'_>, zsh: &str) -> Result<()> {
    for file in FILES.into_iter().chain([zsh]) {
        ensure!(container.run(&format!("test -s {file}"))?.success, "{file} is missing or empty");
    }
    container.must("portward check --host console --policy /usr/share/doc/portward/examples/distributed.toml")?;
    container.must("cmp /usr/share/portward/jsa.toml - <<END\n$(cat /usr/share/portward/jsa.toml)\nEND")?;
    assert_eq!(container.must("stat --format=%a /etc/portward")?, "750\n");
    assert_eq!(container.must("ls /etc/portward")?, "", "no policy is shipped");
    // Enabled, and yet nothing is enforced by surprise: not at once, not by a start.
    assert_eq!(container.must("systemctl is-enabled portward.service")?, "enabled\n");
    assert_eq!(container.property("ActiveState")?, "inactive");
    container.must("systemctl start portward.service")?;
    assert_eq!(
        (container.property("ActiveState")?, container.property("ConditionResult")?),
        ("inactive".to_owned(), "no".to_owned())
    );
    assert_eq!(container.table()?, "");
    Ok(())
}

/// What holds after a removal of either package.
fn assert_removed(container: &Container<'_>) -> Result<()> {
    assert_eq!(container.table()?, "", "removal leaves no table");
    assert!(!container.run("pgrep --exact portward")?.success, "the daemon is gone");
    for path in ["/var/lib/portward", "/run/portward", "/usr/bin/portward", "/usr/share/portward"] {
        assert!(!has(container, path)?, "{path} is left");
    }
    assert!(!container.run("systemctl is-enabled portward.service")?.success);
    assert_eq!(container.must("systemctl --failed --no-legend")?, "");
    Ok(())
}

#[test]
fn the_deb_from_the_installation_to_the_purge() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    container.must("dpkg --install /root/portward.deb")?;
    assert_installed_and_quiet(&container, "/usr/share/zsh/vendor-completions/_portward")?;

    container.start("192.0.2.1")?;
    assert!(container.status()?.success);
    container.must("touch /var/lib/portward/something")?;
    container.must("dpkg --remove portward")?;
    assert_removed(&container)?;
    assert!(has(&container, POLICY)?, "the policy is the administrator's");

    // Installed again, with a policy that is there: it waits for the administrator, or for the next boot.
    container.must("dpkg --install /root/portward.deb")?;
    assert_eq!((container.property("ActiveState")?, container.table()?), ("inactive".to_owned(), String::new()));
    container.must("systemctl start portward.service")?;
    assert!(container.table()?.contains("192.0.2.1"));
    container.must("dpkg --purge portward")?;
    assert_removed(&container)?;
    assert!(!has(&container, "/etc/portward")?);
    Ok(())
}

#[test]
fn an_upgrade_of_the_deb_keeps_policy_and_table() -> Result<()> {
    let root = root()?;
    root.write("/root/older.deb", &older_deb("0.0.1-1")?)?;
    let container = root.boot()?;
    container.must("dpkg --install /root/older.deb")?;
    let table = container.start("192.0.2.77")?;
    let edited = container.must(&format!("cat {POLICY}"))?;
    let daemon = container.daemon()?;
    container.record()?;

    let upgrade = container.must("dpkg --install /root/portward.deb")?;
    assert!(upgrade.contains("0.0.1-1"), "it was an upgrade: {upgrade}");
    container.wait_for_another(&daemon)?;
    assert_eq!(container.must(&format!("cat {POLICY}"))?, edited);
    assert_eq!(container.table()?, table);
    assert_kept(&container.recorded()?);

    // Who has stopped or disabled the service finds it so after the next one.
    container.must("systemctl disable --now portward.service")?;
    container.must("dpkg --install /root/older.deb && dpkg --install /root/portward.deb")?;
    assert_eq!(container.property("ActiveState")?, "inactive");
    assert_eq!(container.run("systemctl is-enabled portward.service")?.text, "disabled\n");
    assert_eq!(container.table()?, table, "the table stays until somebody takes it away");
    Ok(())
}

#[test]
fn the_rpm_from_the_installation_to_the_erasure() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    container.must(RPM_INSTALL)?;
    assert_installed_and_quiet(&container, "/usr/share/zsh/site-functions/_portward")?;

    let table = container.start("192.0.2.1")?;
    let daemon = container.daemon()?;
    container.record()?;
    container.must("rpm --upgrade --nodeps --replacepkgs /root/portward.rpm")?;
    container.wait_for_another(&daemon)?;
    assert_eq!(container.table()?, table);
    assert_kept(&container.recorded()?);

    container.must("touch /var/lib/portward/something")?;
    container.must("rpm --erase portward")?;
    assert_removed(&container)?;
    assert!(has(&container, POLICY)?, "the policy is the administrator's");
    Ok(())
}

#[test]
fn the_rpm_asks_for_what_rhel_8_has() -> Result<()> {
    let root = root()?;
    let (requires, _) = root.chroot("rpm --query --requires --package /root/portward.rpm")?;
    ensure!(requires.success, "{}", requires.text);
    let requires: Vec<&str> = requires.text.lines().collect();
    for wanted in ["libnftnl >= 1.2.2", "libmnl >= 1.0.4", "libc.so.6(GLIBC_2.28)(64bit)"] {
        assert!(requires.contains(&wanted), "{requires:#?}");
    }
    // The rpm of RHEL 8 is 4.14.
    let newer = |line: &&&str| line.starts_with("rpmlib(") && line.contains("Zstd");
    assert_eq!(requires.iter().filter(newer).count(), 0, "{requires:#?}");
    let (scripts, _) = root.chroot("rpm --query --scripts --package /root/portward.rpm")?;
    assert!(scripts.text.contains("/bin/sh"), "{}", scripts.text);
    Ok(())
}

#[test]
fn in_a_chroot_the_packages_touch_nothing_of_the_machine() -> Result<()> {
    let root = root()?;
    for (install, remove) in
        [("dpkg --install /root/portward.deb", "dpkg --purge portward"), (RPM_INSTALL, "rpm --erase portward")]
    {
        let (installed, table) = root.chroot(install)?;
        ensure!(installed.success && table, "{}", installed.text);
        let (enabled, _) = root.chroot("systemctl is-enabled portward.service")?;
        assert_eq!(enabled.text, "enabled\n");
        root.write(POLICY, policy(HOST, "192.0.2.1").as_bytes())?;
        root.write("/var/lib/portward/something", b"")?;
        let (removed, table) = root.chroot(remove)?;
        ensure!(removed.success, "{}", removed.text);
        assert!(table, "the table of the machine around the chroot is not the package's: {}", removed.text);
        let (left, _) =
            root.chroot("! test -e /var/lib/portward && ! test -e /usr/bin/portward && rm -rf /etc/portward")?;
        assert!(left.success, "{}", left.text);
    }
    Ok(())
}

#[test]
fn what_the_packages_hold_belongs_to_root() -> Result<()> {
    let root = root()?;
    for (list, owner) in [
        ("dpkg-deb --contents /root/portward.deb", &["0/0"][..]),
        ("rpm --query --list --verbose --package /root/portward.rpm", &["root", "root"][..]),
    ] {
        let (listed, _) = root.chroot(list)?;
        ensure!(listed.success && listed.text.contains("/usr/bin/portward"), "{}", listed.text);
        // Both print the mode first; rpm the number of links next.
        let owner_of = |line: &str| -> Vec<String> {
            let words = line.split_whitespace().skip(1).skip_while(|word| *word == "1").map(str::to_owned);
            words.take(owner.len()).collect()
        };
        let foreign: Vec<&str> = listed.text.lines().filter(|line| owner_of(line) != owner).collect();
        assert_eq!(foreign, Vec::<&str>::new(), "{list}");
        // Nobody but root may write to any of it.
        let writable = |line: &&str| line.as_bytes().get(5) == Some(&b'w') || line.as_bytes().get(8) == Some(&b'w');
        assert_eq!(listed.text.lines().filter(writable).collect::<Vec<_>>(), Vec::<&str>::new(), "{list}");
    }
    Ok(())
}
