#[path = "../../../tests/program/mod.rs"]
mod program;

use super::*;
use glob::Pattern;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that ends with the test.
struct Running(Child);

impl Running {
    /// Starts a program, and waits until it is that program and not the copy of this one any more. Its arguments are the
    /// last that exec sets up.
    fn start(command: &mut Command) -> Self {
        let child = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let own = fs::read_link("/proc/self/exe").unwrap();
        let start = Instant::now();
        let folder = PathBuf::from(format!("/proc/{}", child.0.id()));
        while fs::read_link(folder.join("exe")).unwrap() == own || fs::read(folder.join("cmdline")).unwrap().is_empty()
        {
            assert!(start.elapsed() < Duration::from_secs(20), "exec does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    fn sleep() -> Self {
        Self::start(Command::new("/bin/sleep").arg("600"))
    }

    fn process(&self) -> Process {
        Process::open(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn patterns(patterns: &[&str]) -> Vec<Pattern> {
    patterns.iter().map(|pattern| Pattern::new(pattern).unwrap()).collect()
}

fn identity() -> Identity {
    Identity {
        pid: 7,
        start_time: 1,
        name: "java".to_owned(),
        program: Program::File("/usr/lib/jvm/java-8/jre/bin/java".into()),
        uids: [0; 4],
        unit: Some("imq.service".to_owned()),
        arguments: ["java", "-name", "imqbroker"].map(str::to_owned).to_vec(),
    }
}

#[test]
fn every_property_that_is_given_must_hold() {
    let wanted = ProcessMatch {
        exe: patterns(&["/opt/**/java", "/usr/lib/jvm/**/bin/java"]),
        user: Some("root".to_owned()),
        unit: Some("imq.service".to_owned()),
        args: patterns(&["imqbroker", "-n*"]),
    };
    assert_eq!(identity().matches(&wanted), Ok(()));
    assert_eq!(identity().matches(&ProcessMatch::default()), Ok(()));

    let says = |identity: Identity| identity.matches(&wanted).unwrap_err().to_string();
    assert_eq!(says(Identity { uids: [0, 0, 4_000_000_000, 0], ..identity() }), "runs as user 4000000000, not root");
    assert_eq!(
        says(Identity { unit: Some("ssh.service".to_owned()), ..identity() }),
        "belongs to unit ssh.service, not imq.service"
    );
    assert_eq!(says(Identity { unit: None, ..identity() }), "belongs to no system unit, not to imq.service");
    assert_eq!(
        says(Identity { program: Program::File("/usr/bin/java".into()), ..identity() }),
        "runs /usr/bin/java, not /opt/**/java or /usr/lib/jvm/**/bin/java"
    );
    let program = Program::Deleted("/opt/x/java".into());
    assert_eq!(
        says(Identity { program, ..identity() }),
        "runs /opt/x/java, which has been deleted, not /opt/**/java or /usr/lib/jvm/**/bin/java"
    );
    let arguments = vec!["-name".to_owned(), "imqbroker2".to_owned()];
    assert_eq!(says(Identity { arguments, ..identity() }), "has no argument imqbroker");

    let nobody = ProcessMatch { user: Some("no such user".to_owned()), ..wanted };
    assert_eq!(
        identity().matches(&nobody).unwrap_err().to_string(),
        "should run as user no such user, who is not in /etc/passwd"
    );
}

#[test]
fn a_star_in_a_path_stays_within_one_folder() {
    let runs = |program: &str, pattern: &str| {
        let identity = Identity { program: Program::File(program.into()), ..identity() };
        identity.matches(&ProcessMatch { exe: patterns(&[pattern]), ..ProcessMatch::default() }).is_ok()
    };
    assert!(runs("/opt/java/bin/java", "/opt/*/bin/java"));
    assert!(!runs("/opt/a/b/bin/java", "/opt/*/bin/java"));
    assert!(runs("/opt/a/b/bin/java", "/opt/**/java"));
    assert!(!runs("/home/x/opt/java", "/opt/**/java"));
}

#[test]
fn a_real_process_is_identified() {
    let child = Running::start(Command::new("/bin/sleep").arg0("an other name").arg("600"));
    let process = child.process();
    let identity = process.identity().unwrap();
    assert_eq!(identity.pid, child.0.id());
    assert_eq!(identity.start_time, process.start_time());
    assert_eq!(identity.name, "sleep");
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!(identity.uids, [uid; 4]);
    assert_eq!(identity.program, Program::File(fs::canonicalize("/bin/sleep").unwrap()));
    assert_eq!(identity.arguments, ["an other name", "600"]);
}

#[test]
fn a_program_that_is_deleted_or_replaced_is_no_program_of_that_path() {
    let folder = tempfile::tempdir().unwrap();
    let program = fs::canonicalize(folder.path()).unwrap().join("program");
    program::copy("/bin/sleep", &program);
    let child = Running::start(Command::new(&program).arg("600"));
    let process = child.process();
    assert_eq!(process.identity().unwrap().program, Program::File(program.clone()));

    fs::remove_file(&program).unwrap();
    assert_eq!(process.identity().unwrap().program, Program::Deleted(program.clone()));
    // A file of the old name is another file, and so is one of the name that the kernel gives.
    program::copy("/bin/sleep", &program);
    assert_eq!(process.identity().unwrap().program, Program::Deleted(program.clone()));
    let mut marked = program.clone().into_os_string();
    marked.push(" (deleted)");
    program::copy("/bin/sleep", &marked);
    assert_eq!(process.identity().unwrap().program, Program::Deleted(program));
}

#[test]
fn a_link_does_not_pose_as_a_program() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("java");
    symlink("/bin/sleep", &link).unwrap();
    let child = Running::start(Command::new(&link).arg("600"));
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    assert_eq!(child.process().identity().unwrap().program, Program::File(sleep));
}

#[test]
fn a_program_whose_folder_was_renamed_over_is_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(folder.path()).unwrap();
    let (real, fake) = (root.join("real"), root.join("fake"));
    for folder in [&real, &fake] {
        fs::create_dir(folder).unwrap();
        program::copy("/bin/sleep", folder.join("java"));
    }
    let child = Running::start(Command::new(fake.join("java")).arg("600"));
    // The kernel follows the folder to its new name.
    fs::rename(&real, root.join("away")).unwrap();
    fs::rename(&fake, &real).unwrap();
    assert_eq!(child.process().identity().unwrap().program, Program::File(real.join("java")));
}

#[test]
fn an_ended_process_is_not_taken_for_another() {
    let mut child = Running::sleep();
    let process = child.process();
    assert!(process.exists());
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(!process.exists());
    let ended = Err(ProcessError::Ended { pid: child.0.id() });
    assert_eq!(process.identity(), ended);
    assert_eq!(process.sockets(&BTreeSet::from([1])), Err(ProcessError::Ended { pid: child.0.id() }));
    assert_eq!(Process::open(child.0.id()).map(drop), Err(ProcessError::Ended { pid: child.0.id() }));
}

#[test]
fn a_thread_of_the_kernel_runs_no_program() {
    let Ok(process) = Process::open(2) else {
        // In a process namespace of its own there are none.
        return assert!(fs::read_to_string("/proc/2/comm").is_err());
    };
    let identity = process.identity().unwrap();
    if identity.name == "kthreadd" {
        assert_eq!((identity.program, identity.arguments), (Program::None, vec![]));
    }
}

#[test]
fn a_long_command_line_is_read_in_part() {
    // At most 128 KiB an argument (`MAX_ARG_STRLEN`, linux/binfmts.h), and sleep adds all of them up.
    let zeros = "0".repeat(100_000);
    let child = Running::start(Command::new("/bin/sleep").arg("600").args(vec![zeros; 14]).arg("0.1"));
    let arguments = child.process().identity().unwrap().arguments;
    assert_eq!(arguments.len(), 2 + 10, "the eleventh does not fit into a mebibyte");
    assert!(!arguments.contains(&"0.1".to_owned()));
}

#[test]
fn held_sockets_are_told() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let inode = u32::try_from(nix::sys::stat::fstat(&listener).unwrap().st_ino).unwrap();
    let own = Process::open(std::process::id()).unwrap();
    assert_eq!(own.sockets(&BTreeSet::from([inode, u32::MAX])), Ok(BTreeSet::from([inode])));
    assert_eq!(Running::sleep().process().sockets(&BTreeSet::from([inode])), Ok(BTreeSet::new()));
    drop(listener);
    assert_eq!(own.sockets(&BTreeSet::from([inode])), Ok(BTreeSet::new()));
}
