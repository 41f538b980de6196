//! Plays a script to the world and to the model, and compares them after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::bytes::{self, payload};
use super::checks;
use super::compare::{Looks, account, look};
use super::expectation::{Connection, Ended, IsLogged, Model, Range, State, Verdict};
use super::names::Names;
use super::peer::Peer;
use super::script::{Arrival, Behaviour, Operation, Route, Script, Sends, Side, Step, Transfer};
use super::world::{World, listener};
use crate::support::client::End;

/// The endpoints that the name has at first.
const FIRST_NAMED: [usize; 2] = [0, 1];

/// What differs from the model, if anything does; what takes longer than `patience` is missing.
pub fn play(script: &Script, patience: Duration, names: Option<&Names>) -> Result<(), String> {
    let world = World::start(&script.config, patience, names, &FIRST_NAMED);
    let model = Model::new(&script.config, &FIRST_NAMED);
    let mut run = Run { world, model, done: BTreeMap::new(), is_last: false };
    for (number, step) in script.steps.iter().enumerate() {
        run.step(step)
            .and_then(|()| run.settle())
            .map_err(|error| run.failed(&format!("step {}", number + 1), &error))?;
    }
    run.finish().map_err(|error| run.failed("the end", &error))?;
    run.world.stop()
}

struct Run<'n> {
    world: World<'n>,
    model: Model,
    /// Ended connections that look right, and how many lines they have in the log.
    done: BTreeMap<usize, usize>,
    /// Also those that nothing but time ends are waited for.
    is_last: bool,
}

impl Run<'_> {
    fn failed(&self, at: &str, error: &str) -> String {
        let log = self.world.router.log_since(0);
        let log: Vec<String> = log.iter().map(ToString::to_string).collect();
        format!("{at}: {error}\n{}", log.join("\n"))
    }

    /// Does it, unless it does not apply any more.
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Arrive(arrival) => self.arrive(arrival, Vec::new(), Some(self.model.process)),
            Step::Transfer(transfer) => {
                self.transfer(*transfer, true);
                Ok(())
            }
            Step::Finish(number, side) => {
                self.finish_side(*number, *side);
                Ok(())
            }
            Step::Reset(number, side) => {
                self.reset(*number, *side);
                Ok(())
            }
            Step::Stall(number) => self.stall(*number),
            Step::Read(number) => {
                self.read(*number);
                Ok(())
            }
            Step::Behave { endpoint, behaviour, dies } => self.behave(*endpoint, *behaviour, *dies),
            Step::Operate(operation) => self.operate(operation, &[], &[]),
            Step::Together { operation, transfers, arrivals } => self.operate(operation, transfers, arrivals),
            Step::Park => self.park(),
        }
    }

    /// What may become of the client by the model, and by these verdicts from before a change.
    fn arrive(&mut self, arrival: &Arrival, mut verdicts: Vec<Verdict>, process: Option<usize>) -> Result<(), String> {
        let is_meanwhile = !verdicts.is_empty();
        let verdict = self.model.verdict(arrival);
        if !verdicts.contains(&verdict) {
            verdicts.push(verdict);
        }
        if is_meanwhile {
            verdicts.iter_mut().for_each(may_reach_any);
        }
        let (hello, state) = (bytes::hello(arrival), State::Undecided(verdicts));
        let connection = Connection { arrival: *arrival, hello, process, state };
        self.model.connections.insert(arrival.number, connection);
        self.world.arrive(arrival)?;
        let client = self.world.clients.get_mut(&arrival.number).unwrap();
        match arrival.sends {
            Sends::Part(super::script::After::Fin) | Sends::Nothing => client.finish(),
            Sends::Part(super::script::After::Reset) => {
                self.world.until("a client has sent its part", |world| {
                    // Or what it was sent to has ended.
                    (!world.clients[&arrival.number].is_to_write()).then_some(())
                })?;
                reset(self.world.clients.remove(&arrival.number).unwrap());
            }
            Sends::Part(super::script::After::Silence) | Sends::Garbage | Sends::Hello => {}
        }
        Ok(())
    }

    fn transfer(&mut self, Transfer { connection, up, down }: Transfer, is_certain: bool) {
        let Some((_, Connection { hello, .. }, open)) = self.model.open().find(|(number, ..)| *number == connection)
        else {
            return;
        };
        if open.stalled.is_some() {
            return;
        }
        let more = [(Side::Client, up), (Side::Endpoint, down)]
            .map(|(side, length)| if open.finished[side as usize] { 0 } else { length });
        let from = [open.sent[0] - hello.len(), open.sent_by_endpoint()];
        for side in [Side::Client, Side::Endpoint] {
            let bytes = payload(connection, side, from[side as usize], more[side as usize]);
            self.peer(connection, side).send(bytes);
        }
        self.model.transferred(connection, more, is_certain);
    }

    fn peer(&mut self, number: usize, side: Side) -> &mut Peer {
        let peers = match side {
            Side::Client => &mut self.world.clients,
            Side::Endpoint => &mut self.world.upstreams,
        };
        peers.get_mut(&number).unwrap()
    }

    fn finish_side(&mut self, number: usize, side: Side) {
        let Some(open) = self.model.open_mut(number) else { return };
        if !open.finished[side as usize] {
            self.peer(number, side).finish();
            self.model.finish(number, side);
        }
    }

    fn reset(&mut self, number: usize, side: Side) {
        if self.model.open_mut(number).is_none() {
            return;
        }
        let peers = match side {
            Side::Client => &mut self.world.clients,
            Side::Endpoint => &mut self.world.upstreams,
        };
        reset(peers.remove(&number).unwrap());
        self.model.reset(number, side);
        self.listen(number);
    }

    /// Who does not read sees no end.
    fn listen(&mut self, number: usize) {
        if let Some(client) = self.world.clients.get_mut(&number) {
            client.is_reading = true;
        }
    }

    fn stall(&mut self, number: usize) -> Result<(), String> {
        const PART: usize = 64 * 1024;
        /// More than all buffers on the way.
        const MOST: usize = 64 << 20;
        let Some(open) = self.model.open_mut(number) else { return Ok(()) };
        if open.stalled.is_some() || open.finished[Side::Endpoint as usize] {
            return Ok(());
        }
        let begun = open.sent_by_endpoint();
        self.peer(number, Side::Client).is_reading = false;
        let (mut sent, mut idle) = (0, 0);
        // Until nothing has moved for a while, so that the router holds bytes that it cannot pass on.
        while idle < 25 {
            let upstream = self.peer(number, Side::Endpoint);
            if upstream.has_sent_all() {
                if sent > MOST {
                    return Err(format!("connection {number}: {sent} bytes are taken for a client that reads none"));
                }
                upstream.send(payload(number, Side::Endpoint, begun + sent, PART));
                sent += PART;
            }
            idle = if self.world.advance() { 0 } else { idle + 1 };
        }
        sent -= self.peer(number, Side::Endpoint).send_no_more();
        self.model.stall(number, sent);
        Ok(())
    }

    fn read(&mut self, number: usize) {
        if self.model.open_mut(number).is_some_and(|open| open.stalled.is_some()) {
            self.model.read(number);
            self.listen(number);
        }
    }

    fn behave(&mut self, endpoint: usize, behaviour: Behaviour, dies: bool) -> Result<(), String> {
        self.world.endpoints[endpoint].behave(behaviour);
        self.model.behave(endpoint, behaviour);
        let of_it = self.model.open().filter(|(_, _, open)| dies && open.endpoint == endpoint);
        let of_it: Vec<usize> = of_it.map(|(number, ..)| number).collect();
        of_it.into_iter().for_each(|number| self.reset(number, Side::Endpoint));
        self.world.has_noticed(&self.model.expected_health())
    }

    fn operate(&mut self, operation: &Operation, transfers: &[Transfer], arrivals: &[Arrival]) -> Result<(), String> {
        let is_upgrade = matches!(operation, Operation::Upgrade | Operation::UpgradeTo(_));
        // What stays in an old process for a while would follow the next configuration or the one after it, and is closed
        // here or not at all.
        let depends = is_upgrade || matches!(operation, Operation::Reload(_) | Operation::Close(_));
        if depends && self.model.has_straggler() {
            return Ok(());
        }
        let before: BTreeMap<usize, [usize; 2]> =
            self.model.open().map(|(number, _, open)| (number, open.sent)).collect();
        transfers.iter().for_each(|transfer| self.transfer(*transfer, false));
        let expected_count = match operation {
            Operation::Close(filter) => Some(self.model.matching(*filter).len() as u64),
            _ => None,
        };
        // Clients that arrive meanwhile get what they got before or what they get after it.
        let may_arrive = !matches!(operation, Operation::Close(_) | Operation::UpgradeTo(_));
        let arrivals: Vec<(Arrival, Verdict)> = arrivals
            .iter()
            .filter(|arrival| may_arrive && arrival.sends == Sends::Hello)
            .map(|arrival| (*arrival, self.model.verdict(arrival)))
            .collect();
        let expected = self.model.operate(operation);
        for (arrival, verdict) in arrivals {
            let process = (!is_upgrade).then_some(self.model.process);
            self.arrive(&arrival, vec![verdict], process)?;
        }
        for Transfer { connection, .. } in transfers {
            if let (Some(before), Some(connection)) =
                (before.get(connection), self.model.connections.get_mut(connection))
                && let State::Ended(ended) = &mut connection.state
            {
                ended.is_cut_short(*before);
            }
        }
        let ended: Vec<usize> = self
            .model
            .connections
            .iter()
            .filter_map(|(number, connection)| matches!(connection.state, State::Ended(_)).then_some(*number))
            .collect();
        let lines = self.world.router.log_since(0).len();
        let (succeeded, count) = self.world.operate(operation)?;
        self.world.has_resolved(&self.model.config)?;
        self.world.has_noticed(&self.model.expected_health())?;
        if is_upgrade && succeeded && self.model.has_left_behind() {
            // Until then, a route that comes back may have its connections again.
            self.world.has_moved(lines)?;
        }
        ended.into_iter().for_each(|number| self.listen(number));
        if succeeded != expected {
            return Err(format!("{operation}: succeeded {succeeded}, expected {expected}"));
        }
        if expected_count.is_some() && count != expected_count {
            return Err(format!("{operation}: {count:?} connections matched, expected {expected_count:?}"));
        }
        self.settle()?;
        self.audit()
    }

    fn park(&mut self) -> Result<(), String> {
        let is_silent = |open: &super::expectation::Open| open.stalled.is_none() && open.closed_first.is_none();
        let expected = self.model.open_here().filter(|(_, open)| is_silent(open)).count();
        let parked = |world: &mut World<'_>| world.metrics()?.get("snigate_connections_parked").copied();
        let mut last = None;
        self.world
            .until("parked", |world| {
                last = parked(world);
                (last? as usize == expected).then_some(())
            })
            .map_err(|error| format!("{error}: {last:?} parked, expected {expected}"))?;
        self.audit()
    }

    /// Moves bytes until all that is expected is observed.
    fn settle(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + self.world.patience;
        loop {
            let Some(missing) = self.compare()? else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(format!("not within {:?}: {missing}", self.world.patience));
            }
            self.world.advance();
        }
    }

    /// What is still missing; an error is what must not be.
    fn compare(&mut self) -> Result<Option<String>, String> {
        self.recognise()?;
        self.world.read_lines();
        let mut missing = None;
        let numbers: Vec<usize> = self.model.connections.keys().copied().collect();
        for number in numbers {
            let looks = self.compare_one(number).map_err(|error| format!("connection {number}: {error}"))?;
            if let Looks::Incomplete(what) = looks {
                missing.get_or_insert(format!("connection {number}: {what}"));
            }
        }
        Ok(missing)
    }

    fn compare_one(&mut self, number: usize) -> Result<Looks, String> {
        let Connection { arrival, hello, state, .. } = &self.model.connections[&number];
        let lines = self.world.lines.get(&number).map_or(&[][..], Vec::as_slice);
        let client = self.world.clients.get(&number);
        let upstream = self.world.upstreams.get(&number);
        match state {
            State::Undecided(verdicts) => {
                let Some(decided) =
                    decided(arrival, verdicts, client, lines, &self.model.behaviours, &self.world.nameless)?
                else {
                    let is_awaited = self.is_last || arrival.sends != Sends::Part(super::script::After::Silence);
                    let what = format!("expected one of {verdicts:?}, seen {}", seen(client));
                    return Ok(if is_awaited { Looks::Incomplete(what) } else { Looks::Right });
                };
                self.model.ended(number, decided);
                self.compare_one(number)
            }
            State::Open(open) => {
                if let Some(line) = lines.first() {
                    return Err(format!("has ended, although nothing ends it: {line}"));
                }
                let [to_client, to_endpoint] = open.seen();
                let client = look("the client", client.unwrap(), &to_client, number, Side::Endpoint, &[])?;
                let upstream = look("the endpoint", upstream.unwrap(), &to_endpoint, number, Side::Client, hello)?;
                Ok(client.and(upstream))
            }
            // A second line would be too many.
            State::Ended(_) if self.done.get(&number) == Some(&lines.len()) => Ok(Looks::Right),
            State::Ended(ended) => {
                let mut looks = Looks::Right;
                if let (Some(seen), Some(peer)) = (&ended.client, client) {
                    looks = looks.and(look("the client", peer, seen, number, Side::Endpoint, &[])?);
                }
                if let (Some(seen), Some(peer)) = (&ended.endpoint, upstream) {
                    looks = looks.and(look("the endpoint", peer, seen, number, Side::Client, hello)?);
                }
                match (lines, ended.is_logged) {
                    ([], IsLogged::Yes) => return Ok(looks.and(Looks::Incomplete("its line".into()))),
                    ([], IsLogged::No | IsLogged::Perhaps) => {}
                    ([line], IsLogged::Yes | IsLogged::Perhaps) => {
                        let endpoints: Vec<String> = ended
                            .endpoints
                            .iter()
                            .map(|index| self.world.endpoints[*index].address.to_string())
                            .collect();
                        account(line, arrival, ended, &endpoints, client, upstream)?;
                    }
                    _ => return Err(format!("{} lines: {lines:?}", lines.len())),
                }
                if looks.is_right() {
                    self.world.clients.remove(&number);
                    self.world.upstreams.remove(&number);
                    self.done.insert(number, lines.len());
                }
                Ok(looks)
            }
        }
    }

    /// Finds out which clients the new connections to endpoints are of.
    fn recognise(&mut self) -> Result<(), String> {
        for (endpoint, mut peer) in std::mem::take(&mut self.world.strangers) {
            let Some((number, routes, length)) = self.whose(endpoint, &peer)? else {
                // A health check ends without a hello, and so may a connection that is cut at once.
                if peer.end.is_none() {
                    self.world.strangers.push((endpoint, peer));
                } else {
                    self.world.nameless.insert(peer.addresses[1].to_string());
                }
                continue;
            };
            let route = match &routes[..] {
                [route] => route.clone(),
                // Before and after a change it gets there in different ways.
                routes => match self.route_of(number, routes) {
                    Some(route) => route,
                    None => {
                        self.world.strangers.push((endpoint, peer));
                        continue;
                    }
                },
            };
            peer.received.drain(..length);
            peer.send(payload(number, Side::Endpoint, 0, bytes::ANSWER));
            self.world.upstreams.insert(number, peer);
            self.model.connected(number, route, endpoint);
            self.listen(number);
        }
        Ok(())
    }

    /// The client, by which routes it can have come, and how long the PROXY header is.
    fn whose(&self, endpoint: usize, peer: &Peer) -> Result<Option<(usize, Vec<Route>, usize)>, String> {
        let mut may_be = checks::HEADER.starts_with(&peer.received);
        for (number, Connection { hello, state, .. }) in &self.model.connections {
            let State::Undecided(verdicts) = state else { continue };
            let mut routes: Vec<Route> = Vec::new();
            let mut length = 0;
            for verdict in verdicts {
                let Verdict::Served { route, by } = verdict else { continue };
                if !by.contains(&endpoint) {
                    continue;
                }
                let header = if route.sends_header { self.header_to_endpoint(*number) } else { Vec::new() };
                let first = [&header[..], hello].concat();
                if peer.received.starts_with(&first) {
                    length = header.len();
                    if routes.iter().all(|other| other.kind != route.kind) {
                        routes.push(route.clone());
                    }
                }
                may_be |= first.starts_with(&peer.received);
            }
            if !routes.is_empty() {
                return Ok(Some((*number, routes, length)));
            }
        }
        if may_be {
            return Ok(None);
        }
        let begin = &peer.received[..peer.received.len().min(120)];
        Err(format!("e{endpoint} got a connection that no client should have there: {}", begin.escape_ascii()))
    }

    fn header_to_endpoint(&self, number: usize) -> Vec<u8> {
        let arrival = &self.model.connections[&number].arrival;
        let is_proxied = listener(arrival) == "proxied";
        let own = self.world.clients.get(&number).map(|client| client.addresses[0]);
        let source = if is_proxied { Some(bytes::proxied(arrival)) } else { own };
        let destination = bytes::destination(arrival, self.world.listener(arrival));
        source.map(|source| bytes::header_v1(source, destination)).unwrap_or_default()
    }

    fn route_of(&mut self, number: usize, routes: &[Route]) -> Option<Route> {
        let arrival = &self.model.connections[&number].arrival;
        let address = if listener(arrival) == "proxied" {
            bytes::proxied(arrival).ip().to_string()
        } else {
            bytes::source(arrival).to_string()
        };
        // It may have ended since.
        let line = self.world.lines.get(&number).and_then(|lines| lines.first());
        let name = match line {
            Some(line) => line["route"].as_str()?.to_owned(),
            None => {
                let listed = self.world.ask(&format!("/connections?client={address}"))?;
                let listed: serde_json::Value = serde_json::from_str(&listed).ok()?;
                listed["connections"][0]["route"].as_str()?.to_owned()
            }
        };
        routes.iter().find(|route| route.kind.name() == name).cloned()
    }

    /// What is counted is what has happened.
    fn audit(&mut self) -> Result<(), String> {
        let expected = self.expected_series();
        let mut wrong = String::new();
        let is_right = |world: &mut World<'_>| {
            let metrics = world.metrics()?;
            wrong.clear();
            for (name, range) in &expected {
                let values = metrics.iter().filter(|(series, _)| series.starts_with(name.as_str()));
                let value = values.map(|(_, value)| *value as usize).sum::<usize>();
                if !range.contains(&value) {
                    wrong += &format!("; {name} is {value}, expected {range:?}");
                }
            }
            wrong.is_empty().then_some(())
        };
        self.world.until("counters", is_right).map_err(|error| format!("{error}{wrong}"))
    }

    /// By how series begin: the sum of their values.
    fn expected_series(&self) -> BTreeMap<String, Range> {
        let model = &self.model;
        let mut expected = BTreeMap::new();
        let is_ended = |connection: &&Connection| matches!(connection.state, State::Ended(_));
        let ended = model.connections.values().filter(is_ended);
        let here = ended.clone().filter(|connection| connection.process == Some(model.process)).count();
        let unknown = ended.filter(|connection| connection.process.is_none()).count();
        let undecided =
            model.connections.values().filter(|connection| matches!(connection.state, State::Undecided(_))).count();
        expected.insert("snigate_connections_total{".into(), here..=here + unknown + undecided);
        for kind in super::script::KINDS {
            let name = kind.name();
            let open: Vec<_> = model.open_here().filter(|(_, open)| open.route.kind == kind).collect();
            let stragglers: Vec<_> = model.stragglers().filter(|(_, open, _)| open.route.kind == kind).collect();
            let count = open.len();
            expected.insert(format!("snigate_connections_active{{route=\"{name}\""), count..=count + stragglers.len());
            for (index, endpoint) in self.world.endpoints.iter().enumerate() {
                let count = open.iter().filter(|(_, open)| open.endpoint == index).count();
                let most = count + stragglers.iter().filter(|(_, open, _)| open.endpoint == index).count();
                let series =
                    format!("snigate_endpoint_connections{{route=\"{name}\",endpoint=\"{}\"", endpoint.address);
                // Series of endpoints go with their route.
                let least = if model.config.route(kind).is_some() { count } else { 0 };
                expected.insert(series, least..=most);
            }
            let none = [0..=0, 0..=0];
            let bytes = model.relayed.get(name).unwrap_or(&none);
            let on_the_way: usize = stragglers.iter().map(|(.., bytes)| bytes).sum();
            for (direction, range, more) in [("received", &bytes[0], 0), ("sent", &bytes[1], on_the_way)] {
                let range = *range.start()..=range.end() + more;
                expected.insert(format!("snigate_bytes_total{{route=\"{name}\",direction=\"{direction}\""), range);
            }
        }
        expected
    }

    /// All end in order.
    fn finish(&mut self) -> Result<(), String> {
        let open: Vec<usize> = self.model.open().map(|(number, ..)| number).collect();
        for number in &open {
            self.read(*number);
        }
        self.settle()?;
        for number in &open {
            self.transfer(Transfer { connection: *number, up: 5, down: 5 }, true);
        }
        self.settle()?;
        // One side after the other: of two FINs at once, either may be seen first.
        for side in [Side::Client, Side::Endpoint] {
            open.iter().for_each(|number| self.finish_side(*number, side));
            self.is_last = side == Side::Endpoint;
            self.settle()?;
        }
        self.audit()
    }
}

/// While an operation is carried out, the router may not know yet that an endpoint is unready, or take one for a backup that
/// is none any more, or the other way round.
fn may_reach_any(verdict: &mut Verdict) {
    if let Verdict::Served { route, by } = verdict {
        by.extend(route.endpoints.iter().map(|(endpoint, _)| *endpoint));
    }
}

/// Which of the verdicts it is that ends the connection.
fn decided(
    arrival: &Arrival,
    verdicts: &[Verdict],
    client: Option<&Peer>,
    lines: &[serde_json::Value],
    behaviours: &[Behaviour],
    nameless: &BTreeSet<String>,
) -> Result<Option<Ended>, String> {
    for verdict in verdicts {
        match verdict {
            Verdict::Ends(ended) => match lines {
                [] if ended.is_logged == IsLogged::Yes => {}
                [] => return Ok(Some(ended.clone())),
                [line, ..] => {
                    let is_it = ended.outcomes.iter().any(|outcome| line["outcome"] == *outcome);
                    if is_it && line["route"] == ended.route {
                        return Ok(Some(ended.clone()));
                    }
                }
            },
            Verdict::Served { route, by } => {
                let resetting: Vec<usize> =
                    by.iter().copied().filter(|endpoint| behaviours[*endpoint] == Behaviour::Resets).collect();
                let is_reset = client.is_some_and(|client| client.end == Some(End::Reset));
                if is_reset && !resetting.is_empty() && lines.iter().any(|line| line["outcome"] == "upstream_reset") {
                    return Ok(Some(Ended::reset_at_once(arrival, route, resetting)));
                }
                let is_cut = |line: &&serde_json::Value| {
                    let reached = line["upstream.local.address"].as_str();
                    line["outcome"] == "drained" && reached.is_some_and(|reached| nameless.contains(reached))
                };
                if lines.iter().find(is_cut).is_some_and(|line| line["route"] == route.kind.name()) {
                    return Ok(Some(Ended::cut_at_once(arrival, route, by.clone())));
                }
            }
        }
    }
    // Whose endpoint is still to be found.
    let was_served = |line: &serde_json::Value| line["outcome"] == "upstream_reset" || line["outcome"] == "drained";
    let is_wrong = !lines.is_empty() && !lines.iter().any(was_served);
    if is_wrong {
        return Err(format!("expected one of {verdicts:?}, seen {}, logged {lines:?}", seen(client)));
    }
    Ok(None)
}

fn seen(client: Option<&Peer>) -> String {
    client
        .map_or_else(|| "nothing".into(), |client| format!("{} bytes and end {:?}", client.received.len(), client.end))
}

fn reset(peer: Peer) {
    crate::support::backend::reset(peer.stream);
}
