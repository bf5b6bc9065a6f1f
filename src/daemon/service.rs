//! What the service manager is told, in the words of sd_notify(3). Without a service manager nothing happens.

use sd_notify::NotifyState;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tracing::warn;

/// The daemon enforces a policy, or has finished a reload; `status` says which.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins. [`ready`] ends it, whether or not it succeeded: the daemon serves on in both cases.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "the monotonic clock cannot be read"),
    }
}

/// The daemon is about to end. Waits a moment until the service manager has taken this and what was said before.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; the table stays")]);
    if let Some(voice) = VOICE.get() {
        voice.finish(LAST_WORD);
    }
}

/// How often the service manager is to hear [`alive`]: twice in the time after which it ends a silent daemon. `None` when
/// it does not watch.
pub(super) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero())
}

/// The loop that does the work has come round again. Only that loop may say so, lest a daemon that hangs looks alive.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How long the end may wait for a service manager that does not read.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Messages that may wait. More means that nobody reads, and then the newest are not worth more than the oldest.
const QUEUE_LENGTH: usize = 16;

static VOICE: OnceLock<Voice> = OnceLock::new();

fn tell(state: &[NotifyState<'_>]) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let voice = VOICE.get_or_init(|| {
        Voice::new(|text| {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(text)]) {
                warn!(%error, "the service manager cannot be told");
            }
        })
    });
    let text = state.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    if !voice.say(text) {
        warn!("the service manager does not read what it is told");
    }
}

/// Says things in a thread of its own: the service manager's socket blocks when nobody reads, and the daemon must not.
struct Voice {
    queue: SyncSender<Message>,
}

enum Message {
    Say(String),
    Done(SyncSender<()>),
}

impl Voice {
    fn new(say: impl Fn(&str) + Send + 'static) -> Self {
        let (queue, messages) = sync_channel(QUEUE_LENGTH);
        thread::spawn(move || {
            for message in messages {
                match message {
                    Message::Say(text) => say(&text),
                    Message::Done(done) => {
                        // Whoever asked may have lost patience.
                        let _ = done.try_send(());
                    }
                }
            }
        });
        Self { queue }
    }

    /// Says it in its turn; `false` when too much is waiting already.
    fn say(&self, text: String) -> bool {
        self.queue.try_send(Message::Say(text)).is_ok()
    }

    /// Waits until all is said, or so long; `false` when something is left unsaid.
    fn finish(&self, patience: Duration) -> bool {
        let (done, all_said) = sync_channel(1);
        self.queue.try_send(Message::Done(done)).is_ok() && all_said.recv_timeout(patience).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn things_are_said_in_their_order() {
        let (said, heard) = channel();
        let voice = Voice::new(move |text| said.send(text.to_owned()).unwrap());
        assert!(voice.say("READY=1".to_owned()) && voice.say("STOPPING=1".to_owned()));
        assert!(voice.finish(Duration::from_secs(60)));
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["READY=1", "STOPPING=1"]);
    }

    #[test]
    fn a_service_manager_that_does_not_read_stops_nothing() {
        let (never, read) = channel::<()>();
        let voice = Voice::new(move |_| read.recv().unwrap_or_default());
        // One message is being said, the queue is full, and the rest is refused at once.
        assert!((0..1000).filter(|_| voice.say("READY=1".to_owned())).count() <= QUEUE_LENGTH + 1);
        assert!(!voice.finish(Duration::from_millis(10)));
        drop(never);
    }
}
