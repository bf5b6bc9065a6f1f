//! What the fuzz targets need of the daemon.

use super::asker::name_of;
use super::session::{parse_hint, parse_stat, wire};
use std::hint::black_box;

/// Reads any bytes as descriptions of established sockets.
pub fn sock_diag(bytes: &[u8]) {
    let mut sockets = 0;
    let _ = black_box(wire::read(bytes, |_| sockets += 1));
    assert!(sockets <= bytes.len());
}

/// Reads any bytes as what says who asks: a process, an environment, the list of users.
pub fn files(bytes: &[u8]) {
    let _ = black_box(parse_stat(bytes));
    let text = String::from_utf8_lossy(bytes);
    if let Some(session) = parse_hint(&text) {
        assert_eq!(parse_hint(&session.as_hint()), Some(session));
    }
    let _ = black_box(name_of(&text, 0));
}
