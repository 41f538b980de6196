//! Resolves the hostnames of endpoints periodically in the background. Connections only wait for the first lookup of a
//! hostname.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::jittered;

/// Further addresses of a hostname are ignored: no cluster has that many API servers.
const MAX_ADDRESSES: usize = 64;

/// When a lookup counts as failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of concurrent lookups. A lookup that hangs keeps its permit, so that a stuck resolver cannot use up all
/// threads.
const MAX_LOOKUPS: usize = 32;

/// Looks up the addresses of a hostname once.
pub(crate) async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    timeout(LOOKUP_TIMEOUT, system(host.into(), port)).await.unwrap_or_else(|_| Err(timed_out())).and_then(normalize)
}

/// Looks up a hostname periodically, and passes every result to `answered` until it returns `Break`.
pub(super) async fn run(
    host: Box<str>,
    port: u16,
    every: Duration,
    answered: impl Fn(io::Result<Vec<SocketAddr>>) -> ControlFlow<()>,
) {
    run_with(|| system(host.clone(), port), every, answered).await;
}

async fn run_with<F: Future<Output = io::Result<Vec<SocketAddr>>>>(
    lookup: impl Fn() -> F,
    every: Duration,
    answered: impl Fn(io::Result<Vec<SocketAddr>>) -> ControlFlow<()>,
) {
    loop {
        let mut lookup = pin!(lookup());
        // A late lookup is not restarted, because it cannot be cancelled.
        let answer = loop {
            match timeout(LOOKUP_TIMEOUT, &mut lookup).await {
                Ok(answer) => break answer,
                Err(_) if answered(Err(timed_out())).is_break() => return,
                Err(_) => {}
            }
        };
        if answered(answer.and_then(normalize)).is_break() {
            return;
        }
        sleep(jittered(every)).await;
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()))
}

/// Sorted, so that results can be compared whatever the order of the addresses.
fn normalize(mut addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() { Err(io::Error::other("the hostname has no addresses")) } else { Ok(addresses) }
}

/// getaddrinfo(3), which uses the hosts file, search domains and everything else that the machine is configured with.
async fn system(host: Box<str>, port: u16) -> io::Result<Vec<SocketAddr>> {
    static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKUPS)));
    let permit = Arc::clone(&LOOKUPS).acquire_owned().await.map_err(io::Error::other)?;
    let lookup = tokio::task::spawn_blocking(move || {
        // The lookup cannot be cancelled, so the permit is held until it ends, even if the caller gave up.
        let _permit = permit;
        (&*host, port).to_socket_addrs().map(Iterator::collect)
    });
    lookup.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    type Answers = Vec<(u64, Result<usize, String>)>;

    /// The results of a resolver, and when they were passed on, in seconds.
    async fn results_of<F: Future<Output = io::Result<Vec<SocketAddr>>>>(lookup: impl Fn() -> F) -> Answers {
        let results = Mutex::new(Vec::new());
        let start = Instant::now();
        let record = |answer: io::Result<Vec<SocketAddr>>| {
            let answer = answer.map(|addresses| addresses.len()).map_err(|error| error.to_string());
            results.lock().unwrap().push((start.elapsed().as_secs(), answer));
            ControlFlow::Continue(())
        };
        let _ = timeout(Duration::from_secs(25), run_with(lookup, Duration::from_secs(10), record)).await;
        results.into_inner().unwrap()
    }

    fn numbered(count: u16) -> Vec<SocketAddr> {
        (1..=count).rev().map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn c04_a_hanging_resolver_is_reported_as_a_failure() {
        let answers = results_of(std::future::pending).await;
        assert_eq!(answers[0], (5, Err("no answer within 5 s".into())));
        assert_eq!(answers.len(), 5, "and the lookup was not restarted: {answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn c06_answers_are_sorted_and_bounded() {
        let answers = results_of(async || Ok([numbered(500), numbered(3)].concat())).await;
        assert_eq!(answers.iter().map(|answer| answer.1.clone()).collect::<Vec<_>>(), [Ok(64), Ok(64), Ok(64)]);
        assert_eq!(
            normalize([numbered(2), numbered(2)].concat()).unwrap(),
            [numbered(1), vec![numbered(2)[0]]].concat()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_a_failure() {
        assert_eq!(results_of(async || Ok(Vec::new())).await[0], (0, Err("the hostname has no addresses".into())));
    }

    #[tokio::test]
    async fn hostnames_are_resolved_by_the_system() {
        let addresses = system("localhost".into(), 7).await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
        assert!(system("nowhere.invalid".into(), 7).await.is_err());
    }
}
