//! The root of cgroup2, to which the BPF programs are attached.
#![forbid(unsafe_code)]

use super::Unavailable;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::mkdtemp;
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Opens the root of cgroup2. Where it is not mounted (RHEL 8 mounts version 1 only), it is mounted for a moment: the
/// programs are attached to the hierarchy, not to the mount.
pub(super) fn open_root() -> Result<OwnedFd, Unavailable> {
    match open_mounted()? {
        Some(root) => Ok(root),
        None => open_unmounted(),
    }
}

/// Whether the root of cgroup2 is there without mounting it.
pub(super) fn is_mounted() -> bool {
    matches!(open_mounted(), Ok(Some(_)))
}

fn open_mounted() -> Result<Option<OwnedFd>, Unavailable> {
    // A thread may have mounts of its own.
    let mounts = fs::read("/proc/thread-self/mountinfo").map_err(|error| Unavailable::Cgroup {
        doing: "reading /proc/thread-self/mountinfo".to_owned(),
        source: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    })?;
    Ok(mount_points(&mounts).find_map(|path| open_folder(&path).ok()))
}

/// Opens the root of cgroup2 where it is mounted, if nothing else is mounted over it.
fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let folder = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstatfs(&folder)?.filesystem_type() == CGROUP2_SUPER_MAGIC { Ok(folder) } else { Err(Errno::ENOTDIR) }
}

fn open_unmounted() -> Result<OwnedFd, Unavailable> {
    let failed = |doing: &str| {
        let doing = format!("no cgroup2 is mounted, and it cannot be mounted for a moment: {doing}");
        move |source| Unavailable::Cgroup { doing, source }
    };
    let folder = mkdtemp(&std::env::temp_dir().join("portward-cgroup2-XXXXXX")).map_err(failed("making a folder"))?;
    let mounted = mount(Some("cgroup2"), &folder, Some("cgroup2"), MsFlags::empty(), None::<&str>);
    let root = mounted.map_err(failed("mounting")).and_then(|()| {
        let root = open_folder(&folder).map_err(failed("opening"));
        umount2(&folder, MntFlags::MNT_DETACH).map_err(failed("unmounting"))?;
        root
    });
    // An empty folder that stays does no harm.
    let _ = fs::remove_dir(&folder);
    root
}

/// Where whole hierarchies of cgroup2 are mounted, from /proc/PID/mountinfo, proc_pid_mountinfo(5).
pub(in crate::listeners) fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        let is_whole = fields.get(3) == Some(&b"/".as_slice());
        let is_cgroup2 = fields.get(separator + 1) == Some(&b"cgroup2".as_slice());
        (is_whole && is_cgroup2).then(|| fields.get(4).map(|path| unescaped(path))).flatten()
    })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescaped(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if first == b'\\' => {
                bytes.push(digits.iter().fold(0, |value: u8, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points(mountinfo: &str) -> Vec<PathBuf> {
        mount_points(mountinfo.as_bytes()).collect()
    }

    #[test]
    fn whole_hierarchies_are_found() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:4 - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:5 master:1 - cgroup2 cgroup2 rw\n\
            50 31 0:38 /system.slice /part rw - cgroup2 cgroup2 rw\n\
            51 31 0:38 / /with\\040space\\134 rw - cgroup2 none rw,nsdelegate\n";
        assert_eq!(points(hybrid), [Path::new("/sys/fs/cgroup/unified"), Path::new("/with space\\")]);
        assert_eq!(points("").len() + points("31 23 0:28 /").len() + points("- cgroup2").len(), 0);
    }

    proptest! {
        #[test]
        fn no_file_makes_reading_panic(mountinfo in "[ -~\n]{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            let _ = (points(&mountinfo), mount_points(&bytes).count(), unescaped(&bytes));
        }
    }
}
