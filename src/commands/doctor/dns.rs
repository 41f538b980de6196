//! Whether hostnames resolve: those that clients use, and those of upstreams.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::name::NamePattern;
use crate::text::Destination;
use crate::upstream::lookup;
use tokio::task::JoinError;

use super::context::{Context, RouteContext, list};
use super::parallel::run_all;
use super::report::{CheckResult, Verdict};
use crate::commands::unresolved;

/// Whether the route's hostnames resolve to this machine, or to `--through`.
pub(super) async fn check_hostnames(context: &RouteContext) -> Result<Vec<CheckResult>, JoinError> {
    let names = context.names();
    let exact = names.iter().filter_map(NamePattern::as_exact);
    let published: Arc<[SocketAddr]> = context.published.as_deref().unwrap_or_default().into();
    let check = |name: &str| check_hostname(Arc::clone(&context.shared), Arc::clone(&published), name.to_owned());
    let mut results = run_all(exact.map(check)).await?;
    if let (true, Some(NamePattern::Suffix(suffix))) = (results.is_empty(), names.first()) {
        let says = format!(
            "the hostnames that clients use below this wildcard are unknown, so their DNS records and the certificate's \
             names are not checked; to check one, run `snigate doctor {} FILE NAME`, where NAME is such as api.{suffix}",
            context.shared.source.option()
        );
        results.push(CheckResult::new(Verdict::Note, "dns", &names[0], says));
    }
    Ok(results)
}

async fn check_hostname(context: Arc<Context>, published: Arc<[SocketAddr]>, name: String) -> CheckResult {
    let begun = Instant::now();
    let (verdict, says) = match lookup(&name, 0).await {
        Err(error) => (
            Verdict::Note,
            format!("does not resolve, so clients need another way to reach it: {}", unresolved(&error)),
        ),
        Ok(addresses) => {
            let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            let is_published = |ip: IpAddr| published.iter().any(|address| address.ip().to_canonical() == ip);
            let is_expected = |ip: IpAddr| if published.is_empty() { context.is_local(ip) } else { is_published(ip) };
            let remote: Vec<IpAddr> = ips.iter().copied().filter(|ip| !is_expected(*ip)).collect();
            let is_through = |ip: &IpAddr| context.through.iter().any(|through| through.ip().to_canonical() == *ip);
            let resolves = format!("resolves to {}", list(&ips));
            let (here, place) = if published.is_empty() {
                ("this machine", "of this machine")
            } else {
                ("published", "that the cluster publishes")
            };
            if remote.is_empty() {
                (Verdict::Ok, format!("{resolves}: {here}"))
            } else if remote.iter().all(is_through) {
                (Verdict::Ok, format!("{resolves}: the address of --through"))
            } else {
                let what = if remote.len() == 1 { "is not an address" } else { "are not addresses" };
                let remote = list(&remote);
                (Verdict::Note, format!("{resolves}; {remote} {what} {place} (normal behind a load balancer)"))
            }
        }
    };
    CheckResult::new(verdict, "dns", name, says).since(begun)
}

/// The addresses of an endpoint. No check is needed if it is an address itself.
pub(super) async fn resolve(destination: Destination) -> (Option<CheckResult>, Vec<SocketAddr>) {
    let begun = Instant::now();
    let Some((host, port)) = destination.name() else { return (None, destination.address().into_iter().collect()) };
    let (verdict, says, addresses) = match lookup(host, port).await {
        Ok(addresses) => {
            let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            (Verdict::Ok, format!("resolves to {}", list(&ips)), addresses)
        }
        Err(error) => (Verdict::Failed, format!("does not resolve: {}", unresolved(&error)), Vec::new()),
    };
    (Some(CheckResult::new(verdict, "resolve", &destination, says).since(begun)), addresses)
}
