//! A router in a network of its own, and the name server that it asks there.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use super::lines::Lines;
use super::{Router, watchdog};

/// Runs the test in the network of a router with this configuration: nothing but a loopback interface, ports as `setup`
/// (a shell command) has left them, and names from [`NameServer`] if there is one. Needs root, unshare and ip.
pub fn alone(config: &str, setup: &str, test: impl FnOnce(&Router) + Send) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config).unwrap();
    let mut command = apart(&directory, &format!("{setup} && exec \"$0\" run -c snigate.yaml"));
    command.arg(env!("CARGO_BIN_EXE_snigate")).env_remove("RUST_LOG");
    let router = Router::spawn(command, path, directory);
    router.wait("that it listens", |line| line["message"] == "listening" && line["listener"] == "_admin");
    inside(router.pid(), || test(&router));
}

/// A shell command in a network of its own, where names come from [`NameServer`].
pub fn apart(directory: &TempDir, then: &str) -> Command {
    std::fs::write(directory.path().join("nsswitch.conf"), "hosts: dns\n").unwrap();
    let resolver = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    std::fs::write(directory.path().join("resolv.conf"), resolver).unwrap();
    let mut command = Command::new("unshare");
    command.current_dir(directory.path()).args(["--net", "--mount", "sh", "-c"]).arg(format!(
        "for file in nsswitch resolv; do mount --bind $file.conf /etc/$file.conf || exit; done
         ip link set lo up && {then}"
    ));
    command
}

/// Runs this in the network of this process.
pub fn inside<T: Send>(process: Pid, run: impl FnOnce() -> T + Send) -> T {
    let network = File::open(format!("/proc/{process}/ns/net")).unwrap();
    std::thread::scope(|scope| {
        // It is still the same test.
        let mut builder = Builder::new();
        if let Some(name) = std::thread::current().name() {
            builder = builder.name(name.to_owned());
        }
        let moved = builder.spawn_scoped(scope, || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        });
        moved.unwrap().join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a shell command prints, in the network of this thread. It must succeed.
#[track_caller]
pub fn shell(command: &str) -> String {
    watchdog::step(command);
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", super::all_output(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Another machine: a network of its own, beside that of the router. Needs root, unshare, nsenter and ip.
pub struct Neighbour(Child);

/// Where the router is, on the link to its neighbour.
pub const NEAR: &str = "10.9.0.1";
/// Where the neighbour is.
pub const FAR: &str = "10.9.0.2";

impl Neighbour {
    pub fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && read line"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let neighbour = Self(child);
        lines.wait("ready", 1, |line| (line == "ready").then_some(()));
        neighbour
    }

    /// For [`alone`]: how to link the two, by an interface `edge` of the router to an interface `far`.
    pub fn link(&self) -> String {
        self.link_by("edge", NEAR, "far", FAR)
    }

    /// For a shell of one network: links it to the neighbour's, by interfaces with these names and addresses.
    pub fn link_by(&self, near: &str, near_address: &str, far: &str, far_address: &str) -> String {
        let pid = self.0.id();
        format!(
            "ip link add {near} type veth peer name {far} netns {pid} && ip address add {near_address}/24 dev {near} &&
             ip link set {near} up &&
             nsenter --target {pid} --net sh -c 'ip address add {far_address}/24 dev {far} && ip link set {far} up'"
        )
    }

    /// Runs this in the neighbour's network.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        inside(Pid::from_child(&self.0), run)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is answered to every question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With these addresses, of the family that was asked for, by TCP if they are many.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// Something is wrong with the server.
    ServerFailure,
    /// Nothing at all.
    Silence,
    /// The name stands for another, and so on, so many times; then for this address.
    Chain(u8, IpAddr),
    /// The name stands for itself.
    Circle,
    /// This address, under the number of another question.
    Forged(IpAddr),
    /// Names that point to themselves, in place of text.
    CompressionLoop,
}

/// A name server at 127.0.0.1.
pub struct NameServer(Arc<Mutex<Answer>>);

/// More bytes do not fit into one packet (RFC 1035, section 2.3.4).
const MAX_PACKET: usize = 512;

impl NameServer {
    pub fn start(answer: Answer) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let packets = UdpSocket::bind("127.0.0.1:53").unwrap();
        let said = Arc::clone(&answer);
        std::thread::spawn(move || {
            let mut question = [0; MAX_PACKET];
            while let Ok((length, peer)) = packets.recv_from(&mut question) {
                let said = said.lock().unwrap().clone();
                let Some(mut response) = respond(&question[..length], &said) else { continue };
                if response.len() > MAX_PACKET {
                    response.truncate(MAX_PACKET);
                    response[2] |= 2;
                }
                let _ = packets.send_to(&response, peer);
            }
        });
        let streams = TcpListener::bind("127.0.0.1:53").unwrap();
        let said = Arc::clone(&answer);
        std::thread::spawn(move || {
            for mut stream in streams.incoming().flatten() {
                // Both families are asked for on one stream.
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut question).unwrap();
                    let said = said.lock().unwrap().clone();
                    if let Some(response) = respond(&question, &said) {
                        let length = u16::try_from(response.len()).unwrap();
                        stream.write_all(&[&length.to_be_bytes()[..], &response].concat()).unwrap();
                    }
                }
            }
        });
        Self(answer)
    }

    pub fn say(&self, answer: Answer) {
        *self.0.lock().unwrap() = answer;
    }
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// A pointer to the name in the question (RFC 1035, section 4.1.4).
const ASKED: [u8; 2] = [0xc0, 12];

fn respond(question: &[u8], answer: &Answer) -> Option<Vec<u8>> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let wanted = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    let mut number = [question[0], question[1]];
    let record = |name: &[u8], kind: u16, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        // Class IN; a time to live of 2^31 - 1 s must not keep anybody from asking again.
        [name, &kind.to_be_bytes(), &[0, 1, 0x7f, 0xff, 0xff, 0xff], &length, data].concat()
    };
    let of_address = |name: &[u8], address: &IpAddr| match address {
        IpAddr::V4(v4) => (wanted == A).then(|| record(name, A, &v4.octets())),
        IpAddr::V6(v6) => (wanted == AAAA).then(|| record(name, AAAA, &v6.octets())),
    };
    let (code, records): (u8, Vec<Vec<u8>>) = match answer {
        Answer::Silence => return None,
        Answer::NoSuchName => (3, vec![]),
        Answer::ServerFailure => (2, vec![]),
        Answer::Addresses(addresses) => {
            (0, addresses.iter().filter_map(|address| of_address(&ASKED, address)).collect())
        }
        Answer::Forged(address) => {
            number[0] ^= 0xff;
            (0, of_address(&ASKED, address).into_iter().collect())
        }
        Answer::Circle => (0, vec![record(&ASKED, CNAME, &ASKED)]),
        Answer::Chain(links, address) => {
            let name = |number: u8| [2, b'a' + number / 26, b'a' + number % 26, 0];
            let link = |number: u8| match number {
                0 => record(&ASKED, CNAME, &name(1)),
                number => record(&name(number), CNAME, &name(number + 1)),
            };
            (0, (0..*links).map(link).chain(of_address(&name(*links), address)).collect())
        }
        // The first record starts where the question ends.
        Answer::CompressionLoop => (0, vec![record(&[0xc0, u8::try_from(end).unwrap()], wanted, &[0; 4])]),
    };
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let head = [number[0], number[1], 0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0];
    Some([&head[..], &question[12..end], &records.concat()].concat())
}
