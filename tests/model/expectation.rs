//! What must be observed, by what the pages promise. Nothing of the program is used here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::bytes;
use super::script::{
    After, Arrival, Behaviour, Check, Config, ENDPOINTS, Filter, From, Kind, Name, OnRemove, Operation, Route, Sends,
    Side,
};

/// All that is known of the world.
pub struct Model {
    pub config: Config,
    /// What the file has, if that is valid.
    pub on_disk: Option<Config>,
    /// The endpoints that the name has.
    named: Vec<usize>,
    pub behaviours: [Behaviour; ENDPOINTS],
    /// Endpoints that the router may believe to be dead.
    suspects: [bool; ENDPOINTS],
    drains: BTreeMap<&'static str, Drain>,
    pub connections: BTreeMap<usize, Connection>,
    /// How many upgrades there were.
    pub process: usize,
    /// Bytes that the process that serves has relayed, by route and direction.
    pub relayed: BTreeMap<&'static str, [Range; 2]>,
}

#[derive(Clone, PartialEq)]
enum Drain {
    All,
    Some(BTreeSet<usize>),
}

pub struct Connection {
    pub arrival: Arrival,
    pub hello: Vec<u8>,
    /// Which process counts and logs it, if that is certain.
    pub process: Option<usize>,
    pub state: State,
}

pub enum State {
    /// One of these.
    Undecided(Vec<Verdict>),
    Open(Open),
    Ended(Ended),
}

/// What becomes of a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It reaches one of these endpoints.
    Served {
        route: Route,
        by: Vec<usize>,
    },
    Ends(Ended),
}

/// Relayed.
#[derive(Clone)]
pub struct Open {
    pub route: Route,
    pub endpoint: usize,
    /// From the client, with the hello; from the endpoint.
    pub sent: [usize; 2],
    pub finished: [bool; 2],
    pub closed_first: Option<Side>,
    /// That side was sent more since then.
    pub is_sent_more: bool,
    /// The client does not read, and so many bytes are on their way to it.
    pub stalled: Option<usize>,
    /// Its route or endpoint has been removed, and it is kept.
    pub is_kept: bool,
    /// It has stayed in the old process because it is stalled. It follows at any moment at which no bytes are held for it:
    /// the kernel may make some room yet.
    pub is_straggler: bool,
}

/// At what a route or endpoint may be gone, with the configuration before it.
#[derive(Clone, Copy)]
enum Change<'c> {
    Reload(&'c Config),
    Upgrade(&'c Config),
    /// A connection that was being set up meanwhile.
    Arrival,
}

/// How it ends for both sides, and in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// `None`: it sees nothing, because it has reset or there is none.
    pub client: Option<Seen>,
    pub endpoint: Option<Seen>,
    pub outcomes: Vec<&'static str>,
    pub closed_by: &'static str,
    pub route: &'static str,
    pub endpoints: Vec<usize>,
    pub reason: Option<&'static str>,
    /// In the log, from the client and to it.
    pub bytes: [Range; 2],
    pub is_logged: IsLogged,
    /// Or it is completed, as nothing but a client that reads was missing.
    pub is_perhaps_completed: bool,
}

pub type Range = RangeInclusive<usize>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsLogged {
    Yes,
    No,
    Perhaps,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// How many bytes.
    pub bytes: Range,
    pub is_alert: Option<u8>,
    pub end: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Open,
    Fin,
    Reset,
    Either,
}

const REMOVED: &str = "its route or endpoint is no longer configured";
const BY_OPERATOR: &str = "closed by an operator";
pub const NO_ROUTE: &str = "_none";

impl Model {
    pub fn new(config: &Config, named: &[usize]) -> Self {
        let config = resolved(config, named);
        Self {
            config: config.clone(),
            on_disk: Some(config),
            named: named.to_vec(),
            behaviours: [Behaviour::Serves; ENDPOINTS],
            suspects: [false; ENDPOINTS],
            drains: BTreeMap::new(),
            connections: BTreeMap::new(),
            process: 0,
            relayed: BTreeMap::new(),
        }
    }

    /// Open connections, by number.
    pub fn open(&self) -> impl Iterator<Item = (usize, &Connection, &Open)> {
        self.connections.iter().filter_map(|(number, connection)| match &connection.state {
            State::Open(open) => Some((*number, connection, open)),
            State::Undecided(_) | State::Ended(_) => None,
        })
    }

    pub fn open_mut(&mut self, number: usize) -> Option<&mut Open> {
        match &mut self.connections.get_mut(&number)?.state {
            State::Open(open) => Some(open),
            State::Undecided(_) | State::Ended(_) => None,
        }
    }

    /// Whether a connection has stayed in the old process until its client reads.
    pub fn has_straggler(&self) -> bool {
        self.open().any(|(_, _, open)| open.is_straggler)
    }

    /// Whether connections have stayed in the old process because the new one lacks their route.
    pub fn has_left_behind(&self) -> bool {
        let old = self.process.checked_sub(1);
        self.open().any(|(_, connection, open)| connection.process == old && !open.is_straggler)
    }

    pub fn behave(&mut self, endpoint: usize, behaviour: Behaviour) {
        self.behaviours[endpoint] = behaviour;
        self.suspects[endpoint] |= !matches!(behaviour, Behaviour::Serves | Behaviour::Unready);
    }

    /// What routes must know of their endpoints, soon: the names of the route and the state.
    pub fn expected_health(&self) -> Vec<(&'static str, usize, &'static str)> {
        let endpoints = self
            .config
            .routes
            .iter()
            .flat_map(|route| route.endpoints.iter().map(move |(endpoint, _)| (route, *endpoint)));
        let health = |(route, endpoint): (&Route, usize)| {
            let state = if self.is_known_unready(route, endpoint) { "unready" } else { "ready" };
            let is_certain = state == "unready" || self.is_surely_ready(route, endpoint);
            is_certain.then(|| (route.kind.name(), endpoint, state))
        };
        endpoints.filter_map(health).collect()
    }

    fn is_known_unready(&self, route: &Route, endpoint: usize) -> bool {
        route.check == Check::Asks && self.behaviours[endpoint] == Behaviour::Unready
    }

    fn is_surely_ready(&self, route: &Route, endpoint: usize) -> bool {
        let serves = matches!(self.behaviours[endpoint], Behaviour::Serves | Behaviour::Unready);
        serves && !self.suspects[endpoint] && !self.is_known_unready(route, endpoint)
    }

    /// What becomes of a client that arrives now.
    pub fn verdict(&self, arrival: &Arrival) -> Verdict {
        let sent = bytes::first(arrival).len() - bytes::header(arrival).len().min(bytes::first(arrival).len());
        let refused = |outcome, route, alert, is_partly_read: bool| {
            Verdict::Ends(Ended::refused(
                outcome,
                route,
                alert,
                if is_partly_read { 0..=sent + 120 } else { sent..=sent },
            ))
        };
        match arrival.from {
            From::Unlisted => return refused("proxy_header", NO_ROUTE, None, true),
            From::WithoutHeader if arrival.sends != Sends::Nothing => {
                return refused("proxy_header", NO_ROUTE, None, true);
            }
            From::PlainWithHeader if arrival.sends != Sends::Nothing => {
                return refused("not_tls", NO_ROUTE, None, true);
            }
            _ => {}
        }
        match arrival.sends {
            Sends::Nothing => return Verdict::Ends(Ended::gone(0..=0, IsLogged::No, Some(How::Fin))),
            Sends::Garbage => return refused("not_tls", NO_ROUTE, None, true),
            Sends::Part(After::Silence) => return refused("hello_timeout", NO_ROUTE, Some(80), false),
            Sends::Part(After::Fin) => return Verdict::Ends(Ended::gone(sent..=sent, IsLogged::Yes, Some(How::Fin))),
            // The router may not have read anything before.
            Sends::Part(After::Reset) => return Verdict::Ends(Ended::gone(0..=sent, IsLogged::Perhaps, None)),
            Sends::Hello => {}
        }
        let hello = bytes::hello(arrival).len();
        let refused = |outcome, route, alert| {
            let mut ended = Ended::refused(outcome, route, alert, hello..=sent);
            if ended.outcomes == ["connect_refused"] || ended.outcomes == ["connect_timeout"] {
                ended.bytes = [hello..=sent, 0..=0];
            }
            ended
        };
        let Some(route) = self.route(arrival) else {
            let outcome = match arrival.name {
                Name::None | Name::Literal => "no_name",
                _ => "unknown_name",
            };
            return Verdict::Ends(refused(outcome, NO_ROUTE, Some(112)));
        };
        let name = route.kind.name();
        if route.kind == Kind::Guarded && arrival.from == From::Denied {
            return Verdict::Ends(refused("denied", name, Some(49)));
        }
        let in_service: Vec<(usize, bool)> =
            route.endpoints.iter().copied().filter(|(endpoint, _)| !self.is_drained(route.kind, *endpoint)).collect();
        if in_service.is_empty() {
            return Verdict::Ends(refused("no_endpoint", name, Some(80)));
        }
        let does = |endpoint: usize| self.behaviours[endpoint];
        let accepts = |endpoint: usize| !matches!(does(endpoint), Behaviour::Refuses | Behaviour::Hangs);
        if !in_service.iter().any(|(endpoint, _)| accepts(*endpoint)) {
            let mut ended = refused("connect_refused", name, Some(80));
            let hang = in_service.iter().filter(|(endpoint, _)| does(*endpoint) == Behaviour::Hangs).count();
            if hang == in_service.len() {
                ended.outcomes = vec!["connect_timeout"];
            } else if hang > 0 {
                ended.outcomes.push("connect_timeout");
            }
            return Verdict::Ends(ended);
        }
        // A backup only serves while no other endpoint is ready, and one that is unready while none is.
        let is_surely_ready = |(endpoint, _): &&(usize, bool)| self.is_surely_ready(route, *endpoint);
        let one_is_ready = in_service.iter().any(|endpoint| is_surely_ready(&endpoint));
        let needs_no_backup = in_service.iter().filter(is_surely_ready).any(|(_, is_backup)| !is_backup);
        let may = |(endpoint, is_backup): &(usize, bool)| {
            let is_spared = one_is_ready && self.is_known_unready(route, *endpoint);
            accepts(*endpoint) && !(*is_backup && needs_no_backup) && !is_spared
        };
        let by = in_service.iter().filter(|endpoint| may(endpoint)).map(|(endpoint, _)| *endpoint).collect();
        Verdict::Served { route: route.clone(), by }
    }

    /// The most specific route that matches.
    fn route(&self, arrival: &Arrival) -> Option<&Route> {
        let by_name: &[Kind] = match arrival.name {
            Name::Exact => match (arrival.from == From::HeaderV2WithTlv, arrival.offers_h2) {
                (true, true) => &[Kind::Tlv, Kind::Alpn, Kind::Exact],
                (true, false) => &[Kind::Tlv, Kind::Exact],
                (false, true) => &[Kind::Alpn, Kind::Exact],
                (false, false) => &[Kind::Exact],
            },
            Name::BelowWildcard => &[Kind::Wildcard],
            Name::Guarded => &[Kind::Guarded],
            Name::Apex | Name::Unknown | Name::None | Name::Literal => &[],
        };
        by_name.iter().chain(&[Kind::Any]).find_map(|kind| self.config.route(*kind))
    }

    fn is_drained(&self, kind: Kind, endpoint: usize) -> bool {
        match self.drains.get(kind.name()) {
            None => false,
            Some(Drain::All) => true,
            Some(Drain::Some(some)) => some.contains(&endpoint),
        }
    }

    /// The client has reached this endpoint by this route, in one of the ways that were possible.
    pub fn connected(&mut self, number: usize, route: Route, endpoint: usize) {
        let connection = self.connections.get_mut(&number).unwrap();
        let arrival = &connection.arrival;
        let sent = [bytes::hello(arrival).len() + arrival.early, bytes::ANSWER];
        let name = route.kind.name();
        connection.state = State::Open(Open {
            route,
            endpoint,
            sent,
            finished: [false; 2],
            closed_first: None,
            is_sent_more: false,
            stalled: None,
            is_kept: false,
            is_straggler: false,
        });
        let hello = sent[0] - connection.arrival.early;
        let process = connection.process.replace(connection.process.unwrap_or(self.process));
        let is_counted = process == Some(self.process);
        self.remove_if_gone(number, Change::Arrival);
        let is_cut = if let State::Ended(ended) = &mut self.connections.get_mut(&number).unwrap().state {
            ended.is_cut_short([hello, 0]);
            true
        } else {
            false
        };
        if is_counted && !is_cut {
            self.relayed(name, [sent[0]..=sent[0], sent[1]..=sent[1]]);
        } else if is_counted {
            // It may be closed before that.
            self.relayed(name, [hello..=sent[0], 0..=sent[1]]);
        } else if process.is_none() {
            // It may have come by the process before.
            self.relayed(name, [0..=sent[0], 0..=sent[1]]);
        }
    }

    /// Other bytes of a route have been counted.
    pub fn relayed(&mut self, route: &'static str, bytes: [Range; 2]) {
        let counted = self.relayed.entry(route).or_insert([0..=0, 0..=0]);
        for (counted, more) in counted.iter_mut().zip(bytes) {
            *counted = counted.start() + more.start()..=counted.end() + more.end();
        }
    }

    /// Both sides have sent more.
    pub fn transferred(&mut self, number: usize, more: [usize; 2], is_certain: bool) {
        let open = self.open_mut(number).unwrap();
        open.sent = [open.sent[0] + more[0], open.sent[1] + more[1]];
        // The sides are in the order of what they send.
        open.is_sent_more |= open.closed_first.is_some_and(|side| more[1 - side as usize] > 0);
        let name = open.route.kind.name();
        if self.connections[&number].process == Some(self.process) {
            let counted = more.map(|more| if is_certain { more..=more } else { 0..=more });
            self.relayed(name, counted);
        }
    }

    /// The client reads no more, with so much on its way.
    pub fn stall(&mut self, number: usize, bytes: usize) {
        self.transferred(number, [0, bytes], false);
        self.open_mut(number).unwrap().stalled = Some(bytes);
    }

    /// It reads again.
    pub fn read(&mut self, number: usize) {
        let process = self.process;
        let open = self.open_mut(number).unwrap();
        let bytes = open.stalled.take().unwrap_or(0);
        if open.finished[Side::Endpoint as usize] {
            open.closed_first.get_or_insert(Side::Endpoint);
        }
        let (kind, was_straggler) = (open.route.kind, std::mem::take(&mut open.is_straggler));
        let (name, has_both_ends) = (kind.name(), open.finished == [true; 2]);
        // Otherwise it stays in the old process.
        let follows = was_straggler && self.config.route(kind).is_some();
        if follows {
            // The old process may read the end first, and then nothing is left that could follow.
            self.connections.get_mut(&number).unwrap().process = (!has_both_ends).then_some(process);
            // It follows at a moment when no bytes are held for it, and the rest is relayed there.
            self.relayed(name, [0..=0, 0..=bytes]);
        } else if self.connections[&number].process == Some(process)
            && let Some(counted) = self.relayed.get_mut(name)
        {
            counted[1] = counted[1].start() + bytes..=*counted[1].end();
        }
        self.end_if_finished(number);
    }

    /// What has become of a client that did not reach an endpoint, or was reset by it.
    pub fn ended(&mut self, number: usize, ended: Ended) {
        let [up, _] = ended.bytes.clone();
        match self.connections[&number].process {
            _ if ended.route == NO_ROUTE => {}
            Some(process) if process == self.process => self.relayed(ended.route, [up, 0..=0]),
            Some(_) => {}
            None => self.relayed(ended.route, [0..=*up.end(), 0..=0]),
        }
        self.end(number, ended);
    }

    /// This side sends a FIN.
    pub fn finish(&mut self, number: usize, side: Side) {
        let open = self.open_mut(number).unwrap();
        open.finished[side as usize] = true;
        // The FIN of an endpoint is behind what a stalled client has not read.
        if side == Side::Client || open.stalled.is_none() {
            open.closed_first.get_or_insert(side);
        }
        self.end_if_finished(number);
    }

    fn end_if_finished(&mut self, number: usize) {
        let Some(open) = self.open_mut(number) else { return };
        if open.finished == [true; 2] && open.stalled.is_none() {
            let closed_by = if open.closed_first == Some(Side::Client) { "client" } else { "upstream" };
            let ended = Ended::relayed(open, [Some(How::Fin); 2], "completed", closed_by, None);
            self.end(number, ended);
        }
    }

    /// This side resets.
    pub fn reset(&mut self, number: usize, side: Side) {
        let straggler = self.stragglers().find(|(straggler, ..)| *straggler == number);
        if let Some((name, bytes)) = straggler.map(|(_, open, bytes)| (open.route.kind.name(), bytes)) {
            self.connections.get_mut(&number).unwrap().process = None;
            self.relayed(name, [0..=0, 0..=bytes]);
        }
        let open = self.open_mut(number).unwrap();
        let (outcome, closed_by) = match side {
            Side::Client => ("client_reset", "client"),
            Side::Endpoint => ("upstream_reset", "upstream"),
        };
        // Who has seen a FIN of this side sees no more. A FIN behind what a stalled client has not read may be lost.
        let is_behind = side == Side::Endpoint && open.stalled.is_some();
        let other = match (open.finished[side as usize], is_behind) {
            (false, _) => How::Reset,
            (true, false) => How::Fin,
            (true, true) => How::Either,
        };
        let seen = match side {
            Side::Client => [None, Some(other)],
            Side::Endpoint => [Some(other), None],
        };
        let mut ended = Ended::relayed(open, seen, outcome, closed_by, None);
        if open.closed_first == Some(side) && (open.is_sent_more || open.stalled.is_some()) {
            // What it had not acknowledged yet when it reset, it may as well have sent to a socket that it had closed.
            ended.outcomes.push("completed");
        }
        ended.is_perhaps_completed = is_behind && open.finished == [true; 2];
        self.end(number, ended);
    }

    fn end(&mut self, number: usize, ended: Ended) {
        self.connections.get_mut(&number).unwrap().state = State::Ended(ended);
    }

    /// Carries it out. Whether that succeeds.
    pub fn operate(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::Reload(config) => {
                let config = resolved(config, &self.named);
                self.on_disk = Some(config.clone());
                let before = std::mem::replace(&mut self.config, config);
                self.each_open_here(|model, number| model.remove_if_gone(number, Change::Reload(&before)));
                true
            }
            Operation::BadReload(_) => {
                self.on_disk = None;
                false
            }
            Operation::Drain(kind, endpoint) => self.drain(*kind, *endpoint),
            Operation::Resume(kind, endpoint) => self.resume(*kind, *endpoint),
            Operation::Close(filter) => {
                for number in self.matching(*filter) {
                    self.drained(number, BY_OPERATOR);
                }
                true
            }
            Operation::Upgrade | Operation::UpgradeTo(_) => {
                if let Operation::UpgradeTo(config) = operation {
                    self.on_disk = Some(resolved(config, &self.named));
                }
                let Some(config) = self.on_disk.clone() else { return false };
                self.relayed.clear();
                let before = std::mem::replace(&mut self.config, config);
                let process = self.process;
                for connection in self.connections.values_mut() {
                    let may_wait = match &connection.state {
                        State::Undecided(_) => true,
                        State::Open(_) => false,
                        State::Ended(ended) => ended.is_logged != IsLogged::Yes,
                    };
                    if may_wait {
                        // It may not be accepted yet.
                        connection.process = None;
                    }
                }
                self.each_open_here(|model, number| model.hand_over(number, &before));
                self.process = process + 1;
                true
            }
            Operation::Name(endpoints) => {
                self.named.clone_from(endpoints);
                self.config = resolved(&self.config, &self.named);
                self.on_disk = self.on_disk.as_ref().map(|config| resolved(config, &self.named));
                self.each_open_here(Self::keep_no_longer_if_back);
                true
            }
            Operation::NameServerFails => true,
        }
    }

    fn keep_no_longer_if_back(&mut self, number: usize) {
        let Some(open) = self.open_mut(number) else { return };
        let (kind, endpoint) = (open.route.kind, open.endpoint);
        let is_back = self.config.route(kind).is_some_and(|route| route.has(endpoint));
        self.open_mut(number).unwrap().is_kept &= !is_back;
    }

    fn each_open_here(&mut self, mut change: impl FnMut(&mut Self, usize)) {
        let here: Vec<usize> = self.open_here().map(|(number, _)| number).collect();
        here.into_iter().for_each(|number| change(self, number));
    }

    /// Those that the process that serves has.
    pub fn open_here(&self) -> impl Iterator<Item = (usize, &Open)> {
        let here = self.open().filter(|(_, connection, _)| connection.process == Some(self.process));
        here.map(|(number, _, open)| (number, open))
    }

    /// Those that it may have, with the bytes on their way.
    pub fn stragglers(&self) -> impl Iterator<Item = (usize, &Open, usize)> {
        let stragglers = self.open().filter(|(_, _, open)| open.is_straggler);
        let may_follow = stragglers.filter(|(_, _, open)| self.config.route(open.route.kind).is_some());
        may_follow.map(|(number, _, open)| (number, open, open.stalled.unwrap_or(0)))
    }

    /// What had a route or endpoint that is gone follows its `on_remove`.
    fn remove_if_gone(&mut self, number: usize, change: Change<'_>) {
        let Some(open) = self.open_mut(number) else { return };
        let (endpoint, arrived_by, was_kept) = (open.endpoint, open.route.clone(), open.is_kept);
        let before = match change {
            Change::Reload(before) | Change::Upgrade(before) => before.route(arrived_by.kind),
            Change::Arrival => Some(&arrived_by),
        };
        let after = self.config.route(arrived_by.kind);
        let is_configured = after.is_some_and(|after| {
            // What is no longer listed is not what a name had before; an upgrade cannot tell.
            let was_named = match change {
                Change::Arrival => arrived_by.is_named,
                _ => before.is_some_and(|before| before.is_named && !before.has(endpoint)),
            };
            after.has(endpoint) || after.is_named && (was_named || matches!(change, Change::Upgrade(_)))
        });
        // A route that goes takes all of its connections along, also those of endpoints that it had before.
        let goes_along = after.is_none() && before.is_some() && !matches!(change, Change::Arrival);
        let decides = before.filter(|route| goes_along || route.may_have(endpoint)).unwrap_or(&arrived_by);
        let stays = decides.on_remove == OnRemove::Keep || was_kept && !goes_along;
        self.open_mut(number).unwrap().is_kept = stays && !is_configured;
        if !stays && !is_configured {
            self.drained(number, REMOVED);
        }
    }

    /// At an upgrade from `before` to `self.config`.
    fn hand_over(&mut self, number: usize, before: &Config) {
        self.remove_if_gone(number, Change::Upgrade(before));
        let next = self.process + 1;
        let Some(open) = self.open_mut(number) else { return };
        let (kind, is_stalled) = (open.route.kind, open.stalled.is_some());
        open.is_straggler = is_stalled;
        if !is_stalled && self.config.route(kind).is_some() {
            self.connections.get_mut(&number).unwrap().process = Some(next);
        }
    }

    /// Closed by the router.
    fn drained(&mut self, number: usize, reason: &'static str) {
        let Some(open) = self.open_mut(number) else { return };
        let how = if open.stalled.is_some() { How::Either } else { How::Fin };
        let mut ended = Ended::relayed(open, [Some(how); 2], "drained", "us", Some(reason));
        // What is removed has time to drain, and after an upgrade until it moves.
        ended.is_perhaps_completed = reason == REMOVED && open.stalled.is_some() && open.finished == [true; 2];
        self.end(number, ended);
    }

    /// Those that an operator means.
    pub fn matching(&self, filter: Filter) -> Vec<usize> {
        let matches = |number: usize, open: &Open| match filter {
            Filter::All => true,
            Filter::Route(kind) => open.route.kind == kind,
            Filter::Endpoint(endpoint) => open.endpoint == endpoint,
            Filter::Client(client) => number == client,
        };
        self.open_here().filter(|(number, open)| matches(*number, open)).map(|(number, _)| number).collect()
    }

    fn drain(&mut self, kind: Kind, endpoint: Option<usize>) -> bool {
        let Some(route) = self.config.route(kind) else { return false };
        if endpoint.is_some_and(|endpoint| !route.has(endpoint)) {
            return false;
        }
        match (self.drains.get_mut(kind.name()), endpoint) {
            (Some(Drain::All), _) => {}
            (Some(Drain::Some(some)), Some(endpoint)) => _ = some.insert(endpoint),
            (None, Some(endpoint)) => _ = self.drains.insert(kind.name(), Drain::Some([endpoint].into())),
            (_, None) => _ = self.drains.insert(kind.name(), Drain::All),
        }
        true
    }

    fn resume(&mut self, kind: Kind, endpoint: Option<usize>) -> bool {
        let (drain, is_configured) = (self.drains.get_mut(kind.name()), self.config.route(kind).is_some());
        match (drain, endpoint) {
            (Some(Drain::All), Some(_)) => false,
            (Some(Drain::Some(some)), Some(endpoint)) => {
                let was_drained = some.remove(&endpoint);
                if some.is_empty() {
                    self.drains.remove(kind.name());
                }
                was_drained || is_configured
            }
            (drain, None) => {
                let was_drained = drain.is_some();
                self.drains.remove(kind.name());
                was_drained || is_configured
            }
            (None, Some(_)) => is_configured,
        }
    }
}

/// The configuration, with the endpoints that the name has.
fn resolved(config: &Config, named: &[usize]) -> Config {
    let mut config = config.clone();
    for route in config.routes.iter_mut().filter(|route| route.is_named) {
        route.endpoints = named.iter().map(|endpoint| (*endpoint, false)).collect();
    }
    config
}

impl Ended {
    fn refused(outcome: &'static str, route: &'static str, alert: Option<u8>, received: Range) -> Self {
        // Who sent no header may be one that speaks no TLS, and is not waited for.
        let end = if outcome == "proxy_header" { How::Either } else { How::Fin };
        let length = if alert.is_some() { 7 } else { 0 };
        Self {
            client: Some(Seen { bytes: length..=length, is_alert: alert, end }),
            endpoint: None,
            outcomes: vec![outcome],
            closed_by: "us",
            route,
            endpoints: Vec::new(),
            reason: None,
            bytes: [received, 0..=0],
            is_logged: IsLogged::Yes,
            is_perhaps_completed: false,
        }
    }

    fn gone(received: Range, is_logged: IsLogged, end: Option<How>) -> Self {
        Self {
            client: end.map(|end| Seen { bytes: 0..=0, is_alert: None, end }),
            outcomes: vec!["client_gone"],
            closed_by: "client",
            is_logged,
            ..Self::refused("client_gone", NO_ROUTE, None, received)
        }
    }

    /// A connection to an endpoint that resets at once.
    pub fn reset_at_once(arrival: &Arrival, route: &Route, endpoints: Vec<usize>) -> Self {
        let sent = bytes::hello(arrival).len() + arrival.early;
        Self {
            client: Some(Seen { bytes: 0..=0, is_alert: None, end: How::Reset }),
            closed_by: "upstream",
            endpoints,
            ..Self::refused("upstream_reset", route.kind.name(), None, 0..=sent)
        }
    }

    /// A connection that a reload cuts before its endpoint gets anything.
    pub fn cut_at_once(arrival: &Arrival, route: &Route, endpoints: Vec<usize>) -> Self {
        let sent = bytes::hello(arrival).len() + arrival.early;
        Self {
            client: Some(Seen { bytes: 0..=0, is_alert: None, end: How::Either }),
            endpoints,
            reason: Some(REMOVED),
            ..Self::refused("drained", route.kind.name(), None, 0..=sent)
        }
    }

    /// It may have ended when so much was sent, or any time later.
    pub fn is_cut_short(&mut self, [up, down]: [usize; 2]) {
        let lower = |range: &mut Range, least: usize| *range = least.min(*range.start())..=*range.end();
        for (seen, least) in [(&mut self.client, down), (&mut self.endpoint, up)] {
            if let Some(seen) = seen {
                lower(&mut seen.bytes, least);
                seen.end = How::Either;
            }
        }
        lower(&mut self.bytes[0], up);
        lower(&mut self.bytes[1], down);
    }

    fn relayed(
        open: &Open,
        [client, endpoint]: [Option<How>; 2],
        outcome: &'static str,
        closed_by: &'static str,
        reason: Option<&'static str>,
    ) -> Self {
        let [up, down] = open.sent;
        let to_client = if open.stalled.is_some() { 0..=down } else { down..=down };
        Self {
            client: client.map(|end| Seen { bytes: to_client.clone(), is_alert: None, end }),
            endpoint: endpoint.map(|end| Seen { bytes: up..=up, is_alert: None, end }),
            outcomes: vec![outcome],
            closed_by,
            route: open.route.kind.name(),
            endpoints: vec![open.endpoint],
            reason,
            bytes: [up..=up, to_client],
            is_logged: IsLogged::Yes,
            is_perhaps_completed: false,
        }
    }
}

impl Open {
    /// What the endpoint has sent.
    pub fn sent_by_endpoint(&self) -> usize {
        self.sent[Side::Endpoint as usize]
    }

    /// What both sides see so far.
    pub fn seen(&self) -> [Seen; 2] {
        let [up, down] = self.sent;
        let to_client = if self.stalled.is_some() { 0..=down } else { down..=down };
        let end = |is_finished: bool| if is_finished { How::Fin } else { How::Open };
        [
            Seen { bytes: to_client, is_alert: None, end: end(self.finished[1] && self.stalled.is_none()) },
            Seen { bytes: up..=up, is_alert: None, end: end(self.finished[0]) },
        ]
    }
}
