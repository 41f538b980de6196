//! `snigate ctl top`, in the terminals of tmux.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Operated;
use super::connections::open;
use crate::lifecycle::upgrade::{linked, upgrade};
use crate::support::backend::closed;
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, eventual, eventually};

const NAME: &str = "a.example";
const OTHER: &str = "b.example";

/// A shell in a terminal of 80 columns and 24 lines.
struct Shell {
    directory: TempDir,
}

impl Shell {
    fn start() -> Self {
        let shell = Self { directory: TempDir::new().unwrap() };
        shell.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        shell.wait("the prompt", |text| text.trim_end().ends_with(['$', '#']));
        shell.run("PS1='ready> '; cd \"$HERE\"; stty -g >before; echo before the page");
        shell.wait("the shell", |text| text.contains("\nbefore the page\n"));
        shell
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// What tmux prints.
    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.path("tmux")).arg("-u").args(arguments);
        tmux.env_remove("TMUX").env_remove("NO_COLOR").env("HERE", self.directory.path());
        let output = tmux.output().expect("tmux is installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types this.
    #[track_caller]
    fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Presses this key.
    #[track_caller]
    fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    #[track_caller]
    fn run(&self, command: &str) {
        self.text(command);
        self.key("Enter");
    }

    /// What is on the screen, as soon as it is so.
    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        eventual(what, || Some(self.tmux(&["capture-pane", "-p"])).filter(|text| is_so(text)))
    }

    /// Starts the page, as the process whose ID is returned.
    #[track_caller]
    fn top(&self, socket: &Path) -> Pid {
        let (binary, socket) = (env!("CARGO_BIN_EXE_snigate"), socket.display());
        self.run(&format!("sh -c 'echo $$ >process; exec {binary} ctl --socket {socket} top --interval 1'"));
        self.wait("the page", |text| text.contains("== Routes: "));
        let process = fs::read_to_string(self.path("process")).unwrap();
        Pid::from_raw(process.trim().parse().unwrap()).unwrap()
    }

    /// The terminal is as it was before the page.
    #[track_caller]
    fn is_as_before(&self) {
        let left = || self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag} #{pane_current_command}"]);
        eventually("the page is left", || left() == "0 1 sh\n");
        self.run("clear; stty -g | cmp - before && echo as before: $?");
        self.wait("the settings of the terminal", |text| text.contains("as before: 0"));
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tmux(&["capture-pane", "-p"]));
        }
        self.tmux(&["kill-server"]);
    }
}

#[test]
#[ignore = "needs tmux"]
fn the_page_shows_what_happens_and_leaves_the_terminal_as_it_was() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address()), (OTHER, backend.address())], ""));
    let client = open(&operated, "127.0.0.1", OTHER);
    Client::send(operated.router.address(), &Hello::to("unknown.example").record()).rest();
    let shell = Shell::start();
    shell.top(&operated.socket);
    let text = shell.wait("the refusal", |text| text.contains("unknown_name"));
    assert!(text.starts_with("snigate ") && text.contains(" unknown.example "), "{text}");
    assert!(text.contains("-- Endpoints: 2 (1 unknown, 1 ready), by STATE ascending --"), "{text}");
    shell.wait("the count of connections", |text| text.contains("1 open: 1 relaying"));

    eventually("the route with new clients is the first one", || {
        open(&operated, "127.0.0.1", OTHER);
        shell.tmux(&["capture-pane", "-p"]).contains(&format!("> {OTHER} "))
    });
    shell.text("S");
    shell.wait("the order of names", |text| {
        text.contains("== Routes: 3, by ROUTE ascending ==") && text.contains("> _none")
    });
    shell.text("r");
    shell.wait("the other order", |text| text.contains(&format!("> {OTHER} ")));
    shell.text("/a.ex");
    shell.key("Enter");
    shell.wait("the filter", |text| text.contains("== Routes: 1 of 3, ") && text.contains(&format!("> {NAME} ")));
    shell.key("Escape");
    shell.wait("all of them", |text| text.contains("== Routes: 3, "));

    shell.key("Home");
    shell.key("Enter");
    let is_listed = |text: &str| text.contains(&format!("  {} ", client.address()));
    let text = shell.wait("the connection of the route", is_listed);
    assert!(text.contains(&format!("== Endpoints of {OTHER}: 1 (1 ready), ")), "{text}");
    assert!(text.contains(&format!("-- Connections of {OTHER}: 1, by AGE descending --")), "{text}");
    shell.tmux(&["resize-window", "-x", "20", "-y", "5"]);
    shell.wait("a small page", |text| {
        text.lines().all(|line| line.len() <= 20) && text.contains("? help  q quit  / f~")
    });
    shell.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    shell.wait("a large page", is_listed);
    shell.text("?");
    shell.wait("the keys", |text| text.contains("Any key closes this."));
    shell.text("?");
    shell.key("Escape");
    shell.wait("the overview", |text| text.contains("== Routes: 3"));
    shell.text("q");
    shell.wait("what was there before", |text| text.contains("\nbefore the page\n") && text.contains("ready> "));
    shell.is_as_before();
}

#[test]
#[ignore = "needs tmux"]
fn the_terminal_is_as_it_was_however_the_page_ends() {
    let operated = Operated::start(&config(&[(NAME, closed())], ""));
    let shell = Shell::start();
    for end in [Signal::INT, Signal::TERM, Signal::HUP] {
        kill_process(shell.top(&operated.socket), end).unwrap();
        shell.is_as_before();
    }
    shell.top(&operated.socket);
    shell.key("C-c");
    shell.is_as_before();
    shell.top(&operated.socket);
    shell.key("C-z");
    shell.is_as_before();
    shell.run("fg");
    shell.wait("the page again", |text| text.contains("== Routes: 2"));
    shell.text("q");
    shell.is_as_before();
}

#[test]
#[ignore = "needs tmux"]
fn the_page_follows_an_instance_through_an_upgrade_and_its_end() {
    let (operated, _) = Operated::starting(&config(&[(NAME, closed())], ""), linked);
    let shell = Shell::start();
    shell.top(&operated.socket);
    let old = operated.router.pid().as_raw_nonzero();
    let new = upgrade(&operated.router);
    let told = format!("! process {old} was replaced by {}", new.as_raw_nonzero());
    shell.wait("the upgrade", |text| text.contains(&told));
    kill_process(new, Signal::KILL).unwrap();
    shell.wait("that it is gone", |text| text.contains("! not reachable for ") && text.contains("== Routes: 2"));
    shell.text("q");
    shell.is_as_before();
}

#[test]
fn without_a_terminal_the_page_says_what_to_use_instead() {
    let operated = Operated::start(&config(&[(NAME, closed())], ""));
    let told = operated.fails(&["top"]);
    assert_eq!(told, "snigate: standard output is not a terminal; use `snigate ctl routes`, or `--json` with it\n");
}
