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
use crate::connection::admission::{Networks, SourceLimits, SourcePermit, Sources, Table};
use crate::connection::read_hello::Hello;
use crate::connection::registry::{CloseReason, Handle, Message, Wait};
use crate::connection::reject::{RejectWith, Rejection};
use crate::proxy_protocol::{self, Named};
use crate::relay::{self, Command, Deadlines, Ending, Engine, Event, Side};
use crate::route::{Client, RouteTable};
use crate::server_hello::Answer;
use crate::telemetry::{ClosedBy, ConnectionRecord, Listener, LogFields, Outcome, RouteCounters, canonical, escape};
use crate::upstream::{Connected, EndpointSlot, Upstream};

/// What a connection needs to know when it arrives. Never changes: a reload makes another one.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Where it arrived, and is counted.
    pub(crate) listener: Arc<Listener>,
    /// The listener's position in the configuration, by which routes match it.
    pub(crate) listener_index: usize,
    /// How rejected clients are notified.
    pub(crate) reject_with: RejectWith,
    /// The balancers that may connect here, and must send a PROXY header; `None`: clients connect directly.
    pub(crate) balancers: Option<Networks>,
    /// How an IP address in the server name extension is treated.
    pub(crate) ip_literal: IpLiteral,
    /// The clients that this listener admits.
    pub(crate) sources: Sources,
    /// How many connections a source may have.
    pub(crate) source_limits: SourceLimits,
    /// How many each source has.
    pub(crate) source_table: Arc<Table>,
    pub(crate) routes: Arc<RouteTable<Arc<Route>>>,
    /// From accept to the complete hello.
    pub(crate) hello_timeout: Duration,
    /// The largest hello, in raw bytes.
    pub(crate) hello_limit: usize,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) engine: Engine,
}

impl Snapshot {
    /// Admits a client to the listener, whatever its route.
    fn admit(&self, client: IpAddr) -> Result<Option<Box<SourcePermit>>, Rejection> {
        if !self.sources.admit(client) {
            return Err(Rejection::because(Outcome::Denied, "the client's address is not allowed at this listener"));
        }
        let permit = self.source_table.enter(client, &self.source_limits);
        // Boxed, to be small in the task of each connection, whether there is a limit or not.
        permit
            .map(|permit| permit.map(Box::new))
            .map_err(|excess| Rejection::because(Outcome::OverLimit, excess.to_string()))
    }
}

/// What the route table leads to.
#[derive(Debug)]
pub(crate) struct Route {
    /// The clients that this route admits.
    pub(crate) sources: Sources,
    pub(crate) max_connections: Option<u32>,
    pub(crate) upstream: Upstream,
    pub(crate) counters: Arc<RouteCounters>,
    /// Identifies its configuration.
    pub(crate) digest: u64,
}

impl Route {
    /// Admits a client to the route, which has so many connections with this one.
    fn admit(&self, client: IpAddr, connections: i64) -> Result<(), Rejection> {
        if !self.sources.admit(client) {
            return Err(Rejection::because(Outcome::Denied, "the client's address is not allowed for this route"));
        }
        match self.max_connections {
            Some(limit) if connections > limit.into() => {
                Err(Rejection::because(Outcome::OverLimit, format!("the route has reached max_connections: {limit}")))
            }
            _ => Ok(()),
        }
    }
}

/// Serves one accepted connection until it has ended, or `handle` receives the message to close it, and only then drops its
/// `permit`. (An `async fn` would reserve room for its arguments twice, for as long as it runs.)
pub(crate) fn serve<P: Send>(
    client: TcpStream,
    peer: SocketAddr,
    snapshot: Arc<Snapshot>,
    mut handle: Handle,
    permit: P,
) -> impl Future<Output = ()> + Send {
    let (reject_with, engine, deadlines) = (snapshot.reject_with, snapshot.engine, Arc::clone(&snapshot.deadlines));
    let mut record = ConnectionRecord::open(&snapshot.listener, canonical(peer));
    async move {
        let waiting = handle.wait(Wait::Hello);
        // Boxed, as is all that is over when bytes are relayed.
        let mut hello = Box::new(Hello::new(snapshot.hello_limit));
        let setup = Box::pin(async {
            let deadline = Instant::now() + snapshot.hello_timeout;
            let proxied = if let Some(balancers) = &snapshot.balancers {
                let proxied = read_proxy_header(&client, balancers, &mut hello, record.source(), deadline).await?;
                proxied.inspect(|proxied| record.set_client(proxied.source))
            } else {
                None
            };
            let source_permit = snapshot.admit(record.source())?;
            hello.read(&client, deadline).await?;
            drop(waiting);
            record.hello_complete();
            let hello = hello.parse(snapshot.ip_literal)?;
            note(&hello, &mut record.fields);

            let query =
                Client { server_name: hello.server_name, alpn: hello.alpn.ok(), listener: snapshot.listener_index };
            let route = snapshot.routes.find(&query).ok_or_else(|| unrouted(&query, &snapshot.routes))?.target;
            let connections = record.routed(&route.counters);
            route.admit(record.source(), connections)?;

            let start = Instant::now();
            let Connected { stream: upstream, local, slot, failed_attempts } = tokio::select! {
                connected = route.upstream.connect() => connected?,
                () = reset(&client) => return Err(Outcome::ClientGone.into()),
            };
            record.connected(start.elapsed(), slot.endpoint().address, local);
            record.fields.reason = failed_attempts.map(|failures| failures.to_string().into());
            if let Some(version) = route.upstream.setup().settings.proxy_protocol {
                send_proxy_header(&upstream, version, &client, record.client(), proxied, &query)?;
            }
            Ok::<_, Rejection>((upstream, slot, source_permit))
        });
        let connected = tokio::select! {
            result = setup => result,
            reason = &mut handle => Err(rejection_of(reason)),
        };
        let (upstream, slot, _) = match &connected {
            Ok(connected) => connected,
            Err(rejection) => {
                record.rejected(hello.received());
                drop(hello);
                let reject_with =
                    if handle.close_reason() == CloseReason::Shed { RejectWith::Reset } else { reject_with };
                let lingering = handle.wait(Wait::Close);
                tokio::select! {
                    () = Box::pin(rejection.deliver(client, reject_with)) => {}
                    _ = &mut handle => {}
                }
                drop(lingering);
                if rejection.server_name.is_some() {
                    record.fields.server_name.clone_from(&rejection.server_name);
                }
                record.end(rejection.outcome, rejection.closed_by(), rejection.reason.clone());
                return;
            }
        };

        handle.reached(slot.endpoint().id);
        // A stream of days must not keep an old configuration alive.
        drop(snapshot);
        let on_event = |event: Event<'_>| match event {
            Event::Delivered(Side::Client, bytes) => record.received(bytes),
            Event::Delivered(Side::Upstream, bytes) => record.sent(bytes),
            Event::Answered(bytes) => {
                slot.answered();
                record.answered(Answer::parse(bytes));
            }
            Event::Unanswered => report_no_answer(&mut record, slot, "no answer to a ClientHello in time"),
        };
        let commands = |cx: &mut Context<'_>| {
            handle.poll_message(cx).map(|message| match message {
                Message::Close(_) => Command::Stop,
                Message::Probe(since) => Command::Probe(since),
            })
        };
        let hello = hello.into_bytes();
        let ending = relay::copy_bidirectional(&client, upstream, engine, hello, &deadlines, commands, on_event).await;
        let upstream_closed = matches!(
            ending,
            Ending::Closed(Side::Upstream) | Ending::ClosedThenReset(Side::Upstream) | Ending::Reset(Side::Upstream)
        );
        if upstream_closed {
            report_no_answer(&mut record, slot, "closed without an answer to a ClientHello");
        }
        drop((client, connected, permit));
        let (outcome, closed_by) = outcome_of(ending, handle.close_reason());
        record.end(outcome, closed_by, why_closed(ending, handle.close_reason()));
    }
}

/// The client that the balancer has connected for; `None`: the balancer itself (`LOCAL`, `UNKNOWN`).
async fn read_proxy_header(
    client: &TcpStream,
    balancers: &Networks,
    hello: &mut Hello,
    peer: IpAddr,
    deadline: Instant,
) -> Result<Option<Named>, Rejection> {
    if !balancers.contains(peer) {
        return Err(Rejection::because(Outcome::ProxyHeader, "peer not in accept_proxy.from"));
    }
    Ok(hello.read_proxy_header(client, deadline).await?)
}

/// Sends the client's address to the endpoint, before anything that the client has sent.
fn send_proxy_header(
    upstream: &TcpStream,
    version: proxy_protocol::Version,
    client: &TcpStream,
    source: SocketAddr,
    proxied: Option<Named>,
    query: &Client<'_>,
) -> Result<(), Rejection> {
    let arrived_at = proxied.map(|proxied| proxied.destination).or_else(|| client.local_addr().ok());
    let header = arrived_at.map(|destination| {
        let named = Named { source, destination: canonical(destination) };
        let alpn = query.alpn.map(|alpn| alpn.as_list());
        proxy_protocol::Client { named, server_name: query.server_name, alpn }
    });
    let header = proxy_protocol::header(version, header.as_ref());
    // It travels with the hello, which follows at once; both fit into the empty buffer of a new connection.
    match rustix::net::send(upstream, &header, SendFlags::MORE | SendFlags::NOSIGNAL) {
        Ok(sent) if sent == header.len() => Ok(()),
        _ => Err(Rejection::because(Outcome::ConnectRefused, "the endpoint did not accept the PROXY header")),
    }
}

/// Notes what the log line says about the hello.
fn note(hello: &ClientHello<'_>, fields: &mut LogFields) {
    let literal = || hello.ip_literal.map(|address| address.to_string().into());
    fields.server_name = hello.server_name.map(|name| name.to_string().into()).or_else(literal);
    fields.next_protocol = hello.alpn.ok().map(|offered| {
        let protocols: Vec<&[u8]> = offered.iter().collect();
        escape(&protocols.join(&b','))
    });
    fields.protocol_version = Some(hello.highest_version());
}

/// Why no route matches.
fn unrouted(client: &Client<'_>, routes: &RouteTable<Arc<Route>>) -> Rejection {
    let (outcome, reason) = match client.server_name {
        Some(name) if routes.knows(name) => {
            (Outcome::UnknownName, "routes with this name require another `alpn` or `listener`")
        }
        Some(_) => (Outcome::UnknownName, "no route has the name"),
        None => (Outcome::NoName, "the client sent no SNI, and there is no catch-all route"),
    };
    Rejection::because(outcome, reason)
}

/// Until the client resets the connection. A FIN is no reset: it may still want the answer.
async fn reset(client: &TcpStream) {
    if client.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Reports, once per connection, an endpoint that has sent nothing.
fn report_no_answer(record: &mut ConnectionRecord, slot: &EndpointSlot, cause: &str) {
    if record.has_sent_nothing() && !std::mem::replace(&mut record.no_answer_reported, true) {
        slot.did_not_answer(cause);
    }
}

/// Why a connection was closed by us, where the outcome does not say it.
fn why_closed(ending: Ending, close_reason: CloseReason) -> Option<Box<str>> {
    match (ending, close_reason) {
        (Ending::Stopped, CloseReason::Removed) => Some("a reload removed its route or endpoint".into()),
        (Ending::ProbeUnanswered, _) => Some("the endpoint is dead and does not acknowledge this connection".into()),
        _ => None,
    }
}

fn outcome_of(ending: Ending, close_reason: CloseReason) -> (Outcome, ClosedBy) {
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
        Ending::Stopped => match close_reason {
            CloseReason::Draining | CloseReason::Removed => (Outcome::Drained, ClosedBy::Us),
            CloseReason::Shed => (Outcome::OverLimit, ClosedBy::Us),
        },
    }
}

/// Of a connection that was closed before it reached an endpoint.
fn rejection_of(reason: CloseReason) -> Rejection {
    match reason {
        CloseReason::Draining | CloseReason::Removed => Outcome::Drained.into(),
        CloseReason::Shed => {
            Rejection::because(Outcome::OverLimit, "shed at limits.connections: oldest connection without ClientHello")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::registry::Registry;
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
            listener_index: 0,
            reject_with: RejectWith::Alert,
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
        let handle = Arc::new(Registry::default()).enter();
        let task = serve(accepted.unwrap().0, client.unwrap().local_addr().unwrap(), snapshot.into(), handle, permit);
        assert_eq!(size_of_val(&task), 784, "larger or smaller: say why");
    }
}
