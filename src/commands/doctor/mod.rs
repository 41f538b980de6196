//! `snigate doctor`: every step from a client to its API servers.

mod direct;
mod entrance;
mod report;
mod through;
mod visit;

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use snigate::config::{Config, Route};
use snigate::upstream::health::read_roots;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use self::report::{Style, Tally};
use self::visit::{Here, Visit};
use super::listed;
use crate::cli::Doctor;

/// Lookups and connections at a time.
const MAX_AT_A_TIME: usize = 32;

pub(super) fn run(options: &Doctor) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.config)?;
    if let Some(ca) = &options.ca {
        read_roots(ca).map_err(anyhow::Error::msg).context("--ca")?;
    }
    let routes = choose(&config.routes, &options.names)?;
    let here = Arc::new(Here::of(&config, options.through));
    let visits = routes.into_iter().map(|route| Visit::of(route, &here, options.ca.as_deref())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(examine(visits, options.json));
    // A lookup that hangs is not waited for.
    runtime.shutdown_background();
    result
}

/// Those that are named; all, if none is.
fn choose<'c>(routes: &'c [Route], names: &[String]) -> anyhow::Result<Vec<&'c Route>> {
    let is_named = |route: &Route, name: &String| {
        route.name == *name || route.patterns.iter().any(|pattern| pattern.to_string().eq_ignore_ascii_case(name))
    };
    for name in names {
        ensure!(
            routes.iter().any(|route| is_named(route, name)),
            "no route is named `{name}` or has it as `sni`; expected one of {}",
            listed(routes.iter())
        );
    }
    Ok(routes.iter().filter(|route| names.is_empty() || names.iter().any(|name| is_named(route, name))).collect())
}

/// Tells of each route as soon as those before it have been told of.
async fn examine(visits: Vec<Visit>, as_json: bool) -> anyhow::Result<ExitCode> {
    let style = Style::of_stdout();
    let mut stdout = std::io::stdout();
    let visits: Vec<_> = visits.into_iter().map(|visit| tokio::spawn(Arc::new(visit).examine())).collect();
    let mut tally = Tally::default();
    let mut routes = Vec::new();
    for visit in visits {
        let report = visit.await??;
        tally.add(&report);
        if as_json {
            routes.push(report.json());
        } else {
            stdout.write_all(report.text(style).as_bytes())?;
        }
    }
    if as_json {
        writeln!(stdout, "{}", serde_json::json!({"routes": routes, "ok": tally.is_well()}))?;
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
