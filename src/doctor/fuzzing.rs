//! What the fuzz targets need of the doctor.

use super::{neighbours, processes, service};

/// Reads any text as what programs and the kernel say of the machine.
pub fn files(text: &str) {
    let _ = (service::parse(text), neighbours::flushes_everything(text));
    let _ = (processes::effective_capabilities(text), processes::hidepid(text));
}
