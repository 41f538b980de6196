//! What operators want to be changed, through the control socket.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::admin::control::{Action, Order};
use crate::admin::draining;
use crate::logging::Logging;
use crate::process::unix_socket::{self, Found, Peer, SocketError};
use crate::server::{DrainError, DrainResult, Server};
use crate::upstream::Drained;
use anyhow::bail;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

const KEY: &str = "control";

/// Connects to the process that has the socket of `control`, or else listens there. One that drains leaves it to this one,
/// unless a predecessor hands it over.
pub(super) fn find(path: &Path, has_predecessor: bool) -> Result<Found, SocketError> {
    let is_left = |process: &UnixStream| {
        process.set_read_timeout(Some(draining::TIMEOUT))?;
        draining::is_draining(process)
    };
    unix_socket::open_unless(KEY, path, |process| !has_predecessor && is_left(process).unwrap_or(false))
}

/// The socket of `control`, if there is one.
pub(super) fn socket(
    path: Option<&Path>,
    inherited: Option<UnixListener>,
    found: Option<Result<Found, SocketError>>,
    has_predecessor: bool,
) -> anyhow::Result<Option<UnixListener>> {
    let Some(path) = path else { return Ok(None) };
    let inherited = inherited.filter(|socket| unix_socket::is_at(socket, path));
    match found {
        // The file of the inherited one was gone.
        Some(Ok(Found::Nobody(socket))) => Ok(Some(socket)),
        _ if inherited.is_some() => Ok(inherited),
        Some(Err(reason)) if has_predecessor => {
            // The sandbox may have been entered before the key was set.
            warn!(%reason, "operators cannot reach this process; restart snigate");
            Ok(None)
        }
        _ if has_predecessor => {
            warn!(path = %path.display(), "another instance listens at control; operators cannot reach this one");
            Ok(None)
        }
        Some(Err(reason)) => Err(reason.into()),
        _ => bail!("{KEY}: {}: another process listens there; each instance needs a path of its own", path.display()),
    }
}

/// The orders of operators.
pub(super) struct Control {
    /// For the next process.
    socket: Option<UnixListener>,
    orders: Option<mpsc::Receiver<Order>>,
    /// Orders that wait until a reload is over.
    postponed: VecDeque<Order>,
}

impl Control {
    /// Serves from this socket.
    pub(super) fn start(server: &mut Server, socket: Option<UnixListener>) -> io::Result<Self> {
        let mut control = Self { socket: None, orders: None, postponed: VecDeque::new() };
        if let Some(socket) = socket {
            control.socket = Some(socket.try_clone()?);
            control.orders = Some(server.listen_control(socket)?);
        }
        Ok(control)
    }

    /// A duplicate for the next process.
    pub(super) fn try_clone(&self) -> io::Result<Option<UnixListener>> {
        self.socket.as_ref().map(UnixListener::try_clone).transpose()
    }

    /// The next order.
    pub(super) async fn next(&mut self) -> Order {
        if let Some(order) = self.postponed.pop_front() {
            return order;
        }
        self.receive().await
    }

    async fn receive(&mut self) -> Order {
        if let Some(orders) = &mut self.orders
            && let Some(order) = orders.recv().await
        {
            return order;
        }
        std::future::pending().await
    }

    /// Carries out what does not have to wait for a reload that is under way, until this future is dropped.
    pub(super) async fn meanwhile(&mut self, server: &Server, logging: &Logging) -> Infallible {
        loop {
            let order = self.receive().await;
            match order.action {
                Action::Reload => self.postponed.push_back(order),
                Action::Drain(_) | Action::Resume(_) | Action::LogLevel(_) => carry_out(order, server, logging),
            }
        }
    }
}

/// Carries out an order other than to reload.
pub(super) fn carry_out(order: Order, server: &Server, logging: &Logging) {
    let Order { action, by, answer } = order;
    let Peer { user, process } = by;
    let result = match action {
        Action::Drain(drained) => {
            let result = server.drain_endpoints(&drained);
            log("drain", &drained, &result, by);
            drain_answer(&drained, true, result)
        }
        Action::Resume(resumed) => {
            let result = server.resume_endpoints(&resumed);
            log("resume", &resumed, &result, by);
            drain_answer(&resumed, false, result)
        }
        Action::LogLevel(level) if logging.is_configurable() => {
            let name = level.as_str().to_lowercase();
            // Before the new level may hide it.
            info!(
                verb = "log-level",
                level = name,
                operator.user = user,
                operator.process = process,
                "operator: log-level"
            );
            logging.set_level(level);
            Ok(json!({"level": name}))
        }
        Action::LogLevel(_) => Err("RUST_LOG is set in the environment of the process and overrides the level".into()),
        Action::Reload => return,
    };
    // The operator may have left.
    let _ = answer.send(result);
}

fn log(verb: &'static str, what: &Drained, result: &Result<DrainResult, DrainError>, by: Peer) {
    let Drained { route, endpoint } = what;
    let (route, endpoint) = (&**route, endpoint.map(tracing::field::display));
    let Peer { user, process } = by;
    macro_rules! line {
        ($level:ident, $message:literal, $($found:tt)*) => {
            $level!(
                verb, route, endpoint, $($found)*, operator.user = user, operator.process = process,
                $message
            )
        };
    }
    match result {
        Ok(DrainResult { connections, in_service, .. }) if *in_service == 0 => {
            line!(
                warn,
                "operator: {verb}: the route has no endpoint in service, and refuses clients",
                connections,
                in_service
            );
        }
        Ok(DrainResult { connections, in_service, .. }) => {
            line!(info, "operator: {verb}", connections, in_service);
        }
        Err(reason) => line!(info, "operator: {verb}: not carried out", %reason),
    }
}

fn drain_answer(what: &Drained, is_drained: bool, result: Result<DrainResult, DrainError>) -> Result<Value, String> {
    let Drained { route, endpoint } = what;
    let DrainResult { is_new, connections, in_service } = result.map_err(|error| error.to_string())?;
    Ok(json!({
        "route": route,
        "endpoint": endpoint.map(|endpoint| endpoint.to_string()),
        "drained": is_drained,
        "changed": is_new,
        "connections": connections,
        "in_service": in_service,
    }))
}
