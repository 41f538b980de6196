//! What happens to a class of clients.

use super::client_notes::{backend_name, networks};
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::notes::{Location, Notes};

#[derive(Clone, Debug)]
pub(super) struct ClassResult {
    /// Each with another upstream, the largest first. All other clients are rejected.
    pub(super) shares: Vec<ClientShare>,
    /// Where the source rejects clients.
    rejected_at: Location,
    /// A rule lists the very pattern of the class.
    pub(super) is_listed: bool,
}

/// Clients of a class that go to an upstream, and the rule that says so.
#[derive(Clone, Debug)]
pub(super) struct ClientShare {
    pub(super) upstream: String,
    pub(super) clients: AddressSet,
    pub(super) location: Location,
}

impl PartialEq for ClassResult {
    fn eq(&self, other: &Self) -> bool {
        self.shares.len() == other.shares.len() && self.is_same_within(other, &AddressSet::all())
    }
}

impl ClassResult {
    pub(super) fn new(all: Vec<ClientShare>, rejected_at: Location, is_listed: bool) -> Self {
        let mut shares: Vec<ClientShare> = Vec::new();
        for share in all.into_iter().filter(|share| !share.clients.is_empty()) {
            match shares.iter_mut().find(|one| one.upstream == share.upstream) {
                Some(before) => before.clients = before.clients.or(&share.clients),
                None => shares.push(share),
            }
        }
        shares.sort_by(|one, other| {
            other.clients.is_larger_than(&one.clients).cmp(&one.clients.is_larger_than(&other.clients))
        });
        Self { shares, rejected_at, is_listed }
    }

    pub(super) fn admitted(&self) -> AddressSet {
        self.shares.iter().fold(AddressSet::none(), |all, share| all.or(&share.clients))
    }

    /// The clients that go to this upstream.
    pub(super) fn clients_of(&self, upstream: &str) -> AddressSet {
        let share = self.shares.iter().find(|share| share.upstream == upstream);
        share.map_or_else(AddressSet::none, |share| share.clients.clone())
    }

    /// The upstream of clients that all have the same.
    pub(super) fn upstream_of(&self, clients: &AddressSet) -> Option<&str> {
        let share = self.shares.iter().find(|share| !share.clients.and(clients).is_empty());
        share.map(|share| share.upstream.as_str())
    }

    /// The upstream of most clients.
    pub(super) fn largest(&self) -> Option<&str> {
        self.shares.first().map(|share| share.upstream.as_str())
    }

    pub(super) fn is_same_within(&self, other: &Self, clients: &AddressSet) -> bool {
        let is_same =
            |upstream: &str| self.clients_of(upstream).and(clients) == other.clients_of(upstream).and(clients);
        self.shares.iter().chain(&other.shares).all(|share| is_same(&share.upstream))
    }

    /// Where the source decides it.
    fn location(&self) -> &Location {
        self.shares.first().map_or(&self.rejected_at, |share| &share.location)
    }
}

/// Clients without SNI have no route of their own.
pub(super) fn compare_without_sni(others: &ClassResult, without_sni: &ClassResult, notes: &mut Notes) {
    let location = without_sni.location();
    if others.shares.is_empty() {
        for ClientShare { upstream, location, .. } in &without_sni.shares {
            let expected = backend_name(upstream);
            let reason = format!(
                "clients without SNI are rejected instead of routed to `{expected}`: only a route without `sni` matches \
                them, and it would match all other names, too"
            );
            notes.rejects_or_reroutes(location, reason);
        }
        return;
    }
    if without_sni.shares.is_empty() {
        for ClientShare { upstream, .. } in &others.shares {
            let reason = format!(
                "clients without SNI are routed to `{}` instead of rejected: the route without `sni` matches them, too",
                backend_name(upstream)
            );
            notes.admits_more(location, reason);
        }
        return;
    }
    for expected in &without_sni.shares {
        for actual in others.shares.iter().filter(|actual| actual.upstream != expected.upstream) {
            let clients = actual.clients.and(&expected.clients);
            if !clients.is_empty() {
                let from =
                    if clients == AddressSet::all() { String::new() } else { format!(" from {}", networks(&clients)) };
                let reason = format!(
                    "clients without SNI{from} are routed to `{}` instead of `{}`: one route without `sni` matches both \
                    them and all other names",
                    backend_name(&actual.upstream),
                    backend_name(&expected.upstream)
                );
                notes.rejects_or_reroutes(&expected.location, reason);
            }
        }
    }
    let why = "one route without `sni` matches both them and all other names, and has one `allow` and `deny`";
    let more = others.admitted().minus(&without_sni.admitted());
    if !more.is_empty() {
        notes.admits_more(location, format!("clients without SNI are admitted from {}, too: {why}", networks(&more)));
    }
    let fewer = without_sni.admitted().minus(&others.admitted());
    if !fewer.is_empty() {
        let reason = format!("clients without SNI are rejected from {}: {why}", networks(&fewer));
        notes.rejects_or_reroutes(location, reason);
    }
}
