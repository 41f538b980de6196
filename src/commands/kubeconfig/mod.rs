//! `snigate kubeconfig`

mod ca;
mod existing;
mod server_name;
mod server_url;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::config::{Config, Route};
use crate::name::NamePattern;
use anyhow::{Context, bail};
use rustls::pki_types::ServerName;
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};

use self::ca::Trust;
use self::existing::Existing;
use self::server_name::{Certificate, Clients};
use super::admin::status;
use super::named::{Named, named};
use super::{listed, printable, runtime, yaml};
use crate::cli::Kubeconfig;

pub(super) fn run(options: &Kubeconfig) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.config)?;
    let Named { route, below } = find_route(&config, &options.route)?;
    let cluster = options.cluster.as_deref();
    let existing = options.from.as_ref().map(|path| Existing::read(path, cluster)).transpose()?;
    let server = options.server.clone().map_or_else(|| server_url::of_route(&config, route, below.as_deref()), Ok)?;
    let trust = Trust::choose(options, route, existing.as_ref())?;
    let certificate = match (&trust, &options.admin) {
        (Trust::Anyone, _) => Certificate::Unverified,
        (_, Some(admin)) => Certificate::Seen(seen_names(&runtime::run(status(admin))??.0, route)?),
        (_, None) => Certificate::Verified(known_names(route, existing.as_ref())),
    };
    let mut notes = vec![format!("Made by `snigate kubeconfig`: to the route `{}` through the router.", route.name)];
    let wanted = options.tls_server_name.as_deref();
    let name = Clients::of(&config, route, &server).tls_server_name(&server, wanted, &certificate, &mut notes)?;

    let mut place: Mapping = [("server".into(), server.to_string().into())].into_iter().collect();
    place.extend(name.map(|name| ("tls-server-name".into(), name.into())));
    place.extend(trust.entry());
    let document = if let Some(existing) = existing {
        existing.rewrite(place, &mut notes)?
    } else {
        notes.push("It has no credentials: `kubectl config set-credentials` and `set-context --current --user` add some, and --from rewrites a kubeconfig that has them.".into());
        new(cluster.or(below.as_deref()).unwrap_or(&route.name), place)
    };
    let mut text = String::new();
    for note in notes {
        writeln!(text, "# {}", printable(&note))?;
    }
    text.push_str(&yaml::document(&document)?);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn find_route<'c>(config: &'c Config, name: &str) -> anyhow::Result<Named<'c>> {
    let mut found = named(config, name)?;
    let only = (found.len() == 1).then_some(0);
    let Some(number) = found.iter().position(|named| named.route.name == name).or(only) else {
        let routes = found.iter().map(|named| named.route);
        bail!("several routes take `{name}`; expected one of {}", listed(routes));
    };
    Ok(found.swap_remove(number))
}

fn exact_names(route: &Route) -> impl Iterator<Item = &str> {
    route.patterns.iter().filter_map(NamePattern::as_exact)
}

/// Those in the certificates that the running instance has been shown by the route's endpoints.
fn seen_names(status: &Value, route: &Route) -> anyhow::Result<Vec<String>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let routes = list(&status["routes"]);
    let running = routes.iter().find(|running| running["name"] == *route.name);
    let running = running.with_context(|| format!("the running instance has no route `{}`", route.name))?;
    let endpoints = list(&running["upstream"]).into_iter().flat_map(|one| list(&one["endpoints"]));
    let mut names: Vec<String> = endpoints
        .flat_map(|endpoint| list(&endpoint["certificate"]["names"]))
        .filter_map(|name| Some(name.as_str()?.to_ascii_lowercase()))
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        bail!(
            "the running instance has seen no certificate of the route `{}`; expected `health_check: {{tls: …}}` in its \
             `upstream`, and an endpoint that answers",
            route.name
        );
    }
    Ok(names)
}

/// Those that the API server's certificate carries, as somebody verifies them already.
fn known_names(route: &Route, existing: Option<&Existing>) -> Vec<String> {
    let check = route.upstream.health_check.as_ref().and_then(|check| check.tls.as_ref()?.verified_name.as_ref());
    let checked = check.and_then(|name| match name {
        ServerName::DnsName(name) => Some(name.as_ref().to_ascii_lowercase()),
        _ => None,
    });
    existing.and_then(Existing::verified_name).into_iter().chain(checked).collect()
}

fn new(name: &str, place: Mapping) -> Mapping {
    let map = |entries: Vec<(&str, Yaml)>| -> Mapping {
        entries.into_iter().map(|(key, value)| (key.into(), value)).collect()
    };
    let entry = |kind: &str, value: Mapping| {
        Yaml::Sequence(vec![map(vec![("name", name.into()), (kind, value.into())]).into()])
    };
    map(vec![
        ("apiVersion", "v1".into()),
        ("kind", "Config".into()),
        ("clusters", entry("cluster", place)),
        ("contexts", entry("context", map(vec![("cluster", name.into())]))),
        ("current-context", name.into()),
    ])
}
