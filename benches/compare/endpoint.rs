//! Endpoints as processes of their own, which can shut down, die, freeze or become unreachable.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use socket2::{SockFilter, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::load::{Client, PATIENCE, hello, runtime, within};
use crate::proxy::{Program, Proxy, Setup};

/// What an endpoint answers.
pub const ANSWER: &[u8] = b"answer";
/// The same of the endpoint whose streams are watched.
pub const WATCHED: &[u8] = b"watch!";

/// A proxy in front of these endpoints, and a client of it.
pub fn proxy(program: &Program, endpoints: &[Endpoint]) -> (Proxy, Client) {
    let proxy = Proxy::start(program, Setup::new(endpoints.iter().map(|endpoint| endpoint.address)));
    let answers = &[ANSWER, WATCHED];
    let client = Client { proxy: proxy.address, request: hello().into(), answers, patience: PATIENCE };
    (proxy, client)
}

/// Open streams and the answer that each had.
pub async fn streams(client: &Client, count: usize) -> Vec<(TcpStream, Vec<u8>)> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(within(PATIENCE, "an answer", client.open()).await.unwrap());
    }
    sleep(SILENCE * 2).await;
    streams
}

/// Endpoints regard connections as streams that are silent for so long after their answer.
const SILENCE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
pub enum Fault {
    /// It closes its listener and serves its streams.
    ShutDown,
    Killed,
    Frozen,
    /// Packets to it and to its connections are dropped.
    Unreachable,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::ShutDown, Self::Killed, Self::Frozen, Self::Unreachable];

    pub fn name(self) -> &'static str {
        match self {
            Self::ShutDown => "shut down",
            Self::Killed => "killed",
            Self::Frozen => "frozen",
            Self::Unreachable => "unreachable",
        }
    }
}

pub struct Endpoint {
    child: Child,
    pub address: SocketAddr,
}

impl Endpoint {
    pub fn start(answer: &[u8]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["endpoint", str::from_utf8(answer).unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().parse().unwrap() }
    }

    pub fn inject(&mut self, fault: Fault) {
        let mut command = |command| self.child.stdin.as_mut().unwrap().write_all(&[command]);
        match fault {
            Fault::ShutDown => command(b's').unwrap(),
            Fault::Killed => {
                self.child.kill().unwrap();
                // Until it has exited, it may accept.
                self.child.wait().unwrap();
            }
            Fault::Frozen => kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap(),
            Fault::Unreachable => command(b'u').unwrap(),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(answer: String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let sockets = Arc::new(Mutex::new(vec![Socket::from(listener.try_clone().unwrap())]));
    let shut_down = Arc::new(Notify::new());
    let (all, shut) = (Arc::clone(&sockets), Arc::clone(&shut_down));
    std::thread::spawn(move || {
        let mut command = [0];
        if std::io::stdin().read_exact(&mut command).is_err() {
            std::process::exit(0);
        }
        if &command == b"s" {
            all.lock().unwrap().clear();
            shut.notify_one();
        } else {
            for socket in all.lock().unwrap().iter() {
                // `ret 0`: accept no byte of any packet.
                let _ = socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]);
            }
        }
    });
    runtime().block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (mut stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                () = shut_down.notified() => break,
            };
            let (answer, sockets) = (answer.clone(), Arc::clone(&sockets));
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let Ok(1..) = stream.read(&mut buffer).await else { return };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                // Only streams need the filter.
                if timeout(SILENCE, stream.read(&mut buffer)).await.is_err() {
                    sockets.lock().unwrap().push(Socket::from(stream.as_fd().try_clone_to_owned().unwrap()));
                }
                while let Ok(1..) = stream.read(&mut buffer).await {}
            });
        }
        drop(listener);
        // An API server would end its streams at last; here they last as long as the process.
        std::future::pending::<()>().await;
    });
}
