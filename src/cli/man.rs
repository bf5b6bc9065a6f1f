//! `portward man`.

use super::Error;
use super::output::{Answer, count};
use clap::{Args, Command};
use clap_mangen::Man as Page;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Print the manual page, or write all of them into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portward man | man -l -
  portward man --folder /usr/local/share/man/man8")]
pub(super) struct Man {
    /// Write one page for portward and one for each subcommand there
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Commands of the system administrator (man-pages(7)).
const SECTION: &str = "8";

impl Man {
    pub(super) fn run(&self, command: Command) -> Result<Answer, Error> {
        let command = command.disable_help_subcommand(true);
        let Some(folder) = &self.folder else {
            let page = page(command).map_err(|source| Error::Write { path: "the page".into(), source })?;
            return Ok(Answer::fine(String::from_utf8_lossy(&page)));
        };
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Write { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let mut pages = vec![("portward".to_owned(), command.clone())];
        for subcommand in command.get_subcommands() {
            let name = format!("portward-{}", subcommand.get_name());
            // Options that all subcommands share stand in the page of portward.
            let subcommand = subcommand.clone().display_name(&name).version(env!("CARGO_PKG_VERSION"));
            pages.push((name, subcommand));
        }
        let number = pages.len();
        for (name, command) in pages {
            let path = folder.join(format!("{name}.{SECTION}"));
            let page = page(command).map_err(failed(&path))?;
            fs::write(&path, page).map_err(failed(&path))?;
        }
        Ok(Answer::fine(format!("{} written to {}\n", count(number, "page"), folder.display())))
    }
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Page::new(command).section(SECTION).render(&mut page)?;
    Ok(page)
}
