//! What the fuzz targets need of the trackers.

use super::rpc::{self, Record};

/// Reads any bytes as an answer of rpcbind that arrives in two pieces. What can be read was known to be whole, and not
/// before its last byte.
pub fn rpcbind(answer: &[u8]) {
    let is_whole = Record::default().is_whole(answer);
    let mut record = Record::default();
    let half = answer.get(..answer.len() / 2).unwrap_or_default();
    assert_eq!(record.is_whole(half) || record.is_whole(answer), is_whole);
    if let Ok(registrations) = rpc::parse(answer) {
        assert!(is_whole);
        let programs: Vec<u32> = registrations.iter().map(|entry| entry.program).collect();
        let claims = rpc::claims(&registrations, &programs);
        assert!(claims.claims.iter().all(|claim| claim.port != 0));
    }
}
