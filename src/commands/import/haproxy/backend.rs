//! `backend` and the back of `listen`: servers, and how they are chosen and checked.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Globals;
use super::sections::Line;
use super::server::Parameters;
use crate::commands::import::draft::{Check, Draft, TlsCheck, Upstream};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::duration;

/// What `option httpchk` and its like ask for.
#[derive(Default)]
struct Request {
    line: Option<RequestLine>,
    over_tls: bool,
    /// Where it is said which answers are good.
    expects: Vec<Place>,
}

struct RequestLine {
    method: String,
    path: String,
    place: Place,
}

/// `lines` are those of its defaults and its own.
pub(super) fn read(
    name: &str,
    lines: &[&Line],
    globals: &Globals,
    is_behind_tls: bool,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let mut upstream = Upstream::default();
    let mut defaults = Parameters::default();
    let mut request = Request::default();
    let mut check_timeout = None;
    let mut servers: Vec<(Parameters, Place)> = Vec::new();
    for line in lines {
        let place = line.place();
        let words = line.words();
        match words[..] {
            ["balance", algorithm, ..] => match algorithm.split('(').next() {
                Some("roundrobin" | "static-rr") => set(&mut upstream, "round_robin", place),
                Some("leastconn") => set(&mut upstream, "least_connections", place),
                Some("random") => set(&mut upstream, "random", place),
                _ => ledger.note(&place, format!("`{algorithm}`: no client is tied to an endpoint; see `balance`")),
            },
            ["timeout", kind @ ("connect" | "check"), text, ..] => match (duration(text, "ms"), kind) {
                (Err(reason), _) => ledger.note(&place, format!("`{text}`: {reason}")),
                (Ok(span), "check") => check_timeout = Some((span, place)),
                (Ok(span), _) => {
                    upstream.connect_timeout = Some(span);
                    upstream.places.insert(place);
                }
            },
            ["default-server", ref parameters @ ..] => {
                defaults.read(parameters, &place, globals, ledger);
                upstream.places.insert(place);
            }
            ["server", _, address, ref parameters @ ..] | ["server-template", _, _, address, ref parameters @ ..] => {
                let mut server = defaults.clone();
                server.read(parameters, &place, globals, ledger);
                server.add_to(&mut upstream, address, is_behind_tls, &place, ledger);
                servers.push((server, place));
            }
            ["option" | "http-check", ref option @ ..] => request.read(option, &place, ledger),
            ["mode", "tcp"] => drop(upstream.places.insert(place)),
            _ => {}
        }
    }
    if let Some((first, _)) = servers.iter().find(|(server, _)| server.check) {
        if let Some((_, place)) = servers.iter().find(|(other, _)| !other.is_checked_like(first)) {
            let reason = "the servers differ in how they are checked; here all are checked like the first one that is";
            ledger.note(place, reason);
        }
        upstream.check = Some(check(first, request, check_timeout, &mut upstream.places, ledger));
    }
    draft.upstreams.insert(name.into(), upstream);
}

fn set(upstream: &mut Upstream, balance: &'static str, place: Place) {
    upstream.balance = Some(balance);
    upstream.places.insert(place);
}

impl Request {
    fn read(&mut self, option: &[&str], place: &Place, ledger: &mut Ledger) {
        let (method, path) = match *option {
            ["httpchk"] => ("OPTIONS", "/"),
            ["httpchk", path] => ("OPTIONS", path),
            ["httpchk", method, path, ref rest @ ..] => {
                if !rest.is_empty() {
                    let rest = rest.join(" ");
                    ledger.note(place, format!("`{rest}`: the request is HTTP/1.1, with no headers but Host"));
                }
                (method, path)
            }
            ["connect", ref parameters @ ..] if parameters.contains(&"ssl") => {
                ledger.note(place, "the check's TLS verifies as the `tls` of `health_check` says");
                self.over_tls = true;
                return;
            }
            ["send", ref parameters @ ..] => {
                let value = |key| parameters.iter().position(|word| *word == key).and_then(|at| parameters.get(at + 1));
                (*value("meth").unwrap_or(&"GET"), *value("uri").unwrap_or(&"/"))
            }
            ["expect", ..] => return self.expects.push(place.clone()),
            ["ssl-hello-chk"] => {
                ledger.note(place, "the check is a TLS handshake");
                self.over_tls = true;
                return;
            }
            _ => return,
        };
        if let Some(RequestLine { place, .. }) = &self.line {
            ledger.note(place, "another line after it says what is asked for");
        }
        self.line = Some(RequestLine { method: method.into(), path: path.into(), place: place.clone() });
    }
}

impl RequestLine {
    /// The path, if snigate can ask for it.
    fn path(self, over_tls: bool, ledger: &mut Ledger) -> Option<String> {
        let Self { method, path, place } = self;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        if !over_tls {
            ledger.note(&place, "checks over plain HTTP are not made, so the check only connects");
            return None;
        }
        if !path.starts_with('/') || !path.bytes().all(is_plain) {
            ledger.note(&place, format!("`{path}` is no path"));
            return None;
        }
        if method != "GET" {
            ledger.note(&place, format!("the request is GET, not {method}"));
        }
        ledger.carry(&place);
        Some(path)
    }
}

fn check(
    server: &Parameters,
    request: Request,
    timeout: Option<(Duration, Place)>,
    places: &mut BTreeSet<Place>,
    ledger: &mut Ledger,
) -> Check {
    let Request { line, over_tls, expects } = request;
    let tls = server.check_tls().or_else(|| over_tls.then_some(TlsCheck::Unverified));
    let path = line.and_then(|line| line.path(tls.is_some(), ledger));
    for place in expects.iter().filter(|_| path.is_some()) {
        ledger.note(place, "an answer with 200 is ready, one with 500 or 503 is not, and 401 and 403 count as alive");
    }
    let interval = server.interval;
    let timeout = timeout.and_then(|(timeout, place)| {
        // What `interval` is when it is not written.
        if timeout > interval.unwrap_or(Duration::from_secs(5)) {
            ledger.note(&place, "longer than the `interval` of checks, so left out: checks do not overlap");
            return None;
        }
        places.insert(place);
        Some(timeout)
    });
    Check { interval, timeout, rise: server.rise, fall: server.fall, tls, path }
}
