//! The control socket and `snigate ctl`.

mod connections;
mod drained;
mod orders;
mod soak;
mod socket;
mod top;

use std::path::PathBuf;
use std::process::Output;

use tempfile::TempDir;

use crate::support::pages::block;
use crate::support::router::config;
use crate::support::{Backend, Router, all_output, snigate};

/// A router that operators can reach.
struct Operated {
    router: Router,
    socket: PathBuf,
    _directory: TempDir,
}

impl Operated {
    /// With this configuration, which says nothing about the socket.
    #[track_caller]
    fn start(config: &str) -> Self {
        Self::starting(config, |config| (Router::start(config), ())).0
    }

    /// Started by this. Also returns what else it returns.
    #[track_caller]
    fn starting<T>(config: &str, start: impl FnOnce(&str) -> (Router, T)) -> (Self, T) {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("control.sock");
        let (router, other) = start(&format!("{config}control: {}\n", socket.display()));
        (Self { router, socket, _directory: directory }, other)
    }

    /// This configuration, with the socket.
    fn with_socket(&self, config: &str) -> String {
        format!("{config}control: {}\n", self.socket.display())
    }

    /// `snigate ctl` with these arguments.
    #[track_caller]
    fn ctl(&self, arguments: &[&str]) -> Output {
        snigate().arg("ctl").arg("--socket").arg(&self.socket).args(arguments).output().unwrap()
    }

    /// What it prints, if it succeeds.
    #[track_caller]
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", all_output(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints if it fails.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", all_output(&output));
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn the_verbs_do_what_the_page_says() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[("kubernetes.example.com", backend.address())], ""));
    let endpoint = backend.address().to_string();
    for block in [
        block("docs/operations.md", "ctl-list"),
        block("docs/operations.md", "ctl-drain"),
        block("docs/operations.md", "ctl-close"),
        block("docs/operations.md", "ctl-reload"),
    ] {
        for command in block.replace("192.0.2.1:6443", &endpoint).lines() {
            let arguments: Vec<&str> = command.split_whitespace().collect();
            assert_eq!(arguments[..2], ["snigate", "ctl"]);
            operated.says(&arguments[2..]);
        }
    }
}
