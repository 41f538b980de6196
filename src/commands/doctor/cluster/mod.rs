//! `snigate doctor --kubeconfig`: what a cluster says, and the routes that this amounts to.

mod objects;
mod published;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, Route};
use crate::gateway::api::{Key, Kind};
use crate::gateway::cluster::{Access, Reading, read};
use crate::gateway::configuration::configuration;
use crate::gateway::plan::{ObjectRef, Plan};
use crate::gateway::translate::translate;
use crate::upstream::{EndpointSettings, Share};
use anyhow::Context as _;

use self::objects::Objects;
use self::published::Published;
use super::context::{Context, RouteContext, Source};
use super::{check, select, through};
use crate::cli::{Doctor, WATCH_SECONDS};
use crate::commands::served;

pub(super) async fn run(kubeconfig: &Path, options: &Doctor) -> anyhow::Result<ExitCode> {
    let asked = &options.asked;
    let (access, chosen) =
        served::access_and_options(asked.served.clone(), Some(kubeconfig.to_owned()), false, WATCH_SECONDS);
    let access = Access { context: asked.context.clone(), ..access };
    let reading = read(&access).await.context("Kubernetes")?;
    let plan = translate(&reading.snapshot, &chosen, &[]);
    let config = resolved(&plan)?;
    let published = Published::read(&reading, &plan, &chosen).await;
    let Selected { objects: named, routes } = Selected::of(&options.names, &config, &reading, &plan)?;
    let objects = Objects { reading: &reading, plan: &plan, options: &chosen, published: &published };
    let reports = objects.reports(|kind, key| named.as_ref().is_none_or(|named| named.contains(&(kind, key.clone()))));
    let context = Arc::new(Context::new(Source::Cluster, &config, through(options).await?));
    let route = |(route, hostname): (&Route, Option<String>)| {
        let checked = RouteContext::new(route, hostname, &context, options.ca.as_deref());
        checked.published_at(published.of_route(&route.name))
    };
    check(&context, reports, routes.into_iter().map(route).collect(), options).await
}

/// The configuration that is served, with the addresses of endpoints in place of Services.
fn resolved(plan: &Plan) -> anyhow::Result<Config> {
    let mut config = configuration(&Config::empty_base()?, &plan.routing);
    for (route, planned) in config.routes.iter_mut().zip(&plan.routing.routes) {
        let backends: BTreeSet<_> = planned.backends.iter().filter_map(|weighted| weighted.backend.as_ref()).collect();
        let addresses: BTreeSet<_> =
            backends.into_iter().filter_map(|key| plan.endpoints.get(key)).flat_map(|found| &found.serving).collect();
        let endpoint =
            |address: &SocketAddr| EndpointSettings { destination: (*address).into(), share: Share::DEFAULT };
        route.upstream.endpoints = addresses.into_iter().map(endpoint).collect();
        route.upstream.split = None;
    }
    Ok(config)
}

/// What arguments select.
struct Selected<'c> {
    /// `None`: all.
    objects: Option<BTreeSet<(Kind, Key)>>,
    routes: Vec<(&'c Route, Option<String>)>,
}

impl<'c> Selected<'c> {
    /// Names are those of routes, hostnames, or objects without a route.
    fn of(names: &[String], config: &'c Config, reading: &Reading, plan: &Plan) -> anyhow::Result<Self> {
        if names.is_empty() {
            return Ok(Self { objects: None, routes: select(config, &[])? });
        }
        let of_kind = |kind, key: &Key| (kind, key.clone());
        let routes = reading.snapshot.routes.keys().map(|key| of_kind(Kind::TlsRoute, key));
        let ingresses = reading.snapshot.ingresses.keys().map(|key| of_kind(Kind::Ingress, key));
        let is_named = |(_, key): &(Kind, Key)| names.iter().any(|name| *name == key.to_string());
        let mut objects: BTreeSet<(Kind, Key)> = routes.chain(ingresses).filter(is_named).collect();
        let is_route = |name: &&String| {
            config.routes.iter().any(|route| route.name == **name)
                || !objects.iter().any(|(_, key)| key.to_string() == **name)
        };
        let names: Vec<String> = names.iter().filter(is_route).cloned().collect();
        let routes = if names.is_empty() { Vec::new() } else { select(config, &names)? };
        for (route, _) in &routes {
            let planned = plan.routing.routes.iter().filter(|planned| planned.name == route.name);
            objects.extend(planned.map(|planned| {
                let ObjectRef { kind, key, uid: _ } = &planned.object;
                of_kind(*kind, key)
            }));
        }
        Ok(Self { objects: Some(objects), routes })
    }
}
