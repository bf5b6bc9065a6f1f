//! A place where nothing can go wrong: a network namespace of its own, with a policy of its own.

use crate::policy::DEFAULT_POLICY;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, mkdtemp};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why there is no sandbox.
#[derive(Debug, Error)]
#[error("the sandbox cannot be made: {action}{}", hint(.source))]
pub struct Error {
    action: &'static str,
    #[source]
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        " (root may do this; other users only where the system allows user namespaces)"
    } else {
        ""
    }
}

/// Moves this process into a network namespace of its own, with the loopback interface up. A user who is not root
/// becomes root of a user namespace, which holds nothing but this namespace.
///
/// Must run while the process has a single thread: others would stay outside.
///
/// # Errors
///
/// The system does not allow it.
pub fn enter() -> Result<(), Error> {
    let failed = |action| move |source: io::Error| Error { action, source };
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(failed("no network namespace"))?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .map_err(failed("no user namespace"))?;
        // user_namespaces(7): the group map may be written only after setgroups is denied.
        fs::write("/proc/self/setgroups", "deny").map_err(failed("setgroups cannot be denied"))?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(failed("the user cannot be mapped"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1")).map_err(failed("the group cannot be mapped"))?;
    }
    set_loopback_up().map_err(failed("the loopback interface cannot be set up"))
}

/// Sets the flag `IFF_UP` of the loopback interface by a request of rtnetlink(7).
fn set_loopback_up() -> io::Result<()> {
    let socket = mnl::Socket::new(mnl::Bus::Route)?;
    socket.send(&set_up_request(crate::ruleset::loopback::INTERFACE_INDEX))?;
    // nlmsghdr, then the error number of nlmsgerr, 0 for success (linux/netlink.h).
    let mut answer = [0; 256];
    let length = socket.recv_raw(&mut answer)?;
    let error = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `RTM_NEWLINK` with an `ifinfomsg` (linux/rtnetlink.h), in the machine's byte order.
fn set_up_request(interface: u32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: to the kernel
    message.extend([0, 0]); // family AF_UNSPEC, padding
    message.extend(0_u16.to_ne_bytes()); // type of device
    message.extend(interface.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change
    message
}

/// A folder for the sandbox's files, which goes with it.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// Makes the folder.
    ///
    /// # Errors
    ///
    /// The folder for temporary files cannot be written.
    pub fn new() -> Result<Self, Error> {
        let folder = mkdtemp(&std::env::temp_dir().join("portward-sandbox.XXXXXX"))
            .map_err(|errno| Error { action: "no folder for its files", source: errno.into() })?;
        Ok(Self { folder })
    }

    /// Writes the embedded default policy there, for the user to edit.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_default_policy(&self) -> Result<PathBuf, Error> {
        let path = self.folder.join("policy.toml");
        fs::write(&path, DEFAULT_POLICY).map_err(|source| Error { action: "its policy cannot be written", source })?;
        Ok(path)
    }

    /// Where its control socket shall be.
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where its state shall be.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Only this process's own files are in it; where it cannot be deleted, it is a temporary file like others.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says() {
        let request = set_up_request(1);
        assert_eq!(request.len(), 32);
        assert_eq!(request[..4], 32_u32.to_ne_bytes());
    }

    #[test]
    fn the_scratch_folder_goes() {
        let scratch = Scratch::new().unwrap();
        let folder = scratch.path().to_owned();
        assert!(scratch.write_default_policy().unwrap().starts_with(&folder));
        drop(scratch);
        assert!(!folder.exists());
    }
}
