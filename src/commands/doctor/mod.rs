//! `snigate doctor`: checks every step from a client to its API servers.

mod context;
mod dns;
mod end_to_end;
mod endpoint;
mod listener;
mod loaded_config;
mod parallel;
mod report;
mod route;
mod tls_error;

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, Route};
use crate::upstream::health::{Authorities, CaFile};
use anyhow::Context as _;

use self::context::{Context, RouteContext};
use self::report::{Report, Style, Summary};
use super::named::{Named, named};
use super::{addresses, runtime};
use crate::cli::Doctor;

pub(super) fn run(options: &Doctor) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.config)?;
    if let Some(ca) = &options.ca {
        Authorities::read(&CaFile::File(ca.clone())).map_err(anyhow::Error::msg).context("--ca")?;
    }
    let selected = select(&config, &options.names)?;
    runtime::run(async {
        let through = match &options.through {
            Some(through) => addresses(through).await.with_context(|| format!("--through {through}"))?,
            None => Vec::new(),
        };
        let context = Arc::new(Context::new(&config, through));
        let route = |(route, hostname): (&Route, Option<String>)| {
            RouteContext::new(route, hostname, &context, options.ca.as_deref())
        };
        check(&context, selected.into_iter().map(route).collect(), options).await
    })?
}

/// The routes with these names, in the order of the file; all of them without names. A route appears once per name that
/// is below one of its wildcards.
fn select<'c>(config: &'c Config, names: &[String]) -> anyhow::Result<Vec<(&'c Route, Option<String>)>> {
    if names.is_empty() {
        return Ok(config.routes.iter().map(|route| (route, None)).collect());
    }
    let mut selected: HashMap<&str, BTreeSet<Option<String>>> = HashMap::new();
    for name in names {
        for Named { route, below } in named(config, name)? {
            selected.entry(&route.name).or_default().insert(below);
        }
    }
    let hostnames = |route: &'c Route| {
        let hostnames = selected.remove(&*route.name).unwrap_or_default();
        hostnames.into_iter().map(move |hostname| (route, hostname))
    };
    Ok(config.routes.iter().flat_map(hostnames).collect())
}

/// Prints the report of each route as soon as those before it are printed.
async fn check(context: &Context, routes: Vec<RouteContext>, options: &Doctor) -> anyhow::Result<ExitCode> {
    let style = Style::of_stdout();
    let mut stdout = std::io::stdout();
    let checks: Vec<_> = routes.into_iter().map(|route| tokio::spawn(route::check(Arc::new(route)))).collect();
    let mut summary = Summary::default();
    let results = loaded_config::check(context).await;
    let running = (!results.is_empty()).then(|| Report { name: "snigate".into(), hostname: None, results });
    if let Some(report) = &running {
        summary.add(report);
        if !options.json {
            stdout.write_all(report.text(style).as_bytes())?;
        }
    }
    let mut json = Vec::new();
    for check in checks {
        let report = check.await??;
        summary.add(&report);
        summary.routes += 1;
        if options.json {
            json.push(report.json());
        } else {
            stdout.write_all(report.text(style).as_bytes())?;
        }
    }
    if options.json {
        let running = running.map(|report| report.json()["checks"].take());
        writeln!(stdout, "{}", serde_json::json!({"running": running, "routes": json, "ok": summary.is_ok()}))?;
    } else {
        writeln!(stdout, "{summary}")?;
    }
    Ok(if summary.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
