//! What becomes of new connections and of streams when an endpoint shuts down, dies, freezes or vanishes.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until, timeout, timeout_at};

use super::sample::Hello;
use super::{DOOMED, Endpoint, NAME, Proxy};

/// How long a stream is watched: an API server ends those that it has after 60 s.
const WATCHED: Duration = Duration::from_secs(75);
const STREAMS: usize = 30;
const PER_SECOND: u32 = 50;

#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It listens no more, and serves its streams.
    ShutsDown,
    Killed,
    Frozen,
    Vanishes,
}

impl Fate {
    pub const ALL: [Self; 4] = [Self::ShutsDown, Self::Killed, Self::Frozen, Self::Vanishes];

    fn befall(self, endpoint: &mut Endpoint) {
        match self {
            Self::ShutsDown => endpoint.command(b"c"),
            Self::Killed => endpoint.kill(),
            Self::Frozen => endpoint.freeze(),
            Self::Vanishes => endpoint.command(b"v"),
        }
    }
}

/// Two endpoints, the first of which meets this fate; the outcome as a row of a table.
pub async fn row(which: &str, fate: Fate) -> String {
    let mut endpoints = [Endpoint::start(true), Endpoint::start(false)];
    let proxy = Proxy::start(which, &endpoints);
    let hello = Hello::to(NAME).record();
    let mut streams = JoinSet::new();
    // They count for the balance.
    let mut others = Vec::new();
    let (sender, begun) = tokio::sync::watch::channel(None::<Instant>);
    for _ in 0..STREAMS {
        let (mut stream, _) = open(proxy.address, &hello).await.unwrap();
        if !stream.1 {
            others.push(stream);
            continue;
        }
        let mut begun = begun.clone();
        let is_busy = streams.len().is_multiple_of(2);
        streams.spawn(async move {
            let since = begun.wait_for(Option::is_some).await.unwrap().unwrap();
            (is_busy, lasts(&mut stream.0, is_busy, since).await)
        });
    }
    let count = streams.len();
    // So that the endpoint knows that they stay.
    sleep(Duration::from_secs(1)).await;
    let since = Instant::now();
    fate.befall(&mut endpoints[0]);
    sender.send(Some(since)).unwrap();

    let mut tries = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    while since.elapsed() < WATCHED {
        ticks.tick().await;
        let (address, hello) = (proxy.address, hello.clone());
        tries.spawn(async move {
            let at = since.elapsed();
            let answer = timeout(Duration::from_secs(30), open(address, &hello)).await.ok().and_then(Result::ok);
            (at, answer.map(|(_, took)| took))
        });
    }
    let tries = tries.join_all().await;
    let failed = tries.iter().filter(|(_, answer)| answer.is_none()).count();
    let slowest = tries.iter().filter_map(|(_, took)| *took).max().unwrap_or_default();
    let last_failed = tries.iter().filter(|(_, answer)| answer.is_none()).map(|(at, _)| *at).max();
    let ends = streams.join_all().await;
    let ended = |busy: bool| {
        let mut ends: Vec<Option<Duration>> =
            ends.iter().filter(|(is_busy, _)| *is_busy == busy).map(|(_, end)| *end).collect();
        ends.sort();
        match (ends.first().copied().flatten(), ends.last().copied().flatten()) {
            (_, None) if ends.iter().all(Option::is_none) => "none ended".to_owned(),
            (_, last) => {
                let first = ends.iter().flatten().next().copied().unwrap_or_default();
                let last = last.unwrap_or_default();
                format!("{:.1} to {:.1} s", first.as_secs_f64(), last.as_secs_f64())
            }
        }
    };
    format!(
        "{which:<8} {:<10} {count} streams; those with bytes {}, silent ones {}; new connections: {failed} of {} failed{}, slowest {:.1} s",
        format!("{fate:?}"),
        ended(true),
        ended(false),
        tries.len(),
        last_failed.map_or(String::new(), |at| format!(" (the last after {:.1} s)", at.as_secs_f64())),
        slowest.as_secs_f64()
    )
}

type Opened = ((TcpStream, bool), Duration);

/// A stream that has its answer, whether it is to the endpoint that is doomed, and how long that took.
async fn open(proxy: std::net::SocketAddr, hello: &[u8]) -> std::io::Result<Opened> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(hello).await?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await?;
    Ok(((stream, answer == *DOOMED), begun.elapsed()))
}

/// How long it lasts from then on, if it ends while it is watched.
async fn lasts(stream: &mut TcpStream, is_busy: bool, since: Instant) -> Option<Duration> {
    let deadline = tokio::time::Instant::from_std(since + WATCHED);
    let mut next = tokio::time::Instant::now();
    loop {
        if is_busy && stream.write_all(b"x").await.is_err() {
            return Some(since.elapsed());
        }
        next += Duration::from_secs(1);
        match timeout_at(next.min(deadline), stream.read(&mut [0; 64])).await {
            Ok(Ok(1..)) => sleep_until(next.min(deadline)).await,
            Ok(_) => return Some(since.elapsed()),
            Err(_) => {}
        }
        if tokio::time::Instant::now() >= deadline {
            return None;
        }
    }
}
