//! What the fuzz targets need of the kernel's messages.
#![forbid(unsafe_code)]

use super::batch::{self, Handles};
use super::conntrack::{put_identity, read_flow, read_tuple};
use super::dump::{TableReader, read_back};
use super::uapi::conntrack as attribute;
use super::wire::{Attributes, messages};
use super::{monitor, neighbours, notes, sockets};
use crate::ruleset::diff::{Change, diff};
use crate::ruleset::{Family, Record, Ruleset};
use std::collections::BTreeSet;
use std::hint::black_box;

/// Reads any bytes as dumps and notifications of nf_tables. A table that is read and holds nothing foreign is one that
/// could be written, and then reads the same: else portward would take a table for its own that it never made.
pub fn nf_tables(bytes: &[u8]) {
    let (mut reader, mut chains) = (TableReader::new(1), neighbours::Reader::default());
    let mut seen = BTreeSet::new();
    for message in messages(bytes).map_while(Result::ok) {
        let _ = black_box(reader.table(&message));
        let _ = black_box(reader.object(&message));
        let _ = black_box(reader.elements(&"set".into(), &message));
        let _ = black_box((monitor::read_notification(&message), chains.table(&message), chains.chain(&message)));
        for (family, with_port) in [(Family::Ipv4, true), (Family::Ipv6, true), (Family::Ipv4, false)] {
            let _ = black_box(notes::read(&message, Record { family, with_port }, &mut seen));
        }
        let _ = black_box(message.error());
    }
    let _ = black_box(reader.into_snapshot());

    let Some(snapshot) = read_back(bytes).into_snapshot() else { return };
    if let Some(table) = snapshot.table.filter(|_| snapshot.foreign.is_empty())
        && let Ok(batch) = batch::build(&diff(None, Some(&table)), 1, &Handles::new(), 1)
    {
        let again = read_back(&batch.bytes).into_snapshot();
        assert_eq!(again.and_then(|snapshot| snapshot.table), Some(table), "what was read reads differently");
    }
}

/// Writes a ruleset as the messages of a transaction, and reads these back.
pub fn write_and_read_back(ruleset: &Ruleset) {
    let snapshot = read_back(&transaction(&diff(None, Some(ruleset)))).into_snapshot();
    assert!(snapshot.as_ref().is_some_and(|snapshot| snapshot.foreign.is_empty()), "{snapshot:?}");
    assert_eq!(snapshot.and_then(|snapshot| snapshot.table).as_ref(), Some(ruleset));
}

/// The messages that make changes to which no handle of a rule belongs.
pub fn transaction(changes: &[Change]) -> Vec<u8> {
    match batch::build(changes, 1, &Handles::new(), 1) {
        Ok(batch) => batch.bytes,
        Err(unbuildable) => panic!("{unbuildable:?}"),
    }
}

/// Reads any bytes as messages of connection tracking. The order to delete a flow names that flow and no other.
pub fn conntrack(bytes: &[u8]) {
    for message in messages(bytes).map_while(Result::ok) {
        let Ok(Some(flow)) = read_flow(&message) else { continue };
        let mut order = Vec::new();
        put_identity(&mut order, &flow);
        let named = Attributes::read(&order).and_then(|attributes| {
            let (protocol, original, _) = read_tuple(&attributes, attribute::TUPLE_ORIGINAL)?;
            let zone = attributes.be16(attribute::ZONE)?.unwrap_or_default();
            Ok((protocol, original, zone, attributes.be32(attribute::ID)?))
        });
        assert_eq!(named, Ok((flow.protocol, flow.original, flow.zone, Some(flow.id))));
    }
}

/// Reads any bytes as descriptions of sockets.
pub fn sock_diag(bytes: &[u8]) {
    for message in messages(bytes).map_while(Result::ok) {
        let _ = black_box((sockets::read_socket(&message), message.error()));
    }
}
