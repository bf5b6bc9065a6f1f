//! Registers an RPC service that is not there with rpcbind, as any user can: `rpc-register UID|loopback PROGRAM VERSION
//! NETID ADDRESS`. With a user's number it becomes that user and asks over the local socket, else over loopback.
//!
//! The call is `RPCBPROC_SET` of version 4 (RFC 1833) as one record (RFC 5531, 11).
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, setuid};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;

const SOCKET: &str = "/run/rpcbind.sock";
const PORT: u16 = 111;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [by, program, version, netid, address] = arguments.as_slice() else {
        bail!("usage: rpc-register UID|loopback PROGRAM VERSION NETID ADDRESS");
    };
    let call = call(program.parse()?, version.parse()?, netid, address)?;
    if by == "loopback" {
        return converse(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?, &call);
    }
    setuid(Uid::from_raw(by.parse()?)).with_context(|| format!("cannot become user {by}"))?;
    converse(UnixStream::connect(SOCKET)?, &call)
}

fn call(program: u32, version: u32, netid: &str, address: &str) -> Result<Vec<u8>> {
    // Transaction, call, RPC version 2, program rpcbind, version 4, procedure 1; no credentials, no verifier.
    let header = [1, 0, 2, 100_000, 4, 1, 0, 0, 0, 0];
    let mut message: Vec<u8> = header.into_iter().chain([program, version]).flat_map(u32::to_be_bytes).collect();
    // rpcbind replaces the owner by what it knows of the caller.
    for text in [netid, address, "superuser"] {
        message.extend(u32::try_from(text.len())?.to_be_bytes());
        message.extend(text.as_bytes());
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let mark = 1 << 31 | u32::try_from(message.len())?;
    Ok([&mark.to_be_bytes(), message.as_slice()].concat())
}

fn converse(mut stream: impl Read + Write, call: &[u8]) -> Result<()> {
    stream.write_all(call)?;
    let mut reply = [0; 32];
    stream.read_exact(&mut reply)?;
    // The last word is what the procedure returned: 1 for true.
    ensure!(reply.ends_with(&1_u32.to_be_bytes()), "rpcbind did not register it: {reply:02x?}");
    Ok(())
}
