//! Administrators who log in by a real sshd, and changes that would cut their sessions.
//!
//! The administrators sit in a network namespace of the container's own, behind a pair of virtual interfaces: what comes
//! over loopback is always admitted.

use crate::scene::{HOST, Questions, policy, root};
use anyhow::{Context, Result, bail, ensure};
use portward_integration_tests::container::Container;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

/// The administrator who works on the policy.
const ADMIN: &str = "192.0.2.1";
/// Another one, who is always admitted.
const KEEPER: &str = "192.0.2.2";
/// The port of sshd in `SSH_CONNECTION`, after the address that the policy has for the host.
const SERVER: &str = "198.51.100.10 22";

/// The namespace `admins` with both addresses, the key for root and alice, and the password of root.
const SURROUNDINGS: &str = "set -e
ip netns add admins
ip link add host0 type veth peer name admins0 netns admins
ip addr add 198.51.100.10/32 dev host0
ip link set host0 up
ip route add 192.0.2.0/24 dev host0
ip -n admins addr add 192.0.2.1/24 dev admins0
ip -n admins addr add 192.0.2.2/24 dev admins0
ip -n admins link set admins0 up
ip -n admins route add 198.51.100.10/32 dev admins0
useradd --create-home alice
echo root:secret | chpasswd
ssh-keygen -q -t ed25519 -N '' -f /root/key
for home in /root /home/alice; do
    mkdir -p -m 700 $home/.ssh
    cp /root/key.pub $home/.ssh/authorized_keys
done
chown -R alice: /home/alice/.ssh";

/// The refusal by the session that it was asked for in.
const OWN: &str = "your own SSH session (from 192.0.2.1 to 22/tcp) could not be opened again on host console";

/// A policy that admits these administrators.
fn admitting(admins: &[&str]) -> String {
    policy(HOST, &admins.join("\", \""))
}

/// A container where both administrators are admitted, and sshd runs by this unit.
fn prepare(container: &Container<'_>, sshd: &str) -> Result<()> {
    container.must("dpkg --install /root/portward.deb")?;
    container.must(SURROUNDINGS)?;
    container.must(&format!("systemctl unmask ssh.service ssh.socket && systemctl start {sshd}"))?;
    container.write_policy(&admitting(&[ADMIN, KEEPER]))?;
    container.must("systemctl start portward.service")?;
    container.write("/root/cutting.toml", admitting(&[KEEPER]).as_bytes())?;
    // sshd may be slow to listen.
    for from in [ADMIN, KEEPER] {
        container.wait(&ssh("root", from, "true"))?;
    }
    Ok(())
}

/// The command that runs another one over a connection of its own.
fn ssh(user: &str, from: &str, command: &str) -> String {
    format!(
        "ip netns exec admins ssh -F none -i /root/key -b {from} -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=3 -o ServerAliveInterval=5 \
         -o ServerAliveCountMax=12 {user}@198.51.100.10 '{command}'"
    )
}

/// Somebody who stays logged in.
struct Login {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Login {
    fn new(container: &Container<'_>, user: &str, from: &str) -> Result<Self> {
        let mut client = container.spawn(&ssh(user, from, "exec sh"))?;
        let input = client.stdin.take().context("it was asked for")?;
        let output = BufReader::new(client.stdout.take().context("it was asked for")?);
        Ok(Self { client, input, output })
    }

    /// Runs a script to its end; returns its exit status and all that it said.
    fn run(&mut self, script: &str) -> Result<(i32, String)> {
        writeln!(self.input, "(\n{script}\n) </dev/null 2>&1; printf '\\nended %s\\n' $?")?;
        let mut text = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "the session has ended in `{script}`:\n{text}");
            if let Some(code) = line.strip_prefix("ended ") {
                return Ok((code.trim().parse()?, text));
            }
            text.push_str(&line);
        }
    }

    fn must(&mut self, script: &str) -> Result<String> {
        match self.run(script)? {
            (0, text) => Ok(text),
            (code, text) => bail!("`{script}` ended with {code}:\n{text}"),
        }
    }

    /// Runs a script that must be refused, for the reason that this is the session it would cut.
    fn is_refused(&mut self, script: &str) -> Result<()> {
        let (code, told) = self.run(script)?;
        ensure!(code == 2 && told.contains(OWN) && told.contains("--force"), "`{script}` ended with {code}:\n{told}");
        Ok(())
    }

    /// What sshd has put into the environment.
    fn connection(&mut self) -> Result<String> {
        let connection = self.must("printf %s \"$SSH_CONNECTION\"")?;
        ensure!(connection.trim().ends_with(SERVER), "{connection}");
        Ok(connection.trim().to_owned())
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The script that changes the policy file, and gives a command when the daemon has long noticed that by itself.
fn edit(content: &str, command: &str) -> String {
    format!("cp {content} /etc/portward/policy.toml; sleep 2; {command}")
}

/// The script by which a command runs outside of the session, as all does in a tmux server: first its parents end.
fn detached(command: &str) -> String {
    format!(
        "rm -f /root/told /root/code
        setsid --fork sh -c 'until grep -q \"^PPid:.1$\" /proc/$$/status; do sleep 0.05; done
            {command} >/root/told 2>&1; echo $? >/root/code.part; mv /root/code.part /root/code'
        until [ -e /root/code ]; do sleep 0.05; done
        cat /root/told; exit $(cat /root/code)"
    )
}

#[test]
fn a_change_that_cuts_the_session_it_is_asked_for_in_is_refused() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    prepare(&container, "ssh.service")?;
    let mut keeper = Login::new(&container, "root", KEEPER)?;
    let forged = keeper.connection()?;
    let mut admin = Login::new(&container, "root", ADMIN)?;
    let connection = admin.connection()?;
    let table = container.table()?;

    admin.is_refused("portward try /root/cutting.toml")?;
    admin.is_refused(&edit("/root/cutting.toml", "portward reload"))?;
    // The same by whatever way, and whatever the environment says: that the other administrator's connection is a real
    // one changes nothing.
    let forged = format!("SSH_CONNECTION='{forged}' SSH_CLIENT='{} 22'", forged.trim_end_matches(SERVER).trim_end());
    let reload = "env --unset=SSH_CONNECTION --unset=SSH_CLIENT portward reload";
    for script in [
        "portward reload".to_owned(),
        reload.to_owned(),
        "env --ignore-environment /usr/bin/portward reload".to_owned(),
        format!("{forged} portward reload"),
        format!("{forged} portward try /root/cutting.toml"),
        "su --login root --command \"portward reload\"".to_owned(),
        "setsid --wait portward reload".to_owned(),
        detached("portward reload"),
        detached(reload),
    ] {
        admin.is_refused(&script)?;
    }
    // Nobody knows who gives this command, and it may be any of those who are logged in.
    let (code, told) = admin.run("systemctl reload portward.service")?;
    assert!(code != 0, "{told}");
    let journal = container.journal();
    assert!(journal.contains("the SSH session from 192.0.2.1 to 22/tcp could not be opened again"), "{journal}");

    assert_eq!(container.table()?, table, "what is refused changes nothing");
    assert!(container.property("StatusText")?.contains("is not applied"), "{}", container.property("StatusText")?);
    container.must(&ssh("root", ADMIN, "true"))?;
    assert_eq!(admin.connection()?, connection, "it is the same session all the time");

    // The other one is not cut, and may.
    keeper.must("portward reload")?;
    assert!(!container.table()?.contains(ADMIN));
    Ok(())
}

#[test]
fn a_change_that_keeps_the_session_is_applied_and_force_overrides() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    prepare(&container, "ssh.service")?;
    let mut admin = Login::new(&container, "root", ADMIN)?;
    let connection = admin.connection()?;

    container.write("/root/keeping.toml", admitting(&[ADMIN]).as_bytes())?;
    let told = admin.must(&edit("/root/keeping.toml", "portward reload"))?;
    assert!(told.contains("reloaded"), "{told}");
    assert!(!container.table()?.contains(KEEPER));
    container.must(&ssh("root", ADMIN, "true"))?;
    assert!(!container.run(&ssh("root", KEEPER, "true"))?.success);
    admin.must("portward rollback")?;
    assert!(container.table()?.contains(KEEPER));

    let told = admin.must(&edit("/root/cutting.toml", "portward reload --force"))?;
    assert!(told.contains("reloaded"), "{told}");
    assert!(!container.table()?.contains(ADMIN));
    assert_eq!(admin.connection()?, connection, "an open session goes on");
    let refused = container.run(&ssh("root", ADMIN, "true"))?;
    assert!(!refused.success && refused.text.contains("timed out"), "{}", refused.text);
    container.must(&ssh("root", KEEPER, "true"))?;
    // Whoever could not log in again before loses nothing by the next change.
    container.write("/root/next.toml", admitting(&[KEEPER, "192.0.2.3"]).as_bytes())?;
    admin.must(&edit("/root/next.toml", "systemctl reload portward.service"))?;
    assert!(container.table()?.contains("192.0.2.3"));

    // An entry of the history that cuts is refused before the file is touched.
    let mut keeper = Login::new(&container, "root", KEEPER)?;
    let before = container.must("cat /etc/portward/policy.toml")?;
    let history = keeper.must("portward history")?;
    let entry = (0..4).find(|entry| {
        let text = container.run(&format!("portward history {entry}")).map(|answer| answer.text).unwrap_or_default();
        text == admitting(&[ADMIN])
    });
    let entry = entry.with_context(|| format!("what was applied is kept:\n{history}"))?;
    for rollback in [format!("portward rollback {entry}"), detached(&format!("portward rollback {entry}"))] {
        let (code, told) = keeper.run(&rollback)?;
        assert!(code == 2 && told.contains("your own SSH session (from 192.0.2.2 to 22/tcp)"), "{code}: {told}");
        assert_eq!(container.must("cat /etc/portward/policy.toml")?, before);
    }
    Ok(())
}

#[test]
fn an_edit_that_cuts_a_session_is_held_back_and_none_may_lock_all_out() -> Result<()> {
    let root = root()?;
    let container = root.boot()?;
    prepare(&container, "ssh.service")?;
    let mut admin = Login::new(&container, "root", ADMIN)?;
    let connection = admin.connection()?;

    // On the console, with nobody's session at stake.
    let table = container.table()?;
    let lockout = admitting(&[ADMIN]).replace("admin =", "user =");
    container.write_policy(&lockout)?;
    for command in ["portward reload", "portward try /etc/portward/policy.toml"] {
        let answer = container.run(command)?;
        let is_told = answer.text.contains("no address of the group `admin` could reach 22/tcp on host console");
        assert!(!answer.success && is_told, "{command}: {}", answer.text);
    }
    assert!(!container.run("systemctl reload portward.service")?.success);
    // Nor does the file come in by itself.
    container.wait("portward status | grep -q 'could reach 22/tcp'")?;
    assert_eq!(container.table()?, table);
    container.must("portward reload --force")?;
    assert!(!container.run(&ssh("root", ADMIN, "true"))?.success);
    container.write_policy(&admitting(&[ADMIN, KEEPER]))?;
    container.wait(&ssh("root", ADMIN, "true"))?;

    // Nobody knows who has made an edit, and it may be any of those who are logged in.
    container.write_policy(&admitting(&[KEEPER]))?;
    container.wait("portward status | grep -q 'from 192.0.2.1 to 22/tcp could not be opened again'")?;
    assert!(container.table()?.contains(ADMIN));
    container.must(&ssh("root", ADMIN, "true"))?;
    // On the console nobody's session is at stake, and the status says whose is cut.
    container.must("portward reload")?;
    assert!(!container.table()?.contains(ADMIN));
    let status = container.run("portward status")?.text;
    assert!(status.contains("an SSH session from 192.0.2.1 is open now, and could not be opened again"), "{status}");
    assert_eq!(admin.connection()?, connection, "an open session goes on");
    admin.must("portward status")?;
    Ok(())
}

#[test]
fn a_session_of_a_socket_unit_and_of_a_user_who_becomes_root_is_known() -> Result<()> {
    // Debian's starts one sshd for all connections; RHEL's, as this one, one for each.
    const EACH: [(&str, &[u8]); 2] = [
        ("/etc/systemd/system/each.socket", b"[Socket]\nListenStream=22\nAccept=yes\n"),
        (
            "/etc/systemd/system/each@.service",
            b"[Service]\nExecStart=-/usr/sbin/sshd -i\nStandardInput=socket\nStandardError=journal\nKillMode=process\n\
              RuntimeDirectory=sshd\nRuntimeDirectoryPreserve=yes\n",
        ),
    ];
    for socket in ["ssh.socket", "each.socket"] {
        let root = root()?;
        for (path, unit) in EACH {
            root.write(path, unit)?;
        }
        let container = root.boot()?;
        prepare(&container, socket)?;
        let table = container.table()?;
        let reload = "env --unset=SSH_CONNECTION --unset=SSH_CLIENT portward reload";
        container.write("/home/alice/edit", edit("/root/cutting.toml", reload).as_bytes())?;
        // Two processes of sshd share the connection of one who is not root.
        let mut alice = Login::new(&container, "alice", ADMIN)?;
        alice.is_refused("echo secret | su root --command \"sh /home/alice/edit\"")?;
        let mut admin = Login::new(&container, "root", ADMIN)?;
        for script in ["portward reload".to_owned(), detached(reload)] {
            admin.is_refused(&script)?;
        }
        assert_eq!(container.table()?, table);
    }
    Ok(())
}
