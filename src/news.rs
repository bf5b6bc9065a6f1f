//! Sources of news that a runtime watches: sockets of the kernel, and the buffer of BPF programs.

use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a source.
///
/// # Errors
/// When the system cannot watch it.
pub(crate) fn register<S: AsRawFd>(source: S) -> io::Result<AsyncFd<S>> {
    // What replaces `new` is unsafe, for descriptors that are closed or exchanged while they are registered; these
    // sources do neither.
    #[allow(deprecated)]
    AsyncFd::new(source)
}

/// Waits until a source has something to tell; for ever without a source.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn next<S: AsRawFd, T, E>(
    source: &mut Option<AsyncFd<S>>,
    read: impl Fn(&mut S) -> Result<Vec<T>, E>,
) -> Result<Vec<T>, E> {
    let Some(source) = source else { return pending().await };
    loop {
        // Waiting fails only when the runtime ends.
        let Ok(mut ready) = source.readable_mut().await else { return pending().await };
        let news = read(ready.get_inner_mut())?;
        ready.clear_ready();
        if !news.is_empty() {
            return Ok(news);
        }
    }
}
