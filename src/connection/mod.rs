//! The story of a connection: admit → read hello → route → admit → connect → relay → account.

pub(crate) mod admission;
pub(crate) mod read_hello;
pub(crate) mod registry;
pub(crate) mod reject;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client_hello::{ClientHello, IpLiteral};
use crate::connection::admission::{Networks, Seat, SourceLimits, Sources, Table};
use crate::connection::read_hello::Hello;
use crate::connection::registry::{Member, Message, Order, Wait};
use crate::connection::reject::{Refusal, Refuse};
use crate::proxy_protocol::{self, Named};
use crate::relay::{self, Command, Deadlines, Ending, Engine, Event, Side};
use crate::route::{Client, RouteTable};
use crate::server_hello::Answer;
use crate::telemetry::{Account, ClosedBy, Facts, Listener, Outcome, RouteCounters, canonical, escape};
use crate::upstream::{Connected, Upstream};

/// All that a connection needs to know when it arrives; it never changes.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Where it arrived, and is counted.
    pub(crate) listener: Arc<Listener>,
    /// The number by which routes know the listener.
    pub(crate) number: usize,
    /// How clients are refused there.
    pub(crate) refuse: Refuse,
    /// Who may connect there, and must name the client in a PROXY header; `None`: clients connect themselves.
    pub(crate) balancers: Option<Networks>,
    /// What an address in place of a name is there.
    pub(crate) ip_literal: IpLiteral,
    /// From where clients may come.
    pub(crate) sources: Sources,
    /// And how many.
    pub(crate) source_limits: SourceLimits,
    /// What they have.
    pub(crate) source_table: Arc<Table>,
    /// Who goes where.
    pub(crate) routes: Arc<RouteTable<Arc<Route>>>,
    /// From accept to the whole hello.
    pub(crate) hello_timeout: Duration,
    /// The largest hello, in raw bytes.
    pub(crate) hello_limit: usize,
    /// For the relay.
    pub(crate) deadlines: Arc<Deadlines>,
    /// For the relay.
    pub(crate) engine: Engine,
}

impl Snapshot {
    /// Whether a client may come in at all.
    fn admit(&self, client: IpAddr) -> Result<Option<Box<Seat>>, Refusal> {
        if !self.sources.admit(client) {
            return Err(Refusal::because(Outcome::Denied, "its address is not allowed at this listener"));
        }
        let seat = self.source_table.enter(client, &self.source_limits);
        // Small in the task of each connection, whether there is a limit or not.
        seat.map(|seat| seat.map(Box::new)).map_err(|excess| Refusal::because(Outcome::OverLimit, excess.to_string()))
    }
}

/// A route's target.
#[derive(Debug)]
pub(crate) struct Route {
    /// From where its clients may come.
    pub(crate) sources: Sources,
    /// How many connections it may have.
    pub(crate) max_connections: Option<u32>,
    /// Where it leads.
    pub(crate) upstream: Upstream,
    /// Where it is counted.
    pub(crate) counters: Arc<RouteCounters>,
    /// Of its configuration.
    pub(crate) digest: u64,
}

impl Route {
    /// Whether it serves this client, which makes so many connections.
    fn admit(&self, client: IpAddr, connections: i64) -> Result<(), Refusal> {
        if !self.sources.admit(client) {
            return Err(Refusal::because(Outcome::Denied, "its address is not allowed for this route"));
        }
        match self.max_connections {
            Some(limit) if connections > limit.into() => Err(Refusal::because(
                Outcome::OverLimit,
                format!("the route has its {limit} connections already (max_connections)"),
            )),
            _ => Ok(()),
        }
    }
}

/// Serves one accepted connection until it has ended, or its `membership` says that it must, and only then drops its
/// `permit`. (An `async fn` would keep room for its arguments twice, for as long as it waits.)
pub(crate) fn serve<P: Send>(
    client: TcpStream,
    peer: SocketAddr,
    snapshot: Arc<Snapshot>,
    mut membership: Member,
    permit: P,
) -> impl Future<Output = ()> + Send {
    let (refuse, engine, deadlines) = (snapshot.refuse, snapshot.engine, Arc::clone(&snapshot.deadlines));
    let mut account = Account::open(&snapshot.listener, canonical(peer));
    async move {
        let waiting = membership.wait(Wait::Hello);
        // Boxed, as is all that is over when bytes are relayed.
        let mut hello = Box::new(Hello::new(snapshot.hello_limit));
        let way = Box::pin(async {
            let deadline = Instant::now() + snapshot.hello_timeout;
            let named = if let Some(balancers) = &snapshot.balancers {
                let named = introduce(&client, balancers, &mut hello, account.source(), deadline).await?;
                named.inspect(|named| account.speaks_for(named.source))
            } else {
                None
            };
            let seat = snapshot.admit(account.source())?;
            hello.read(&client, deadline).await?;
            drop(waiting);
            account.hello_read();
            let hello = hello.parse(snapshot.ip_literal)?;
            account.learn(|facts| note(&hello, facts));

            let asked = Client { server_name: hello.server_name, alpn: hello.alpn.ok(), listener: snapshot.number };
            let route = snapshot.routes.find(&asked).ok_or_else(|| unrouted(&asked, &snapshot.routes))?.target;
            let connections = account.routed(&route.counters);
            route.admit(account.source(), connections)?;

            let start = Instant::now();
            let Connected { stream: upstream, local, place, passed_over } = tokio::select! {
                connected = route.upstream.connect() => connected?,
                () = reset(&client) => return Err(Outcome::ClientGone.into()),
            };
            account.connected(start.elapsed(), place.endpoint().address, local);
            account.learn(|facts| facts.reason = passed_over.map(|failure| failure.to_string().into()));
            if let Some(version) = route.upstream.setup().settings.proxy_protocol {
                announce(&upstream, version, &client, account.client(), named, &asked)?;
            }
            Ok::<_, Refusal>((upstream, place, seat))
        });
        let connected = tokio::select! {
            result = way => result,
            order = &mut membership => Err(refusal_of(order)),
        };
        let (upstream, place, _) = match &connected {
            Ok(connected) => connected,
            Err(refusal) => {
                account.refused(hello.received());
                drop(hello);
                let refuse = if membership.order() == Order::Crowded { Refuse::Reset } else { refuse };
                let lingering = membership.wait(Wait::Leave);
                tokio::select! {
                    () = Box::pin(refusal.deliver(client, refuse)) => {}
                    _ = &mut membership => {}
                }
                drop(lingering);
                account.end(refusal.outcome, refusal.closed_by());
                account.learn(|facts| refusal.note(facts));
                return;
            }
        };

        membership.reached(place.endpoint().id);
        // A stream of days must not keep an old configuration alive.
        drop(snapshot);
        let happens = |event: Event<'_>| match event {
            Event::Delivered(Side::Client, bytes) => account.received(bytes),
            Event::Delivered(Side::Upstream, bytes) => account.sent(bytes),
            Event::Answered(bytes) => {
                place.answered();
                account.answered(Answer::parse(bytes));
            }
            Event::Unanswered => {
                if account.complains() {
                    place.did_not_answer("no answer to a ClientHello in time");
                }
            }
        };
        let commands = |cx: &mut Context<'_>| {
            membership.poll_message(cx).map(|message| match message {
                Message::End(_) => Command::Stop,
                Message::Probe(since) => Command::Probe(since),
            })
        };
        let hello = hello.into_bytes();
        let ending = relay::copy_bidirectional(&client, upstream, engine, hello, &deadlines, commands, happens).await;
        let has_left = matches!(
            ending,
            Ending::Closed(Side::Upstream) | Ending::ClosedThenReset(Side::Upstream) | Ending::Reset(Side::Upstream)
        );
        if has_left && account.complains() {
            place.did_not_answer("closed without an answer to a ClientHello");
        }
        drop((client, connected, permit));
        let (outcome, closed_by) = outcome_of(ending, membership.order());
        account.end(outcome, closed_by);
        account.learn(|facts| facts.reason = why_closed(ending, membership.order()).or(facts.reason.take()));
    }
}

/// Whom the balancer that has connected speaks for, if it does not speak for itself.
async fn introduce(
    client: &TcpStream,
    balancers: &Networks,
    hello: &mut Hello,
    peer: IpAddr,
    deadline: Instant,
) -> Result<Option<Named>, Refusal> {
    if !balancers.contains(peer) {
        return Err(Refusal::because(Outcome::ProxyHeader, "it is none of those in accept_proxy"));
    }
    Ok(hello.read_proxy_header(client, deadline).await?)
}

/// Tells the endpoint who the client is, before anything that the client has said.
fn announce(
    upstream: &TcpStream,
    version: proxy_protocol::Version,
    client: &TcpStream,
    source: SocketAddr,
    named: Option<Named>,
    asked: &Client<'_>,
) -> Result<(), Refusal> {
    let arrived_at = named.map(|named| named.destination).or_else(|| client.local_addr().ok());
    let header = arrived_at.map(|destination| {
        let named = Named { source, destination: canonical(destination) };
        let alpn = asked.alpn.map(|alpn| alpn.as_list());
        proxy_protocol::Client { named, server_name: asked.server_name, alpn }
    });
    let header = proxy_protocol::header(version, header.as_ref());
    // It travels with the hello, which follows at once; both fit into the empty buffer of a new connection.
    match rustix::net::send(upstream, &header, SendFlags::MORE | SendFlags::NOSIGNAL) {
        Ok(sent) if sent == header.len() => Ok(()),
        _ => Err(Refusal::because(Outcome::ConnectRefused, "the endpoint did not take the PROXY header")),
    }
}

/// What the log line will say of the hello.
fn note(hello: &ClientHello<'_>, facts: &mut Facts) {
    let literal = || hello.ip_literal.map(|address| address.to_string().into());
    facts.server_name = hello.server_name.map(|name| name.to_string().into()).or_else(literal);
    facts.next_protocol = hello.alpn.ok().map(|offered| {
        let protocols: Vec<&[u8]> = offered.iter().collect();
        escape(&protocols.join(&b','))
    });
    facts.protocol_version = Some(hello.highest_version());
}

/// Why no route takes it.
fn unrouted(client: &Client<'_>, routes: &RouteTable<Arc<Route>>) -> Refusal {
    let (outcome, reason) = match client.server_name {
        Some(name) if routes.knows(name) => {
            (Outcome::UnknownName, "the routes that have the name do not take its `alpn` or `listener`")
        }
        Some(_) => (Outcome::UnknownName, "no route has the name"),
        None => (Outcome::NoName, "it sent no server name, and there is no route without `sni`"),
    };
    Refusal::because(outcome, reason)
}

/// Until the client resets the connection. A FIN is no reset: it may still want the answer.
async fn reset(client: &TcpStream) {
    if client.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the log says of a connection that was closed here, besides its outcome.
fn why_closed(ending: Ending, order: Order) -> Option<Box<str>> {
    match (ending, order) {
        (Ending::Stopped, Order::Removed) => Some("a reload has removed its route or endpoint".into()),
        (Ending::ProbeUnanswered, _) => Some("the endpoint is dead and does not acknowledge this connection".into()),
        _ => None,
    }
}

fn outcome_of(ending: Ending, order: Order) -> (Outcome, ClosedBy) {
    let by = |side| match side {
        Side::Client => ClosedBy::Client,
        Side::Upstream => ClosedBy::Upstream,
    };
    match ending {
        Ending::Closed(side) | Ending::ClosedThenReset(side) => (Outcome::Completed, by(side)),
        Ending::Reset(side @ Side::Client) => (Outcome::ClientReset, by(side)),
        Ending::Reset(side @ Side::Upstream) => (Outcome::UpstreamReset, by(side)),
        Ending::Dead(side) => (Outcome::PeerDead, by(side)),
        Ending::IdleTimeout => (Outcome::IdleTimeout, ClosedBy::Us),
        Ending::HalfCloseTimeout => (Outcome::HalfCloseTimeout, ClosedBy::Us),
        Ending::ProbeUnanswered => (Outcome::CutEndpoint, ClosedBy::Us),
        Ending::Stopped => match order {
            Order::Drain | Order::Removed => (Outcome::Drained, ClosedBy::Us),
            Order::Crowded => (Outcome::OverLimit, ClosedBy::Us),
        },
    }
}

/// Of a connection that has reached no endpoint yet.
fn refusal_of(order: Order) -> Refusal {
    match order {
        Order::Drain | Order::Removed => Outcome::Drained.into(),
        Order::Crowded => Refusal::because(
            Outcome::OverLimit,
            "limits.connections is reached, and of those who have sent no hello it had waited longest",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::registry::Roster;
    use crate::telemetry::Counters;

    /// A task has 112 bytes more and is a multiple of 128: one byte here can be 128 for every idle connection.
    #[tokio::test]
    async fn an_idle_connection_is_small() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let deadlines = Deadlines { idle: Duration::MAX, half_close: Duration::MAX, stalled: Duration::MAX };
        let snapshot = Snapshot {
            listener: Arc::new(Counters::new(0)).listener("api"),
            number: 0,
            refuse: Refuse::Alert,
            balancers: None,
            ip_literal: IpLiteral::NoName,
            sources: Sources::default(),
            source_limits: SourceLimits::default(),
            source_table: Arc::default(),
            routes: Arc::default(),
            hello_timeout: Duration::MAX,
            hello_limit: 0,
            deadlines: Arc::new(deadlines),
            engine: Engine::Auto,
        };
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let member = Arc::new(Roster::default()).enter();
        let task = serve(accepted.unwrap().0, client.unwrap().local_addr().unwrap(), snapshot.into(), member, permit);
        assert!(size_of_val(&task) <= 784, "{}", size_of_val(&task));
    }
}
