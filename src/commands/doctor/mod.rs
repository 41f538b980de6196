//! `snigate doctor`: every step from a client to its API servers.

mod end_to_end;
mod endpoint;
mod listener;
mod loaded_config;
mod report;
mod route;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, Route};
use crate::upstream::health::{Authorities, CaFile};
use anyhow::Context;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use self::report::{Report, Style, Tally};
use self::route::{Here, Visit};
use super::named::{Named, named};
use super::{addresses, runtime};
use crate::cli::Doctor;

/// Lookups and connections at a time.
const MAX_AT_A_TIME: usize = 32;

pub(super) fn run(options: &Doctor) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.config)?;
    if let Some(ca) = &options.ca {
        Authorities::read(&CaFile::File(ca.clone())).map_err(anyhow::Error::msg).context("--ca")?;
    }
    let chosen = choose(&config, &options.names)?;
    runtime::run(async {
        let through = match &options.through {
            Some(through) => addresses(through).await.with_context(|| format!("--through {through}"))?,
            None => Vec::new(),
        };
        let here = Arc::new(Here::of(&config, through));
        let visit = |(route, below): (&Route, Option<String>)| Visit::of(route, below, &here, options.ca.as_deref());
        examine(&here, chosen.into_iter().map(visit).collect(), options).await
    })?
}

/// Those that are named, in their order in the file, each as often as there are names below its wildcards; all, if none
/// is.
fn choose<'c>(config: &'c Config, names: &[String]) -> anyhow::Result<Vec<(&'c Route, Option<String>)>> {
    if names.is_empty() {
        return Ok(config.routes.iter().map(|route| (route, None)).collect());
    }
    let mut chosen: HashMap<&str, BTreeSet<Option<String>>> = HashMap::new();
    for name in names {
        for Named { route, below } in named(config, name)? {
            chosen.entry(&route.name).or_default().insert(below);
        }
    }
    let of =
        |route: &'c Route| chosen.remove(&*route.name).unwrap_or_default().into_iter().map(move |below| (route, below));
    Ok(config.routes.iter().flat_map(of).collect())
}

/// Tells of each route as soon as those before it have been told of.
async fn examine(here: &Here, visits: Vec<Visit>, options: &Doctor) -> anyhow::Result<ExitCode> {
    let style = Style::of_stdout();
    let mut stdout = std::io::stdout();
    let visits: Vec<_> = visits.into_iter().map(|visit| tokio::spawn(Arc::new(visit).examine())).collect();
    let mut tally = Tally::default();
    let mut routes = Vec::new();
    let running = loaded_config::examine(here).await;
    let running = running.map(|check| Report { name: "snigate".into(), asked: None, checks: vec![check] });
    if let Some(report) = &running {
        tally.add(report);
        if !options.json {
            stdout.write_all(report.text(style).as_bytes())?;
        }
    }
    for visit in visits {
        let report = visit.await??;
        tally.add(&report);
        tally.routes += 1;
        if options.json {
            routes.push(report.json());
        } else {
            stdout.write_all(report.text(style).as_bytes())?;
        }
    }
    if options.json {
        let running = running.map(|report| report.json()["checks"].take());
        writeln!(stdout, "{}", serde_json::json!({"running": running, "routes": routes, "ok": tally.is_well()}))?;
    } else {
        writeln!(stdout, "{tally}")?;
    }
    Ok(if tally.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does all of this at the same time, of all routes as much as there is room for. The results are in order.
async fn all<F>(tasks: impl IntoIterator<Item = F>) -> Result<Vec<F::Output>, JoinError>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    static ROOM: Semaphore = Semaphore::const_new(MAX_AT_A_TIME);
    let with_room = |task: F| async move {
        let _permit = ROOM.acquire().await;
        task.await
    };
    let tasks: Vec<_> = tasks.into_iter().map(|task| tokio::spawn(with_room(task))).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await?);
    }
    Ok(results)
}
