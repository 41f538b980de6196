//! The story of a connection: admit → read hello → route → admit → connect → relay → record.

pub(crate) mod accept_proxy;
pub(crate) mod admission;
pub(crate) mod established;
pub(crate) mod hand_over;
#[cfg(all(test, shuttle))]
mod interleavings;
pub(crate) mod live;
pub(crate) mod networks;
pub(crate) mod parking;
pub(crate) mod read_hello;
pub(crate) mod registry;
pub(crate) mod reject;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::client_hello::{ClientHello, IpLiteral, Ja4};
use crate::connection::accept_proxy::{AcceptProxy, Proxied};
use crate::connection::admission::{AccessRules, RateUsage, SourceLimits, SourcePermit, SourceTable};
use crate::connection::established::{Established, Relaying};
use crate::connection::read_hello::Hello;
use crate::connection::registry::{CloseReason, Handle, Wait};
use crate::connection::reject::{RejectWith, Rejection};
use crate::proxy_protocol::{self, ProxiedAddresses};
use crate::relay::{RelaySettings, Start};
use crate::route::{Arrival, Client, RouteTable};
use crate::telemetry::{ConnectionRecord, ListenerTelemetry, LogFields, Offer, Outcome, RouteCounters, canonical};
use crate::text::units::Rate;
use crate::upstream::{Connected, Upstream};

/// What a connection needs while it is set up. Immutable: a reload makes a new one.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) listener: Arc<ListenerTelemetry>,
    /// The listener's index in the configuration, which routes match on.
    pub(crate) listener_index: usize,
    pub(crate) reject_with: RejectWith,
    /// `None`: clients connect directly, and no peer sends a PROXY header.
    pub(crate) accept_proxy: Option<AcceptProxy>,
    /// How an IP address in the server name extension is treated.
    pub(crate) ip_literal: IpLiteral,
    /// Access rules of the listener.
    pub(crate) sources: AccessRules,
    pub(crate) source_limits: SourceLimits,
    pub(crate) source_table: Arc<SourceTable>,
    pub(crate) routes: Arc<RouteTable<Arc<RouteTarget>>>,
    /// From accept until the hello is complete.
    pub(crate) hello_timeout: Duration,
    /// Maximum size of a hello, with its record headers.
    pub(crate) hello_limit: usize,
    pub(crate) relay: Arc<RelaySettings>,
}

impl Snapshot {
    /// How the client with this address arrived.
    fn arrival<'p>(&self, client: &TcpStream, source: IpAddr, proxied: &'p Proxied) -> Arrival<'p> {
        // Only if a route needs it: it costs a system call.
        let destination = self.routes.matches_destinations().then(|| destination(client, proxied)).flatten();
        Arrival {
            listener: self.listener_index,
            client: Some(source),
            destination: destination.map(|destination| destination.ip()),
            tlvs: proxied.tlvs(),
        }
    }

    /// Admits a client to the listener by its address, whatever its route.
    fn admit(&self, client: IpAddr) -> Result<Option<Box<SourcePermit>>, Rejection> {
        if !self.sources.admit(client) {
            return Err(Rejection::because(Outcome::Denied, "the client's address is not allowed at this listener"));
        }
        let permit = self.source_table.acquire(client, &self.source_limits);
        // Boxed to keep every connection's task small, with a limit or without.
        permit
            .map(|permit| permit.map(Box::new))
            .map_err(|excess| Rejection::because(Outcome::OverLimit, excess.to_string()))
    }

    /// Admits a client to the listener by its fingerprint, which is computed only if the listener denies any.
    fn admit_fingerprint(&self, fingerprint: impl FnOnce() -> Option<Ja4>) -> Result<(), Rejection> {
        if self.sources.denied_fingerprint(fingerprint).is_none() {
            return Ok(());
        }
        Err(Rejection::because(Outcome::Denied, "the client's JA4 fingerprint is denied at this listener"))
    }
}

/// What a route in the table refers to.
#[derive(Debug)]
pub(crate) struct RouteTarget {
    /// Access rules of the route.
    pub(crate) sources: AccessRules,
    pub(crate) max_connections: Option<u32>,
    pub(crate) new_connections: Option<Rate>,
    /// How much of `new_connections` is used up; survives reloads.
    pub(crate) rate_usage: Arc<RateUsage>,
    pub(crate) upstream: Upstream,
    pub(crate) counters: Arc<RouteCounters>,
    /// Digest of its configuration.
    pub(crate) digest: u64,
}

impl RouteTarget {
    /// Admits a client to the route, which has `connections` including this one. The fingerprint is computed only if the
    /// route denies any.
    fn admit(
        &self,
        client: IpAddr,
        fingerprint: impl FnOnce() -> Option<Ja4>,
        connections: i64,
    ) -> Result<(), Rejection> {
        if !self.sources.admit(client) {
            return Err(Rejection::because(Outcome::Denied, "the client's address is not allowed for this route"));
        }
        if self.sources.denied_fingerprint(fingerprint).is_some() {
            return Err(Rejection::because(Outcome::Denied, "the client's JA4 fingerprint is denied for this route"));
        }
        if let Some(limit) = self.max_connections
            && connections > limit.into()
        {
            let reason = format!("the route has reached max_connections: {limit}");
            return Err(Rejection::because(Outcome::OverLimit, reason));
        }
        match self.new_connections {
            Some(rate) if !self.rate_usage.admits(rate) => {
                Err(Rejection::because(Outcome::OverLimit, format!("the route exceeds new_connections: {rate}")))
            }
            _ => Ok(()),
        }
    }
}

/// Serves one accepted connection until it ends or `handle` receives the message to close it, or until it comes to rest.
/// (Not an `async fn`: its future would store the arguments twice.)
pub(crate) fn serve(
    client: TcpStream,
    peer: SocketAddr,
    snapshot: Arc<Snapshot>,
    mut handle: Handle,
    permit: OwnedSemaphorePermit,
) -> impl Future<Output = ()> + Send {
    let mut record = ConnectionRecord::open(&snapshot.listener, canonical(peer));
    // Boxed, because nothing of it is needed while bytes are relayed.
    let setup = Box::pin(async move {
        let waiting = handle.wait(Wait::Hello);
        let mut hello = Hello::new(snapshot.hello_limit);
        let connecting = async {
            let deadline = Instant::now() + snapshot.hello_timeout;
            let proxied = match &snapshot.accept_proxy {
                Some(accept) if accept.expects_header(record.source())? => {
                    hello.read_proxy_header(&client, deadline).await?
                }
                _ => Proxied::default(),
            };
            if let Some(addresses) = proxied.addresses {
                record.set_client(addresses.source);
            }
            let source_permit = snapshot.admit(record.source())?;
            hello.read(&client, deadline).await?;
            drop(waiting);
            record.hello_complete();
            let hello = hello.parse(snapshot.ip_literal)?;
            record_hello(&hello, &mut record.fields);
            snapshot.admit_fingerprint(|| record.fields.fingerprint(&hello))?;

            let arrival = snapshot.arrival(&client, record.source(), &proxied);
            let query = Client::new(hello.server_name, hello.alpn.ok(), arrival);
            let route = snapshot.routes.find(&query).ok_or_else(|| unrouted(&query, &snapshot.routes))?.target;
            let connections = record.routed(&route.counters);
            route.admit(record.source(), || record.fields.fingerprint(&hello), connections)?;

            let start = Instant::now();
            let Connected { stream: upstream, local, slot, failed_attempts } = tokio::select! {
                connected = Box::pin(route.upstream.connect(record.client())) => connected?,
                () = reset(&client) => return Err(Outcome::ClientGone.into()),
            };
            record.connected(start.elapsed(), slot.endpoint().address, local);
            record.fields.reason = failed_attempts.map(|failures| failures.to_string().into());
            if let Some(outgoing) = &route.upstream.setup().settings.proxy_protocol {
                let header = proxy_header(outgoing, &client, record.client(), &proxied, &query)?;
                let deadline = start + route.upstream.setup().settings.budget.timeout;
                send_proxy_header(&upstream, &header, &client, deadline).await?;
            }
            Ok::<_, Rejection>((upstream, slot, source_permit))
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            reason = &mut handle => Err(rejection_of(reason)),
        };
        match connected {
            Ok((upstream, slot, source_permit)) => {
                if ConnectionRecord::logs_served() {
                    record_fingerprint(&hello, snapshot.ip_literal, &mut record.fields);
                }
                handle.connected_to(slot.endpoint().id, slot.endpoint().max_age());
                let settings = Arc::clone(&snapshot.relay);
                let connection = Established { record, slot, settings, source_permit, permit };
                let start = Start::Hello(hello.into_bytes());
                Some(Relaying { connection, client, upstream, start, handle }.run())
            }
            Err(rejection) => {
                if rejection.server_name.is_some() {
                    record.fields.server_name.clone_from(&rejection.server_name);
                }
                record.end(rejection.outcome, rejection.closed_by(), rejection.reason.clone());
                record.rejected(hello.received());
                if record.is_logged() {
                    record_fingerprint(&hello, snapshot.ip_literal, &mut record.fields);
                }
                drop(hello);
                let is_shed = handle.close_reason() == CloseReason::Shed;
                let reject_with = if is_shed { RejectWith::Reset } else { snapshot.reject_with };
                let lingering = handle.wait(Wait::Close);
                tokio::select! {
                    () = rejection.deliver(client, reject_with) => {}
                    _ = &mut handle => {}
                }
                drop(lingering);
                // It is logged before the registry forgets the connection: at the end, the process waits for the registry.
                drop(record);
                drop(handle);
                None
            }
        }
    });
    async move {
        // A connection can last for days and must not keep an old configuration alive, so the snapshot ends here.
        let Some(relaying) = setup.await else { return };
        relaying.await;
    }
}

/// The address that the client connected to.
fn destination(client: &TcpStream, proxied: &Proxied) -> Option<SocketAddr> {
    let destination = proxied.addresses.map(|addresses| addresses.destination);
    destination.or_else(|| client.local_addr().ok()).map(canonical)
}

/// The header that tells the endpoint about the client.
fn proxy_header(
    outgoing: &proxy_protocol::Outgoing,
    client: &TcpStream,
    source: SocketAddr,
    proxied: &Proxied,
    query: &Client<'_>,
) -> Result<Vec<u8>, Rejection> {
    let version = outgoing.version;
    let Some(destination) = destination(client, proxied) else {
        return Ok(proxy_protocol::local_header(version));
    };
    let addresses = ProxiedAddresses { source, destination };
    let alpn = query.alpn.map(|alpn| alpn.as_list());
    let client = proxy_protocol::ProxiedClient { addresses, server_name: query.server_name, alpn };
    let passed = query.arrival.tlvs.iter().filter(|(number, _)| outgoing.pass.contains(number));
    proxy_protocol::header(version, &client, outgoing.own_tlvs().chain(passed))
        .map_err(|too_long| Rejection::because(Outcome::OverLimit, too_long.to_string()))
}

/// Sends the header before any of the client's bytes.
async fn send_proxy_header(
    upstream: &TcpStream,
    header: &[u8],
    client: &TcpStream,
    deadline: Instant,
) -> Result<(), Rejection> {
    let write_all = async {
        let mut rest = header;
        while !rest.is_empty() {
            // MORE: the hello follows immediately.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let sent = upstream.async_io(Interest::WRITABLE, || Ok(rustix::net::send(upstream, rest, flags)?));
            rest = &rest[sent.await?..];
        }
        Ok::<_, std::io::Error>(())
    };
    let reason = "the endpoint did not accept the PROXY header";
    let sent = tokio::select! {
        sent = timeout_at(deadline, write_all) => sent,
        () = reset(client) => return Err(Outcome::ClientGone.into()),
    };
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Rejection::because(Outcome::ConnectRefused, reason)),
        Err(_) => Err(Rejection::because(Outcome::ConnectTimeout, reason)),
    }
}

/// Records the log fields of the hello.
fn record_hello(hello: &ClientHello<'_>, fields: &mut LogFields) {
    let literal = || hello.ip_literal.map(|address| address.to_string().into());
    fields.server_name = hello.server_name.map(|name| name.to_string().into()).or_else(literal);
    fields.offer = Some(Box::new(Offer::of(hello)));
}

/// Records the client's fingerprint for the log, while the hello is there.
fn record_fingerprint(hello: &Hello, ip_literal: IpLiteral, fields: &mut LogFields) {
    if let Ok(hello) = hello.parse(ip_literal) {
        fields.fingerprint(&hello);
    }
}

/// Why no route matches.
pub(crate) fn unrouted<T>(client: &Client<'_>, routes: &RouteTable<T>) -> Rejection {
    let (outcome, reason) = match client.server_name {
        Some(name) if routes.knows(name) => {
            (Outcome::UnknownName, "no other matcher of the routes with this name matches the client")
        }
        Some(_) if routes.has_catch_all() => {
            (Outcome::UnknownName, "no route has this name, and no catch-all route matches the client")
        }
        Some(_) => (Outcome::UnknownName, "no route matches this name, and there is no catch-all route"),
        None if routes.has_catch_all() => {
            (Outcome::NoName, "the client sent no SNI, and no catch-all route matches it")
        }
        None => (Outcome::NoName, "the client sent no SNI, and there is no catch-all route"),
    };
    Rejection::because(outcome, reason)
}

/// Completes when the client resets the connection. Not at a FIN: the client may still read the response.
async fn reset(client: &TcpStream) {
    if client.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The rejection of a connection that is closed before it is connected to an endpoint.
fn rejection_of(reason: CloseReason) -> Rejection {
    match reason {
        // The others are for connections with an endpoint.
        CloseReason::Draining
        | CloseReason::Removed
        | CloseReason::MaxAge
        | CloseReason::Operator
        | CloseReason::Rebalance => Outcome::Drained.into(),
        CloseReason::Shed => {
            Rejection::because(Outcome::OverLimit, "shed at limits.connections: oldest connection without ClientHello")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::registry::Registry;
    use crate::relay::Engine;
    use crate::relay::tcp::TcpOptions;
    use crate::telemetry::Counters;

    /// Without deadlines.
    pub(super) fn settings() -> RelaySettings {
        RelaySettings {
            engine: Engine::Auto,
            idle: Duration::MAX,
            half_close: Duration::MAX,
            stalled: Duration::MAX,
            keepalive: TcpOptions::default(),
            park_after: None,
            progress: None,
        }
    }

    /// Both ends of a connection.
    pub(super) async fn pair() -> [TcpStream; 2] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        [connected.unwrap(), accepted.unwrap().0]
    }

    /// A task adds 112 bytes and is rounded up to 128: one byte more here can cost 128 for every idle connection.
    #[tokio::test]
    async fn an_idle_connection_is_small() {
        let [client, accepted] = pair().await;
        let snapshot = Snapshot {
            listener: Arc::new(Counters::new(0)).listener("api"),
            listener_index: 0,
            reject_with: RejectWith::Alert,
            accept_proxy: None,
            ip_literal: IpLiteral::NoName,
            sources: AccessRules::default(),
            source_limits: SourceLimits::default(),
            source_table: Arc::default(),
            routes: Arc::default(),
            hello_timeout: Duration::MAX,
            hello_limit: 0,
            relay: Arc::new(settings()),
        };
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let handle = Registry::new().register();
        let task = serve(accepted, client.local_addr().unwrap(), snapshot.into(), handle, permit);
        assert_eq!(size_of_val(&task), 768, "larger or smaller: say why");
    }
}
