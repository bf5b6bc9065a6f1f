//! Compiles the BPF programs of `src/listeners/bpf`, where the feature `bpf` asks for them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCE: &str = "src/listeners/bpf/listen.bpf.c";
/// Where Debian has the headers that depend on the machine, `asm/types.h` above all; RHEL has them in /usr/include. What
/// is used of them is the same on every machine of 64 bits.
const HEADERS: [&str; 2] = ["/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu"];

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    if env::var_os("CARGO_FEATURE_BPF").is_none() {
        return;
    }
    let clang = env::var_os("CLANG").unwrap_or_else(|| OsString::from("clang"));
    let object = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("listen.bpf.o");
    let mut command = Command::new(&clang);
    // The instructions that the oldest supported kernel, that of RHEL 8, knows. The maps are described by the debug
    // information, so it cannot be left out.
    command.args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    for headers in HEADERS.iter().filter(|headers| Path::new(headers).exists()) {
        command.args(["-idirafter", headers]);
    }
    command.args(["-c", SOURCE, "-o"]).arg(&object);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{} could not compile {SOURCE} ({status})", clang.display())),
        Err(error) => fail(&format!(
            "{}: {error}. The feature `bpf` needs clang: run `make build-dependencies`, or name it in CLANG, or build \
             without the feature",
            clang.display()
        )),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
