//! The counters in the `OpenMetrics` text format.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use strum::VariantArray;
use tokio::runtime::Handle;

use super::{AdminHandles, View};
use crate::listener::accept::ERROR_LABELS;
use crate::relay::budget;
use crate::telemetry::{Counters, Outcome, Reloads, RouteCounters, Stage, UNROUTED};
use crate::upstream::EndpointState;

/// All metrics, with the end mark of the format.
pub(super) fn encode(handles: &AdminHandles, runtime: RuntimeMetrics) -> String {
    let mut registry = Registry::default();
    let view = handles.view.load_full();
    let (routes, listeners) = (handles.counters.routes(), handles.counters.listeners());
    let counters = Arc::clone(&handles.counters);
    registry.register_collector(Box::new(MetricsSnapshot { counters, view, routes, listeners, runtime }));
    let mut text = String::new();
    // Writing to memory does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct MetricsSnapshot {
    counters: Arc<Counters>,
    view: Arc<View>,
    /// Those of the configuration, and recently removed ones.
    routes: Vec<Arc<RouteCounters>>,
    /// Names; likewise.
    listeners: Vec<Box<str>>,
    runtime: RuntimeMetrics,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RuntimeMetrics {
    workers: usize,
    tasks: usize,
    queued: usize,
}

impl RuntimeMetrics {
    /// As they are now.
    pub(super) fn of(runtime: &Handle) -> Self {
        let metrics = runtime.metrics();
        Self { workers: metrics.num_workers(), tasks: metrics.num_alive_tasks(), queued: metrics.global_queue_depth() }
    }
}

impl Collector for MetricsSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.connections(&mut encoder)?;
        self.bytes(&mut encoder)?;
        self.latencies(&mut encoder)?;
        self.endpoints(&mut encoder)?;
        self.accept_errors(&mut encoder)?;
        self.reloads(&mut encoder)?;
        self.log(&mut encoder)?;
        self.runtime(&mut encoder)?;
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        encoder
            .encode_descriptor("snigate_build", "Version of snigate", None, MetricType::Info)?
            .encode_info(&build)?;
        self.process(&mut encoder)
    }
}

impl MetricsSnapshot {
    fn routes(&self) -> impl Iterator<Item = &RouteCounters> {
        std::iter::once(&*self.counters.unrouted).chain(self.routes.iter().map(|route| &**route))
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut total = encoder.encode_descriptor(
            "snigate_connections",
            "Ended connections, by outcome",
            None,
            MetricType::Counter,
        )?;
        for route in self.routes() {
            let is_unrouted = route.name() == UNROUTED;
            for listener in &self.listeners {
                let counts = route.outcomes(listener);
                if counts.are_zero() && !is_unrouted {
                    continue;
                }
                for outcome in Outcome::VARIANTS.iter().copied().filter(|outcome| occurs(outcome.stage(), is_unrouted))
                {
                    let labels = [("listener", &**listener), ("route", route.name()), ("outcome", outcome.label())];
                    ConstCounter::new(counts.get(outcome)).encode(total.encode_family(&labels)?)?;
                }
            }
        }
        let mut active =
            encoder.encode_descriptor("snigate_connections_active", "Open connections", None, MetricType::Gauge)?;
        for route in self.routes() {
            let labels = [("route", route.name())];
            ConstGauge::new(route.active.load(Relaxed)).encode(active.encode_family(&labels)?)?;
        }
        let bytes = whole(budget::bytes() as u64);
        gauge(encoder, "snigate_buffered_bytes", "Bytes buffered for incomplete ClientHellos and slow readers", bytes)?;
        let limit = whole(budget::limit() as u64);
        gauge(encoder, "snigate_buffered_bytes_limit", "Maximum number of buffered bytes", limit)?;
        let limit = whole(self.counters.connections_limit.load(Relaxed));
        gauge(encoder, "snigate_connections_limit", "Maximum number of concurrent connections", limit)?;
        gauge(
            encoder,
            "snigate_predecessor_connections",
            "Connections still open in old processes after an upgrade",
            whole(self.counters.predecessor_connections.load(Relaxed)),
        )
    }

    fn bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut bytes = encoder.encode_descriptor(
            "snigate_bytes",
            "Bytes received from clients and sent to them",
            None,
            MetricType::Counter,
        )?;
        for route in self.routes().filter(|route| has_seen_connections(route)) {
            for (direction, count) in [("received", &route.received), ("sent", &route.sent)] {
                let labels = [("route", route.name()), ("direction", direction)];
                ConstCounter::new(count.load(Relaxed)).encode(bytes.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let hello = seconds(encoder, "snigate_hello", "Time from accept to the complete ClientHello")?;
        self.counters.hello_seconds.encode(hello)?;
        let checks = seconds(encoder, "snigate_check_lateness", "How late health checks begin")?;
        self.counters.check_lateness.encode(checks)?;
        let lookups = seconds(encoder, "snigate_lookup_lateness", "How late lookups of hostnames begin")?;
        self.counters.lookup_lateness.encode(lookups)?;
        let routed = self.routes.iter().map(|route| &**route);
        Self::histograms(
            encoder,
            "snigate_connect",
            "Time from the route decision to the connected endpoint",
            routed,
            |route| &route.durations().connect,
        )?;
        let routed = self.routes.iter().map(|route| &**route);
        Self::histograms(
            encoder,
            "snigate_answer",
            "Time from the connect to the first bytes from the endpoint",
            routed,
            |route| &route.durations().answer,
        )?;
        Self::histograms(
            encoder,
            "snigate_connection",
            "Duration of connections, from accept to the end",
            self.routes(),
            |route| &route.durations().connection,
        )
    }

    fn histograms<'r>(
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        routes: impl Iterator<Item = &'r RouteCounters>,
        histogram: impl Fn(&RouteCounters) -> &Histogram,
    ) -> fmt::Result {
        let mut family = seconds(encoder, name, help)?;
        for route in routes.filter(|route| has_seen_connections(route)) {
            histogram(route).encode(family.encode_family(&[("route", route.name())])?)?;
        }
        Ok(())
    }

    fn endpoints(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let routes = &self.view.routes;
        let pools: Vec<_> =
            routes.iter().map(|route| (route.counters.name(), route.upstream.endpoints(), route)).collect();
        let each = || {
            pools.iter().flat_map(|(route, endpoints, target)| {
                endpoints.iter().map(|endpoint| (*route, endpoint.address.to_string(), endpoint, *target))
            })
        };
        let mut states = encoder.encode_descriptor(
            "snigate_endpoint_state",
            "1 for the current state of the endpoint, 0 for the others",
            None,
            MetricType::Gauge,
        )?;
        for (route, address, endpoint, _) in each() {
            for &state in EndpointState::VARIANTS {
                let labels = [("route", route), ("endpoint", &*address), ("state", state.label())];
                ConstGauge::new(i64::from(endpoint.state() == state)).encode(states.encode_family(&labels)?)?;
            }
        }
        let mut connections = encoder.encode_descriptor(
            "snigate_endpoint_connections",
            "Open connections to the endpoint",
            None,
            MetricType::Gauge,
        )?;
        for (route, address, endpoint, _) in each() {
            let (count, labels) = (endpoint.connections(), [("route", route), ("endpoint", &*address)]);
            if count > 0 {
                ConstGauge::new(whole(count as u64)).encode(connections.encode_family(&labels)?)?;
            }
        }
        let mut expiry = encoder.encode_descriptor(
            "snigate_endpoint_certificate_expiry_timestamp_seconds",
            "Expiry of the certificate that the last health check received, as a Unix timestamp",
            None,
            MetricType::Gauge,
        )?;
        for (route, address, endpoint, _) in each() {
            let Some(certificate) = endpoint.certificate() else { continue };
            let labels = [("route", route), ("endpoint", &*address)];
            ConstGauge::new(certificate.expires).encode(expiry.encode_family(&labels)?)?;
        }
        let mut uncovered = encoder.encode_descriptor(
            "snigate_endpoint_certificate_uncovered_names",
            "Names of the route that this certificate does not cover",
            None,
            MetricType::Gauge,
        )?;
        for (route, address, endpoint, target) in each() {
            let Some(certificate) = endpoint.certificate() else { continue };
            let count = certificate.not_covered(&target.upstream.setup().names).len();
            let labels = [("route", route), ("endpoint", &*address)];
            ConstGauge::new(whole(count as u64)).encode(uncovered.encode_family(&labels)?)?;
        }
        let mut open = encoder.encode_descriptor(
            "snigate_route_failing_open",
            "1 while no endpoint is ready and connections are sent to all of them",
            None,
            MetricType::Gauge,
        )?;
        for (route, _, target) in &pools {
            if target.upstream.fails_open() {
                ConstGauge::new(1).encode(open.encode_family(&[("route", *route)])?)?;
            }
        }
        Ok(())
    }

    fn accept_errors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut errors = encoder.encode_descriptor(
            "snigate_accept_errors",
            "Failed accept calls, by error",
            None,
            MetricType::Counter,
        )?;
        let counts = self.counters.accept_errors();
        for error in ERROR_LABELS {
            let count = counts.get(error).copied().unwrap_or(0);
            ConstCounter::new(count).encode(errors.encode_family(&[("error", error)])?)?;
        }
        Ok(())
    }

    fn reloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Reloads { succeeded, failed, last_failed, last_success, .. } = &self.counters.reloads;
        let mut reloads = encoder.encode_descriptor(
            "snigate_config_reloads",
            "Configuration reloads, by result",
            None,
            MetricType::Counter,
        )?;
        for (result, count) in [("success", succeeded), ("failure", failed)] {
            ConstCounter::new(count.load(Relaxed)).encode(reloads.encode_family(&[("result", result)])?)?;
        }
        let successful = i64::from(!last_failed.load(Relaxed));
        gauge(
            encoder,
            "snigate_config_last_reload_successful",
            "1 if the last configuration reload succeeded, 0 if it failed",
            successful,
        )?;
        gauge(
            encoder,
            "snigate_config_last_reload_success_timestamp_seconds",
            "When the running configuration was applied, as a Unix timestamp",
            whole(last_success.load(Relaxed)),
        )
    }

    fn log(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let lost = encoder.encode_descriptor(
            "snigate_log_lines_lost",
            "Log lines lost because standard error failed or was too slow",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.counters.log_lines_lost.load(Relaxed)).encode(lost)
    }

    /// Metrics of the tokio runtime.
    fn runtime(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let RuntimeMetrics { workers, tasks, queued } = self.runtime;
        gauge(encoder, "snigate_runtime_workers", "Worker threads", whole(workers as u64))?;
        gauge(
            encoder,
            "snigate_runtime_tasks",
            "Tasks: one per connection, and a few per endpoint",
            whole(tasks as u64),
        )?;
        gauge(
            encoder,
            "snigate_runtime_queued_tasks",
            "Tasks in the global queue that wait for a worker thread",
            whole(queued as u64),
        )
    }

    /// The standard process metrics. Those that the kernel does not report are left out.
    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.counters.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(encoder, "process_start_time_seconds", "Start time of the process, as a Unix timestamp", started)?;
        let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            let milliseconds = (stat.utime + stat.stime) * 1000 / procfs::ticks_per_second();
            let cpu = encoder.encode_descriptor(
                "process_cpu_seconds",
                "CPU time, user and system",
                None,
                MetricType::Counter,
            )?;
            ConstCounter::new(Duration::from_millis(milliseconds).as_secs_f64()).encode(cpu)?;
            let resident = stat.rss.saturating_mul(procfs::page_size());
            gauge(encoder, "process_resident_memory_bytes", "Resident memory", whole(resident))?;
        }
        if let Ok(open) = process.fd_count() {
            gauge(encoder, "process_open_fds", "Open file descriptors", whole(open as u64))?;
        }
        if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge(encoder, "process_max_fds", "Maximum number of open file descriptors", whole(max))?;
        }
        Ok(())
    }
}

/// Whether there is anything to count: an idle route has no series that are zero, of which ten thousand routes have many.
fn has_seen_connections(route: &RouteCounters) -> bool {
    route.name() == UNROUTED || route.active.load(Relaxed) > 0 || route.ended_in_all() > 0
}

/// Whether a connection with a route (or without) can end at this stage. Series that can never count are left out.
fn occurs(stage: Stage, is_unrouted: bool) -> bool {
    match stage {
        Stage::BeforeRoute => is_unrouted,
        Stage::Connect | Stage::Relay => !is_unrouted,
        Stage::Any => true,
    }
}

fn seconds<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)
}

/// Gauges only have signed integers.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
