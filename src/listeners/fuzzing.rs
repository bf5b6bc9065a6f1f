//! What the fuzz targets need of the listeners.
#![forbid(unsafe_code)]

use super::events::{Event, cgroup, record};
use super::{closings, inet_diag, procfs, users};
use crate::kernel::wire::messages;
use crate::ruleset::Protocol;
use std::hint::black_box;

/// Reads any bytes as messages of sock_diag. A listener has a port.
pub fn sock_diag(bytes: &[u8]) {
    for message in messages(bytes).map_while(Result::ok) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if let Ok(Some(listener)) = black_box(inet_diag::listener(protocol, message.payload)) {
                assert_eq!(listener.protocol, protocol);
                assert_ne!(listener.port, 0);
            }
        }
        let _ = black_box((inet_diag::far_end(22, message.payload), closings::read_closing(&message)));
    }
}

/// Reads any bytes as a record of the BPF programs.
pub fn event(bytes: &[u8]) {
    if let Some(Event::Opened(socket) | Event::Closed(socket)) = black_box(record::read(bytes)) {
        assert_ne!(socket.port, 0);
    }
}

/// Reads any bytes as each of the files that the kernel and the administrator keep about processes and users.
pub fn files(bytes: &[u8]) {
    if let Some((name, _)) = procfs::stat(bytes) {
        assert!(name.len() < bytes.len());
    }
    if let Some(unit) = procfs::unit(bytes) {
        assert!(unit.ends_with(".service") && !unit.contains(['/', '\n']), "{unit:?}");
    }
    let _ = black_box((procfs::uids(bytes), procfs::arguments(bytes), procfs::socket_inode(bytes)));
    let points: Vec<_> = cgroup::mount_points(bytes).collect();
    assert!(points.len() <= bytes.len());
    if let Some(name) = users::name_in(bytes, 0) {
        // A name that is no text is shown with replacements, and is not found again.
        assert!(users::id_in(bytes, &name).is_some() || name.contains('\u{fffd}'));
    }
}
