//! Hands the listening sockets over to a new process of this program, so that no client is refused.
//!
//! The new process has one end of a pair of Unix sockets as its standard input. It greets, is sent the listening sockets,
//! each with the address that is configured for it, and says when it serves. If it ends or says nothing, the old process
//! goes on as if nothing had happened: the sockets are the same open file descriptions in both.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::stdio::dup2_stdin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};
use tracing::{info, warn};

use crate::listener::InheritedSocket;
use crate::telemetry::Counters;

/// Tells a process that its standard input is a predecessor.
const MARK: &str = "SNIGATE_UPGRADE";

/// For the new process to serve.
const PATIENCE: Duration = Duration::from_secs(30);

/// One message per socket: its address, a space and the listener's name, filled up with zeros. The last one has no socket.
const MESSAGE: usize = 512;

/// Who does not say so gets no sockets.
const GREETING: &[u8] = b"hello";
const READY: &[u8] = b"ready";

/// A new process that ends so soon after it has said that it serves does not.
const PROOF: Duration = Duration::from_millis(500);

/// Why the old process goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// It did not even start.
    #[error("cannot start {program}: {error}")]
    Start {
        /// As it was called.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It ended before it served, or right after.
    #[error("the new process ended before it served: {0}")]
    Ended(String),
    /// Everything in a container ends with its first process.
    #[error("this is the first process of its container, which would end with it: replace the container instead")]
    First,
    /// It was too slow, and was killed.
    #[error("the new process did not serve within {} s", PATIENCE.as_secs())]
    Late,
    /// What should never fail has.
    #[error("cannot hand the listeners over: {0}")]
    Handover(#[from] io::Error),
}

/// A process that has taken over.
#[derive(Debug)]
pub(crate) struct Successor {
    /// Which one.
    pub(crate) process: u32,
    /// Which of the listeners it has.
    pub(crate) taken: Vec<bool>,
    channel: UnixStream,
}

/// How often a successor is told how many connections are left here.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl Successor {
    /// Tells it how many connections are left here, until this process ends or the successor does.
    pub(crate) fn keep_telling(self, connections: impl Fn() -> usize + Send + 'static) -> io::Result<()> {
        self.channel.set_nonblocking(true)?;
        let mut channel = tokio::net::UnixStream::from_std(self.channel)?;
        tokio::spawn(async move {
            let mut turn = interval(TELL_EVERY);
            loop {
                turn.tick().await;
                if channel.write_all(&(connections() as u64).to_be_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// Starts the program again, as this process was started, and returns when it serves from these listeners. If this future is
/// dropped, the new process is killed.
pub(crate) async fn start(listeners: Vec<InheritedSocket>) -> Result<Successor, UpgradeError> {
    if std::process::id() == 1 {
        return Err(UpgradeError::First);
    }
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    ours.set_write_timeout(Some(PATIENCE))?;
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
    let mut child = Unproven(Some(child));
    // The parent's copy of the child's end would keep the pair open when the child has ended.
    drop(command);

    let answer = tokio::task::spawn_blocking(move || hand_over(ours, &listeners)).await.map_err(io::Error::other)?;
    let is_late = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    match answer {
        Ok(Some((taken, channel))) => {
            let process = child.prove().await.map_err(UpgradeError::Ended)?;
            Ok(Successor { process, taken, channel })
        }
        Err(error) if is_late(&error) => {
            child.end(Duration::ZERO).await;
            Err(UpgradeError::Late)
        }
        // It has let go of its end of the pair: if it still runs it is of no use.
        Ok(None) | Err(_) => Err(UpgradeError::Ended(child.end(Duration::from_secs(1)).await)),
    }
}

/// A process that is killed when this is dropped.
struct Unproven(Option<Child>);

impl Unproven {
    /// It serves and is left alone, if it does not end at once; which process it is.
    async fn prove(mut self) -> Result<u32, String> {
        let Some(child) = &mut self.0 else { return Err(String::new()) };
        let process = child.id().unwrap_or_default();
        if let Ok(ended) = timeout(PROOF, child.wait()).await {
            return Err(ended.map_or_else(|error| error.to_string(), |status| status.to_string()));
        }
        if let Some(mut child) = self.0.take() {
            tokio::spawn(async move {
                // Its parent is the one that is told how it ends.
                match child.wait().await {
                    Ok(status) if status.success() => info!(process, "the process that took over has ended in order"),
                    Ok(status) => warn!(process, %status, "the process that took over has ended"),
                    Err(_) => {}
                }
            });
        }
        Ok(process)
    }

    /// Kills it if it does not end by itself by then; how it has ended.
    async fn end(&mut self, patience: Duration) -> String {
        let Some(child) = &mut self.0 else { return String::new() };
        match timeout(patience, child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                // Unless it has just ended.
                let _ = child.kill().await;
                "it closed its standard input".into()
            }
        }
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.start_kill();
        }
    }
}

/// Which of the listeners the other side has taken over, if it has said that it serves.
fn hand_over(mut channel: UnixStream, listeners: &[InheritedSocket]) -> io::Result<Option<(Vec<bool>, UnixStream)>> {
    if !is_told(&mut channel, GREETING)? {
        return Ok(None);
    }
    for InheritedSocket { address, name, socket } in listeners {
        send(&channel, &format!("{address} {}", name.as_deref().unwrap_or_default()), &[socket.as_fd()])?;
    }
    send(&channel, "", &[])?;
    if !is_told(&mut channel, READY)? {
        return Ok(None);
    }
    let mut taken = vec![0; listeners.len()];
    channel.read_exact(&mut taken)?;
    Ok(Some((taken.into_iter().map(|taken| taken != 0).collect(), channel)))
}

fn is_told(channel: &mut UnixStream, expected: &[u8]) -> io::Result<bool> {
    let mut told = vec![0; expected.len()];
    match channel.read_exact(&mut told) {
        Ok(()) => Ok(told == expected),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn send(channel: &UnixStream, listener: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    // A name that does not fit is cut, and so is that of no listener: then the address decides.
    let listener = &listener.as_bytes()[..listener.len().min(MESSAGE)];
    message[..listener.len()].copy_from_slice(listener);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(channel, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The process that this one is to follow.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Whether there seems to be one.
    pub(crate) fn is_there() -> bool {
        std::env::var_os(MARK).is_some()
    }

    /// The predecessor, if there is one, and its listeners.
    pub(crate) fn meet() -> io::Result<Option<(Self, Vec<InheritedSocket>)>> {
        if !Self::is_there() {
            return Ok(None);
        }
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // Somebody else has set the variable.
        if channel.local_addr().is_err() {
            return Ok(None);
        }
        dup2_stdin(File::open("/dev/null")?)?;
        channel.set_read_timeout(Some(PATIENCE))?;
        (&channel).write_all(GREETING)?;
        let mut inherited = Vec::new();
        while let Some(socket) = receive(&channel)? {
            inherited.push(socket);
        }
        Ok(Some((Self(channel), inherited)))
    }

    /// Tells it that we serve, so that it stops to, and which of its listeners we have.
    pub(crate) fn dismiss(mut self, taken: &[bool]) -> io::Result<Draining> {
        self.0.write_all(READY)?;
        let taken: Vec<u8> = taken.iter().map(|taken| u8::from(*taken)).collect();
        self.0.write_all(&taken)?;
        self.0.set_nonblocking(true)?;
        Ok(Draining(tokio::net::UnixStream::from_std(self.0)?))
    }
}

/// A predecessor that has handed over, and has connections left.
#[derive(Debug)]
pub(crate) struct Draining(tokio::net::UnixStream);

impl Draining {
    /// Notes how many connections it has, until it ends.
    pub(crate) async fn watch(mut self, counters: &Counters) {
        let mut has_any = false;
        while let Ok(connections) = self.0.read_u64().await {
            counters.predecessor_connections.store(connections, Relaxed);
            if connections > 0 && !std::mem::replace(&mut has_any, true) {
                info!(connections, "connections stay in the process before this one until they end");
            }
        }
        counters.predecessor_connections.store(0, Relaxed);
        if has_any {
            info!("the process before this one has ended, and its connections with it");
        }
    }
}

fn receive(channel: &UnixStream) -> io::Result<Option<InheritedSocket>> {
    let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("from the predecessor came {what}"));
    let mut message = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes != MESSAGE {
        return Err(strange("less than a message"));
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
    let text = String::from_utf8_lossy(text);
    let (address, name) = text.split_once(' ').unwrap_or((&text, ""));
    let address: SocketAddr = address.parse().map_err(|_| strange("no address"))?;
    let socket = socket.ok_or_else(|| strange(&format!("no socket for {address}")))?;
    if !socket_acceptconn(&socket)? {
        return Err(strange("a socket that does not listen"));
    }
    let socket = TcpListener::from(socket);
    let bound = socket.local_addr()?;
    if bound.ip() != address.ip() || (address.port() != 0 && bound.port() != address.port()) {
        return Err(strange(&format!("a socket on {bound} for {address}")));
    }
    let name = (!name.is_empty()).then(|| name.into());
    Ok(Some(InheritedSocket { address, name, socket }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[test]
    fn h08_listeners_come_with_the_address_that_is_configured_for_them() {
        let (old, new) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let long = format!("127.0.0.1:0 {}", "n".repeat(MESSAGE));
        for (sent, name) in
            [("127.0.0.1:0 api of a", Some("api of a")), ("127.0.0.1:0", None), (&long, Some(&long[12..MESSAGE]))]
        {
            send(&old, sent, &[listener.as_fd()]).unwrap();
            let inherited = receive(&new).unwrap().unwrap();
            assert_eq!((inherited.address, inherited.name.as_deref()), ("127.0.0.1:0".parse().unwrap(), name));
            assert_eq!(inherited.socket.local_addr().unwrap(), listener.local_addr().unwrap());
        }
        send(&old, "", &[]).unwrap();
        assert!(receive(&new).unwrap().is_none());
    }

    #[test]
    fn h12_what_is_no_listener_for_that_address_is_refused() {
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
            assert!(receive(&new).is_err(), "{address}");
        }
        let (old, new) = pair();
        send(&old, "127.0.0.1:0", &[]).unwrap();
        assert!(receive(&new).is_err(), "no socket");
        let (mut old, new) = pair();
        old.write_all(b"half").unwrap();
        drop(old);
        assert!(receive(&new).is_err());
    }
}
