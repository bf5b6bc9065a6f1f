//! `portward completions`.

use super::output::Answer;
use clap::{Args, Command};
use clap_complete::Shell;

/// Print the completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:
  portward completions bash > /etc/bash_completion.d/portward")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut command: Command) -> Answer {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "portward", &mut script);
        Answer::fine(String::from_utf8_lossy(&script))
    }
}
