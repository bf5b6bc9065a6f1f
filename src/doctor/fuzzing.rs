//! What the fuzz targets need of the doctor.

use super::{neighbours, processes, service};
use std::hint::black_box;

/// Reads any text as what programs and the kernel say of the machine.
pub fn files(text: &str) {
    let _ = black_box((service::parse(text), neighbours::flushes_everything(text)));
    let _ = black_box((processes::effective_capabilities(text), processes::hidepid(text)));
}
