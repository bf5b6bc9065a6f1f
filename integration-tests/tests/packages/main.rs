//! What is in the packages, and what it asks of the system that it is installed on: symbol versions, the unit file.
#![forbid(unsafe_code)]

mod binary;
mod unit;
