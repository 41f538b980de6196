//! What operators change in the running server.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Server;
use crate::admin::control::{self, ControlHandles, MAX_ORDERS, Order};
use crate::connection::RouteTarget;
use crate::listener::accept::Stop;
use crate::upstream::{Drained, WholeRoute};

/// Why nothing was drained or resumed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrainError {
    #[error("no route is named `{0}`; `snigate ctl routes` lists them")]
    UnknownRoute(Box<str>),
    #[error("the route `{route}` has no endpoint {endpoint}; it has {known}")]
    UnknownEndpoint { route: Box<str>, endpoint: SocketAddr, known: String },
    #[error(transparent)]
    WholeRoute(#[from] WholeRoute),
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainResult {
    /// Whether it was not so before.
    pub(crate) is_new: bool,
    /// Open connections of what was drained or resumed. They stay.
    pub(crate) connections: usize,
    /// Endpoints of the route that may get connections now.
    pub(crate) in_service: usize,
}

impl Server {
    /// Serves operators from this socket. Returns what they want to be changed.
    pub(crate) fn listen_control(&mut self, socket: UnixListener) -> io::Result<mpsc::Receiver<Order>> {
        let (orders, received) = mpsc::channel(MAX_ORDERS);
        let admin = Arc::new(self.admin_handles());
        let handles = ControlHandles { admin, registry: Arc::clone(&self.registry), orders };
        let stop = Stop::default();
        socket.set_nonblocking(true)?;
        let runtime = self.admin_runtime().map_or_else(tokio::runtime::Handle::current, |own| own.handle().clone());
        let _context = runtime.enter();
        let socket = tokio::net::UnixListener::from_std(socket)?;
        self.control = Some((stop.clone(), runtime.spawn(control::run(socket, handles, stop))));
        Ok(received)
    }

    /// Leaves the control socket to a successor.
    pub(super) fn hand_over_control(&mut self) {
        if let Some((stop, serving)) = self.control.take() {
            stop.hand_over();
            self.closing.spawn(async move {
                let _ = serving.await;
            });
        }
    }

    /// What is drained.
    pub(crate) fn drained(&self) -> Vec<Drained> {
        self.context.drains.all()
    }

    /// New connections no longer go there.
    pub(crate) fn drain_endpoints(&self, drained: &Drained) -> Result<DrainResult, DrainError> {
        let route = self.route(&drained.route).ok_or_else(|| DrainError::UnknownRoute(drained.route.clone()))?;
        let endpoints = route.upstream.endpoints();
        if let Some(endpoint) = drained.endpoint
            && !endpoints.iter().any(|known| known.address == endpoint)
        {
            let known: Vec<String> = endpoints.iter().map(|known| known.address.to_string()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(DrainError::UnknownEndpoint { route: drained.route.clone(), endpoint, known });
        }
        let is_new = self.context.drains.drain(drained);
        route.upstream.drained();
        Ok(result(&route, drained, is_new))
    }

    /// New connections go there again. It may have been removed from the configuration meanwhile.
    pub(crate) fn resume_endpoints(&self, resumed: &Drained) -> Result<DrainResult, DrainError> {
        let is_new = self.context.drains.resume(resumed)?;
        match self.route(&resumed.route) {
            Some(route) => {
                route.upstream.resumed();
                Ok(result(&route, resumed, is_new))
            }
            None if is_new => Ok(DrainResult { is_new, connections: 0, in_service: 0 }),
            None => Err(DrainError::UnknownRoute(resumed.route.clone())),
        }
    }

    fn route(&self, name: &str) -> Option<Arc<RouteTarget>> {
        self.generation.load().view.routes.iter().find(|route| route.counters.name() == name).cloned()
    }
}

fn result(route: &RouteTarget, what: &Drained, is_new: bool) -> DrainResult {
    let endpoints = route.upstream.endpoints();
    let meant = endpoints.iter().filter(|endpoint| what.endpoint.is_none_or(|meant| meant == endpoint.address));
    DrainResult {
        is_new,
        connections: meant.map(|endpoint| endpoint.connections()).sum(),
        in_service: endpoints.iter().filter(|endpoint| !route.upstream.is_drained(endpoint)).count(),
    }
}
