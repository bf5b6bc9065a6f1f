//! Where the daemon's log goes, and in which form.
//!
//! The log goes to standard error. When that is the journal, which adds the time itself and reads the priority from
//! the beginning of each line (sd-daemon(3)), lines are written for it.

use clap::ValueEnum;
use nix::sys::stat::fstat;
use std::fmt;
use std::io::{IsTerminal, stderr};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable with the log level, used when the command line gives none.
pub const VARIABLE: &str = "PORTWARD_LOG";

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people: one line an event.
    #[default]
    Plain,
    /// For programs: one JSON object an event.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, Default)]
pub struct Logging {
    /// The form of the log.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as `info,portward::kernel=trace`;
    /// `None`: from the environment variable [`VARIABLE`], else `info`.
    pub level: Option<String>,
}

impl Logging {
    /// Makes this the log of the process. A second call changes nothing.
    ///
    /// # Errors
    ///
    /// A level that does not exist or directives that cannot be read.
    pub fn install(&self) -> Result<(), ParseError> {
        let level = self.level.clone().or_else(|| std::env::var(VARIABLE).ok()).filter(|level| !level.is_empty());
        let filter = EnvFilter::builder().parse(level.as_deref().unwrap_or("info"))?;
        let journal = stderr_is_journal();
        let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours);
        let plain = Format::default().with_target(false);
        // The only error is that there is a subscriber already, as in tests.
        let _ = match (self.format, journal) {
            (LogFormat::Plain, false) => builder.event_format(plain).try_init(),
            (LogFormat::Plain, true) => {
                builder.event_format(Prioritized(plain.without_time().with_level(false))).try_init()
            }
            (LogFormat::Json, false) => builder.json().try_init(),
            (LogFormat::Json, true) => builder.json().map_event_format(Prioritized).try_init(),
        };
        Ok(())
    }
}

/// Whether standard error is the stream whose device and inode systemd put into `JOURNAL_STREAM`
/// (systemd.exec(5)); the variable alone proves nothing, because children inherit it.
fn stderr_is_journal() -> bool {
    let Ok(variable) = std::env::var("JOURNAL_STREAM") else { return false };
    let Some((device, inode)) = parse_journal_stream(&variable) else { return false };
    fstat(stderr()).is_ok_and(|status| status.st_dev == device && status.st_ino == inode)
}

fn parse_journal_stream(variable: &str) -> Option<(u64, u64)> {
    let (device, inode) = variable.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// Begins each line with the priority of the event, as syslog numbers them.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_streams_are_read() {
        assert_eq!(parse_journal_stream("8:123456"), Some((8, 123_456)));
        for malformed in ["", ":", "8", "8:", "x:1", "8:1:2", "-1:2"] {
            assert_eq!(parse_journal_stream(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_wrong_level_is_an_error() {
        let logging = Logging { level: Some("portward=loud".into()), ..Logging::default() };
        assert!(logging.install().is_err());
    }
}
