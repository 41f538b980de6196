//! Whether the running snigate accepts connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::Listener;
use crate::connection::accept_proxy::Others;
use tokio::task::JoinError;

use super::context::{RouteContext, reachable_at};
use super::parallel::run_all;
use super::report::{CheckResult, Verdict};

pub(super) struct ListenerCheck {
    pub(super) result: CheckResult,
    /// Where to check the route end to end; `None`: not here.
    pub(super) reachable: Option<SocketAddr>,
}

/// Checks the addresses of `--through`, or else those that a cluster publishes, or the route's listeners on this machine.
pub(super) async fn check(context: &Arc<RouteContext>) -> Result<Vec<ListenerCheck>, JoinError> {
    let through = &context.shared.through;
    let all = |addresses: &[SocketAddr]| {
        run_all(addresses.iter().map(|address| check_through(Arc::clone(context), *address)).collect::<Vec<_>>())
    };
    if !through.is_empty() {
        return all(through).await;
    }
    if let Some(published) = &context.published {
        let mut checks = all(published).await?;
        // Some may be for clients elsewhere.
        if checks.iter().any(|check| check.reachable.is_some()) {
            checks = checks.into_iter().map(ListenerCheck::excused).collect();
        }
        return Ok(checks);
    }
    run_all(context.listeners().map(|index| check_local(Arc::clone(context), index))).await
}

impl ListenerCheck {
    fn excused(self) -> Self {
        Self { result: self.result.excused(), ..self }
    }
}

async fn check_through(context: Arc<RouteContext>, address: SocketAddr) -> ListenerCheck {
    let begun = Instant::now();
    let (verdict, says, reachable) = match context.connect(address).await {
        Ok(_) => (Verdict::Ok, "accepts connections".into(), Some(address)),
        Err(reason) => (Verdict::Failed, format!("cannot connect: {reason}"), None),
    };
    ListenerCheck { result: CheckResult::new(verdict, "listener", address, says).since(begun), reachable }
}

async fn check_local(context: Arc<RouteContext>, index: usize) -> ListenerCheck {
    let Listener { name, address, accept_proxy, .. } = &context.shared.config.listeners[index];
    if address.port() == 0 {
        let says = "not checked: the kernel chooses the port; pass the address with --through";
        return ListenerCheck { result: CheckResult::new(Verdict::Note, "listener", name, says), reachable: None };
    }
    let target = reachable_at(*address);
    let begun = Instant::now();
    let (verdict, says, reachable) = match context.connect(target).await {
        Ok(_) if accept_proxy.as_ref().is_some_and(|accept| accept.others == Others::Refuse) => {
            let says = "accepts connections, but requires a PROXY header (`accept_proxy`), so it is not checked end to end; \
                pass the address of a load balancer with --through";
            (Verdict::Note, says.into(), None)
        }
        Ok(stream) => match stream.local_addr().map(|local| context.unmet_by(index, local, target)) {
            Ok(unmet) if !unmet.is_empty() => {
                let says = format!(
                    "accepts connections, but the route requires {}, so it is not checked end to end from here",
                    unmet.join(" and ")
                );
                (Verdict::Note, says, None)
            }
            _ => (Verdict::Ok, "accepts connections".into(), Some(target)),
        },
        Err(reason) => {
            let says =
                format!("snigate is not reachable: {reason}; if it runs elsewhere, pass its address with --through");
            (Verdict::Failed, says, None)
        }
    };
    ListenerCheck { result: CheckResult::new(verdict, "listener", address, says).since(begun), reachable }
}
