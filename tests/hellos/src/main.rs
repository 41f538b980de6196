//! Sends hellos of TLS clients, real and hostile ones, through a router and sees where they arrive: it plays the clients
//! and the backends. What each hello is, where it may arrive and which sentence says so is in `hellos.ini`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

mod attempt;
mod configurations;
mod corpus;
mod report;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use attempt::Backends;
use corpus::Hello;
use report::Report;

const HELP: &str = "\
Sends ClientHellos, real and hostile ones, through a router of TLS connections by server name, and sees where they
arrive. It plays the clients and the backends; the router is a black box.

Usage:
  snigate-hellos --router [NAME=]HOST:PORT [--router …] [options]
  snigate-hellos --configuration ROUTER [--listen HOST:PORT] [--backends …]
  snigate-hellos --list [--only TEXT]
  snigate-hellos --save DIRECTORY [--only TEXT]

The router has to send a.example to the first backend, b.example to the second, and every other name, and clients
without one, to the third; what is no ClientHello should reach none of them. It must not send PROXY headers, and should
give up on half a hello within --patience.

Options:
  --router [NAME=]HOST:PORT  a router to try; several are compared
  --backends A,B,OTHER       where its three backends listen, HOST:PORT each
                             [default: 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103]
  --only TEXT                only hellos with this in their name
  --patience SECONDS         how long to wait for the end of a connection [default: 4]
  --format FORMAT            text: what is not right, with the sentence that says so; markdown: a table of everything;
                             json: one object per line [default: text]
  --configuration ROUTER     print a configuration for this router: envoy, haproxy, nginx, snigate or sniproxy
  --listen HOST:PORT         where that configuration listens [default: 127.0.0.1:7100]
  --list                     print all hellos, with what is right and why
  --save DIRECTORY           write the bytes of all hellos there, one file each
  -h, --help                 print this
  -V, --version              print the version

Verdicts: right; blocked: refused, and should have been routed; passed: should have been refused, and reached the backend
of its one name or the third one, where a TLS server will refuse it; hole: reached a backend that is not its own, or
arrived altered.

Exit status: 0 if all verdicts are right, 1 if not, 2 if it could not run.
";

/// The files that the list names, from the build script.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("snigate-hellos: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is right.
fn run(arguments: Arguments) -> Result<bool, String> {
    let Arguments { action, routers, backends, only, patience, format, listen } = arguments;
    let hellos = corpus::parse(include_str!("../hellos.ini"))?;
    let chosen: Vec<&Hello<'_>> = hellos.iter().filter(|hello| hello.name.contains(&only)).collect();
    match action {
        Action::Help => print!("{HELP}"),
        Action::Version => println!("snigate-hellos {}", env!("CARGO_PKG_VERSION")),
        Action::Configuration(router) => {
            let text = configurations::configuration(&router, listen, backends);
            let known = || configurations::ROUTERS.map(|(name, _)| name).join(", ");
            let text = text.ok_or_else(|| format!("--configuration {router}: expected one of {}", known()))?;
            print!("{text}");
            for (_, command) in configurations::ROUTERS.iter().filter(|(name, _)| *name == router) {
                eprintln!("to be started with: {command}");
            }
        }
        Action::List => {
            for Hello { name, right, from, rule, .. } in chosen {
                let right: Vec<String> = right.iter().map(ToString::to_string).collect();
                println!("{name} ({from}): {}\n    {}: {}", right.join(" or "), rule.source, rule.says);
            }
        }
        Action::Save(directory) => {
            let wrong = |error| format!("--save {}: {error}", directory.display());
            std::fs::create_dir_all(&directory).map_err(wrong)?;
            for hello in chosen {
                std::fs::write(directory.join(hello.name), bytes(hello)?).map_err(wrong)?;
            }
        }
        Action::Try => {
            let backends = Backends::listen(backends, patience)?;
            let mut report = Report { routers: routers.iter().map(|(name, _)| &**name).collect(), rows: Vec::new() };
            for hello in chosen {
                let bytes = bytes(hello)?;
                let attempts =
                    routers.iter().map(|(_, address)| attempt::attempt(*address, &backends, hello, bytes, patience));
                report.rows.push((hello, attempts.collect::<Result<_, _>>()?));
            }
            print!(
                "{}",
                match format {
                    Format::Text => report.text(),
                    Format::Markdown => report.markdown(),
                    Format::Json => report.json(),
                }
            );
            return Ok(report.is_all_right());
        }
    }
    Ok(true)
}

fn bytes(hello: &Hello<'_>) -> Result<&'static [u8], String> {
    let found = FILES.iter().find(|(file, _)| *file == hello.file);
    found.map(|(_, bytes)| *bytes).ok_or_else(|| format!("{}: no file {}", hello.name, hello.file))
}

struct Arguments {
    action: Action,
    routers: Vec<(String, SocketAddr)>,
    backends: [SocketAddr; 3],
    only: String,
    patience: Duration,
    format: Format,
    listen: SocketAddr,
}

enum Action {
    Try,
    Configuration(String),
    List,
    Save(PathBuf),
    Help,
    Version,
}

enum Format {
    Text,
    Markdown,
    Json,
}

impl Arguments {
    fn parse(mut typed: impl Iterator<Item = String>) -> Result<Self, String> {
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut arguments = Self {
            action: Action::Try,
            routers: Vec::new(),
            backends: [local(7101), local(7102), local(7103)],
            only: String::new(),
            patience: Duration::from_secs(4),
            format: Format::Text,
            listen: local(7100),
        };
        while let Some(argument) = typed.next() {
            let (flag, inline) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (&*argument, None),
            };
            let mut value = || inline.clone().or_else(|| typed.next()).ok_or_else(|| format!("{flag}: no value"));
            match flag {
                "--router" => arguments.routers.push(router(&value()?)?),
                "--backends" => arguments.backends = backends(&value()?)?,
                "--only" => arguments.only = value()?,
                "--patience" => arguments.patience = seconds(&value()?)?,
                "--format" => arguments.format = format(&value()?)?,
                "--configuration" => arguments.action = Action::Configuration(value()?),
                "--listen" => arguments.listen = address("--listen", &value()?)?,
                "--list" => arguments.action = Action::List,
                "--save" => arguments.action = Action::Save(value()?.into()),
                "-h" | "--help" => arguments.action = Action::Help,
                "-V" | "--version" => arguments.action = Action::Version,
                _ => return Err(format!("{argument}: unknown; see --help")),
            }
        }
        if matches!(arguments.action, Action::Try) && arguments.routers.is_empty() {
            return Err("which router? --router HOST:PORT; see --help".into());
        }
        Ok(arguments)
    }
}

/// `NAME=HOST:PORT`, or the address alone.
fn router(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, host) = text.split_once('=').unwrap_or((text, text));
    Ok((name.into(), address("--router", host)?))
}

fn backends(text: &str) -> Result<[SocketAddr; 3], String> {
    let addresses = text.split(',').map(|one| address("--backends", one)).collect::<Result<Vec<_>, _>>()?;
    addresses.try_into().map_err(|_| format!("--backends {text}: expected three addresses, A,B,OTHER"))
}

fn address(flag: &str, text: &str) -> Result<SocketAddr, String> {
    let mut addresses =
        text.to_socket_addrs().map_err(|error| format!("{flag} {text}: {error}; expected HOST:PORT"))?;
    addresses.next().ok_or_else(|| format!("{flag} {text}: no address"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|seconds| !seconds.is_zero()).ok_or_else(|| format!("--patience {text}: expected seconds, above 0"))
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "markdown" => Ok(Format::Markdown),
        "json" => Ok(Format::Json),
        _ => Err(format!("--format {text}: expected text, markdown or json")),
    }
}
