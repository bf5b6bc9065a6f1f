//! What the fuzz targets need of the state files.

use super::record::{self, Damage, Fields, Record};
use super::{APPLIED, Applied, FAIL_SAFE, FailSafe, Pending, TRIAL};
use super::{applied_of, fail_safe_of, pending_of, record_of, record_of_fail_safe, record_of_pending};
use std::fmt::Debug;

/// Reads any bytes as each kind of state file: as they are, and under the checksum that they would have. What is read can
/// be written, and then reads the same.
pub fn files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for kind in [APPLIED, TRIAL, FAIL_SAFE] {
        for file in [bytes.to_vec(), record::sealed(kind, &text)] {
            let Ok(record) = Record::decode(kind, file) else { continue };
            match kind {
                APPLIED => reads_the_same(kind, record, applied_of, record_of),
                TRIAL => reads_the_same(kind, record, pending_of, record_of_pending),
                _ => reads_the_same(kind, record, fail_safe_of, record_of_fail_safe),
            }
        }
    }
}

/// What a state file keeps.
trait Content {
    /// As it is read again: values are cut, and hold no control characters.
    fn written(self) -> Self;
}

/// A value as a line of a file can hold it.
fn line(value: &str) -> String {
    Fields::new().with("value", value).text("value").unwrap_or_default()
}

impl Content for Applied {
    fn written(self) -> Self {
        Self { user: line(&self.user), cause: line(&self.cause), host: line(&self.host), ..self }
    }
}

impl Content for Pending {
    fn written(self) -> Self {
        Self { user: line(&self.user), label: line(&self.label), ..self }
    }
}

impl Content for FailSafe {
    fn written(self) -> Self {
        Self { host: line(&self.host), ..self }
    }
}

fn reads_the_same<T: Content + Debug + PartialEq>(
    kind: &'static str,
    record: Record,
    read: impl Fn(Record) -> Result<T, Damage>,
    write: impl Fn(&T) -> Record,
) {
    let Ok(content) = read(record) else { return };
    let again = Record::decode(kind, write(&content).encode()).and_then(read);
    assert_eq!(again, Ok(content.written()));
}
