//! Health checks: of `option httpchk` and the like the last line applies.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::upstream::health;

use super::server::{ServerParameters, Verify};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{CheckDraft, CheckTls};

/// The lines of a backend that say how its servers are checked.
#[derive(Default)]
pub(super) struct CheckRequest {
    /// The kind of check.
    option: Option<(String, Location)>,
    line: Option<CheckRequestLine>,
    over_tls: bool,
    /// `http-check expect` lines.
    expects: Vec<Location>,
}

struct CheckRequestLine {
    method: String,
    path: String,
    location: Location,
}

impl CheckRequest {
    pub(super) fn read(&mut self, option: &[&str], location: &Location, notes: &mut Notes) {
        const OTHERS: [&str; 5] = ["tcp-check", "mysql-check", "redis-check", "pgsql-check", "ldap-check"];
        if let Some(kind) = option.first().filter(|kind| kind.ends_with("chk") || OTHERS.contains(kind)) {
            self.replace(kind, location, notes);
        }
        let (method, path) = match *option {
            ["httpchk"] => ("OPTIONS", "/"),
            ["httpchk", path] => ("OPTIONS", path),
            ["httpchk", method, path, ref rest @ ..] => {
                if !rest.is_empty() {
                    let rest = rest.join(" ");
                    notes.note(
                        location,
                        format!("`{rest}` ignored: health checks send HTTP/1.1, with `Host` as the only header"),
                    );
                }
                (method, path)
            }
            ["connect", ref parameters @ ..] if parameters.contains(&"ssl") => {
                notes.note(location, "see `health_check.tls` for how the check verifies the server");
                self.over_tls = true;
                return;
            }
            ["send", ref parameters @ ..] => {
                let value = |key| parameters.iter().position(|word| *word == key).and_then(|at| parameters.get(at + 1));
                (*value("meth").unwrap_or(&"GET"), *value("uri").unwrap_or(&"/"))
            }
            ["expect", ..] => return self.expects.push(location.clone()),
            ["ssl-hello-chk"] => {
                notes.note(location, "translated as a TLS handshake");
                self.over_tls = true;
                return;
            }
            _ => return,
        };
        if let Some(CheckRequestLine { location, .. }) = &self.line {
            notes.note(location, "no effect: a later line sets the request of the check");
        }
        self.line = Some(CheckRequestLine { method: method.into(), path: path.into(), location: location.clone() });
    }
}

impl CheckRequest {
    /// The last kind of check applies.
    fn replace(&mut self, kind: &str, location: &Location, notes: &mut Notes) {
        let before = self.option.replace((kind.to_owned(), location.clone()));
        let Some((before, at)) = before.filter(|(before, _)| before != kind) else { return };
        notes.note(&at, format!("no effect: `{kind}` in {location} replaces `{before}`"));
        self.line = None;
        self.over_tls = false;
        for location in self.expects.drain(..) {
            notes.note(
                &location,
                format!("no effect: it belongs to another kind of check than `{kind}`, which applies"),
            );
        }
    }
}

impl CheckRequestLine {
    /// `None`: snigate cannot send this request.
    fn path(self, over_tls: bool, notes: &mut Notes) -> Option<String> {
        let Self { method, path, location } = self;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        if !over_tls {
            notes.note(&location, "translated as a TCP check: snigate makes HTTP checks over TLS only");
            return None;
        }
        if !path.starts_with('/') || !path.bytes().all(is_plain) {
            notes.note(&location, format!("`{path}` is not a path, so the check sends no request"));
            return None;
        }
        if method != "GET" {
            notes.note(&location, format!("health checks send GET instead of {method}"));
        }
        notes.translated(&location);
        Some(path)
    }
}

pub(super) fn translate(
    server: &ServerParameters,
    request: CheckRequest,
    timeout: Option<(Duration, Location)>,
    locations: &mut BTreeSet<Location>,
    notes: &mut Notes,
) -> CheckDraft {
    let CheckRequest { line, over_tls, expects, option: _ } = request;
    let tls = server.check_tls().or_else(|| over_tls.then_some(CheckTls::Unverified));
    let path = line.and_then(|line| line.path(tls.is_some(), notes));
    for location in expects.iter().filter(|_| path.is_some()) {
        notes.note(location, "ignored: status 200 means ready, 500 and 503 mean not ready, 401 and 403 count as alive");
    }
    let interval = server.interval;
    let timeout = timeout.and_then(|(timeout, location)| {
        // The default of `interval`.
        if timeout > interval.unwrap_or(Duration::from_secs(5)) {
            notes.note(&location, "left out: it is longer than the `interval` of the check, and checks do not overlap");
            return None;
        }
        locations.insert(location);
        Some(timeout)
    });
    CheckDraft { interval, timeout, rise: server.rise, fall: server.fall, tls, path }
}

impl ServerParameters {
    /// `None`: the check does not use TLS.
    pub(super) fn check_tls(&self) -> Option<CheckTls> {
        if !self.ssl && !self.check_ssl {
            return None;
        }
        Some(match &self.ca_file {
            Some(ca_file) if self.verify == Verify::Required && !ca_file.starts_with('@') => CheckTls::Verified {
                ca_file: ca_file.clone(),
                server_name: self.verify_host.clone().filter(|name| is_hostname(name)),
            },
            _ => CheckTls::Unverified,
        })
    }

    pub(super) fn note_check_tls(&self, location: &Location, notes: &mut Notes) {
        match self.check_tls() {
            Some(CheckTls::Unverified) if self.verify == Verify::Required => {
                notes
                    .note(location, "without `ca-file` the health check does not verify the server; set `tls.ca_file`");
            }
            Some(CheckTls::Verified { ca_file, .. }) => {
                if let Err(reason) = health::read_roots(ca_file.as_ref()) {
                    let reason = format!("`ca-file`: {reason}; `snigate check` fails until the file is there");
                    notes.note(location, reason);
                }
                if let Some(name) = self.verify_host.as_ref().filter(|name| !is_hostname(name)) {
                    notes.note(
                        location,
                        format!("`verifyhost {name}` ignored: not a hostname, so the check only verifies the chain"),
                    );
                }
            }
            _ => {}
        }
    }

    pub(super) fn is_checked_like(&self, other: &Self) -> bool {
        let numbers = |one: &Self| (one.check, one.interval, one.rise, one.fall);
        numbers(self) == numbers(other) && self.check_tls() == other.check_tls()
    }
}

fn is_hostname(text: &str) -> bool {
    rustls::pki_types::ServerName::try_from(text).is_ok()
}
