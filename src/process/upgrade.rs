//! Hands the listening sockets over to a new process of this program, so that no connection is refused.
//!
//! The new process is started by the old one, with one end of a Unix socket pair as its standard input, or by anyone, and
//! connects to the [socket](super::unix_socket) of the old one. It sends a greeting, receives the listening sockets with
//! their configured addresses, and reports when it is serving, which the old one confirms. If it ends, or is too late, the old
//! process continues: both have the same open file descriptions.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::stdio::dup2_stdin;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::listener::InheritedSocket;
use crate::process::channel::Channel;
use crate::process::unix_socket::Peer;

/// The environment variable that says that standard input is connected to the old process.
const MARK: &str = "SNIGATE_UPGRADE";

/// How long the new process may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Size of a message. There is one per socket, with its address, a space and the listener's name, padded with zeros; the
/// last one has no socket.
const MESSAGE: usize = 512;

/// In place of an address: the socket at which the next process finds this one.
const UPGRADE_SOCKET: &str = "upgrade";
/// In place of an address: the socket for operators.
const CONTROL_SOCKET: &str = "control";
/// In place of an address, without a socket: an endpoint, or all (`*`), and a route that they have drained.
const DRAINED: &str = "drained ";

/// Without it, the old process sends no sockets. Has the version of all that follows.
const GREETING: &[u8] = b"hi v2";
const READY: &[u8] = b"ready";
/// The answer of the old process: it stops serving.
const CONFIRMED: u8 = b'c';
/// The answer of the old process: it has not waited any longer, and continues to serve.
const REFUSED: u8 = b'r';

/// How long the new process must run after it has reported that it serves.
const PROBATION: Duration = Duration::from_millis(500);

/// Why an upgrade failed. The old process continues to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("cannot start {program}: {error}")]
    Start { program: String, error: io::Error },
    /// It ended before it served, or within [`PROBATION`].
    #[error("the new process ended before it served: {0}")]
    Ended(String),
    #[error("cannot upgrade PID 1: the container ends with its first process; replace the container instead")]
    First,
    /// It was killed after [`START_TIMEOUT`].
    #[error("the new process did not serve within {} s", START_TIMEOUT.as_secs())]
    Late,
    #[error("cannot hand over the listeners: {0}")]
    Handover(#[from] io::Error),
}

/// What a new process gets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<InheritedSocket>,
    /// The socket of `upgrade.socket`, at which the next process will connect.
    pub(crate) upgrade: Option<UnixListener>,
    /// The socket of `control`.
    pub(crate) control: Option<UnixListener>,
    /// What operators have drained.
    pub(crate) drained: Vec<Drained>,
}

/// A route, and one of its endpoints, or all.
pub(crate) type Drained = (Box<str>, Option<SocketAddr>);

/// A new process that serves.
#[derive(Debug)]
pub(crate) struct Successor {
    /// Process ID; `None` if it is in another PID namespace.
    pub(crate) process: Option<u32>,
    /// Whether this process has started it.
    pub(crate) is_child: bool,
    /// For each listener, whether the new process serves it.
    pub(crate) taken_over: Vec<bool>,
    channel: UnixStream,
}

impl Successor {
    /// To hand over the connections. Must be called within a tokio runtime.
    pub(crate) fn into_channel(self) -> io::Result<Channel> {
        Channel::new(self.channel)
    }
}

/// Starts the program again with the same arguments, and returns when it serves from these listeners. If this future is
/// dropped, the new process is killed.
pub(crate) async fn start(sockets: Sockets) -> Result<Successor, UpgradeError> {
    if std::process::id() == 1 {
        return Err(UpgradeError::First);
    }
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(START_TIMEOUT))?;
    ours.set_write_timeout(Some(START_TIMEOUT))?;
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| OsString::from("snigate"));
    let mut command = Command::new(&program);
    command.args(arguments).env(MARK, "1").stdin(Stdio::from(OwnedFd::from(theirs)));
    for other in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
        command.env_remove(other);
    }
    let child = command
        .spawn()
        .map_err(|error| UpgradeError::Start { program: program.to_string_lossy().into_owned(), error })?;
    let mut child = KillOnDrop(Some(child));
    // Close our copy of the child's end: it would keep the pair open after the child has ended.
    drop(command);

    let answer = tokio::task::spawn_blocking(move || hand_over(ours, &sockets)).await.map_err(io::Error::other)?;
    match answer {
        Ok(Some((taken_over, channel))) => {
            let process = child.release().await.map_err(UpgradeError::Ended)?;
            Ok(Successor { process: Some(process), is_child: true, taken_over, channel })
        }
        Err(error) if is_timeout(&error) => {
            child.end(Duration::ZERO).await;
            Err(UpgradeError::Late)
        }
        // It has closed its end of the pair, so it cannot take over even if it still runs.
        Ok(None) | Err(_) => Err(UpgradeError::Ended(child.end(Duration::from_secs(1)).await)),
    }
}

/// Serves a process that has connected to the upgrade socket, and returns when it serves from these listeners.
pub(crate) async fn accept(process: UnixStream, sockets: Sockets) -> Result<Successor, UpgradeError> {
    process.set_nonblocking(false)?;
    process.set_read_timeout(Some(START_TIMEOUT))?;
    process.set_write_timeout(Some(START_TIMEOUT))?;
    let accepted = tokio::task::spawn_blocking(move || {
        let pid = Peer::of(&process).ok().and_then(|peer| peer.process);
        let Some((taken_over, channel)) = hand_over(process, &sockets)? else { return Ok(None) };
        // It has nothing to say now, unless it ends.
        channel.set_read_timeout(Some(PROBATION))?;
        match retry_on_intr(|| rustix::io::read(&channel, &mut [0])) {
            Err(Errno::AGAIN) => {}
            Ok(_) | Err(_) => return Ok(None),
        }
        Ok(Some(Successor { process: pid, is_child: false, taken_over, channel }))
    });
    match accepted.await.map_err(io::Error::other)? {
        Ok(Some(successor)) => Ok(successor),
        Ok(None) => Err(UpgradeError::Ended("it closed the connection".into())),
        Err(error) if is_timeout(&error) => Err(UpgradeError::Late),
        Err(error) => Err(UpgradeError::Handover(error)),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A new process that is killed on drop.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    /// Lets the process run, unless it ends within [`PROBATION`]. Returns its process ID.
    async fn release(mut self) -> Result<u32, String> {
        let Some(child) = &mut self.0 else { return Err(String::new()) };
        let process = child.id().unwrap_or_default();
        if let Ok(ended) = timeout(PROBATION, child.wait()).await {
            return Err(ended.map_or_else(|error| error.to_string(), |status| status.to_string()));
        }
        if let Some(mut child) = self.0.take() {
            tokio::spawn(async move {
                // Only its parent learns how it ends.
                match child.wait().await {
                    Ok(status) if status.success() => info!(process, "the new process has exited"),
                    Ok(status) => warn!(process, %status, "the new process has exited with an error"),
                    Err(_) => {}
                }
            });
        }
        Ok(process)
    }

    /// Waits until it ends, and kills it after `timeout`. Returns how it ended.
    async fn end(&mut self, wait: Duration) -> String {
        let Some(child) = &mut self.0 else { return String::new() };
        match timeout(wait, child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                // Fails if it has just ended.
                let _ = child.kill().await;
                "it closed its standard input".into()
            }
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Fails if it has ended.
            let _ = child.start_kill();
        }
    }
}

/// Sends the listeners. Returns which of them the new process serves, once it has reported that it does. If not, it
/// sends a refusal, in case that process still runs.
fn hand_over(mut channel: UnixStream, sockets: &Sockets) -> io::Result<Option<(Vec<bool>, UnixStream)>> {
    let taken_over = offer(&mut channel, sockets);
    let answer = if matches!(taken_over, Ok(Some(_))) { CONFIRMED } else { REFUSED };
    // Fails if the new process has ended.
    let is_sent = channel.write_all(&[answer]).is_ok();
    Ok(taken_over?.filter(|_| is_sent).map(|taken_over| (taken_over, channel)))
}

fn offer(channel: &mut UnixStream, sockets: &Sockets) -> io::Result<Option<Vec<bool>>> {
    if !receive_exactly(channel, GREETING)? {
        return Ok(None);
    }
    let Sockets { listeners, upgrade, control, drained } = sockets;
    for InheritedSocket { address, name, socket } in listeners {
        send(channel, &format!("{address} {}", name.as_deref().unwrap_or_default()), &[socket.as_fd()])?;
    }
    if let Some(upgrade) = upgrade {
        send(channel, UPGRADE_SOCKET, &[upgrade.as_fd()])?;
    }
    if let Some(control) = control {
        send(channel, CONTROL_SOCKET, &[control.as_fd()])?;
    }
    for (route, endpoint) in drained {
        let endpoint = endpoint.map_or("*".into(), |endpoint| endpoint.to_string());
        send(channel, &format!("{DRAINED}{endpoint} {route}"), &[])?;
    }
    send(channel, "", &[])?;
    if !receive_exactly(channel, READY)? {
        return Ok(None);
    }
    let mut taken_over = vec![0; listeners.len()];
    channel.read_exact(&mut taken_over)?;
    Ok(Some(taken_over.into_iter().map(|taken_over| taken_over != 0).collect()))
}

fn receive_exactly(channel: &mut UnixStream, expected: &[u8]) -> io::Result<bool> {
    let mut received = vec![0; expected.len()];
    match channel.read_exact(&mut received) {
        Ok(()) => Ok(received == expected),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn send(channel: &UnixStream, listener: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    // A name that does not fit is truncated, and matches no listener: then the address decides.
    let listener = &listener.as_bytes()[..listener.len().min(MESSAGE)];
    message[..listener.len()].copy_from_slice(listener);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    sendmsg(channel, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Why a process that serves has not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTakenOver {
    #[error("the running process did not wait for this one, and continues to serve")]
    Refused,
    /// The old process has ended.
    #[error(transparent)]
    Lost(#[from] io::Error),
}

/// The old process of an upgrade.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Whether this process was started by an upgrade.
    pub(crate) fn exists() -> bool {
        std::env::var_os(MARK).is_some()
    }

    /// Receives the sockets of the predecessor that has started this process, if there is one.
    pub(crate) fn connect() -> io::Result<Option<(Self, Sockets)>> {
        if !Self::exists() {
            return Ok(None);
        }
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // The variable was set by something else.
        if channel.local_addr().is_err() {
            return Ok(None);
        }
        dup2_stdin(File::open("/dev/null")?)?;
        Self::greet(channel).map(Some)
    }

    /// Receives the sockets of the predecessor at the other end.
    pub(crate) fn greet(channel: UnixStream) -> io::Result<(Self, Sockets)> {
        channel.set_read_timeout(Some(START_TIMEOUT))?;
        (&channel).write_all(GREETING)?;
        let mut sockets = Sockets::default();
        while let Some((text, socket)) = receive(&channel)? {
            match (socket, text.strip_prefix(DRAINED)) {
                (Some(socket), _) if text == UPGRADE_SOCKET => sockets.upgrade = Some(socket.into()),
                (Some(socket), _) if text == CONTROL_SOCKET => sockets.control = Some(socket.into()),
                (None, Some(text)) => sockets.drained.push(drained(text)?),
                (socket, _) => sockets.listeners.push(listener(&text, socket)?),
            }
        }
        Ok((Self(channel), sockets))
    }

    /// Reports that this process serves, and which of the listeners, so that the predecessor stops accepting. Returns the
    /// channel for its connections once it has confirmed that. Must be called within a tokio runtime.
    pub(crate) async fn take_over(mut self, taken_over: &[bool]) -> Result<Channel, NotTakenOver> {
        let taken_over = taken_over.iter().map(|taken_over| u8::from(*taken_over));
        let report: Vec<u8> = READY.iter().copied().chain(taken_over).collect();
        // If this fails, a refusal can still be received.
        let reported = self.0.write_all(&report);
        let mut channel = Channel::new(self.0)?;
        match channel.receive_byte().await {
            Ok(CONFIRMED) => Ok(channel),
            Ok(_) => Err(NotTakenOver::Refused),
            Err(error) => Err(NotTakenOver::Lost(reported.err().unwrap_or(error))),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("received {what} from the old process"))
}

/// Receives a message. `None`: there are no more.
fn receive(channel: &UnixStream) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut message = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    // With a timeout, a signal interrupts it also if the call is to be restarted.
    let received = retry_on_intr(|| recvmsg(channel, &mut [IoSliceMut::new(&mut message)], &mut ancillary, flags))?;
    if received.bytes != MESSAGE {
        return Err(invalid("an incomplete message"));
    }
    let sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let socket = sockets.flatten().next();
    if message == [0; MESSAGE] {
        return Ok(None);
    }
    let text = message.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some((String::from_utf8_lossy(text).into_owned(), socket)))
}

/// The listener that a message is about.
fn listener(text: &str, socket: Option<OwnedFd>) -> io::Result<InheritedSocket> {
    let (address, name) = text.split_once(' ').unwrap_or((text, ""));
    let address: SocketAddr = address.parse().map_err(|_| invalid("no address"))?;
    let socket = socket.ok_or_else(|| invalid(&format!("no socket for {address}")))?;
    if !socket_acceptconn(&socket)? {
        return Err(invalid("a socket that does not listen"));
    }
    let socket = TcpListener::from(socket);
    let bound = socket.local_addr()?;
    if bound.ip() != address.ip() || (address.port() != 0 && bound.port() != address.port()) {
        return Err(invalid(&format!("a socket on {bound} for {address}")));
    }
    let name = (!name.is_empty()).then(|| name.into());
    Ok(InheritedSocket { address, name, socket })
}

/// What a message says that is drained.
fn drained(text: &str) -> io::Result<Drained> {
    let parsed = text.split_once(' ').and_then(|(endpoint, route)| {
        let endpoint = if endpoint == "*" { None } else { Some(endpoint.parse().ok()?) };
        Some((route.into(), endpoint))
    });
    parsed.ok_or_else(|| invalid("no endpoint"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn receive_listener(channel: &UnixStream) -> io::Result<InheritedSocket> {
        let (text, socket) = receive(channel)?.unwrap();
        listener(&text, socket)
    }

    #[test]
    fn h08_listeners_are_received_with_their_configured_address() {
        let (old, new) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let long = format!("127.0.0.1:0 {}", "n".repeat(MESSAGE));
        for (sent, name) in
            [("127.0.0.1:0 api of a", Some("api of a")), ("127.0.0.1:0", None), (&long, Some(&long[12..MESSAGE]))]
        {
            send(&old, sent, &[listener.as_fd()]).unwrap();
            let inherited = receive_listener(&new).unwrap();
            assert_eq!((inherited.address, inherited.name.as_deref()), ("127.0.0.1:0".parse().unwrap(), name));
            assert_eq!(inherited.socket.local_addr().unwrap(), listener.local_addr().unwrap());
        }
        send(&old, "", &[]).unwrap();
        assert!(receive(&new).unwrap().is_none());
    }

    #[test]
    fn h12_sockets_that_do_not_match_their_address_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(bound).unwrap();
        let file = File::open("/dev/null").unwrap();
        let elsewhere = format!("127.0.0.2:{}", bound.port());
        for (address, socket) in [
            ("127.0.0.1:0", stream.as_fd()),
            ("127.0.0.1:0", file.as_fd()),
            ("127.0.0.1:1", listener.as_fd()),
            (elsewhere.as_str(), listener.as_fd()),
            ("garbage", listener.as_fd()),
        ] {
            let (old, new) = pair();
            send(&old, address, &[socket]).unwrap();
            assert!(receive_listener(&new).is_err(), "{address}");
        }
        let (old, new) = pair();
        send(&old, "127.0.0.1:0", &[]).unwrap();
        assert!(receive_listener(&new).is_err(), "no socket");
        let (mut old, new) = pair();
        old.write_all(b"half").unwrap();
        drop(old);
        assert!(receive_listener(&new).is_err());
    }
}
