//! Connections of an old process that continue here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Semaphore;

use super::Server;
use super::generation::Generation;
use crate::connection::RouteTarget;
use crate::connection::admission::{SourceLimits, SourceTable};
use crate::connection::hand_over::{Arrivals, Arrived, Departures, Verdict};
use crate::connection::registry::Registry;
use crate::relay::RelaySettings;
use crate::telemetry::{Counters, ListenerTelemetry};

/// The settings of connections that are adopted.
#[derive(Debug)]
pub(super) struct AdoptionSettings {
    pub(super) relay: Arc<RelaySettings>,
    pub(super) source_limits: SourceLimits,
    pub(super) listeners: Vec<Arc<ListenerTelemetry>>,
}

/// Continues connections of an old process, by the configuration that is in use then.
#[derive(Debug)]
pub(crate) struct Adopter {
    registry: Arc<Registry>,
    counters: Arc<Counters>,
    source_table: Arc<SourceTable>,
    permits: Arc<Semaphore>,
    generation: Arc<ArcSwap<Generation>>,
    /// `None`: no connection is adopted any more.
    settings: Arc<ArcSwapOption<AdoptionSettings>>,
    /// The routes of a generation by name.
    routes: Option<(Arc<Generation>, RoutesByName)>,
}

type RoutesByName = HashMap<Box<str>, Arc<RouteTarget>>;

impl Adopter {
    /// Prepares to continue these connections. Returns the verdict on each, and those that are to be started once the old
    /// process knows it.
    pub(crate) fn prepare(&mut self, offered: Vec<(Vec<u8>, [OwnedFd; 2])>) -> (Vec<u8>, Vec<Arrived>) {
        let Some(settings) = self.settings.load_full() else { return (Self::no_room(offered.len()), Vec::new()) };
        let generation = self.generation.load_full();
        let routes = match self.routes.take() {
            Some((of, routes)) if Arc::ptr_eq(&of, &generation) => routes,
            _ => {
                let routes = generation.view.routes.iter();
                routes.map(|route| (route.counters.name().into(), Arc::clone(route))).collect()
            }
        };
        let arrivals = Arrivals {
            registry: &self.registry,
            counters: &self.counters,
            source_table: &self.source_table,
            source_limits: settings.source_limits,
            settings: &settings.relay,
            listeners: &settings.listeners,
            routes: &routes,
        };
        let (mut verdicts, mut arrived) = (Vec::with_capacity(offered.len()), Vec::with_capacity(offered.len()));
        for (record, sockets) in offered {
            let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
            verdicts.push(match arrivals.prepare(&record, sockets, permit) {
                Ok(connection) => {
                    arrived.push(connection);
                    Verdict::Adopted as u8
                }
                Err(verdict) => verdict as u8,
            });
        }
        self.routes = Some((generation, routes));
        (verdicts, arrived)
    }

    /// Forgets what is kept from one offer to the next. A generation that is replaced is in use until then.
    pub(crate) fn pause(&mut self) {
        self.routes = None;
    }

    /// The verdicts on so many connections for which there is no room.
    pub(crate) fn no_room(connections: usize) -> Vec<u8> {
        vec![Verdict::NoRoom as u8; connections]
    }
}

impl Server {
    /// To continue the connections of an old process.
    pub(crate) fn adopter(&self) -> Adopter {
        Adopter {
            registry: Arc::clone(&self.registry),
            counters: Arc::clone(&self.counters),
            source_table: Arc::clone(&self.source_table),
            permits: Arc::clone(&self.capacity.permits),
            generation: Arc::clone(&self.generation),
            settings: Arc::clone(&self.adoption),
            routes: None,
        }
    }

    /// To hand connections over to a new process.
    pub(crate) fn departures(&self) -> Departures {
        Departures::start(&self.registry)
    }
}
