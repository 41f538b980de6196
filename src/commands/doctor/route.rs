//! All checks of one route, from DNS to the endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::{EndpointCertificate, OwnListeners};
use tokio::task::JoinError;

use super::context::RouteContext;
use super::parallel::run_all;
use super::report::{CheckResult, Report, Verdict};
use super::{dns, end_to_end, endpoint, listener};

pub(super) async fn check(context: Arc<RouteContext>) -> Result<Report, JoinError> {
    let (hostnames, listeners, endpoints) =
        tokio::join!(dns::check_hostnames(&context), listener::check(&context), check_endpoints(&context));
    let (mut results, listeners, (endpoints, certificates)) = (hostnames?, listeners?, endpoints?);
    let certificates = Arc::new(certificates);
    let reachable = listeners.iter().filter_map(|listener| listener.reachable);
    let end_to_end = reachable.map(|at| end_to_end::check(Arc::clone(&context), at, Arc::clone(&certificates)));
    let end_to_end = run_all(end_to_end).await?;
    results.extend(listeners.into_iter().map(|listener| listener.result));
    results.extend(endpoints);
    results.extend(end_to_end);
    Ok(Report { name: context.route.name.clone(), hostname: context.hostname.clone(), results })
}

/// Checks the endpoints directly, and returns their certificates, too.
async fn check_endpoints(
    context: &Arc<RouteContext>,
) -> Result<(Vec<CheckResult>, Vec<EndpointCertificate>), JoinError> {
    let endpoints = context.route.upstream.endpoints.clone();
    let destinations = endpoints.into_iter().map(|endpoint| endpoint.destination);
    let mut results = Vec::new();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for (result, resolved) in run_all(destinations.map(dns::resolve)).await? {
        results.extend(result);
        addresses.extend(resolved);
    }
    addresses.sort_unstable();
    addresses.dedup();
    // Those of a cluster are not on this machine.
    let listeners = context
        .published
        .clone()
        .unwrap_or_else(|| context.shared.config.listeners.iter().map(|listener| listener.address).collect());
    let own = OwnListeners::new(&listeners);
    let (loops, addresses): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| own.contains(*address));
    drop(own);
    let says = "this is snigate's own listener: forwarding loop";
    results.extend(loops.into_iter().map(|address| CheckResult::new(Verdict::Failed, "connect", address, says)));
    let mut certificates = Vec::new();
    let checks = addresses.into_iter().map(|address| endpoint::check(Arc::clone(context), address));
    for (of_endpoint, certificate) in run_all(checks).await? {
        results.extend(of_endpoint);
        certificates.extend(certificate);
    }
    Ok((results, certificates))
}
