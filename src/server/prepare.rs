//! The part of a start or reload that can fail: it binds new sockets and changes nothing that is running.

use std::net::SocketAddr;
use std::sync::Arc;

use socket2::Socket;
use tracing::info;

use super::capacity::{self, ResourceLimits};
use super::listening::{self, Listening, OpenSocket};
use super::memory::Memory;
use super::{ADMIN, Server, StartError};
use crate::admin::ListenerAddress;
use crate::config::{self, Config, Limits};
use crate::connection::Snapshot;
use crate::listener::{BindError, InheritedSocket, Presence};

/// The resources of a new configuration.
pub(super) struct Prepared {
    pub(super) memory: Memory,
    pub(super) limits: ResourceLimits,
    /// In the order of the configuration.
    pub(super) listeners: Vec<ListenerSource>,
    pub(super) admin: Option<ListenerSource>,
}

/// Where a listener's socket comes from.
pub(super) enum ListenerSource {
    /// The running listener with this index.
    Running(usize),
    New(OpenSocket),
    /// The others serve without it.
    Unavailable(BindError),
}

impl Server {
    /// Prepares a configuration. Also returns which of the inherited sockets it uses.
    pub(super) fn prepare(
        &self,
        config: &Config,
        inherited: Vec<InheritedSocket>,
    ) -> Result<(Prepared, Vec<bool>), StartError> {
        let Limits { connections, hello_bytes: _, buffer_bytes: _, source: _, park_after: _ } = config.limits;
        let memory = Memory::read();
        let limits = capacity::resource_limits(connections, config.listeners.len(), config.relay, memory)?;

        let wanted: Vec<(&str, SocketAddr)> = config
            .listeners
            .iter()
            .map(|listener| (&*listener.name, listener.address))
            .chain(config.admin.as_ref().map(|admin| (ADMIN, admin.address)))
            .collect();
        let kept = self.kept_listeners(&wanted);
        let offered: Vec<_> = inherited.iter().map(|socket| (socket.name.as_deref(), socket.address)).collect();
        let adopted = listening::assign(&wanted, &offered);
        let is_adopted: Vec<bool> = (0..inherited.len()).map(|index| adopted.contains(&Some(index))).collect();

        let mut leaving = self.sockets_except(&kept);
        let mut inherited: Vec<Option<InheritedSocket>> = inherited.into_iter().map(Some).collect();
        for (socket, is_adopted) in inherited.iter_mut().zip(&is_adopted) {
            if let Some(unused) = socket.take_if(|_| !is_adopted) {
                info!(address = %unused.address, "closing inherited socket that is not configured");
                leaving.push((unused.address, unused.socket.into()));
            }
        }

        let mut listeners = Vec::new();
        for (index, (_, address)) in wanted.into_iter().enumerate() {
            let inherited = adopted[index].and_then(|index| inherited[index].take());
            listeners.push(match (kept[index], inherited) {
                (Some(running), _) => ListenerSource::Running(running),
                (None, Some(socket)) => ListenerSource::New(listening::take_over(socket)?),
                (None, None) => {
                    let listener = config.listeners.get(index);
                    let presence = listener.map_or(Presence::Required, |listener| listener.presence);
                    match listening::open(address, presence, &leaving, &config.tcp) {
                        Ok(opened) => ListenerSource::New(opened),
                        Err(error) if listener.map_or(self.awaits_admin(address), |listener| listener.is_optional) => {
                            ListenerSource::Unavailable(error)
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            });
        }
        let admin = if config.admin.is_some() { listeners.pop() } else { None };
        Ok((Prepared { memory, limits, listeners, admin }, is_adopted))
    }

    /// For each wanted name and address, the index of the running listener that is kept for it, the admin listener last.
    fn kept_listeners(&self, wanted: &[(&str, SocketAddr)]) -> Vec<Option<usize>> {
        let snapshots: Vec<Arc<Snapshot>> = self.listeners.iter().map(|(_, snapshot)| snapshot.load_full()).collect();
        let names = snapshots.iter().map(|snapshot| &*snapshot.listener.name).chain(self.admin.as_ref().map(|_| ADMIN));
        let running: Vec<_> =
            names.zip(self.running()).map(|(name, listening)| (Some(name), listening.configured)).collect();
        let mut kept = listening::assign(wanted, &running);
        for (kept, (name, _)) in kept.iter_mut().zip(wanted) {
            // The accept loop of the admin listener only serves admin requests, and that of a listener only clients: if an
            // address moves from one to the other, a new socket is bound.
            *kept = kept.filter(|index| (*name == ADMIN) == (running[*index].0 == Some(ADMIN)));
        }
        kept
    }

    /// Duplicates of the running sockets that are not kept.
    fn sockets_except(&self, kept: &[Option<usize>]) -> Vec<(SocketAddr, Socket)> {
        let leaving = self.running().enumerate().filter(|(index, _)| !kept.contains(&Some(*index)));
        leaving.filter_map(|(_, listening)| Some((listening.address, listening.socket.try_clone().ok()?))).collect()
    }

    /// The running listeners, the admin listener last.
    fn running(&self) -> impl Iterator<Item = &Listening> {
        self.listeners.iter().map(|(listening, _)| listening).chain(&self.admin)
    }

    /// The addresses of the listeners, including the ports that the kernel chose.
    pub(super) fn listener_addresses(&self, config: &Config, prepared: &Prepared) -> Vec<ListenerAddress> {
        let addresses = prepared.listeners.iter().map(|source| match source {
            ListenerSource::Running(index) => Ok(self.listeners[*index].0.address),
            ListenerSource::New(socket) => Ok(socket.address),
            ListenerSource::Unavailable(error) => Err(error.to_string().into()),
        });
        let with_address = |(listener, address): (&config::Listener, _)| ListenerAddress {
            name: listener.name.as_str().into(),
            configured: listener.address,
            address,
        };
        config.listeners.iter().zip(addresses).map(with_address).collect()
    }
}
