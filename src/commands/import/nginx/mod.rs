//! nginx's stream module: servers that listen, maps from names, and upstreams.

mod include;
mod names;
mod reasons;
mod server;
mod syntax;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use self::server::Inherited;
use self::syntax::Directive;
use super::Files;
use super::draft::{Draft, Rule};
use super::ledger::{Ledger, NOTHING_CARRIED, Place};
use super::routes::{self, Route};

/// What stands in the streams, by name.
#[derive(Default)]
struct Stream<'a> {
    upstreams: BTreeMap<&'a str, &'a Directive>,
    /// By variable.
    maps: BTreeMap<&'a str, &'a Directive>,
    servers: Vec<&'a Directive>,
    inherited: Inherited<'a>,
    /// Upstreams and maps that something leads to.
    used: BTreeSet<&'a str>,
    /// Of servers with names: where, the rank of the name, and the rules for it.
    named: Vec<(Vec<SocketAddr>, (u8, usize), Rule)>,
    /// The rules for all other names: where, whether that is said, and the rules.
    others: Vec<(Vec<SocketAddr>, bool, Vec<Rule>)>,
    /// Zones that count connections of a client.
    zones: BTreeSet<&'a str>,
}

pub(super) fn translate(source: &str, files: &Files, draft: &mut Draft, ledger: &mut Ledger) -> Vec<Route> {
    let all = include::read(source, files, ledger);
    let is =
        |name: &'static str| move |directive: &&Directive| directive.words.first().is_some_and(|word| word == name);
    // A file that another one includes within its stream.
    let is_bare =
        !all.iter().any(|one| is("stream")(&one) || is("http")(&one)) && all.iter().any(|one| is("server")(&one));
    let mut stream = Stream::default();
    for directive in &all {
        if is_bare {
            stream.add(directive, ledger);
        } else if is("stream")(&directive) {
            directive.inside().iter().for_each(|inner| stream.add(inner, ledger));
        } else if directive.block.is_some() {
            let reason = match directive.words.first().map_or("", String::as_str) {
                "events" => "`events`: not needed: connections and workers are as many as this process may have".into(),
                name => format!("`{name}`: only streams are translated"),
            };
            ledger.note(&directive.whole(), reason);
        } else {
            ledger.note(&directive.place(), reasons::of(&directive.words()));
        }
    }

    for server in std::mem::take(&mut stream.servers) {
        server::read(server, &mut stream, draft, ledger);
    }
    server::finish(&mut stream, draft);
    for (name, directive) in stream.upstreams.iter().chain(&stream.maps) {
        if !stream.used.contains(name) {
            ledger.note(&directive.whole(), format!("`{name}`: no server that is carried over leads to it"));
        }
    }

    let routes = routes::make(draft, ledger);
    for directive in all.iter().filter(is("stream")) {
        directive.frame().iter().for_each(|place| ledger.carry(place));
    }
    for number in ledger.unseen(ledger.all()) {
        ledger.note(&Place::line(number), NOTHING_CARRIED);
    }
    routes
}

impl<'a> Stream<'a> {
    fn add(&mut self, directive: &'a Directive, ledger: &mut Ledger) {
        match directive.words()[..] {
            ["upstream", name] if directive.block.is_some() => {
                if self.upstreams.insert(name, directive).is_some() {
                    ledger.note(
                        &directive.place(),
                        format!("there is another upstream `{name}`, and the last one stands"),
                    );
                }
            }
            ["map", source, variable] if directive.block.is_some() => {
                if names::variable(source).is_none() {
                    let reason =
                        format!("`{source}`: only a variable alone leads somewhere; see `alpn` and `listener`");
                    ledger.note(&directive.whole(), reason);
                } else if self.maps.insert(variable, directive).is_some() {
                    ledger.note(
                        &directive.place(),
                        format!("there is another map to `{variable}`, and the last one stands"),
                    );
                }
            }
            ["limit_conn_zone", "$binary_remote_addr" | "$remote_addr", zone] => {
                self.zones.extend(zone.strip_prefix("zone=").and_then(|zone| zone.split(':').next()));
                self.inherited.zone = Some(directive);
            }
            ["server"] if directive.block.is_some() => self.servers.push(directive),
            _ if directive.block.is_some() => {
                let reason = format!("`{}`: without a counterpart", directive.words.join(" "));
                ledger.note(&directive.whole(), reason);
            }
            _ => self.inherited.add(directive, ledger),
        }
    }
}
