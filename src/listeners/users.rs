//! Names of users, from /etc/passwd alone: other sources of names may need the network, and a daemon that guards the
//! network must not wait for it.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the names are, passwd(5).
const PASSWD: &str = "/etc/passwd";
/// More of the file than this is not read: some hundred thousand users.
const LONGEST_PASSWD: u64 = 32 * 1024 * 1024;

/// The number of a user that is given by name or number; `None` when there is no such name.
///
/// # Errors
/// When /etc/passwd cannot be read.
pub fn user_id(user: &str) -> io::Result<Option<u32>> {
    match user.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Ok(id_in(&read()?, user)),
    }
}

/// The name of a user, for people; the number where there is none.
pub fn user_name(uid: u32) -> String {
    read().ok().and_then(|passwd| name_in(&passwd, uid)).unwrap_or_else(|| uid.to_string())
}

/// What tells one content of the file from another: device, inode, size and time of the last change.
type Stamp = (u64, u64, u64, (i64, i64));

/// The file as it was read last: it is asked about often, and seldom changes.
static LAST: Mutex<Option<(Stamp, Arc<Vec<u8>>)>> = Mutex::new(None);

fn read() -> io::Result<Arc<Vec<u8>>> {
    let metadata = fs::metadata(PASSWD)?;
    let stamp = (metadata.dev(), metadata.ino(), metadata.size(), (metadata.ctime(), metadata.ctime_nsec()));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, passwd)) = &*last
        && *known == stamp
    {
        return Ok(passwd.clone());
    }
    let mut passwd = Vec::new();
    File::open(PASSWD)?.take(LONGEST_PASSWD).read_to_end(&mut passwd)?;
    let passwd = Arc::new(passwd);
    *last = Some((stamp, passwd.clone()));
    Ok(passwd)
}

/// The names and numbers of the users. Lines that are none are left out, as by the C library.
fn users(passwd: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    passwd.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        let number = std::str::from_utf8(fields.nth(1)?).ok()?;
        Some((name, number.parse().ok()?))
    })
}

pub(super) fn id_in(passwd: &[u8], name: &str) -> Option<u32> {
    users(passwd).find(|(found, _)| *found == name.as_bytes()).map(|(_, uid)| uid)
}

pub(super) fn name_in(passwd: &[u8], uid: u32) -> Option<String> {
    users(passwd).find(|(_, found)| *found == uid).map(|(name, _)| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPTURE: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # no user\n\
        +::::::\n\
        imq:x:501:501:Open MQ:/opt/openmq:/sbin/nologin\n\
        toor:x:0:0::/root:/bin/sh\n\
        broken:x:many:0::/:/bin/sh\n\
        last:x:4294967294:1::/:";

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(id_in(CAPTURE, "root"), Some(0));
        assert_eq!(id_in(CAPTURE, "imq"), Some(501));
        assert_eq!(id_in(CAPTURE, "last"), Some(4_294_967_294));
        assert_eq!(id_in(CAPTURE, "broken"), None);
        assert_eq!(id_in(CAPTURE, "im"), None);
        assert_eq!(name_in(CAPTURE, 0).as_deref(), Some("root"));
        assert_eq!(name_in(CAPTURE, 7), None);
        assert_eq!(user_id("501").unwrap(), Some(501));
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(user_name(0), "root");
    }

    proptest! {
        #[test]
        fn no_file_makes_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (id_in(&bytes, "root"), name_in(&bytes, 0));
        }
    }
}
