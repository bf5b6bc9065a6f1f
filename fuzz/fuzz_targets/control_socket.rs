//! Requests on the control socket as the daemon reads them, and replies as the client does. What was read says the same
//! when it is sent on, and a status of any content can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portward::daemon::protocol::{Reply, parse};
use portward::fuzzing::cli;

fuzz_target!(|line: &[u8]| {
    if let Ok(request) = parse(line) {
        let again = serde_json::to_vec(&request).map(|line| parse(&line));
        assert_eq!(again.ok(), Some(Ok(request)));
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(line) {
        if let Reply::Status(status) = &reply {
            let _ = (cli::status(status, 1_790_000_000), status.dynamic.open_ports());
        }
        let again = serde_json::to_vec(&reply).and_then(|line| serde_json::from_slice::<Reply>(&line));
        assert_eq!(again.ok(), Some(reply));
    }
});
