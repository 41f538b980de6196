use std::net::SocketAddr;
use std::process::{Command, Stdio};

use rustix::process::Pid;
use tempfile::TempDir;

use crate::support::Process;
use crate::support::lines::Lines;
use crate::support::network::{Answer, NameServer, apart, inside};

pub struct Names {
    server: NameServer,
    /// Whose network it is.
    keeper: Process,
}

const PORT: u16 = 6443;

impl Names {
    pub const NAME: &str = "api.test:6443";

    /// Runs this in a network of its own, with a name server.
    pub fn with<T: Send>(run: impl FnOnce(&Self) -> T + Send) -> T {
        let directory = TempDir::new().unwrap();
        let mut command = apart(&directory, "echo ready && read line");
        let mut keeper = Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        Lines::of(keeper.0.stdout.take().unwrap()).wait("ready", 1, |line| (line == "ready").then_some(()));
        inside(Pid::from_child(&keeper.0), || run(&Self { server: NameServer::start(Answer::NoSuchName), keeper }))
    }

    /// That of an endpoint: those of a name have the same port.
    pub fn address(endpoint: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 1, u8::try_from(endpoint + 1).unwrap()], PORT))
    }

    /// The binary, which asks this name server.
    pub fn snigate(&self) -> Command {
        let mut command = Command::new("nsenter");
        let keeper = self.keeper.0.id().to_string();
        command.args(["--net", "--mount", "--target", &keeper, env!("CARGO_BIN_EXE_snigate")]);
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// The name has these endpoints.
    pub fn say(&self, endpoints: &[usize]) {
        self.server.say(Answer::Addresses(endpoints.iter().map(|endpoint| Self::address(*endpoint).ip()).collect()));
    }

    /// Lookups fail.
    pub fn fail(&self) {
        self.server.say(Answer::ServerFailure);
    }
}
