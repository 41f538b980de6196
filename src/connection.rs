//! The story of a connection: read hello → route → connect → relay → account.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::account::{Account, ClosedBy, Counters, Facts, Outcome, RouteCounters, canonical, escape};
use crate::client_hello::ClientHello;
use crate::hello::Hello;
use crate::refusal::{Refusal, Refuse};
use crate::relay::{self, Deadlines, Ending, Engine, Side};
use crate::roster::Member;
use crate::route::{Client, RouteTable};
use crate::upstream::{Connected, Upstream};

/// All that a connection needs to know; it never changes.
#[derive(Debug)]
pub struct Snapshot {
    /// Who goes where.
    pub routes: RouteTable<Arc<Route>>,
    /// By the number that routes and counters know them by.
    pub listeners: Vec<Listener>,
    /// From accept to the whole hello.
    pub hello_timeout: Duration,
    /// The largest hello, in raw bytes.
    pub hello_limit: usize,
    /// For the relay.
    pub deadlines: Arc<Deadlines>,
    /// For the relay.
    pub engine: Engine,
    /// Where it is counted.
    pub counters: Arc<Counters>,
}

/// What is known of the listener that accepted.
#[derive(Debug)]
pub struct Listener {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// How it refuses.
    pub refuse: Refuse,
}

/// A route's target.
#[derive(Debug)]
pub struct Route {
    /// Where it leads.
    pub upstream: Upstream,
    /// Where it is counted.
    pub counters: Arc<RouteCounters>,
}

/// Serves one accepted connection until it has ended, or its `membership` says that it must, and only then drops its
/// `permit`.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps room for its arguments twice; this one waits for days")]
pub fn serve<P: Send>(
    client: TcpStream,
    peer: SocketAddr,
    listener: usize,
    snapshot: Arc<Snapshot>,
    mut membership: Member,
    permit: P,
) -> impl Future<Output = ()> + Send {
    let Listener { name, refuse } = &snapshot.listeners[listener];
    let (refuse, engine, deadlines) = (*refuse, snapshot.engine, Arc::clone(&snapshot.deadlines));
    let mut account = Account::open(&snapshot.counters, listener, name, canonical(peer));
    async move {
        // Boxed, as is all that is over when bytes are relayed.
        let mut hello = Box::new(Hello::new(snapshot.hello_limit));
        let way = Box::pin(async {
            let deadline = Instant::now() + snapshot.hello_timeout;
            hello.read(&client, deadline).await?;
            account.hello_read();
            let hello = hello.parse()?;
            account.learn(|facts| note(&hello, facts));

            let asked = Client { server_name: hello.server_name, alpn: hello.alpn.ok(), listener };
            let unrouted = if hello.server_name.is_some() { Outcome::UnknownName } else { Outcome::NoName };
            let route = snapshot.routes.find(&asked).ok_or(unrouted)?.target;
            account.routed(&route.counters);

            let start = Instant::now();
            let Connected { stream: upstream, address, passed_over } = tokio::select! {
                connected = route.upstream.connect() => connected?,
                () = reset(&client) => return Err(Outcome::ClientGone.into()),
            };
            account.connected(start.elapsed(), address, || upstream.local_addr().ok());
            account.learn(|facts| facts.reason = passed_over.map(|failure| failure.to_string().into()));
            Ok::<TcpStream, Refusal>(upstream)
        });
        let connected = tokio::select! {
            result = way => result,
            _ = &mut membership.told => Err(Outcome::Drained.into()),
        };
        let upstream = match &connected {
            Ok(upstream) => upstream,
            Err(refusal) => {
                account.received(hello.received());
                Box::pin(refusal.deliver(client, refuse)).await;
                account.end(refusal.outcome, refusal.closed_by());
                account.learn(|facts| refusal.note(facts));
                return;
            }
        };

        // A stream of days must not keep an old configuration alive.
        drop(snapshot);
        let delivered = |from, bytes| match from {
            Side::Client => account.received(bytes),
            Side::Upstream => account.sent(bytes),
        };
        let (hello, stop) = (hello.into_bytes(), &mut membership.told);
        let ending = relay::copy_bidirectional(&client, upstream, engine, hello, &deadlines, stop, delivered).await;
        drop((client, connected, permit));
        let (outcome, closed_by) = outcome_of(ending);
        account.end(outcome, closed_by);
    }
}

/// What the log line will say of the hello.
fn note(hello: &ClientHello<'_>, facts: &mut Facts) {
    facts.server_name = hello.server_name.map(|name| name.to_string().into());
    facts.next_protocol = hello.alpn.ok().map(|offered| {
        let protocols: Vec<&[u8]> = offered.iter().collect();
        escape(&protocols.join(&b','))
    });
    facts.protocol_version = Some(match hello.highest_version() {
        0x0304 => "1.3",
        0x0303 => "1.2",
        0x0302 => "1.1",
        0x0301 => "1.0",
        _ => "unknown",
    });
}

/// Until the client resets the connection. A FIN is no reset: it may still want the answer.
async fn reset(client: &TcpStream) {
    if client.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn outcome_of(ending: Ending) -> (Outcome, ClosedBy) {
    let by = |side| match side {
        Side::Client => ClosedBy::Client,
        Side::Upstream => ClosedBy::Upstream,
    };
    match ending {
        Ending::Closed(side) => (Outcome::Completed, by(side)),
        Ending::Reset(side @ Side::Client) => (Outcome::ClientReset, by(side)),
        Ending::Reset(side @ Side::Upstream) => (Outcome::UpstreamReset, by(side)),
        Ending::Dead(side) => (Outcome::PeerDead, by(side)),
        Ending::IdleTimeout => (Outcome::IdleTimeout, ClosedBy::Us),
        Ending::HalfCloseTimeout => (Outcome::HalfCloseTimeout, ClosedBy::Us),
        Ending::Stopped => (Outcome::Drained, ClosedBy::Us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::Roster;

    /// A task has 112 bytes more and is a multiple of 128: one byte here can be 128 for every idle connection.
    #[tokio::test]
    async fn an_idle_connection_is_small() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let deadlines = Deadlines { idle: Duration::MAX, half_close: Duration::MAX, stalled: Duration::MAX };
        let snapshot = Snapshot {
            routes: RouteTable::default(),
            listeners: vec![Listener { name: "api".into(), refuse: Refuse::Alert }],
            hello_timeout: Duration::MAX,
            hello_limit: 0,
            deadlines: Arc::new(deadlines),
            engine: Engine::Auto,
            counters: Arc::new(Counters::new(1, 0)),
        };
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let member = Arc::new(Roster::default()).enter();
        let task = serve(accepted.unwrap().0, client.unwrap().local_addr().unwrap(), 0, snapshot.into(), member, permit);
        assert!(size_of_val(&task) <= 784, "{}", size_of_val(&task));
    }
}
