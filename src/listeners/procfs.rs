//! The files of /proc/PID as the kernel writes them, proc(5).
#![forbid(unsafe_code)]

/// The name and the start time from `stat`: the fields 2 and 22. The name may hold anything, parentheses and newlines
/// too, so it ends at the last parenthesis.
pub(super) fn stat(stat: &[u8]) -> Option<(&[u8], u64)> {
    let begin = stat.iter().position(|&byte| byte == b'(')? + 1;
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let name = stat.get(begin..end)?;
    // Field 3 is the first after the name.
    let start_time = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace().nth(22 - 3)?;
    Some((name, start_time.parse().ok()?))
}

/// The real, effective, saved and filesystem user from `status`.
pub(super) fn uids(status: &[u8]) -> Option<[u32; 4]> {
    // The name comes before; the kernel escapes a newline in it.
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace().map(|number| number.parse().ok());
    let uids = [numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(uids)
}

/// The systemd system unit of `cgroup`: the first folder of its path that is no slice, if it is a service.
///
/// What is below belongs to the unit too, whatever its name: a unit of a user's own service manager is below
/// `user@1000.service`, one within a container below the container's scope.
pub(super) fn unit(cgroup: &[u8]) -> Option<String> {
    let of = |prefix: &[u8]| {
        cgroup.split(|&byte| byte == b'\n').find_map(|line| {
            let after_number = &line[line.iter().position(|&byte| byte == b':')? + 1..];
            after_number.strip_prefix(prefix)
        })
    };
    // systemd's own hierarchy of version 1 comes first: where it is there, version 2 may be mounted for others' purposes
    // only, and then every process is at its root.
    let path = of(b"name=systemd:").or_else(|| of(b":"))?;
    let mut folders = path.split(|&byte| byte == b'/').filter(|folder| !folder.is_empty());
    let first = folders.find(|folder| !folder.ends_with(b".slice"))?;
    let unit = std::str::from_utf8(first).ok()?;
    unit.ends_with(".service").then(|| unit.to_owned())
}

/// The arguments of `cmdline`, each ended by a zero. What was cut off is no argument.
pub(super) fn arguments(cmdline: &[u8]) -> Vec<String> {
    let Some(end) = cmdline.iter().rposition(|&byte| byte == 0) else { return Vec::new() };
    cmdline[..end].split(|&byte| byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// The inode of a socket in the target of a link in `fd`; `None` for what is no socket.
pub(super) fn socket_inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "4242 (java) S 1 4242 4242 0 -1 4194560 5106 0 12 0 33 11 0 0 20 0 29 0 88123 3071352832 \
                        14021 18446744073709551615 1 1 0 0 0 0 0 4096 16796903 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn stat_with_any_name() {
        assert_eq!(stat(STAT.as_bytes()), Some((b"java".as_slice(), 88_123)));
        for name in [") S 1 4242 (", "a) R 0\n1 (b)", "", "(((", "\n\n"] {
            let stat_of_name = STAT.replace("java", name);
            assert_eq!(stat(stat_of_name.as_bytes()), Some((name.as_bytes(), 88_123)), "{name:?}");
        }
        assert_eq!(stat(b"4242 (java"), None);
        assert_eq!(stat(b"4242 )java("), None);
        assert_eq!(stat(b"4242 (java) S 1"), None);
    }

    #[test]
    fn all_four_users() {
        let status = b"Name:\tUid:\\n7\nUmask:\t0022\nState:\tS (sleeping)\nPid:\t4242\nUid:\t0\t501\t0\t4294967295\n\
            Gid:\t0\t0\t0\t0\n";
        assert_eq!(uids(status), Some([0, 501, 0, u32::MAX]));
        assert_eq!(uids(b"Uid:\t0\t0\t0\n"), None);
        assert_eq!(uids(b"Uid:\t0\t0\t0\t0\t0\n"), None);
        assert_eq!(uids(b"Uid:\t0\t0\t0\t-1\n"), None);
        assert_eq!(uids(b""), None);
    }

    #[test]
    fn only_a_system_unit_counts() {
        let unit = |cgroup: &str| unit(cgroup.as_bytes());
        let imq = Some("imq.service".to_owned());
        assert_eq!(unit("0::/system.slice/imq.service\n"), imq);
        assert_eq!(unit("0::/system.slice/system-imq.slice/imq.service/broker\n"), imq);
        assert_eq!(unit("0::/imq.service\n"), imq, "a unit without a slice");
        assert_eq!(
            unit("0::/user.slice/user-1000.slice/user@1000.service/app.slice/imq.service\n").as_deref(),
            Some("user@1000.service")
        );
        assert_eq!(unit("0::/user.slice/user-1000.slice/session-4.scope\n"), None);
        assert_eq!(unit("0::/system.slice/docker-4711.scope/system.slice/imq.service\n"), None);
        assert_eq!(unit("0::/docker/4711/imq.service\n"), None);
        assert_eq!(unit("0::/../../imq.service\n"), None, "outside of the own cgroup namespace");
        assert_eq!(unit("0::/system.slice/imq.service (deleted)\n"), None);
        assert_eq!(unit("0::/\n"), None);
        assert_eq!(unit(""), None);
    }

    #[test]
    fn units_of_cgroup_version_1() {
        // RHEL 8, with cgroup2 mounted by somebody besides.
        let cgroup = b"12:pids:/system.slice/imq.service\n2:cpu,cpuacct:/system.slice/other.service\n\
            1:name=systemd:/system.slice/imq.service\n0::/\n";
        assert_eq!(unit(cgroup).as_deref(), Some("imq.service"));
        assert_eq!(unit(b"4:memory:/system.slice/imq.service\n"), None, "no hierarchy of systemd");
    }

    #[test]
    fn arguments_may_be_empty_and_cut() {
        assert_eq!(arguments(b"/bin/java\0-name\0\0imqbroker\0"), ["/bin/java", "-name", "", "imqbroker"]);
        assert_eq!(arguments(b"/bin/java\0-name\0imqbro"), ["/bin/java", "-name"]);
        assert_eq!(arguments(b""), Vec::<String>::new());
        assert_eq!(arguments(b"title set by the process"), Vec::<String>::new());
    }

    #[test]
    fn only_sockets_have_a_socket_s_inode() {
        assert_eq!(socket_inode(b"socket:[42005]"), Some(42_005));
        for target in ["pipe:[42005]", "/tmp/socket:[1]", "socket:[1] (deleted)", "socket:[]", "socket:[-1]"] {
            assert_eq!(socket_inode(target.as_bytes()), None, "{target}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (stat(&bytes), uids(&bytes), unit(&bytes), arguments(&bytes), socket_inode(&bytes));
        }

        #[test]
        fn a_name_never_changes_the_start_time(name in "[ -~\n]{0,15}") {
            let stat_of_name = STAT.replace("java", &name);
            prop_assert_eq!(stat(stat_of_name.as_bytes()), Some((name.as_bytes(), 88_123)));
        }

        #[test]
        fn nothing_below_a_service_or_scope_decides(
            slices in proptest::collection::vec("[a-z-]{1,8}\\.slice", 0..3),
            first in "[a-z@0-9]{1,8}\\.(service|scope)",
            rest in "(/[a-z.]{1,12}){0,3}",
        ) {
            let slices: String = slices.iter().map(|slice| format!("/{slice}")).collect();
            let expected = first.ends_with(".service").then_some(first.clone());
            prop_assert_eq!(unit(format!("0::{slices}/{first}{rest}\n").as_bytes()), expected);
        }
    }
}
