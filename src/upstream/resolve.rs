//! Names of endpoints, looked up again and again in the background. No connection waits for a lookup, but for the very
//! first of a name.

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

/// A name with more addresses is cut: nobody has so many API servers.
const MAX_ADDRESSES: usize = 64;

/// How long a lookup may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The resolver is asked this often at a time. What hangs keeps its place, so that a resolver that is stuck cannot take
/// all threads.
const MAX_LOOKUPS: usize = 32;

/// The addresses that a name stands for now.
pub(crate) async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    timeout(PATIENCE, system(host.into(), port)).await.unwrap_or_else(|_| Err(late())).and_then(tidy)
}

/// Looks a name up and tells of every answer, until who is told wants no more. What is new about an answer is for it to
/// see.
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
        // A lookup that is late is waited for, not begun again: it cannot be cancelled, and would not be the last.
        let answer = loop {
            match timeout(PATIENCE, &mut lookup).await {
                Ok(answer) => break answer,
                Err(_) if answered(Err(late())).is_break() => return,
                Err(_) => {}
            }
        };
        if answered(answer.and_then(tidy)).is_break() {
            return;
        }
        sleep(jittered(every)).await;
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))
}

/// In the order of their numbers, so that the same answer is the same whatever the order it came in.
fn tidy(mut addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() { Err(io::Error::other("it has no addresses")) } else { Ok(addresses) }
}

/// getaddrinfo(3): hosts file, search domains and all that the machine is set up with.
async fn system(host: Box<str>, port: u16) -> io::Result<Vec<SocketAddr>> {
    static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKUPS)));
    let permit = Arc::clone(&LOOKUPS).acquire_owned().await.map_err(io::Error::other)?;
    let lookup = tokio::task::spawn_blocking(move || {
        // It cannot be cancelled: the place is taken until the resolver is done, not until nobody waits any more.
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

    /// When what was told, in seconds, of a resolver that answers so.
    async fn told<F: Future<Output = io::Result<Vec<SocketAddr>>>>(lookup: impl Fn() -> F) -> Answers {
        let told = Mutex::new(Vec::new());
        let start = Instant::now();
        let note = |answer: io::Result<Vec<SocketAddr>>| {
            let answer = answer.map(|addresses| addresses.len()).map_err(|error| error.to_string());
            told.lock().unwrap().push((start.elapsed().as_secs(), answer));
            ControlFlow::Continue(())
        };
        let _ = timeout(Duration::from_secs(25), run_with(lookup, Duration::from_secs(10), note)).await;
        told.into_inner().unwrap()
    }

    fn numbered(count: u16) -> Vec<SocketAddr> {
        (1..=count).rev().map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn c04_a_resolver_that_hangs_is_a_failure_told_in_time() {
        let answers = told(std::future::pending).await;
        assert_eq!(answers[0], (5, Err("no answer within 5 s".into())));
        assert_eq!(answers.len(), 5, "and waited for: {answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn c06_answers_are_sorted_and_bounded() {
        let answers = told(async || Ok([numbered(500), numbered(3)].concat())).await;
        assert_eq!(answers.iter().map(|answer| answer.1.clone()).collect::<Vec<_>>(), [Ok(64), Ok(64), Ok(64)]);
        assert_eq!(tidy([numbered(2), numbered(2)].concat()).unwrap(), [numbered(1), vec![numbered(2)[0]]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_a_failure() {
        assert_eq!(told(async || Ok(Vec::new())).await[0], (0, Err("it has no addresses".into())));
    }

    #[tokio::test]
    async fn the_machine_is_asked() {
        let addresses = system("localhost".into(), 7).await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
        assert!(system("nowhere.invalid".into(), 7).await.is_err());
    }
}
