//! Where clients come in: the names that they look up, and the listeners.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::config::Listener;
use crate::upstream::lookup;

use super::report::{Check, Mark};
use super::route::{Here, Visit, list};
use crate::commands::unresolved;

/// Where a client may connect to.
pub(super) struct Door {
    pub(super) check: Check,
    /// `None`: the way through it is not to be tried.
    pub(super) open: Option<SocketAddr>,
}

/// The one of `--through`.
pub(super) async fn given_door(visit: Arc<Visit>, address: SocketAddr) -> Door {
    let begun = Instant::now();
    let (mark, says, open) = match visit.connect(address).await {
        Ok(_) => (Mark::Ok, "accepts connections".into(), Some(address)),
        Err(reason) => (Mark::Failed, format!("does not accept connections: {reason}"), None),
    };
    Door { check: Check::new(mark, "listener", address, says).since(begun), open }
}

/// Where a listener with this address is reached from its machine.
pub(super) fn reached_at(mut listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() {
        // [::] takes IPv4, too.
        listener.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    listener
}

/// A listener, on this machine.
pub(super) async fn door(visit: Arc<Visit>, number: usize) -> Door {
    let Listener { name, address, balancers, .. } = &visit.here.config.listeners[number];
    if address.port() == 0 {
        let says = "the kernel chooses its port, so the way through it is not checked; where is it? (--through)";
        return Door { check: Check::new(Mark::Note, "listener", name, says), open: None };
    }
    let target = reached_at(*address);
    let begun = Instant::now();
    let (mark, says, open) = match visit.connect(target).await {
        Ok(_) if balancers.is_some() => {
            let says = "accepts connections, but only of balancers that name the client (`accept_proxy`), so the way through it is not checked; where is one? (--through)";
            (Mark::Note, says.into(), None)
        }
        Ok(_) => (Mark::Ok, "accepts connections".into(), Some(target)),
        Err(reason) => {
            let says = format!(
                "nobody accepts connections, so the way through it is not checked: {reason}; does snigate run here? (--through)"
            );
            (Mark::Failed, says, None)
        }
    };
    Door { check: Check::new(mark, "listener", address, says).since(begun), open }
}

/// Whether clients that look the name up come here.
pub(super) async fn name_leads_here(here: Arc<Here>, name: String) -> Check {
    let begun = Instant::now();
    let (mark, says) = match lookup(&name, 0).await {
        Err(error) => {
            (Mark::Note, format!("does not resolve, so clients have to find it another way: {}", unresolved(&error)))
        }
        Ok(addresses) => {
            let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            let elsewhere: Vec<IpAddr> = ips.iter().copied().filter(|ip| !here.has(*ip)).collect();
            let resolves = format!("resolves to {}", list(&ips));
            if elsewhere.is_empty() {
                (Mark::Ok, format!("{resolves}: this machine"))
            } else if elsewhere.iter().all(|ip| here.through.iter().any(|through| through.ip().to_canonical() == *ip)) {
                (Mark::Ok, format!("{resolves}: where --through leads"))
            } else {
                let what = if elsewhere.len() == 1 { "is not an address" } else { "are no addresses" };
                let elsewhere = list(&elsewhere);
                (Mark::Note, format!("{resolves}; {elsewhere} {what} of this machine, which is fine behind a balancer"))
            }
        }
    };
    Check::new(mark, "dns", name, says).since(begun)
}
