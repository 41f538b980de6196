//! How servers are checked: of several lines that say so the last one holds.

use std::collections::BTreeSet;
use std::time::Duration;

use super::server::Parameters;
use crate::commands::import::draft::{Check, TlsCheck};
use crate::commands::import::ledger::{Ledger, Place};

/// What `option httpchk` and its like ask for.
#[derive(Default)]
pub(super) struct Request {
    /// `option …chk`, as far as it holds.
    option: Option<(String, Place)>,
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

impl Request {
    pub(super) fn read(&mut self, option: &[&str], place: &Place, ledger: &mut Ledger) {
        const OTHERS: [&str; 5] = ["tcp-check", "mysql-check", "redis-check", "pgsql-check", "ldap-check"];
        if let Some(kind) = option.first().filter(|kind| kind.ends_with("chk") || OTHERS.contains(kind)) {
            self.replace(kind, place, ledger);
        }
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

impl Request {
    /// HAProxy makes one kind of check: the last one.
    fn replace(&mut self, kind: &str, place: &Place, ledger: &mut Ledger) {
        let before = self.option.replace((kind.to_owned(), place.clone()));
        let Some((before, at)) = before.filter(|(before, _)| before != kind) else { return };
        ledger.note(
            &at,
            format!("`{before}` does not hold: `{kind}` ({place}) after it does, and HAProxy makes one kind of check"),
        );
        self.line = None;
        self.over_tls = false;
        for place in self.expects.drain(..) {
            ledger.note(&place, format!("it is for another kind of check than `{kind}`, which holds"));
        }
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

pub(super) fn check(
    server: &Parameters,
    request: Request,
    timeout: Option<(Duration, Place)>,
    places: &mut BTreeSet<Place>,
    ledger: &mut Ledger,
) -> Check {
    let Request { line, over_tls, expects, option: _ } = request;
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
