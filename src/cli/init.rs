//! `portward init`.

use super::output::{Answer, note};
use super::{Error, Options};
use crate::daemon::DEFAULT_POLICY_PATH;
use crate::listeners::SockDiag;
use crate::policy::first::{Findings, HaPair, LocalAddress, first_policy};
use crate::policy::{Catalogue, LoadError, Policy, read_source};
use clap::Args;
use ipnet::IpNet;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use nix::unistd::gethostname;
use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Write a first policy from what this machine shows
///
/// Looks at the addresses, the host name, the ports that listen and who is connected by SSH, and writes a policy that
/// loads here, denies nothing (mode "observe") and has comments on what to correct and complete. Roles are guessed from
/// the ports; the comments say on what each guess rests. Nothing is enforced by it: that takes the service.
///
/// A file that is there already is never overwritten, unless --force says so; then it is kept as FILE.bak.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward init                     writes /etc/portward/policy.toml
  portward init --output -          prints it
  portward init && portward show    writes it, and shows what it would open")]
pub(super) struct Init {
    /// The file to write; - is standard output [default: --policy, else /etc/portward/policy.toml]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write even where a file is, and keep that one as FILE.bak
    #[arg(long)]
    force: bool,
}

/// Secure Shell (IANA service names and port numbers).
const SSH: u16 = 22;

impl Init {
    pub(super) fn run(&self, options: &Options) -> Result<Answer, Error> {
        let catalogue = match &options.catalogue {
            Some(path) => Cow::Owned(Catalogue::load(path)?),
            None => Cow::Borrowed(Catalogue::embedded()),
        };
        let path = self.output.as_ref().or(options.policy.as_ref()).cloned();
        let path = path.unwrap_or_else(|| PathBuf::from(DEFAULT_POLICY_PATH));
        let mut findings = look()?;
        if let Some(name) = &options.host {
            findings.hostname.clone_from(name);
        }
        let text = first_policy(&findings, &catalogue);
        // With the embedded catalogue it always loads; another one may lack what the text rests on.
        Policy::parse(&text, "the first policy", &catalogue)
            .map_err(|source| LoadError::Invalid { path: path.clone(), source })?;
        findings.unseen.iter().for_each(|what| note(what));
        if path.as_os_str() == "-" {
            return Ok(Answer::fine(text));
        }
        let backup = write(&path, &text, self.force)?;
        let kept = backup.map(|backup| format!("; the old file is {}", backup.display())).unwrap_or_default();
        let shown = path.display();
        Ok(Answer::fine(format!(
            "{shown}: written{kept}\nIt observes and denies nothing. Read it and correct it, then: portward check --policy {shown}\n"
        )))
    }
}

/// What this machine shows. What cannot be seen is said among the findings.
fn look() -> Result<Findings, Error> {
    let mut findings = Findings {
        hostname: gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
        ..Findings::default()
    };
    match getifaddrs() {
        Ok(interfaces) => findings.addresses = interfaces.filter_map(local_address).collect(),
        Err(errno) => findings.unseen.push(format!("the addresses of the interfaces: {}", errno.desc())),
    }
    match SockDiag::open().and_then(|mut diag| Ok((diag.dump()?, diag.connected(SSH)?))) {
        Ok((listeners, peers)) => {
            let reachable = listeners.iter().filter(|listener| !listener.is_loopback());
            findings.listeners = reachable.map(|listener| (listener.port, listener.protocol)).collect();
            findings.ssh_peers = peers;
        }
        Err(error) => findings.unseen.push(format!("what listens and who is connected by SSH: {error}")),
    }
    let path = HaPair::path();
    match read_source(path).map(|text| HaPair::parse(&text)) {
        Ok(Ok(pair)) => findings.pair = Some(pair),
        Ok(Err(error)) => findings.unseen.push(format!("the high-availability pair: {}: {error}", path.display())),
        // Most hosts have no peer, and the file may be there and say nothing.
        Err(LoadError::Missing { .. } | LoadError::Empty { .. }) => {}
        Err(error) => {
            findings.unseen.push(format!("the high-availability pair: {}", crate::describe(&error)));
        }
    }
    Ok(findings)
}

fn local_address(interface: InterfaceAddress) -> Option<LocalAddress> {
    let address = ip(interface.address.as_ref()?)?;
    let mask = interface.netmask.as_ref().and_then(ip);
    // Without a mask, or with one that is none, the address stands for itself.
    let network = mask.and_then(|mask| IpNet::with_netmask(address, mask).ok()).unwrap_or_else(|| address.into());
    Some(LocalAddress { interface: interface.interface_name, network })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Writes the file as a whole or not at all, readable by all and synced, and says where the old one is kept. Without
/// `force` a file that is there is an error, also one that appears meanwhile.
fn write(path: &Path, text: &str, force: bool) -> Result<Option<PathBuf>, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err(failed(path)(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let draft = beside(path, &format!(".{}.new", std::process::id()));
    let result = write_new(&draft, text).map_err(failed(&draft)).and_then(|()| {
        // A link is made only where nothing is.
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && force => {
                let backup = beside(path, ".bak");
                match fs::remove_file(&backup) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&backup)(error)),
                    _ => {}
                }
                // The old file has both names until the new one takes its own, so that there always is a policy.
                fs::hard_link(path, &backup).map_err(failed(&backup))?;
                fs::rename(&draft, path).map_err(failed(path))?;
                Ok(Some(backup))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Usage(format!(
                "{}: there is a file already, and it stays; --force replaces it and keeps it as {}, --output - prints \
                 the policy",
                path.display(),
                beside(path, ".bak").display()
            ))),
            Err(error) => Err(failed(path)(error)),
            Ok(()) => Ok(None),
        }
    });
    // After the rename it is not there any more.
    let _ = fs::remove_file(&draft);
    let backup = result?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    Ok(backup)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the caller's umask is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()
}

/// The path with this at the end of its name.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(folder: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_file_is_replaced_only_by_force_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/policy.toml");
        assert_eq!(write(&path, "one", false).unwrap(), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);

        let error = write(&path, "two", false).unwrap_err().to_string();
        assert!(error.contains("--force") && error.contains("policy.toml.bak"), "{error}");
        let files = |files: &[(&str, &str)]| -> Vec<(String, String)> {
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        assert_eq!(content(path.parent().unwrap()), files(&[("policy.toml", "one")]));

        for (text, before) in [("two", "one"), ("three", "two")] {
            assert_eq!(write(&path, text, true).unwrap(), Some(path.with_file_name("policy.toml.bak")));
            let expected = files(&[("policy.toml", text), ("policy.toml.bak", before)]);
            assert_eq!(content(path.parent().unwrap()), expected);
        }
    }

    #[test]
    fn a_folder_or_a_dangling_link_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), "text", true).is_err());
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink("/does/not/exist", &link).unwrap();
        assert!(write(&link, "text", false).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
