//! For the fuzz targets of `fuzz/`: the parsers that the rest of the crate keeps to itself, each with what must hold of
//! every input. Each function panics where the parser is wrong. What nobody looks at goes through a black box, so that the
//! compiler does not leave the reading out.

/// The command line.
pub mod cli {
    pub use crate::cli::fuzzing::*;
}

/// The daemon.
pub mod daemon {
    pub use crate::daemon::fuzzing::*;
}

/// The doctor.
pub mod doctor {
    pub use crate::doctor::fuzzing::*;
}

/// Messages of the kernel.
pub mod kernel {
    pub use crate::kernel::fuzzing::*;
}

/// Sockets and processes.
pub mod listeners {
    pub use crate::listeners::fuzzing::*;
}

/// State files.
pub mod state {
    pub use crate::state::fuzzing::*;
}

/// Local services.
pub mod trackers {
    pub use crate::trackers::fuzzing::*;
}
