//! Dynamic ports: from a verified process to the ports that may be opened for it.
//!
//! What a local service says of its ports is a claim. Only a claim that is confirmed by a listener of the verified process
//! opens anything.
#![forbid(unsafe_code)]
