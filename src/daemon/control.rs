//! The control socket, for `portward status`, `reload`, `try` and what belongs to it.
//!
//! Only root and the daemon's own user are answered: the socket's mode keeps others out, and the kernel is asked who
//! has connected. A client can neither make the daemon read much nor wait long.

use super::asker::Client;
use super::protocol::{self, LONGEST_REQUEST, Reply, Request};
use super::status::Status;
use crate::policy::LARGEST_SOURCE;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the policy that follows a request may take.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// How many clients are served at once; further ones wait in the kernel.
const CLIENTS: usize = 16;
/// How long a client waits for the answer; a reload of a very large policy on a loaded machine takes seconds.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that a client reads, in bytes. A status holds at most some warnings and one message.
const LONGEST_REPLY: u64 = 16 << 20;

/// What a client wants the daemon to do, with the way to answer it.
pub(super) struct Order {
    pub(super) request: Request,
    /// The policy that came with the request; else empty.
    pub(super) policy: String,
    pub(super) client: Client,
    pub(super) answer: oneshot::Sender<Reply>,
}

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum Error {
    /// Another daemon has it.
    #[error("another portward daemon{} serves {}; stop it first, or give --control-socket another path", process(.pid), .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other daemon's process id, if it left one.
        pid: Option<u32>,
    },
    /// Something that is no socket stands in its place.
    #[error("{} exists and is not a socket; portward does not delete it", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot {action} {}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

fn process(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The socket, listening. When it is dropped the socket file goes.
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the daemon lives, so that two of them never share a socket. The file itself stays: deleting it
    /// would let two daemons lock two files of the same name.
    _lock: Flock<File>,
}

impl Server {
    /// Takes the socket. A file that a dead daemon left is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::System { action, path, source }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(failed("create the folder", folder))?;
        }
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => {
                fs::remove_file(path).map_err(failed("replace", path))?;
            }
            Ok(_) => return Err(Error::NotASocket(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", path)(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set the mode of", path))?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Serves until it is dropped.
    pub(super) async fn run(self, status: watch::Receiver<Status>, orders: mpsc::Sender<Order>) {
        let places = Arc::new(Semaphore::new(CLIENTS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many open files, for example: others may close theirs.
                    warn!(%error, "a control client cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (status, orders) = (status.clone(), orders.clone());
            tokio::spawn(async move {
                if let Err(error) = serve(stream, status, orders).await {
                    debug!(%error, "a control client was not answered");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where it cannot be deleted, the next daemon replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(socket: &Path) -> Result<Flock<File>, Error> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |source| Error::System { action: "lock", path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let read = Read::by_ref(&mut file).take(16).read_to_string(&mut pid);
            let pid = read.ok().and_then(|_| pid.trim().parse().ok());
            return Err(Error::InUse { path: socket.to_owned(), pid });
        }
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
    Ok(lock)
}

async fn serve(mut stream: UnixStream, status: watch::Receiver<Status>, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let user = credentials.uid();
    let reply = if user != 0 && user != geteuid().as_raw() {
        warn!(user, "a user who is not root tried the control socket");
        Reply::Error("only root may ask".to_owned())
    } else {
        match read_request(&mut stream).await? {
            Ok((Request::Status, _)) => Reply::Status(Box::new(status.borrow().clone())),
            Ok((request, policy)) => {
                let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
                order(request, policy, Client { user, pid, ..Client::default() }, &orders).await
            }
            Err(message) => Reply::Error(message),
        }
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.write_all(&line)).await??;
    Ok(())
}

/// A request and the policy that follows it, or what is wrong with them.
async fn read_request(stream: &mut UnixStream) -> io::Result<Result<(Request, String), String>> {
    let seconds = |patience: Duration| format!("no request within {} seconds", patience.as_secs());
    let Ok(line) = timeout(PATIENCE, read_line(stream)).await else { return Ok(Err(seconds(PATIENCE))) };
    let Some((line, begun)) = line? else {
        return Ok(Err(format!("the request is longer than {LONGEST_REQUEST} bytes")));
    };
    let request = match protocol::parse(&line) {
        Ok(request) => request,
        Err(message) => return Ok(Err(message)),
    };
    let length = request.body_length();
    if length > LARGEST_SOURCE {
        return Ok(Err(format!("a policy has at most {LARGEST_SOURCE} bytes")));
    }
    let Ok(body) = timeout(BODY_PATIENCE, read_body(stream, begun, length)).await else {
        return Ok(Err(seconds(BODY_PATIENCE)));
    };
    let body = body?;
    if body.len() as u64 != length {
        return Ok(Err(format!("{length} bytes of policy were announced, and {} came", body.len())));
    }
    Ok(String::from_utf8(body).map(|policy| (request, policy)).map_err(|_| "the policy is not UTF-8".to_owned()))
}

/// The first line, or all there is until the end, and what was read beyond it; `None` when it is too long.
async fn read_line(stream: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut line = Vec::with_capacity(256);
    let mut buffer = [0; 512];
    loop {
        let count = stream.read(&mut buffer).await?;
        let (part, rest) = match buffer[..count].iter().position(|byte| *byte == b'\n') {
            Some(end) => (&buffer[..end], Some(&buffer[end + 1..count])),
            None => (&buffer[..count], (count == 0).then_some(&[][..])),
        };
        if line.len() + part.len() >= LONGEST_REQUEST {
            return Ok(None);
        }
        line.extend_from_slice(part);
        if let Some(rest) = rest {
            return Ok(Some((line, rest.to_owned())));
        }
    }
}

/// What follows the line, of which a part is there; less when the client ends before. Takes no more memory than what
/// comes.
async fn read_body(stream: &mut UnixStream, mut body: Vec<u8>, length: u64) -> io::Result<Vec<u8>> {
    body.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    let missing = length - body.len() as u64;
    stream.take(missing).read_to_end(&mut body).await?;
    Ok(body)
}

/// Has the daemon carry out a request.
async fn order(request: Request, policy: String, client: Client, orders: &mpsc::Sender<Order>) -> Reply {
    let client = match &request {
        Request::Reload { force, session, .. } | Request::Try { force, session, .. } => {
            Client { force: *force, session: session.clone(), ..client }
        }
        _ => client,
    };
    let (answer, receiver) = oneshot::channel();
    let stopping = || Reply::Error("the daemon is stopping".to_owned());
    if orders.send(Order { request, policy, client, answer }).await.is_err() {
        return stopping();
    }
    receiver.await.unwrap_or_else(|_| stopping())
}

/// Why a client has no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("no daemon serves {}; is it running (systemctl status portward), and is the path right (--control-socket)?", .0.display())]
    NoDaemon(PathBuf),
    /// The caller may not connect.
    #[error("{}: only root may talk to the daemon", .0.display())]
    NotAllowed(PathBuf),
    /// The connection failed.
    #[error("the daemon at {} does not answer", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The answer is not one.
    #[error("the daemon at {} gave an answer that this portward does not understand; are their versions the same?", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}

/// Asks the daemon at this socket, and waits for its answer.
///
/// # Errors
///
/// No daemon, no permission, or no sensible answer. An answer that is an error in itself is a [`Reply::Error`].
pub fn ask(path: &Path, request: &Request) -> Result<Reply, ClientError> {
    ask_with(path, request, "")
}

/// The same, with the policy that a [`Request::Try`] announces.
///
/// # Errors
///
/// See [`ask`].
pub fn ask_with(path: &Path, request: &Request, policy: &str) -> Result<Reply, ClientError> {
    let broken = |source| ClientError::Broken { path: path.to_owned(), source };
    let mut stream = std::os::unix::net::UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoDaemon(path.to_owned()),
        ErrorKind::PermissionDenied => ClientError::NotAllowed(path.to_owned()),
        _ => broken(error),
    })?;
    stream.set_read_timeout(Some(CLIENT_PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    let mut line = serde_json::to_vec(request).map_err(|error| broken(error.into()))?;
    line.push(b'\n');
    line.extend_from_slice(policy.as_bytes());
    // A daemon that refuses the caller may answer and close before it has read the request.
    match stream.write_all(&line) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(broken(error)),
        _ => {}
    }
    let mut reply = Vec::new();
    BufReader::new(stream.take(LONGEST_REPLY)).read_until(b'\n', &mut reply).map_err(broken)?;
    serde_json::from_slice(&reply).map_err(|source| ClientError::Answer { path: path.to_owned(), source })
}
