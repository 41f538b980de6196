//! Asks the instance again and again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::sample::{Connections, Sample};
use crate::commands::ctl::client::{Target, json};

/// What the page shows at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Connections of this route, and what they are sorted by.
    pub(super) connections: Option<(String, &'static str)>,
    pub(super) is_paused: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    Sample(anyhow::Result<Sample>),
    Connections(Wanted, Connections),
}

/// All connections are looked at, if only to be counted.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(2);
/// How many connections of a route are listed.
const MAX_LISTED: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Routes, endpoints and refusals, after the first that are known; until nobody receives.
pub(super) async fn samples(
    socket: PathBuf,
    interval: Duration,
    mut wanted: watch::Receiver<Wanted>,
    answers: mpsc::Sender<Answer>,
) {
    let mut begun = Instant::now();
    loop {
        sleep(pause(interval, begun)).await;
        if wanted.wait_for(|wanted| !wanted.is_paused).await.is_err() {
            return;
        }
        begun = Instant::now();
        let sample = sample(&socket).await;
        if answers.send(Answer::Sample(sample)).await.is_err() {
            return;
        }
    }
}

/// Connections, at once when others are wanted; until nobody receives. Why they cannot be listed is known from the samples.
pub(super) async fn connections(socket: PathBuf, mut wanted: watch::Receiver<Wanted>, answers: mpsc::Sender<Answer>) {
    loop {
        if wanted.wait_for(|wanted| !wanted.is_paused).await.is_err() {
            return;
        }
        let now = wanted.borrow_and_update().clone();
        let begun = Instant::now();
        if let Ok(listed) = list(&socket, &now).await
            && answers.send(Answer::Connections(now, listed)).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = sleep(pause(CONNECTIONS_INTERVAL, begun)) => {}
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// An instance that needs long for an answer is asked less often.
fn pause(interval: Duration, begun: Instant) -> Duration {
    interval.max(begun.elapsed() * 4)
}

pub(super) async fn sample(socket: &Path) -> anyhow::Result<Sample> {
    let ask = async {
        let status = get(socket, Target::new("/api/status")).await?;
        let at = Instant::now();
        Ok(Sample::new(at, &status, &get(socket, Target::new("/api/refusals")).await?))
    };
    timeout(TIMEOUT, ask).await.context("the instance does not answer")?
}

async fn list(socket: &Path, wanted: &Wanted) -> anyhow::Result<Connections> {
    let target = match &wanted.connections {
        Some((route, sort)) => Target::new("/connections")
            .with("route", Some(route))
            .with("sort", Some(sort))
            .with("limit", Some(MAX_LISTED)),
        None => Target::new("/connections").with("limit", Some(0)),
    };
    Ok(Connections::new(&timeout(TIMEOUT, get(socket, target)).await??))
}

async fn get(socket: &Path, target: Target) -> anyhow::Result<Value> {
    json(socket, Method::GET, target).await
}
