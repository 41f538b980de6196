//! The harness itself: a test that hangs ends, and says so.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::lines::Lines;
use crate::support::watchdog::LIMIT_VARIABLE;
use crate::support::{Backend, Client, Process, Router, eventually};

const HANGING: &str = "harness::hangs_where_it_is_asked_to";
/// Environment variable that makes the test below hang.
const HANG: &str = "SNIGATE_TEST_HANGS";
/// Seconds: enough to get to where it hangs, on a busy machine too.
const LIMIT: &str = "8";
const LISTENS: &str = "it listens at ";

#[test]
fn a_test_that_hangs_ends_the_run_and_is_named() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", HANGING, "--ignored", "--nocapture"]).env(LIMIT_VARIABLE, LIMIT).env(HANG, "");
    let mut run = Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let stdout = Lines::of(run.0.stdout.take().unwrap());
    let stderr = Lines::of(run.0.stderr.take().unwrap());
    let address = stdout.wait("its router", 1, |line| line.split(LISTENS).nth(1).map(str::to_owned)).remove(0);
    let told = stderr.wait("which test hangs", 1, |line| line.contains("HANGS").then(|| line.to_owned())).remove(0);
    let place = format!(" at {}:{}:", file!(), line_of("client.rest()"));
    assert!(told.starts_with(&format!("{HANGING} HANGS, for ")), "{told}");
    assert!(told.contains(&place) && told.ends_with(": a read to the end"), "{place} is not in {told}");
    assert_eq!(run.exit().signal(), Some(Signal::ABORT.as_raw()));
    eventually("its router has ended, too", || TcpStream::connect(&address).is_err());
}

fn line_of(text: &str) -> usize {
    include_str!("harness.rs").lines().position(|line| line.trim() == format!("{text};")).unwrap() + 1
}

#[test]
#[ignore = "hangs on purpose, where the test above runs it"]
fn hangs_where_it_is_asked_to() {
    if std::env::var_os(HANG).is_none() {
        return;
    }
    let backend = Backend::named("served");
    let router = Router::routing(&[("a.example", backend.address())]);
    println!("{LISTENS}{}", router.address());
    let mut client = Client::send(router.address(), b"no hello");
    client.rest();
    // An end that is taken for a pause.
    while client.stream.read(&mut [0]).is_ok() {}
}
