//! `snigate doctor`: checks every step from a client to its API servers.

#[cfg(feature = "gateway")]
mod cluster;
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
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, Route};
use crate::upstream::health::{Authorities, CaFile};
use anyhow::Context as _;

use self::context::{Context, RouteContext, Source};
use self::report::{Report, Style, Summary};
use super::named::{Named, named};
use super::{addresses, runtime};
use crate::cli::Doctor;

pub(super) fn run(options: &Doctor) -> anyhow::Result<ExitCode> {
    if let Some(ca) = &options.ca {
        Authorities::read(&CaFile::File(ca.clone())).map_err(anyhow::Error::msg).context("--ca")?;
    }
    #[cfg(feature = "gateway")]
    if let Some(kubeconfig) = &options.asked.kubeconfig {
        return runtime::run(cluster::run(kubeconfig, options))?;
    }
    let config = Config::load(options.config.as_deref().context("--config is missing")?)?;
    let selected = select(&config, &options.names)?;
    runtime::run(async {
        let context = Arc::new(Context::new(Source::File, &config, through(options).await?));
        let route = |(route, hostname): (&Route, Option<String>)| {
            RouteContext::new(route, hostname, &context, options.ca.as_deref())
        };
        check(&context, Vec::new(), selected.into_iter().map(route).collect(), options).await
    })?
}

/// The addresses of `--through`.
async fn through(options: &Doctor) -> anyhow::Result<Vec<SocketAddr>> {
    let Some(through) = &options.through else { return Ok(Vec::new()) };
    addresses(through).await.with_context(|| format!("--through {through}"))
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

/// Prints the report of each route as soon as those before it are printed, after those on objects of a cluster.
async fn check(
    context: &Context,
    objects: Vec<Report>,
    routes: Vec<RouteContext>,
    options: &Doctor,
) -> anyhow::Result<ExitCode> {
    let style = Style::of_stdout();
    let mut stdout = std::io::stdout();
    let checks: Vec<_> = routes.into_iter().map(|route| tokio::spawn(route::check(Arc::new(route)))).collect();
    let mut summary = Summary::default();
    let results = loaded_config::check(context).await;
    let running = (!results.is_empty()).then(|| Report { name: "snigate".into(), hostname: None, results });
    for report in running.iter().chain(&objects) {
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
        let mut document = serde_json::json!({"running": running, "routes": json, "ok": summary.is_ok()});
        if !objects.is_empty() {
            document["cluster"] = objects.iter().map(Report::json).collect();
        }
        writeln!(stdout, "{document}")?;
    } else {
        writeln!(stdout, "{summary}")?;
    }
    Ok(if summary.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
